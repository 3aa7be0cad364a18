"""Packs being built: one builder each, any number of readers that follow it.

A build writes into a spool at full speed, however slow its readers are: a few stalled clients must
not hold all the places for builds. Readers of the same request share one build; one that leaves
cancels nothing, and when the last has left the build is ended. Small packs stay in memory, the rest
goes to a file that has no name, so that nothing is left behind after a crash.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import IO, Final

import structlog

from mirror.errors import LocalError, MirrorError, Overloaded, PackError
from mirror.metrics import Metrics
from mirror.repository.bare import BareRepository
from mirror.repository.packing.engine import PackEngine, PackRequest

MEMORY_BYTES_MAX: Final = 1 << 20
"""A spool is in memory up to here: most fetches of a GitOps controller."""

READ_BYTES: Final = 256 * 1024

logger = structlog.stdlib.get_logger()


class PackSpool:
    """The bytes of one pack while it is written and read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self.ended = False
        self._error: MirrorError | None = None
        self._grown = asyncio.Event()
        self.size = 0

    def append(self, data: bytes) -> None:
        """Add what was built.

        Raises:
            LocalError: The disk is full or broken.
        """
        try:
            if self._file is None and self.size + len(data) > MEMORY_BYTES_MAX:
                self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - closed in close()
                self._file.write(self._memory)
                self._memory = bytearray()
            if self._file is None:
                self._memory += data
            else:
                self._file.write(data)
                self._file.flush()
        except OSError as error:
            raise LocalError(
                f"can't spool a pack in {self._directory}: {error.strerror}"
            ) from error
        self.size += len(data)
        self._wake()

    def end(self, error: MirrorError | None = None) -> None:
        """Say that the pack is complete, or why it never will be."""
        self.ended = True
        self._error = error
        self._wake()

    async def follow(self, *, idle_seconds: float) -> AsyncGenerator[bytes, None]:
        """Yield the pack from its beginning; an empty piece whenever nothing came for a while.

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
        """Give back the memory or the file."""
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


class _Build:
    """A running build and how many read it."""

    def __init__(self, spool: PackSpool) -> None:
        self.spool = spool
        self.readers = 0
        self.task: asyncio.Task[None] | None = None


class PackBuilds:
    """Builds packs for readers, a bounded number at once."""

    def __init__(
        self,
        engine: PackEngine,
        *,
        directory: Path,
        builds_max: int,
        queued_max: int,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._directory = directory
        self._places = asyncio.Semaphore(builds_max)
        self._running_max = builds_max + queued_max
        self._metrics = metrics
        self._running: dict[tuple[Path, PackRequest], _Build] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(
        self, repository: BareRepository, request: PackRequest, *, idle_seconds: float
    ) -> AsyncGenerator[bytes, None]:
        """Yield the pack for `request`; an empty piece whenever nothing came for a while.

        Raises:
            Overloaded: Too many builds wait already.
            MirrorError: The build failed.
        """
        key = (repository.path, request)
        build = self._running.get(key)
        if build is None:
            if len(self._tasks) >= self._running_max:
                raise Overloaded("too many packs are being built; try again in a moment")
            build = self._running[key] = _Build(PackSpool(self._directory))
            build.task = asyncio.create_task(self._build(repository, request, build))
            self._tasks.add(build.task)
            build.task.add_done_callback(partial(self._finished, key, build))
        build.readers += 1
        try:
            pieces = build.spool.follow(idle_seconds=idle_seconds)
            async with aclosing(pieces):
                async for piece in pieces:
                    yield piece
        finally:
            build.readers -= 1
            if build.readers == 0:
                self._forget(key, build)
                if build.task is not None:
                    build.task.cancel()
                build.spool.close()

    async def close(self) -> None:
        """End what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _build(self, repository: BareRepository, request: PackRequest, build: _Build) -> None:
        spool = build.spool
        outcome = "abandoned"
        began_at = time.monotonic()
        async with self._places:
            self._metrics.record_build_began()
            try:
                chunks = self._engine.build_pack(repository, request)
                async with aclosing(chunks):
                    async for chunk in chunks:
                        spool.append(chunk)
                outcome = "ok"
                spool.end()
            except MirrorError as error:
                outcome = error.label
                logger.warning("pack_build_failed", path=str(repository.path), error=str(error))
                spool.end(error)
            except Exception as error:
                outcome = "internal"
                logger.exception("pack_build_broke", path=str(repository.path))
                spool.end(PackError(f"unexpected {type(error).__name__}"))
            finally:
                seconds = time.monotonic() - began_at
                self._metrics.record_build_ended(self._engine.name, outcome, seconds, spool.size)

    def _finished(
        self, key: tuple[Path, PackRequest], build: _Build, task: "asyncio.Task[None]"
    ) -> None:
        """Clear up after a build, also one that was cancelled before it began."""
        self._tasks.discard(task)
        # A finished pack is not handed to later readers: refs may have tags by then that a build
        # from now would add.
        self._forget(key, build)
        if not build.spool.ended:
            build.spool.end(PackError("the service is stopping"))

    def _forget(self, key: tuple[Path, PackRequest], build: _Build) -> None:
        if self._running.get(key) is build:
            del self._running[key]
