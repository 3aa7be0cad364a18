"""A pack while it is made: one writer, and readers that follow it from the beginning.

It is written at full speed, however slow its readers are: a few stalled clients must not hold all
the places for builds. Small ones stay in memory, the rest goes to a file.
"""

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from mirror.errors import LocalError, MirrorError
from mirror.repository.threads import run_to_end

MEMORY_BYTES_MAX: Final = 1 << 20
"""A spool is in memory up to here: most fetches of a GitOps controller."""

READ_BYTES: Final = 256 * 1024

MakeRoom = Callable[[], bool]
"""Makes room on the disk; tells whether there was anything to remove."""


class PackSpool:
    """The framed bytes of one pack while it is written and read."""

    def __init__(self, path: Path, *, make_room: MakeRoom = lambda: False) -> None:
        """Make an empty one.

        Args:
            path: The file to be made once it is too long for memory.
            make_room: Called in a thread when the disk is full.
        """
        self._path = path
        self._make_room = make_room
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._grown = asyncio.Event()
        self._error: MirrorError | None = None
        self.ended = False
        self.size = 0

    @property
    def failed(self) -> bool:
        """Whether it never will be complete."""
        return self._error is not None

    @property
    def memory(self) -> bytes | None:
        """All of it, where it is in memory."""
        return bytes(self._memory) if self._file is None else None

    async def append(self, data: bytes) -> None:
        """Add what was made.

        Raises:
            LocalError: The disk is full or broken.
        """
        if not data:
            return
        if self._file is None and self.size + len(data) <= MEMORY_BYTES_MAX:
            self._memory += data
        else:
            await run_to_end(self._write, data)
            self._memory = bytearray()
        self.size += len(data)
        self._wake()

    def _write(self, data: bytes) -> None:
        """Write to the file; in a thread, for a busy disk lets writers wait."""
        try:
            if self._file is None:
                file = self._path.open("w+b", buffering=0)
                try:
                    self._write_all(file, self._memory)
                except BaseException:
                    file.close()
                    raise
                self._file = file
            self._write_all(self._file, data)
        except OSError as error:
            message = f"can't spool a pack in {self._path.parent}: {error.strerror}"
            raise LocalError(message) from error

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

    async def follow(self, *, idle_seconds: float) -> AsyncGenerator[bytes, None]:
        """Yield it from its beginning; an empty piece whenever nothing came for a while.

        Raises:
            MirrorError: What the build ended with.
        """
        position = 0
        while True:
            if position < self.size:
                piece = self._read(position)
                position += len(piece)
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

    def _read(self, position: int) -> bytes:
        if self._file is None:
            return bytes(self._memory[position : position + READ_BYTES])
        return os.pread(self._file.fileno(), min(READ_BYTES, self.size - position), position)

    def _wake(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()
