"""The room on the disk below data_dir, the part of it that is kept free, and what a full one says.

The reserve is for refreshes, which are what the service is for: whatever can be made or fetched
again keeps out of it, and what is kept of that yields before the disk runs into it.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.errors import DiskFull, DiskReadOnly, DiskTrouble

RESERVE_BYTES: Final = 1 << 30
RESERVE_SHARE: Final = 1 / 20
"""The reserve by default: a gibibyte, and on a small disk no more than this share of it."""

SPARE_SHARE: Final = 1 / 8
"""Of the reserve: where room is made, for so much more, so that it is not made again at once."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

# What git prints for these errors: it is run in the C locale.
_FULL_WORDS: Final = (*map(os.strerror, sorted(_FULL)), "Out of diskspace")
_READ_ONLY_WORDS: Final = os.strerror(errno.EROFS)


@dataclass(frozen=True, slots=True)
class Space:
    """A file system at one moment, as a process that is not root may use it."""

    total_bytes: int
    free_bytes: int
    is_read_only: bool = False


Look = Callable[[Path], Space]
"""Looks at the file system that a path is on; raises `OSError`."""


@dataclass(frozen=True, slots=True)
class Reserve:
    """How much is kept free: so many bytes, or such a share of the disk, or the lesser of both."""

    size: int | None = RESERVE_BYTES
    share: float | None = RESERVE_SHARE

    def of(self, total_bytes: int) -> int:
        """Return the reserve of a disk of that size, in bytes."""
        parts = [self.size, None if self.share is None else int(total_bytes * self.share)]
        return min((part for part in parts if part is not None), default=0)


def look_at(path: Path) -> Space:
    """Look at the file system that `path` is on.

    Raises:
        OSError: It can't be looked at.
    """
    found = os.statvfs(path)
    return Space(
        total_bytes=found.f_blocks * found.f_frsize,
        free_bytes=found.f_bavail * found.f_frsize,
        is_read_only=bool(found.f_flag & os.ST_RDONLY),
    )


class Room:
    """The room below one directory; for any thread, and cheap enough to ask for each block."""

    def __init__(
        self, directory: Path, reserve: Reserve | None = None, *, look: Look = look_at
    ) -> None:
        self._directory = directory
        self._reserve = reserve or Reserve()
        self._look = look

    def look(self) -> Space | None:
        """Look now; `None` where that can't be told, and then nothing is held back for it."""
        try:
            return self._look(self._directory)
        except OSError:
            return None

    def reserve_bytes(self, space: Space) -> int:
        """Return what is kept free of `space`."""
        return self._reserve.of(space.total_bytes)

    def left(self) -> int | None:
        """Return how many bytes are free beside the reserve: less than none when it is touched."""
        space = self.look()
        return None if space is None else space.free_bytes - self.reserve_bytes(space)

    def lacking(self, more: int = 0) -> int:
        """Return how many bytes have to go for the reserve to be whole after `more` were written.

        0 where there is room; else with some to spare.
        """
        space = self.look()
        if space is None:
            return 0
        reserve = self.reserve_bytes(space)
        lacking = reserve + more - space.free_bytes
        return lacking + int(reserve * SPARE_SHARE) if lacking > 0 else 0


def disk_trouble(error: BaseException) -> DiskTrouble | None:
    """Return the error of the disk that `error` comes of; `None` where it comes of something else.

    By the errno of what caused it; of a child process only its words are known.
    """
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, DiskTrouble):
            return at
        if isinstance(at, OSError):
            if at.errno in _FULL:
                return DiskFull(str(error))
            if at.errno == errno.EROFS:
                return DiskReadOnly(str(error))
        at = at.__cause__
    words = str(error)
    if any(one in words for one in _FULL_WORDS):
        return DiskFull(words)
    return DiskReadOnly(words) if _READ_ONLY_WORDS in words else None
