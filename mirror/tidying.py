"""Which mirrors below `upstreams` go again: unread for long, gone upstream, or too many.

One that is removed leaves at once, by a rename; its files go afterwards. One that is being read,
here or in another process, stays.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

import structlog

from mirror.config import Difference, RepositorySettings, Settings
from mirror.mirroring import Mirroring
from mirror.places import DataDirectory
from mirror.refresh.bundling import Bundler
from mirror.refresh.foresight import Foresight
from mirror.refresh.mirror import Mirror
from mirror.refresh.pull_through import disk
from mirror.refresh.pull_through.eviction import Kept, Reason, choose
from mirror.refresh.pull_through.figures import PullFigures
from mirror.repository.threads import run_to_end

TIDY_SECONDS: Final = 30.0
"""So often it is looked at which mirrors have to go, and noted on disk when they were read."""

Clock = Callable[[], float]

logger = structlog.stdlib.get_logger()


class Processes(Protocol):
    """The other processes, which serve readers."""

    def added(self, mirror: Mirror) -> None:
        """Tell them of a mirror, before anything else of it."""
        ...

    async def removed(self, mirror: Mirror, *, by_force: bool) -> bool:
        """Have them let go of a mirror; `False` where one is reading it: then they all keep it."""
        ...

    async def reads(self) -> Mapping[str, float]:
        """Return when the mirrors were last read, of a monotonic clock, by name."""
        ...


class Tidier:
    """Removes mirrors that came by a place upstream.

    Attributes:
        processes: Those that serve, where it is not this one alone.
    """

    def __init__(
        self,
        settings: Settings,
        mirroring: Mirroring,
        foresight: Foresight,
        bundler: Bundler,
        figures: PullFigures,
        *,
        on_removed: Sequence[Callable[[str], Awaitable[None]]],
        others_read: Callable[[], bool],
        is_opening: Callable[[str], bool],
        clock: Clock,
        wall_clock: Clock,
    ) -> None:
        """Remove nothing yet.

        Args:
            settings: The configuration.
            mirroring: Keeps the mirrors.
            foresight: Makes their packs.
            bundler: Makes their bundles.
            figures: Told of what is removed, and what is kept.
            on_removed: Told the name of each mirror that was removed.
            others_read: Tells whether a process may read mirrors that knows nothing of this one.
            is_opening: Tells whether a first clone of that name is under way.
            clock: Monotonic seconds.
            wall_clock: Seconds since the epoch.
        """
        self.processes: Processes | None = None
        self._settings = settings
        self._places = DataDirectory(settings.data_dir)
        self._mirroring = mirroring
        self._registry = mirroring.registry
        self._foresight = foresight
        self._bundler = bundler
        self._figures = figures
        self._on_removed = on_removed
        self._others_read = others_read
        self._is_opening = is_opening
        self._clock = clock
        self._wall_clock = wall_clock
        self._leaving: dict[str, asyncio.Event] = {}
        self._noted: dict[str, float] = {}
        self._tidying = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._has_grown = asyncio.Event()

    # --- now and then ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to tidy, once there are `upstreams`."""
        if self._task is None and self._settings.upstreams:
            self._task = asyncio.create_task(self.run(), name="pull-through")

    async def stop(self) -> None:
        """Tidy no more, until the next `start`."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def run(self) -> None:
        """Tidy now and then, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(TIDY_SECONDS):
                    await self._has_grown.wait()
            self._has_grown.clear()
            try:
                await self.tidy()
            except Exception:  # whatever it is, there are readers to serve
                logger.exception("tidying_broke")

    def look_soon(self) -> None:
        """Tidy without waiting for its time, as there is more than there was."""
        self._has_grown.set()

    async def left(self, name: str) -> None:
        """Wait until a mirror that is on its way out has left."""
        leaving = self._leaving.get(name)
        if leaving is not None:
            await leaving.wait()

    async def give(self, size: int) -> int:
        """Remove mirrors of that many bytes, as the disk is short; returns of how many."""
        return await self.tidy(lacking=size)

    async def tidy(self, *, room_for: int = 0, lacking: int = 0) -> int:
        """Remove what has to go, and note on disk what was read when; returns the bytes removed.

        Args:
            room_for: So many more are to come.
            lacking: The disk is short of so many bytes.
        """
        limits = self._settings.limits
        async with self._tidying:
            mirrors = [one.mirror for one in self._registry if one.mirror.settings.place]
            mirrors = [one for one in mirrors if one.snapshot and not self._is_opening(one.name)]
            read_at = await self.processes.reads() if self.processes is not None else {}
            for mirror in mirrors:
                mirror.read_at = max(mirror.read_at, read_at.get(mirror.name, mirror.read_at))
            sizes = await run_to_end(disk.sizes, mirrors)
            kept = [self._kept(one, sizes[one.name]) for one in mirrors]
            chosen = choose(
                kept,
                self._clock(),
                count_max=limits.pull_through_repositories_max - room_for,
                bytes_max=limits.pull_through_bytes_max,
                lacking=lacking,
            )
            gone = {name for name, reason in chosen.items() if await self._remove(name, reason)}
            left = [one for one in mirrors if one.name not in gone]
            self._figures.set_kept(len(left), sum(sizes[one.name] for one in left))
            await self._note_reads(left)
            return sum(sizes[name] for name in gone)

    def _is_busy(self, mirror: Mirror) -> bool:
        is_made_of = self._bundler.is_working_on(mirror.name)
        is_read = mirror.readers > 0 or self._others_read()
        return is_read or mirror.progress is not None or is_made_of

    def _kept(self, mirror: Mirror, size: int) -> Kept:
        place, denied = mirror.settings.place, mirror.denied
        if place is None:
            raise ValueError(f"{mirror.name} is configured, and nobody's to remove")
        return Kept(
            mirror.name,
            mirror.read_at,
            size,
            place.unused_seconds,
            is_gone=denied is not None and denied[1] - denied[0] >= place.gone_seconds,
            is_busy=self._is_busy(mirror),
        )

    async def _remove(self, name: str, reason: Reason) -> bool:
        """Remove a mirror, unless somebody has begun to work with it."""
        hosted = self._registry.get(name)
        if hosted is None or self._is_busy(hosted.mirror):
            return False
        mirror = hosted.mirror
        left = self._leaving[name] = asyncio.Event()
        try:
            if self.processes is not None and not await self.processes.removed(
                mirror, by_force=False
            ):
                return False
            await self._mirroring.remove(name)
            self._foresight.forget(name)
            for forget in (self._bundler.forget, *self._on_removed):
                await forget(name)
            try:
                await run_to_end(disk.throw_away, mirror.path, self._places.trash, name)
            except OSError as error:
                logger.warning("mirror_not_removed", repository=name, error=str(error))
        finally:
            del self._leaving[name]
            left.set()
        self._noted.pop(name, None)
        self._figures.record_removed(reason)
        logger.info("mirror_removed", repository=name, reason=reason.value)
        await run_to_end(disk.empty, self._places.trash)
        return True

    async def _note_reads(self, mirrors: list[Mirror]) -> None:
        """Keep on disk when mirrors were read, for the time after a restart."""
        ago = self._wall_clock() - self._clock()
        news = {one.name: one for one in mirrors if self._noted.get(one.name) != one.read_at}
        for name, mirror in news.items():
            self._noted[name] = mirror.read_at
        times = [(one.path, one.read_at + ago) for one in news.values()]
        await run_to_end(disk.note_reads, times)

    # --- another configuration -----------------------------------------------------------------

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Have nothing removed meanwhile."""
        async with self._tidying:
            yield

    def change(self, difference: Difference, gone: Iterable[Mirror]) -> None:
        """Go on by another configuration; nothing is awaited.

        Args:
            difference: What changes.
            gone: The mirrors that are not here any more: those that came by a place are to be
                `discard`ed.
        """
        self._settings = difference.settings
        for mirror in gone:
            if mirror.settings.place is not None:
                self._leaving[mirror.name] = asyncio.Event()
        now = self._clock()
        for one in difference.changed:
            hosted = self._registry.get(one.name)
            if hosted is not None and one.place is not None:
                hosted.mirror.read_at = max(hosted.mirror.read_at, now)
        self._has_grown.set()  # the limits may be smaller now
        self.start()

    async def keep(self, chosen: Iterable[RepositorySettings]) -> None:
        """Remove no mirror any more that the configuration names itself now."""
        paths = [self._places.repository(one.name) for one in chosen if one.place is None]
        for path in paths:
            await run_to_end(disk.forget_read, path)

    async def discard(self, mirror: Mirror) -> None:
        """Remove the files of a mirror that came by a place, and that nobody reads any more."""
        left = self._leaving.get(mirror.name)
        try:
            hosted = self._registry.get(mirror.name)
            if hosted is None:  # else its place is taken, and cleared by who has taken it
                await run_to_end(disk.throw_away, mirror.path, self._places.trash, mirror.name)
                await run_to_end(disk.empty, self._places.trash)
        except OSError as error:
            logger.warning("mirror_not_removed", repository=mirror.name, error=str(error))
        finally:
            if left is not None and self._leaving.pop(mirror.name, None) is not None:
                left.set()

    # --- what is on the disk --------------------------------------------------------------------

    async def sweep(self) -> None:
        """Remove what is not below `upstreams` any more, where `reopen` did not."""
        async with self._tidying:
            await run_to_end(self.look_on_disk, removes=True)

    def look_on_disk(self, *, removes: bool) -> list[tuple[RepositorySettings, float]]:
        """Return what is to be opened, and when it was last read (seconds since the epoch)."""
        found = []
        for name, path in disk.mirrors_below(self._places.repositories):
            if name in self._settings.repositories:
                if removes:
                    disk.forget_read(path)  # it was chosen: it is nobody's to remove
                continue
            read_at = disk.read_at(path)
            settings = self._settings.find(name)
            if settings is not None and disk.upstream_of(path) == settings.upstream:
                found.append((settings, read_at or self._wall_clock()))
            elif read_at is not None and removes and not self._is_opening(name):
                logger.info("mirror_removed", repository=name, reason="not below `upstreams`")
                with suppress(OSError):  # at the next start, then; nobody reads it
                    disk.throw_away(path, self._places.trash, name)
        if removes:
            disk.empty(self._places.trash)
        return found
