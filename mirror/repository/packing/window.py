"""The end of a pack that no disk takes: a few pieces in memory, between its writer and its readers.

Then the writer does wait for its readers, and nobody can begin to read who was not there: that is
worse than a file, and better than no answer. A reader that stalls holds up the others, so it is let
go after a while.
"""

import asyncio
from collections import deque
from typing import Final

from mirror.errors import LocalError

WINDOW_BYTES_MAX: Final = 4 << 20
"""Held for each pack; a piece is added while less is there."""

STALL_SECONDS_MAX: Final = 30.0
"""A reader that takes nothing for so long is let go, so that the others get on."""


class TooSlow(LocalError):
    """A reader that did not keep up with a pack that can't be kept for it."""

    label = "too_slow"


class Cursor:
    """One reader's place in a pack.

    Attributes:
        position: How much of the pack it has taken.
        is_let_go: What it wants is not there any more.
    """

    def __init__(self, position: int = 0) -> None:
        self.position = position
        self.is_let_go = False


class Window:
    """The pieces from `start` on that a reader still needs."""

    def __init__(self, start: int) -> None:
        self.start = start
        self._pieces: deque[bytes] = deque()
        self._bytes = 0
        self._taken = asyncio.Event()

    @property
    def end(self) -> int:
        """How much of the pack is there, counted from its beginning."""
        return self.start + self._bytes

    async def add(self, data: bytes, cursors: set[Cursor]) -> None:
        """Add a piece, once the slowest reader has come near enough."""
        while self._bytes >= WINDOW_BYTES_MAX:
            self._drop(cursors)
            if self._bytes < WINDOW_BYTES_MAX:
                break
            self._taken.clear()
            try:
                async with asyncio.timeout(STALL_SECONDS_MAX):
                    await self._taken.wait()
            except TimeoutError:
                slowest = min(one.position for one in cursors if not one.is_let_go)
                for one in cursors:
                    one.is_let_go = one.is_let_go or one.position == slowest
        self._pieces.append(data)
        self._bytes += len(data)

    def read(self, position: int) -> bytes:
        """Return what is there from `position` on, up to the end of a piece."""
        at = self.start
        for piece in self._pieces:
            if position < at + len(piece):
                return piece[position - at :]
            at += len(piece)
        return b""

    def moved(self) -> None:
        """Take note that a reader took something, or left."""
        self._taken.set()

    def _drop(self, cursors: set[Cursor]) -> None:
        """Drop what all readers have; without readers, all of it."""
        needed = min((one.position for one in cursors if not one.is_let_go), default=self.end)
        while self._pieces and self.start + len(self._pieces[0]) <= needed:
            piece = self._pieces.popleft()
            self.start += len(piece)
            self._bytes -= len(piece)
