"""Pull-through: mirrors of what is below `upstreams`, made on the first request and removed again.

Owns which of them there are, in the process that keeps the mirrors: it alone begins first clones,
within their rate, and removes mirrors. One that is removed leaves at once, by a rename; its files
go afterwards. One that is being read, here or in another process, stays.

Who may read is decided before anybody asks for a first clone; here nothing is known of readers but
an address.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from typing import Any, Final, Protocol

import structlog

from mirror.config import Difference, RepositorySettings, Settings
from mirror.errors import (
    LocalError,
    MirrorError,
    NotUpstream,
    NotYetMirrored,
    OtherObjectFormat,
    Overloaded,
    UpstreamRefused,
)
from mirror.metrics import Metrics
from mirror.mirroring import Mirroring
from mirror.places import DataDirectory
from mirror.refresh.bundling import Bundler
from mirror.refresh.foresight import Foresight
from mirror.refresh.mirror import Mirror
from mirror.refresh.pull_through import disk
from mirror.refresh.pull_through.eviction import Kept, Reason, choose
from mirror.refresh.pull_through.figures import PullFigures
from mirror.refresh.pull_through.pace import Pace
from mirror.refresh.pull_through.refusals import Refusals
from mirror.refresh.refresher import Trigger
from mirror.refresh.registry import Hosted, unknown
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


def _nobody() -> bool:
    return False


class PullThrough:
    """The mirrors below `upstreams`: the registry's `Opener`.

    Attributes:
        processes: Those that serve, where it is not this one alone.
    """

    def __init__(
        self,
        settings: Settings,
        mirroring: Mirroring,
        foresight: Foresight,
        bundler: Bundler,
        metrics: Metrics,
        *,
        on_removed: Sequence[Callable[[str], Awaitable[None]]] = (),
        others_read: Callable[[], bool] = _nobody,
        clock: Clock = time.monotonic,
        wall_clock: Clock = time.time,
    ) -> None:
        """Mirror nothing yet.

        Args:
            settings: The configuration.
            mirroring: Keeps the mirrors.
            foresight: Makes their packs.
            bundler: Makes their bundles.
            metrics: Of this process.
            on_removed: Told the name of each mirror that was removed: what is kept of it besides
                goes, too.
            others_read: Tells whether a process may read mirrors that knows nothing of this one:
                then none is removed.
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
        self._on_removed = on_removed
        self._others_read = others_read
        self._figures = PullFigures(metrics.registry)
        self._clock = clock
        self._wall_clock = wall_clock
        self._refusals = Refusals()
        self._pace = _pace(settings)
        self._opening: dict[str, asyncio.Task[Hosted]] = {}
        self._coming: set[str] = set()
        self._leaving: dict[str, asyncio.Event] = {}
        self._noted: dict[str, float] = {}
        self._tidying = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._has_grown = asyncio.Event()
        self._is_paused = False

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
        settings, was = difference.settings, self._settings
        self._settings = settings
        if _rates(settings) != _rates(was):
            self._pace = _pace(settings)
        self._refusals = Refusals()
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

    def _check_still_there(self, settings: RepositorySettings) -> None:
        """See that the configuration has not changed since a reader came.

        Raises:
            NotYetMirrored: It has.
        """
        if self._settings.find(settings.name) != settings:
            raise NotYetMirrored(f"{settings.name} has just been configured otherwise; try again")

    # --- the first request ---------------------------------------------------------------------

    def open(self, settings: RepositorySettings, client: str | None) -> "asyncio.Future[Hosted]":
        """See `Opener.open`."""
        name = settings.name
        opening = self._opening.get(name)
        if opening is None and self._is_paused:
            refused: asyncio.Future[Hosted] = asyncio.get_running_loop().create_future()
            refused.set_exception(NotYetMirrored(f"{name} is not mirrored yet; try again soon"))
            refused.exception()  # seen: nobody has to be waiting
            return refused
        if opening is None:
            opening = self._opening[name] = asyncio.create_task(
                self._open(settings, client),
                name=f"open {name}",
                context=Context(),  # the refresher that comes of it outlives the request's
            )
            opening.add_done_callback(lambda task: self._opened(name, task))
        return opening

    def _opened(self, name: str, task: "asyncio.Task[Hosted]") -> None:
        del self._opening[name]
        self._coming.discard(name)
        if not task.cancelled():
            task.exception()  # seen: nobody has to be waiting

    async def _open(self, settings: RepositorySettings, client: str | None) -> Hosted:
        leaving = self._leaving.get(settings.name)
        if leaving is not None:
            await leaving.wait()
        self._check_still_there(settings)
        hosted = self._registry.get(settings.name)
        if hosted is not None and hosted.gate.is_open():
            return hosted
        await self._admit(settings.name, client)
        logger.info("pulling", repository=settings.name, client=client)
        try:
            hosted = await self._clone(settings)
        except asyncio.CancelledError:
            if not self._is_paused:
                raise
            raise NotYetMirrored(f"{settings.name} is not mirrored yet; try again soon") from None
        except MirrorError as error:
            outcome = "not_there" if isinstance(error, NotUpstream) else "failed"
            self._figures.record_first_clone(outcome)
            self._refusals.add(settings.name, error, self._clock())
            logger.warning("not_pulled", repository=settings.name, error=str(error))
            raise _told(settings.name, error) from error
        self._figures.record_first_clone("ok")
        self._refusals.forget(settings.name)
        self._has_grown.set()
        return hosted

    async def _admit(self, name: str, client: str | None) -> None:
        """Let a first clone begin.

        Raises:
            ClientError: It has failed just now, or there are too many.
        """
        now = self._clock()
        error = self._refusals.find(name, now)
        if error is not None and client is not None:
            raise _told(name, error)
        wait = self._pace.take(now, client)
        if wait > 0:
            self._figures.record_first_clone("too_many")
            raise Overloaded(
                f"too many repositories that are not mirrored yet are asked for; try again in"
                f" {wait:.0f} seconds (limits.pull_through_per_minute)"
            )
        count_max = self._settings.limits.pull_through_repositories_max
        if self._count() >= count_max:
            await self.tidy(room_for=1)
        if self._count() >= count_max:
            self._figures.record_first_clone("too_many")
            raise Overloaded(
                f"there are {count_max} mirrors below `upstreams`, all of them in use"
                " (limits.pull_through_repositories_max)"
            )
        self._coming.add(name)

    def _count(self) -> int:
        """Return how many there are, those included that are about to be."""
        names = {one.mirror.name for one in self._registry if one.mirror.settings.place is not None}
        return len(names | self._coming)

    async def _clone(self, settings: RepositorySettings) -> Hosted:
        """Mirror a repository; what fails leaves nothing.

        Raises:
            MirrorError: It can't be mirrored.
        """
        mirror = await self._mirroring.opened(settings)
        self._check_still_there(settings)
        hosted = self._mirroring.take(mirror)
        try:
            await self._bring(hosted)
        except MirrorError:
            await self._drop(hosted.mirror)
            raise
        return hosted

    async def _bring(self, hosted: Hosted) -> None:
        mirror = hosted.mirror
        mirror.read_at = self._clock()
        if self.processes is not None:
            self.processes.added(mirror)
        await self._bundler.add(mirror)
        outcome = hosted.refresher.request(Trigger.START)
        self._mirroring.begin(mirror.name)
        await asyncio.wait((outcome,))
        if mirror.snapshot is not None:
            await run_to_end(disk.note_read, mirror.path, self._wall_clock())
            return
        if outcome.cancelled():
            raise NotYetMirrored("the service stopped before the first clone was done")
        outcome.result()

    async def _drop(self, mirror: Mirror) -> None:
        """Take out a mirror that has nothing to read."""
        hosted = self._registry.get(mirror.name)
        if hosted is None or hosted.mirror is not mirror:
            return  # another configuration has taken it out
        if self.processes is not None:
            await self.processes.removed(mirror, by_force=True)
            if mirror.settings.place is None:  # the configuration has come to name it
                self.processes.added(mirror)
        if mirror.settings.place is None:
            return
        await self._mirroring.remove(mirror.name)
        await self._bundler.forget(mirror.name)

    # --- tidying -------------------------------------------------------------------------------

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
            mirrors = [one for one in mirrors if one.snapshot and one.name not in self._opening]
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

    # --- start and stop ------------------------------------------------------------------------

    async def reopen(self, *, removes: bool = True) -> None:
        """Open the mirrors that are on disk from before, without a look at their upstreams.

        What is not below `upstreams` any more is removed, if it came by them; without `removes`
        that is left to `sweep`.
        """
        found = await run_to_end(self._look_on_disk, removes=removes)
        ago = self._wall_clock() - self._clock()
        for settings, read_at in found:
            try:
                mirror = (await self._mirroring.add(settings)).mirror
            except LocalError as error:
                logger.warning("mirror_not_opened", repository=settings.name, error=str(error))
                continue
            mirror.read_at = read_at - ago
            if mirror.snapshot is None:
                await self._mirroring.remove(mirror.name)
            elif settings.max_age_seconds is not None:
                # No webhook has to be waited for: who reads has the upstream asked.
                mirror.freshness.satisfied = mirror.freshness.announced

    async def sweep(self) -> None:
        """Remove what is not below `upstreams` any more, where `reopen` did not."""
        async with self._tidying:
            await run_to_end(self._look_on_disk, removes=True)

    def _look_on_disk(self, *, removes: bool) -> list[tuple[RepositorySettings, float]]:
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
            elif read_at is not None and removes and name not in self._opening:
                logger.info("mirror_removed", repository=name, reason="not below `upstreams`")
                with suppress(OSError):  # at the next start, then; nobody reads it
                    disk.throw_away(path, self._places.trash, name)
        if removes:
            disk.empty(self._places.trash)
        return found

    def pause(self) -> None:
        """Begin no first clone; readers are told to come again. `close` ends those under way."""
        self._is_paused = True

    def resume(self) -> None:
        """Begin first clones again."""
        self._is_paused = False

    async def close(self) -> None:
        """Give up the first clones under way, and tidy no more."""
        tasks: list[asyncio.Task[Any]] = list(self._opening.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.stop()


def _rates(settings: Settings) -> tuple[int, int]:
    limits = settings.limits
    return limits.pull_through_per_minute, limits.pull_through_per_client_per_minute


def _pace(settings: Settings) -> Pace:
    per_minute, per_client_per_minute = _rates(settings)
    return Pace(per_minute=per_minute, per_client_per_minute=per_client_per_minute)


def _told(name: str, error: MirrorError) -> MirrorError:
    """Return what readers are told of a first clone that failed.

    Where the upstream redirects to, or its name leads to, is the operator's to know: it is in the
    log.
    """
    if isinstance(error, NotUpstream):
        return unknown(name)
    if isinstance(error, UpstreamRefused) and not isinstance(error, OtherObjectFormat):
        return NotYetMirrored(f"{name} can't be mirrored; the mirror's log says why")
    return NotYetMirrored(f"{name} can't be mirrored yet: {error}; try again soon")
