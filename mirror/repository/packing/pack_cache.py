"""Packs for readers: those that are there, those under way, and those still to be built.

Equal requests have equal keys, and share one pack: from memory, from a file, or from the one build
that makes it, which they follow while it writes. A reader that leaves cancels nothing: it, or
another of its kind, will be back. A build that fails reaches all of its readers as an error and is
not kept.

Where several processes share the directory, a lock file for each key sees to it that one builds and
the others wait for its file.
"""

import asyncio
import fcntl
import hashlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import ExitStack, aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from mirror.errors import MirrorError, Overloaded, PackError
from mirror.metrics import Metrics
from mirror.repository.bare import BareRepository
from mirror.repository.integrity import Damage, OnRead
from mirror.repository.packing.engine import PackEngine, PackRequest
from mirror.repository.packing.framing import frame
from mirror.repository.packing.pack_store import PackKey, PackStore, StoredPack
from mirror.repository.packing.spool import READ_BYTES, PackSpool, Turn, at_once
from mirror.repository.threads import run_to_end

FORMAT: Final = "1"
"""Part of every key: raised when packs for the same request are to be made anew."""

LOCK_POLL_SECONDS: Final = 0.01
LOCK_POLL_SECONDS_MAX: Final = 0.1

LET_GO_SECONDS: Final = 2.0
"""So soon a file that another process removed makes room on the disk."""

logger = structlog.stdlib.get_logger()


class PackBuild:
    """A pack that is being built. Its readers follow the spool."""

    def __init__(self, spool: PackSpool, path: Path) -> None:
        self.spool = spool
        self.path = path
        self.is_queued = False
        self.is_given_up = False
        self.readers = 0
        self.pack_bytes = 0
        self.task: asyncio.Task[None] | None = None
        self.lock = ExitStack()
        """What others wait for that want the same, in other processes too."""
        self.stored: StoredPack | None = None
        """What became of it; a pack that was found in a file after all is here at once."""

    @property
    def is_joinable(self) -> bool:
        """Whether a reader that comes now gets all of it."""
        return not self.is_given_up and self.spool.is_joinable

    async def append(self, data: bytes) -> None:
        """Add a part of the pack."""
        self.pack_bytes += len(data)
        await self.spool.append(frame(data))

    def whole(self) -> StoredPack | None:
        """Return the pack if it is complete and in memory already: a small one is, at once."""
        if self.stored is not None:
            return self.stored
        framed = self.spool.memory
        if framed is None or not self.spool.ended or self.spool.failed:
            return None
        return StoredPack(framed, self.pack_bytes, self.path, time.time())

    async def follow(
        self, *, idle_seconds: float, turn: Turn = at_once
    ) -> AsyncGenerator[bytes | memoryview, None]:
        """Yield the framed pack; an empty piece whenever nothing came for a while.

        Args:
            idle_seconds: That while.
            turn: Waited for before each piece is read.

        Raises:
            MirrorError: The build failed.
        """
        spooled = self.spool.follow(idle_seconds=idle_seconds, turn=turn)
        async with aclosing(spooled):
            async for written in spooled:
                yield written
        if self.spool.size == 0 and self.stored is not None:
            for piece in slices(self.stored.framed):
                await turn()
                yield piece


def slices(framed: bytes | memoryview) -> list[memoryview]:
    """Cut a pack into pieces to be sent one after another."""
    view = memoryview(framed)
    return [view[start : start + READ_BYTES] for start in range(0, len(view), READ_BYTES)]


