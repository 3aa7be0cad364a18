"""What every section of the configuration has in common."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class DefaultWords:
    """What the reference says of the default, where it is not a plain value."""

    words: str


@dataclass(frozen=True, slots=True)
class NeedsRestart:
    """A key whose change counts only from the next start on.

    Attributes:
        only_presence: It is so for whether there is a value; another value counts at once.
    """

    only_presence: bool = False


class Section(BaseModel):
    """A mapping with fixed keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )
