"""When a repository is refreshed: one task per repository, one refresh at a time.

Whoever wants a refresh gets the outcome of the next one to begin: requests that come while one runs
share the one after it. A caller that goes away cancels nothing. Webhooks are hints: what the
upstream lists is true, but when it does not list yet what its own webhook announced, it is asked
again soon.
"""

import asyncio
import enum
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from mirror.errors import LocalError, MirrorError, UpstreamUnavailable
from mirror.metrics import Metrics
from mirror.refresh.mirror import Mirror
from mirror.refresh.schedule import Schedule
from mirror.refresh.update import Updated, Updater
from mirror.repository.packing.engine import PackEngine
from mirror.upstream.forges import RefChange
from mirror.upstream.remote import Remote

PACKS_MAX: Final = 24
"""With more packs in a repository each look-up gets dearer: time to merge some."""

EXPECTATIONS_MAX: Final = 1000
"""Announced tips remembered per repository; what is over that is left to the upstream's listing."""

logger = structlog.stdlib.get_logger()


class Trigger(enum.StrEnum):
    """What a refresh was begun for."""

    START = "start"
    POLL = "poll"
    WEBHOOK = "webhook"
    LAG = "lag"
    WANT = "want"
    MAX_AGE = "max_age"
    MANUAL = "manual"


