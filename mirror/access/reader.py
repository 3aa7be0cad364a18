"""A reader that is known by name, and what it may see. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from mirror.config import is_named


@dataclass(frozen=True, slots=True)
class Reader:
    """Somebody who may read.

    Attributes:
        name: For the log: the kind and the configured name, such as `token flux-oslo`.
        repositories: Patterns; see `mirror.config.is_named`.
    """

    name: str
    repositories: tuple[str, ...]

    def may_read(self, repository: str) -> bool:
        """Tell whether a repository is among those that the reader may see."""
        return is_named(repository, self.repositories)


@dataclass(frozen=True, slots=True)
class Grant:
    """The permission to read one repository.

    Attributes:
        reader: Whose, by name.
        is_current: Whether it still holds. Asked before an answer is given again: it must not
            block, wait or raise. `None` where it always does.
    """

    reader: str
    is_current: Callable[[], bool] | None = None


ANONYMOUS = Grant("anonymous")
"""To what everybody may read."""
