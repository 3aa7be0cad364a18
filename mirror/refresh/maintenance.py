"""Keeps every repository small and quick, one at a time, while it is served and refreshed.

A repository is looked at soon after it changed, when it may have many packs, and every ten minutes,
for what has become old. What fails is logged, counted and tried again later; it stops neither
refreshes nor readers.

There is one of these per data directory, in the process that refreshes.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog

from mirror.errors import Damaged, LocalError
from mirror.metrics import Metrics
from mirror.refresh.mirror import Mirror
from mirror.repository import pruning
from mirror.repository.bare import BareRepository
from mirror.repository.maintenance import Facts, Record, Work, plan
from mirror.repository.packing.engine import PackEngine

LOOK_SECONDS: Final = 600.0
"""From one look at all repositories to the next."""

FIRST_LOOK_SECONDS: Final = 60.0
"""From the start to the first one: there is enough to do then."""

ROOM_SHARE: Final = 1.1
"""Times its size that must be free for a repository to be written anew."""

logger = structlog.stdlib.get_logger()


class NoRoom(LocalError):
    """The disk is too full to write a repository anew."""


class Maintainer:
    """Maintains all repositories."""

    def __init__(
        self,
        engine: PackEngine,
        metrics: Metrics,
        mirrors: Callable[[], Iterable[Mirror]],
        *,
        has_room: Callable[[int], bool] = lambda _: True,
        weigh: Callable[[Mirror, BareRepository], Awaitable[None]] | None = None,
        on_damaged: Callable[[Mirror], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Make one that does nothing yet.

        Args:
            engine: Does the work.
            metrics: Told of it.
            mirrors: Returns all that there are.
            has_room: Tells whether the disk has room for so many bytes more; blocking.
            weigh: Takes note of what a repository takes on disk.
            on_damaged: Told of a repository whose files are not what was written.
            clock: Monotonic seconds.
            wall_clock: Seconds since the epoch.
        """
        self._engine = engine
        self._has_room = has_room
        self._weigh = weigh
        self._on_damaged = on_damaged
        self._metrics = metrics
        self._mirrors = mirrors
        self._clock = clock
        self._wall_clock = wall_clock
        self._records: dict[str, Record] = {}
        self._waiting: dict[str, Mirror] = {}  # in the order of their turns
        self._has_waiting = asyncio.Event()
        self._current: tuple[str, asyncio.Task[None]] | None = None
        self._paused: set[str] = set()

    def published(self, mirror: Mirror) -> None:
        """Take note that a repository changed: look at it if it may need something."""
        record = self._records.get(mirror.name, Record())
        repository = mirror.repository
        if repository is None:
            return
        if not record.is_looked_at or len(repository.source.packs()) >= record.merge_at:
            self._look_at(mirror)

    def _look_at(self, mirror: Mirror) -> None:
        self._waiting.setdefault(mirror.name, mirror)
        self._has_waiting.set()

    async def forget(self, name: str) -> None:
        """Leave a repository alone that is to be removed; ends what is done to it."""
        self._waiting.pop(name, None)
        self._records.pop(name, None)
        await self._give_up(name)

    @asynccontextmanager
    async def paused(self, name: str) -> AsyncIterator[None]:
        """Leave a repository alone while it is mended; ends what is done to it.

        Another directory may be in its place afterwards: what was begun in the one before must not
        go on there. It is looked at anew then.
        """
        self._paused.add(name)
        try:
            await self._give_up(name)
            yield
        finally:
            self._paused.discard(name)
            self._records.pop(name, None)
            self._has_waiting.set()

    async def _give_up(self, name: str) -> None:
        if self._current is not None and self._current[0] == name:
            self._current[1].cancel()
            await asyncio.wait((self._current[1],))

    async def run(self) -> None:
        """Work until cancelled."""
        next_look_at = self._clock() + FIRST_LOOK_SECONDS
        while True:
            while (name := self._next()) is not None:
                await self._take_turn(self._waiting.pop(name))
            if self._clock() >= next_look_at:
                next_look_at = self._clock() + LOOK_SECONDS
                for mirror in self._mirrors():
                    self._look_at(mirror)
                continue
            self._has_waiting.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(next_look_at - self._clock()):
                    await self._has_waiting.wait()

    def _next(self) -> str | None:
        return next((name for name in self._waiting if name not in self._paused), None)

    async def _take_turn(self, mirror: Mirror) -> None:
        """Look at one repository, in a task that `forget` may end."""
        task = asyncio.create_task(self.look_at(mirror), name=f"maintain {mirror.name}")
        self._current = (mirror.name, task)
        try:
            await asyncio.wait((task,))
        finally:
            self._current = None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def look_at(self, mirror: Mirror) -> None:
        """Do what a repository needs. Whatever fails is told, and leaves it as it was."""
        repository = mirror.repository
        if repository is None:
            return
        log = logger.bind(repository=mirror.name)
        record = self._records.get(mirror.name, Record())
        work: Work | None = None
        is_done, beside = False, 0
        try:
            await pruning.give_up_tips(
                repository, self._engine, changing=mirror.changing, wall_now=self._wall_clock()
            )
            before = await asyncio.to_thread(_facts, repository, self._engine)
            mirror.unreachable_bytes = before.unreachable.size if before.unreachable else 0
            work = plan(before, record, now=self._clock(), wall_now=self._wall_clock())
            if work is not None:
                beside = (await self._do(work, mirror, repository, before)).beside
            is_done = True
        except Damaged as error:
            log.warning("maintenance_failed", work=work, error=str(error))
            self._on_damaged(mirror)
        except LocalError as error:
            log.warning("maintenance_failed", work=work, error=str(error))
        except Exception:
            log.exception("maintenance_broke", work=work)
        packs = len(repository.source.packs())
        self._records[mirror.name] = record.after(
            work, packs, is_done=is_done, now=self._clock(), beside=beside
        )

    async def _do(
        self, work: Work, mirror: Mirror, repository: BareRepository, before: Facts
    ) -> Facts:
        began_at = self._clock()
        outcome = "ok"
        try:
            if work in (Work.REWRITE, Work.PRUNE):
                await asyncio.to_thread(_check_room, repository, before)
                await pruning.prune(repository, self._engine, changing=mirror.changing)
            else:
                await self._merge(repository, before)
        except asyncio.CancelledError:
            outcome = "abandoned"
            raise
        except LocalError as error:
            outcome = error.label
            raise
        except Exception:
            outcome = LocalError.label
            raise
        finally:
            seconds = self._clock() - began_at
            self._metrics.record_maintenance(work, outcome, seconds)
        if self._weigh is not None:
            await self._weigh(mirror, repository)
        after = await asyncio.to_thread(_facts, repository, self._engine)
        mirror.unreachable_bytes = after.unreachable.size if after.unreachable else 0
        logger.info(
            "maintained",
            repository=mirror.name,
            work=work.value,
            packs_before=before.packs,
            packs=after.packs,
            bytes_before=before.size,
            bytes=after.size,
            milliseconds=round(seconds * 1000),
        )
        if mirror.replicas is not None:
            # They let go of the packs that are gone, whose room is free only then.
            await mirror.replicas.refreshed(mirror)
        return after

    async def _merge(self, repository: BareRepository, before: Facts) -> None:
        # What is merged is written before what it is made of goes.
        if not await asyncio.to_thread(self._has_room, before.size):
            raise NoRoom("the disk has no room to merge packs")
        await self._engine.repack(repository)


def _facts(repository: BareRepository, engine: PackEngine) -> Facts:
    sizes = [each.stat().st_size for each in repository.pack_files()]
    return Facts(
        packs=len(sizes),
        size=repository.bytes_on_disk(),
        is_indexed=(repository.objects / "info" / "commit-graph").exists(),
        unreachable=pruning.read_unreachable(repository),
        largest=max(sizes, default=0),
        beside=sum(sizes) - max(sizes, default=0) if engine.copies_packs else 0,
    )


def _check_room(repository: BareRepository, facts: Facts) -> None:
    free = pruning.free_bytes(repository)
    if free < facts.size * ROOM_SHARE:
        raise NoRoom(f"{free} bytes are free, too few to write {facts.size} bytes anew")