class PackCache:
    """All packs of one process."""

    def __init__(
        self,
        engine: PackEngine,
        store: PackStore,
        *,
        builds_max: int,
        queued_max: int,
        is_shared: bool = False,
        metrics: Metrics,
    ) -> None:
        """Make the cache.

        Args:
            engine: Builds what is not there.
            store: Keeps what was built.
            builds_max: How many builds may run at once.
            queued_max: How many more may wait.
            is_shared: Whether other processes use the store's directory.
            metrics: Told of builds and hits.
        """
        self._engine = engine
        self._store = store
        self._builds_max = builds_max
        self._places = asyncio.Semaphore(builds_max)
        self._running_max = builds_max + queued_max
        self._is_shared = is_shared
        self._metrics = metrics
        self._running: dict[PackKey, PackBuild] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def change(
        self, *, builds_max: int, queued_max: int, bytes_max: int, memory_bytes_max: int
    ) -> None:
        """Keep to other limits from now on; builds under way keep their places."""
        if builds_max != self._builds_max:
            self._builds_max = builds_max
            self._places = asyncio.Semaphore(builds_max)
        self._running_max = builds_max + queued_max
        self._store.change(bytes_max=bytes_max, memory_bytes_max=memory_bytes_max)

    def key(self, repository: BareRepository, request: PackRequest) -> PackKey:
        """Return the name of the pack for a request to one repository."""
        digest = hashlib.blake2b(request.digest, digest_size=20)
        for part in (FORMAT, repository.upstream_url, os.fspath(repository.path)):
            digest.update(part.encode() + b"\0")
        digest.update(f"{self._engine.name} {self._engine.version}".encode())
        return PackKey(digest.hexdigest())

    def find(self, key: PackKey) -> StoredPack | None:
        """Return a pack that is at hand; no disk is touched."""
        pack = self._store.find(key)
        if pack is not None:
            self.use(pack)
        return pack

    def is_at_hand(self, key: PackKey) -> bool:
        """Tell whether `find` would find a pack, or it is being built; from any thread."""
        return key in self._running or self._store.has(key)

    def look(self, key: PackKey) -> StoredPack | None:
        """Return a pack that is on disk; blocking. Give it to `admit`."""
        return self._store.open(key)

    def admit(self, key: PackKey, pack: StoredPack) -> None:
        """Keep a pack at hand."""
        self._store.admit(key, pack)

    def scrub(self, on_read: OnRead) -> Iterator[Damage]:
        """Read all packs on disk; yield those that are damaged, which are removed. Blocking."""
        return self._store.scrub(on_read)

    def use(self, pack: StoredPack) -> None:
        """Note that a pack is used once more."""
        if self._store.is_due(pack, time.time()):
            pack.touched_at = time.time()
            asyncio.get_running_loop().run_in_executor(None, self._store.touch, pack)

    @asynccontextmanager
    async def open(
        self,
        repository: BareRepository,
        request: PackRequest,
        key: PackKey,
        *,
        may_be_on_disk: bool = True,
    ) -> AsyncIterator[StoredPack | PackBuild]:
        """Provide the pack for `request`, finished or under way.

        Args:
            repository: What to build it from.
            request: What it holds.
            key: Its name.
            may_be_on_disk: Whether to look there.

        Raises:
            Overloaded: Too many builds wait already.
        """
        pack = self.find(key)
        build = self._running.get(key)
        if pack is None and build is None and may_be_on_disk:
            pack = await asyncio.to_thread(self._store.open, key)
            if pack is not None:
                self._store.admit(key, pack)
        if pack is not None:
            yield pack
            return
        build = self._running.get(key)
        if build is None or not build.is_joinable:
            build = self._begin(repository, request, key)
        build.readers += 1
        try:
            yield build
        finally:
            build.readers -= 1
            self._left(build)

    async def prepare(self, repository: BareRepository, request: PackRequest) -> int | None:
        """See to it that the pack for `request` is there.

        Returns:
            Its size in bytes if it was built for that, `None` if it was there.

        Raises:
            Overloaded: Too many builds wait already.
            MirrorError: The build failed.
        """
        async with self.open(repository, request, self.key(repository, request)) as pack:
            if isinstance(pack, StoredPack):
                return None
            await pack.spool.wait_ended()
            return pack.spool.size

    async def keep(self, repository: BareRepository, request: PackRequest, data: bytes) -> None:
        """Keep a pack that was made elsewhere as the answer to `request`."""
        key = self.key(repository, request)
        _, path = self._store.new_spool()
        pack = await run_to_end(self._store.keep, key, frame(data), path, len(data))
        if pack is not None:
            self._store.admit(key, pack)

    async def give(self, size: int) -> int:
        """Remove packs of that many bytes from the disk; returns of how many."""
        return await run_to_end(self._store.give, size)

    async def follow_removals(self) -> None:
        """Let go of what other processes remove, now and then, until cancelled."""
        while True:
            await asyncio.sleep(LET_GO_SECONDS)
            await run_to_end(self._store.let_go)

    async def bytes_on_disk(self) -> int:
        """Return what the packs take there."""
        return await asyncio.to_thread(self._store.bytes_on_disk)

    async def close(self) -> None:
        """End what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- building ------------------------------------------------------------------------------

    def _begin(self, repository: BareRepository, request: PackRequest, key: PackKey) -> PackBuild:
        if len(self._tasks) >= self._running_max:
            raise Overloaded("too many packs are being built; try again in a moment")
        build = self._running[key] = PackBuild(*self._store.new_spool())
        work = self._run(repository, request, key, build)
        build.task = asyncio.create_task(work, name=f"pack {key}")
        self._tasks.add(build.task)
        build.task.add_done_callback(partial(self._finished, key, build))
        return build

    async def _run(
        self, repository: BareRepository, request: PackRequest, key: PackKey, build: PackBuild
    ) -> None:
        """Build a pack, or find that another process did."""
        try:
            with build.lock:
                await self._lock(key, build.lock)
                if self._is_shared:
                    build.stored = await asyncio.to_thread(self._store.open, key)
                if build.stored is not None:
                    build.pack_bytes = build.stored.pack_bytes
                    self._store.admit(key, build.stored)
                    build.spool.end()
                    return
                await self._build(repository, request, key, build)
        except MirrorError as error:
            logger.warning("pack_build_failed", path=str(repository.path), error=str(error))
            build.spool.end(error)
        except Exception as error:
            logger.exception("pack_build_broke", path=str(repository.path))
            build.spool.end(PackError(f"unexpected {type(error).__name__}"))

    async def _build(
        self, repository: BareRepository, request: PackRequest, key: PackKey, build: PackBuild
    ) -> None:
        began_at = time.monotonic()
        # What costs a millisecond doesn't wait behind what takes a minute.
        small = await self._engine.build_small(repository, request)
        if small is not None:
            self._metrics.record_small_build(time.monotonic() - began_at, len(small))
            await build.append(small)
        else:
            build.is_queued = True
            async with self._places:
                build.is_queued = False
                await self._build_large(repository, request, build)
        await self._keep(key, build)

    async def _build_large(
        self, repository: BareRepository, request: PackRequest, build: PackBuild
    ) -> None:
        self._metrics.record_build_began()
        began_at = time.monotonic()
        outcome = "abandoned"
        try:
            chunks = self._engine.build_pack(repository, request)
            async with aclosing(chunks):
                async for chunk in chunks:
                    await build.append(chunk)
                    if build.spool.is_passing:
                        build.lock.close()  # there will be no file to wait for
                    if not build.readers:
                        self._check_worth(build)
            outcome = "ok"
        except MirrorError as error:
            outcome = error.label
            raise
        except Exception:
            outcome = "internal"
            raise
        finally:
            seconds = time.monotonic() - began_at
            self._metrics.record_build_ended(self._engine.name, outcome, seconds, build.pack_bytes)

    def _check_worth(self, build: PackBuild) -> None:
        if build.spool.is_passing or build.spool.size > self._store.entry_bytes_max:
            build.is_given_up = True  # to end the engine's work takes a while, and readers come
            raise PackError("nobody waits for this pack, and it can't be kept")

    async def _keep(self, key: PackKey, build: PackBuild) -> None:
        """Let the readers have the end, then keep the pack."""
        memory = build.spool.memory
        build.spool.end()
        if build.spool.is_passing:
            return
        pack = await run_to_end(self._store.keep, key, memory, build.path, build.pack_bytes)
        if pack is not None:
            self._store.admit(key, pack)

    async def _lock(self, key: PackKey, stack: ExitStack) -> None:
        """Take the key's lock among the processes; a process that dies lets go of it.

        Args:
            key: The pack's name.
            stack: Gets its end.
        """
        if not self._is_shared:
            return
        lock = self._store.lock_file(key)
        try:
            descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o640)
        except OSError as error:
            # Better twice than not at all.
            logger.warning("pack_not_locked", path=str(lock), error=error.strerror)
            return
        # Who waits for this very file finds it gone and the pack there, or begins anew.
        stack.callback(os.close, descriptor)
        stack.callback(_unlink, lock)
        pause = LOCK_POLL_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LOCK_POLL_SECONDS_MAX)
            else:
                return

    def _left(self, build: PackBuild) -> None:
        """A reader left: what nobody waits for and has not begun is not begun."""
        if build.readers or build.task is None:
            return
        if build.task.done():
            build.spool.close()
        elif build.is_queued:
            build.task.cancel()

    def _finished(self, key: PackKey, build: PackBuild, task: "asyncio.Task[None]") -> None:
        """Clear up after a build, also one that was cancelled before it began."""
        self._tasks.discard(task)
        if self._running.get(key) is build:
            del self._running[key]
        if not build.spool.ended:
            build.spool.end(PackError("the service is stopping"))
        if build.spool.failed or build.spool.is_passing:
            _unlink(build.path)
        if not build.readers:
            build.spool.close()


def _unlink(path: Path) -> None:
    """Remove a file if it is there; one on a disk that takes no change goes at the next start."""
    with suppress(OSError):
        path.unlink()
