"""Which mirrors below `upstreams` have to go, and why. Pure: the time is passed in.

Gone upstream, unused for too long, too many, too large together: in this order. Of those that the
limits take, the ones read least recently go first. What is being read, refreshed or cloned stays.
"""

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

IDLE_SECONDS_MIN: Final = 60.0
"""What was read within that is not taken by the limits: a clone is several requests, and what goes
at once would come back at once."""


class Reason(enum.StrEnum):
    """Why a mirror is removed."""

    GONE = "gone"
    UNUSED = "unused"
    COUNT = "count"
    SIZE = "size"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Kept:
    """A mirror, as far as it matters here.

    Attributes:
        name: The repository's.
        read_at: When it was last read.
        size: Its bytes on disk.
        unused_seconds: After that it goes; `None` for never.
        is_gone: The upstream has denied it for long enough.
        is_busy: Somebody works with it at this moment.
    """

    name: str
    read_at: float
    size: int
    unused_seconds: float | None
    is_gone: bool = False
    is_busy: bool = False


def choose(
    kept: Iterable[Kept], now: float, *, count_max: int, bytes_max: int, lacking: int = 0
) -> dict[str, Reason]:
    """Choose which mirrors go, the first to go first.

    Args:
        kept: All there are.
        now: The time.
        count_max: So many may stay.
        bytes_max: Of so many bytes together.
        lacking: So many bytes are to go in any case, for the disk is short of them.
    """
    by_age = sorted(kept, key=lambda one: one.read_at)
    chosen: dict[str, Reason] = {}
    for one in by_age:
        if one.is_busy:
            continue
        if one.is_gone:
            chosen[one.name] = Reason.GONE
        elif one.unused_seconds is not None and now - one.read_at > one.unused_seconds:
            chosen[one.name] = Reason.UNUSED
    rest = [one for one in by_age if one.name not in chosen]
    count, size = len(rest), sum(one.size for one in rest)
    spared = size - lacking
    for one in rest:
        if count <= count_max and size <= min(bytes_max, spared):
            break
        if one.is_busy or now - one.read_at < IDLE_SECONDS_MIN:
            continue
        by_size = Reason.SIZE if size > bytes_max else Reason.DISK
        chosen[one.name] = Reason.COUNT if count > count_max else by_size
        count -= 1
        size -= one.size
    return chosen