@dataclass(slots=True)
class RefreshPlaces:
    """How many refreshes may run at once in the whole service.

    First clones may take half of the places at most, so that webhooks are never queued behind them.
    """

    all: asyncio.Semaphore
    clones: asyncio.Semaphore

    @classmethod
    def of(cls, refreshes_max: int) -> "RefreshPlaces":
        """Make `refreshes_max` places."""
        return cls(asyncio.Semaphore(refreshes_max), asyncio.Semaphore(max(1, refreshes_max // 2)))


@dataclass(slots=True)
class _Pending:
    """The refresh that has not begun yet: who asked for it, and where its outcome goes."""

    outcome: "asyncio.Future[None]"
    triggers: list[Trigger] = field(default_factory=list)


class Refresher:
    """Keeps one repository fresh."""

    def __init__(
        self,
        mirror: Mirror,
        remote: Remote,
        updater: Updater,
        engine: PackEngine,
        *,
        places: RefreshPlaces,
        metrics: Metrics,
        refresh_seconds_max: float,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.mirror = mirror
        self._remote = remote
        self._updater = updater
        self._engine = engine
        self._places = places
        self._metrics = metrics
        self._refresh_seconds_max = refresh_seconds_max
        self._clock = clock
        self._chance = chance
        self._schedule = Schedule(mirror.settings.poll_interval_seconds)
        self._pending = _Pending(_future())
        self._wake = asyncio.Event()
        self._expected: list[RefChange] = []
        self._lag_tries = 0
        self._not_before = 0.0  # what the upstream's Retry-After asked for
        self._log = logger.bind(repository=mirror.name)

    def request(self, trigger: Trigger) -> "asyncio.Future[None]":
        """Ask for a refresh that begins after now; the future ends when it has.

        It raises what the refresh raised. Wait for it with `asyncio.shield` or `asyncio.wait`.
        """
        if trigger not in self._pending.triggers:
            self._pending.triggers.append(trigger)
        self._wake.set()
        return self._pending.outcome

    def announce(self, changes: Sequence[RefChange]) -> None:
        """Take note of an accepted webhook: from now on what we have is stale."""
        self.mirror.freshness.announce(self._clock())
        room = EXPECTATIONS_MAX - len(self._expected)
        self._expected += [change for change in changes if isinstance(change.after, bytes)][:room]
        self._lag_tries = 0
        self.request(Trigger.WEBHOOK)
        self.mirror.changed.give()

    async def run(self) -> None:
        """Refresh whenever asked to, and on schedule, until cancelled."""
        self.request(Trigger.START)
        delay: float | None = None
        async with asyncio.TaskGroup() as tasks:
            repacking: asyncio.Task[None] | None = None
            while True:
                await self._until_wanted(delay)
                delay = await self._refresh_once()
                if self._wants_repack() and (repacking is None or repacking.done()):
                    repacking = tasks.create_task(self._repack())

    async def _until_wanted(self, delay: float | None) -> None:
        try:
            async with asyncio.timeout(delay):
                await self._wake.wait()
        except TimeoutError:
            self._pending.triggers.append(Trigger.LAG if self._lag_tries else Trigger.POLL)
        if (pause := self._not_before - self._clock()) > 0:
            await asyncio.sleep(pause)

    async def _refresh_once(self) -> float | None:
        """Refresh now; returns the seconds to the next time, `None` for not of ourselves."""
        if self.mirror.repository is None:
            async with self._places.clones, self._places.all:
                return await self._refresh()
        async with self._places.all:
            return await self._refresh()

    async def _refresh(self) -> float | None:
        pending, self._pending = self._pending, _Pending(_future())
        self._wake.clear()
        trigger = pending.triggers[0]
        freshness = self.mirror.freshness
        covers = freshness.announced
        began_at = self._clock()
        error: MirrorError | None = None
        delay: float | None = None
        try:
            async with asyncio.timeout(self._refresh_seconds_max):
                updated = await self._updater.update(self.mirror, self._remote)
        except TimeoutError:
            error = UpstreamUnavailable(
                f"not done after {self._refresh_seconds_max:.0f} seconds (limits.refresh_timeout)"
            )
        except MirrorError as raised:
            error = raised
        except Exception as raised:  # noqa: BLE001 - one repository's bug must not stop the others
            self._log.exception("refresh_broke")
            error = LocalError(f"unexpected {type(raised).__name__}: {raised}")
        else:
            delay = self._succeeded(updated, trigger, began_at=began_at, covers=covers)
        if error is not None:
            delay = self._failed(error, trigger, began_at=began_at, covers=covers)
        self.mirror.changed.give()
        if not pending.outcome.done():
            if error is None:
                pending.outcome.set_result(None)
            else:
                pending.outcome.set_exception(error)
                pending.outcome.exception()  # seen: nobody has to be waiting
        return delay

    def _succeeded(
        self, updated: Updated, trigger: Trigger, *, began_at: float, covers: int
    ) -> float | None:
        mirror, freshness = self.mirror, self.mirror.freshness
        before = mirror.snapshot
        announced_at = freshness.announced_at
        mirror.repository = updated.repository
        mirror.snapshot = updated.snapshot  # published: the next reader sees it
        now = time.time()
        mirror.last.succeeded_at = now
        mirror.last.error = None
        self._expected = [change for change in self._expected if not self._is_met(change)]
        delay = self._lag_delay()
        if delay is None:
            freshness.confirm(began_at=began_at, covers=covers)
            delay = self._schedule.after_success(self._chance())
        else:
            freshness.confirm(began_at=began_at, covers=0)
        seconds = self._clock() - began_at
        self._metrics.record_refresh(
            trigger, "changed" if updated.snapshot is not before else "same", seconds
        )
        if updated.snapshot is not before:
            mirror.last.changed_at = now
            changes = updated.snapshot.changes_since(before)
            self._log.info(
                "published",
                trigger=trigger.value,
                snapshot=updated.snapshot.number,
                refs=len(updated.snapshot.refs),
                changed=len(changes),
                received_bytes=updated.received_bytes,
                milliseconds=round(seconds * 1000, 1),
            )
        if announced_at is not None and not freshness.is_pending:
            self._metrics.record_webhook_to_fetchable(self._clock() - announced_at)
        return delay

    def _lag_delay(self) -> float | None:
        """Return when to look again for what was announced; forget it when that was enough."""
        if not self._expected:
            self._lag_tries = 0
            return None
        self._lag_tries += 1
        delay = self._schedule.after_lag(self._lag_tries)
        if delay is None:
            names = [change.ref.decode("utf-8", "replace") for change in self._expected[:10]]
            self._log.warning("announced_but_not_listed", refs=names, tries=self._lag_tries)
            self._expected = []
            self._lag_tries = 0
        return delay

    def _is_met(self, change: RefChange) -> bool:
        """Tell whether the upstream shows what it announced, or something later.

        It does when the ref has that tip, when we hold that commit already (the ref went on or back
        since), when the ref is not what it was before, or when the ref is not mirrored at all.
        """
        mirror = self.mirror
        if mirror.snapshot is None or mirror.repository is None:
            return True
        if not self._updater.mirrors(mirror, change.ref) or not isinstance(change.after, bytes):
            return True
        if mirror.repository.source.contains(change.after):
            return True
        return mirror.snapshot.find(change.ref) != change.before

    def _failed(
        self, error: MirrorError, trigger: Trigger, *, began_at: float, covers: int
    ) -> float:
        mirror, freshness = self.mirror, self.mirror.freshness
        now = self._clock()
        asked = error.retry_after_seconds if isinstance(error, UpstreamUnavailable) else None
        freshness.fail(now, covers=covers, retry_after_seconds=asked)
        self._not_before = now + asked if asked is not None else 0.0
        delay = self._schedule.after_failure(freshness.failures, self._chance(), asked)
        mirror.last.failed_at = time.time()
        mirror.last.error = str(error)
        self._metrics.record_refresh(trigger, error.label, now - began_at)
        self._log.warning(
            "refresh_failed",
            trigger=trigger.value,
            error=str(error),
            kind=error.label,
            failures=freshness.failures,
            next_try_seconds=round(delay, 1),
        )
        return delay

    def _wants_repack(self) -> bool:
        repository = self.mirror.repository
        return repository is not None and len(repository.pack_files()) > PACKS_MAX

    async def _repack(self) -> None:
        repository = self.mirror.repository
        if repository is None:
            return
        before = len(repository.pack_files())
        try:
            await self._engine.repack(repository)
        except LocalError as error:
            self._log.warning("repack_failed", error=str(error))
        else:
            self._log.info("repacked", packs_before=before, packs=len(repository.pack_files()))


def _future() -> "asyncio.Future[None]":
    return asyncio.get_running_loop().create_future()
