"""What lately could not be mirrored: for a while nobody asks the upstream again. Pure."""

from collections import OrderedDict
from typing import Final

from mirror.errors import MirrorError, NotUpstream, UpstreamUnavailable

NOT_THERE_SECONDS: Final = 30.0
"""What the upstream denies may be made at any moment: who has just made it tries again soon."""

FAILED_SECONDS: Final = 5.0
"""Passing trouble, and what the operator is mending."""

REFUSALS_MAX: Final = 10_000


class Refusals:
    """Errors by the name of the repository."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[float, MirrorError]] = OrderedDict()

    def find(self, name: str, now: float) -> MirrorError | None:
        """Return why a repository can't be mirrored, if that is known well enough."""
        known = self._known.get(name)
        if known is None:
            return None
        until, error = known
        if now < until:
            return error
        del self._known[name]
        return None

    def add(self, name: str, error: MirrorError, now: float) -> None:
        """Remember why a repository could not be mirrored."""
        seconds = NOT_THERE_SECONDS if isinstance(error, NotUpstream) else FAILED_SECONDS
        if isinstance(error, UpstreamUnavailable) and error.retry_after_seconds is not None:
            seconds = max(seconds, error.retry_after_seconds)
        self._known[name] = now + seconds, error
        self._known.move_to_end(name)
        if len(self._known) > REFUSALS_MAX:
            self._known.popitem(last=False)

    def forget(self, name: str) -> None:
        """Let a repository be asked for at once."""
        self._known.pop(name, None)
