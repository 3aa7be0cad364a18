"""A pack while it is made: one writer, and readers that follow it from the beginning.

It is written at full speed, however slow its readers are: a few stalled clients must not hold all
the places for builds. Small ones stay in memory, the rest goes to a file; and where the disk takes
no more, what follows passes by in a window (`window`), so that its readers get all of it.
"""

import asyncio
import errno
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import IO, Final

import structlog

from mirror.errors import MirrorError
from mirror.repository.packing.window import Cursor, TooSlow, Window
from mirror.repository.threads import run_to_end

MEMORY_BYTES_MAX: Final = 1 << 20
"""A spool is in memory up to here: most fetches of a GitOps controller."""

READ_BYTES: Final = 256 * 1024

FOLLOWED_BYTES: Final = 128 * 1024
"""A piece for those who follow a build. A reader that takes nothing holds one, and its connection
holds another."""

MakeRoom = Callable[[], bool]
"""Makes room on the disk; tells whether there was anything to remove."""

HasRoom = Callable[[int], bool]
"""Tells whether so many bytes may be written, after making room for them if need be."""

Turn = Callable[[], Awaitable[None]]
"""Waits until a reader may take its next piece."""

logger = structlog.stdlib.get_logger()


async def at_once() -> None:
    """Wait for nobody."""


class PackSpool:
    """The framed bytes of one pack while it is written and read."""

    def __init__(
        self,
        path: Path,
        *,
        make_room: MakeRoom = lambda: False,
        has_room: HasRoom = lambda _: True,
    ) -> None:
        """Make an empty one.

        Args:
            path: The file to be made once it is too long for memory.
            make_room: Called in a thread when the disk is full.
            has_room: Called in a thread before something is written.
        """
        self._path = path
        self._make_room = make_room
        self._has_room = has_room
        self._window: Window | None = None
        self._cursors: set[Cursor] = set()
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._grown = asyncio.Event()
        self._error: MirrorError | None = None
        self._kept = sys.maxsize
        """How much of it is in memory or in the file; what follows is in the window."""
        self.ended = False
        self.size = 0

    @property
    def failed(self) -> bool:
        """Whether it never will be complete."""
        return self._error is not None

    @property
    def is_passing(self) -> bool:
        """Whether its end goes by without being kept."""
        return self._window is not None

    @property
    def is_joinable(self) -> bool:
        """Whether a reader that comes now gets all of it."""
        return self._window is None or self._window.start == self._kept

    @property
    def memory(self) -> bytes | None:
        """All of it, where it is in memory."""
        return bytes(self._memory) if self._file is None and self._window is None else None

    async def append(self, data: bytes) -> None:
        """Add what was made; where no disk takes it, once the slowest reader is near enough."""
        if not data:
            return
        if self._window is None:
            if self._file is None and self.size + len(data) <= MEMORY_BYTES_MAX:
                self._memory += data
            else:
                await self._write_or_pass(data)
        if self._window is not None:
            await self._window.add(data, self._cursors)
        self.size += len(data)
        self._wake()

    async def _write_or_pass(self, data: bytes) -> None:
        """Write to the file; if that can't be, begin the window with what is next."""
        try:
            await run_to_end(self._write, data)
        except OSError as error:
            logger.warning(
                "pack_not_spooled", directory=str(self._path.parent), error=error.strerror
            )
            self._window = Window(self.size)
            self._kept = self.size
        else:
            self._memory = bytearray()

    def _write(self, data: bytes) -> None:
        """Write to the file; in a thread, for a busy disk lets writers wait.

        Raises:
            OSError: The disk takes no more.
        """
        if not self._has_room(len(self._memory) + len(data)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._file is None:
            file = self._path.open("w+b", buffering=0)
            try:
                self._write_all(file, self._memory)
            except BaseException:
                file.close()
                raise
            self._file = file
        self._write_all(self._file, data)

    def _write_all(self, file: IO[bytes], data: bytes | bytearray) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[file.write(left) :]
            except OSError as error:
                if error.errno not in {errno.ENOSPC, errno.EDQUOT} or not self._make_room():
                    raise

    def end(self, error: MirrorError | None = None) -> None:
        """Say that the pack is complete, or why it never will be."""
        self.ended = True
        self._error = error
        self._wake()

    async def wait_ended(self) -> None:
        """Wait until it is complete.

        Raises:
            MirrorError: What the build ended with.
        """
        while not self.ended:
            await self._grown.wait()
        if self._error is not None:
            raise self._error

    async def follow(
        self, *, idle_seconds: float, turn: Turn = at_once
    ) -> AsyncGenerator[bytes, None]:
        """Yield it from its beginning; an empty piece whenever nothing came for a while.

        Args:
            idle_seconds: That while.
            turn: Waited for before each piece is read: a thousand readers wake at once.

        Raises:
            MirrorError: What the build ended with, or that this reader did not keep up with it.
        """
        cursor = Cursor()
        self._cursors.add(cursor)
        try:
            async with aclosing(self._follow(cursor, idle_seconds, turn)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._cursors.discard(cursor)
            if self._window is not None:
                self._window.moved()

    async def _follow(
        self, cursor: Cursor, idle_seconds: float, turn: Turn
    ) -> AsyncGenerator[bytes, None]:
        while True:
            if cursor.position < self.size:
                await turn()
                piece = self._read(cursor)
                cursor.position += len(piece)
                if self._window is not None:
                    self._window.moved()
                yield piece
            elif self._error is not None:
                raise self._error
            elif self.ended:
                return
            else:
                grown = self._grown
                try:
                    async with asyncio.timeout(idle_seconds):
                        await grown.wait()
                except TimeoutError:
                    yield b""

    def close(self) -> None:
        """Give back the memory or the file; nobody reads any more."""
        self._memory = bytearray()
        if self._file is not None:
            with suppress(OSError):  # of a full disk, said already
                self._file.close()

    def _read(self, cursor: Cursor) -> bytes:
        position, window = cursor.position, self._window
        if window is not None and position >= self._kept:
            if cursor.is_let_go or position < window.start:
                raise TooSlow(
                    "this fetch did not keep up, and the mirror's disk has no room to keep its pack"
                    " meanwhile; try again"
                )
            return window.read(position)
        end = min(self.size, self._kept, position + FOLLOWED_BYTES)
        if self._file is None:
            return bytes(self._memory[position:end])
        return os.pread(self._file.fileno(), end - position, position)

    def _wake(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()
