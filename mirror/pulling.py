"""Pull-through: mirrors of what is below `upstreams`, made on the first request.

Owns which of them there are, in the process that keeps the mirrors: it alone begins first clones,
within their rate. Which of them go again is `mirror.tidying`'s.

Who may read is decided before anybody asks for a first clone; here nothing is known of readers but
an address.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import Context
from typing import Any

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
from mirror.refresh.bundling import Bundler
from mirror.refresh.foresight import Foresight
from mirror.refresh.mirror import Mirror
from mirror.refresh.pull_through import disk
from mirror.refresh.pull_through.figures import PullFigures
from mirror.refresh.pull_through.pace import Pace
from mirror.refresh.pull_through.refusals import Refusals
from mirror.refresh.refresher import Trigger
from mirror.refresh.registry import Hosted, unknown
from mirror.repository.threads import run_to_end
from mirror.tidying import Clock, Processes, Tidier

logger = structlog.stdlib.get_logger()


def _nobody() -> bool:
    return False


class PullThrough:
    """The mirrors below `upstreams`: the registry's `Opener`.

    Attributes:
        tidier: Removes them again.
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
        self._processes: Processes | None = None
        self._settings = settings
        self._mirroring = mirroring
        self._registry = mirroring.registry
        self._bundler = bundler
        self._figures = PullFigures(metrics.registry)
        self._clock = clock
        self._wall_clock = wall_clock
        self._refusals = Refusals()
        self._pace = _pace(settings)
        self._opening: dict[str, asyncio.Task[Hosted]] = {}
        self._coming: set[str] = set()
        self._is_paused = False
        self.tidier = Tidier(
            settings,
            mirroring,
            foresight,
            bundler,
            self._figures,
            on_removed=on_removed,
            others_read=others_read,
            is_opening=self._opening.__contains__,
            clock=clock,
            wall_clock=wall_clock,
        )

    def served_by(self, processes: Processes) -> None:
        """Take note of the processes that serve, where it is not this one alone."""
        self._processes = self.tidier.processes = processes

    def change(self, difference: Difference, gone: Iterable[Mirror]) -> None:
        """Go on by another configuration; nothing is awaited.

        Args:
            difference: What changes.
            gone: See `Tidier.change`.
        """
        settings, was = difference.settings, self._settings
        self._settings = settings
        if _rates(settings) != _rates(was):
            self._pace = _pace(settings)
        self._refusals = Refusals()
        self.tidier.change(difference, gone)

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
        await self.tidier.left(settings.name)
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
        self.tidier.look_soon()
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
            await self.tidier.tidy(room_for=1)
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
        if self._processes is not None:
            self._processes.added(mirror)
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
        if self._processes is not None:
            await self._processes.removed(mirror, by_force=True)
            if mirror.settings.place is None:  # the configuration has come to name it
                self._processes.added(mirror)
        if mirror.settings.place is None:
            return
        await self._mirroring.remove(mirror.name)
        await self._bundler.forget(mirror.name)

    # --- start and stop ------------------------------------------------------------------------

    async def reopen(self, *, removes: bool = True) -> None:
        """Open the mirrors that are on disk from before, without a look at their upstreams.

        What is not below `upstreams` any more is removed, if it came by them; without `removes`
        that is left to `Tidier.sweep`.
        """
        found = await run_to_end(self.tidier.look_on_disk, removes=removes)
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
        await self.tidier.stop()


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
