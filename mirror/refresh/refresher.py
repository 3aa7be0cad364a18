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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from mirror.config import RepositorySettings
from mirror.errors import (
    Damaged,
    DiskTrouble,
    LocalError,
    MirrorError,
    NotUpstream,
    Trouble,
    UpstreamUnavailable,
)
from mirror.metrics import Metrics
from mirror.refresh.expected import EXPECTATIONS_MAX, Expected, sort_out
from mirror.refresh.healing import Healer
from mirror.refresh.mirror import Mirror
from mirror.refresh.places import RefreshPlaces
from mirror.refresh.schedule import Schedule
from mirror.refresh.update import Updated, Updater
from mirror.refresh.vanishing import LOOKS_MIN
from mirror.repository.snapshot import RefSnapshot
from mirror.upstream.forges import RefChange
from mirror.upstream.remote import Remote

REFS_LOGGED_MAX: Final = 10

logger = structlog.stdlib.get_logger()


class Trigger(enum.StrEnum):
    """What a refresh was begun for."""

    START = "start"
    POLL = "poll"
    WEBHOOK = "webhook"
    LAG = "lag"
    WANT = "want"
    MAX_AGE = "max_age"
    PUSH = "push"
    MANUAL = "manual"
    ACCEPT = "accept"  # as MANUAL, and what vanished upstream was deleted
    ROOM = "room"  # on the disk, after there was none
    DAMAGE = "damage"
    RELOAD = "reload"


class OnPublished(Protocol):
    """Told of each change that readers see from now on."""

    def __call__(self, mirror: Mirror, before: RefSnapshot | None, updated: Updated) -> None:
        """Take note of it, on the event loop.

        Those who waited for the change wake only after this: what takes time is for a task.

        Args:
            mirror: The repository.
            before: What readers saw until now.
            updated: What they see now, and what came with it.
        """
        ...


OnServed = Callable[[Mirror], Awaitable[None]]
"""Told after each refresh, once no reader in any process is served from what was before it."""


async def _ask_nobody(_: Mirror) -> None:
    """Be the `OnServed` of a service where nobody asked to be told."""


def _tell_nobody(mirror: Mirror, before: RefSnapshot | None, updated: Updated) -> None:
    """Be the `OnPublished` of a service where nobody asked to be told."""


@dataclass(frozen=True, slots=True)
class _Success:
    """A refresh that went well, and what is told of it once every process serves it.

    Attributes:
        published: What readers see anew; `None` where nothing changed.
        began_at: When it began, on the refresher's clock.
        came_at: When the announcements came whose changes can be fetched now.
        delay_seconds: Until the next refresh; `None` for not of ourselves.
    """

    published: Updated | None
    began_at: float
    came_at: Sequence[float]
    delay_seconds: float | None


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
        *,
        places: RefreshPlaces,
        healer: Healer | None = None,
        metrics: Metrics,
        refresh_seconds_max: float,
        on_published: OnPublished = _tell_nobody,
        on_served: OnServed = _ask_nobody,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.mirror = mirror
        self._remote = remote
        self._updater = updater
        self._places = places
        self._healer = healer
        self._metrics = metrics
        self._refresh_seconds_max = refresh_seconds_max
        self._on_published = on_published
        self._on_served = on_served
        self._clock = clock
        self._chance = chance
        self._schedule = Schedule(mirror.settings.poll_interval_seconds)
        self._pending = _Pending(_future())
        self._wake = asyncio.Event()
        self._expected: list[Expected] = []
        self._is_refreshing = False
        self._log = logger.bind(repository=mirror.name)

    def request(self, trigger: Trigger) -> "asyncio.Future[None]":
        """Ask for a refresh that begins after now; the future ends when it has.

        It raises what the refresh raised, and is cancelled when the refresher ends before. Wait for
        it with `asyncio.shield` or `asyncio.wait`.
        """
        if trigger not in self._pending.triggers:
            self._pending.triggers.append(trigger)
        self._wake.set()
        return self._pending.outcome

    def change(self, settings: RepositorySettings, remote: Remote, seconds_max: float) -> None:
        """Go on by other settings of the same upstream; readers are held where other refs count.

        Args:
            settings: The new ones.
            remote: The upstream, as they reach it.
            seconds_max: The longest a refresh may take, from the next one on.
        """
        mirror, was = self.mirror, self.mirror.settings
        mirror.settings = settings
        self._remote = remote
        self._refresh_seconds_max = seconds_max
        if settings == was:
            return
        self._schedule = Schedule(settings.poll_interval_seconds)
        if settings.refs != was.refs:
            mirror.shown = None
            mirror.freshness.hold_back()
        self.request(Trigger.RELOAD)
        mirror.changed.give()

    @property
    def is_busy(self) -> bool:
        """Whether a refresh is under way, or about to begin."""
        return self._is_refreshing or self._wake.is_set()

    def announce(self, changes: Sequence[RefChange]) -> None:
        """Take note of an accepted webhook: from now on what we have is stale.

        No changes at all means that any ref may have changed.
        """
        ours = [change for change in changes if self._updater.mirrors(self.mirror, change.ref)]
        if changes and not ours:
            return
        now = self._clock()
        self.mirror.last.announced_at = time.time()
        number = self.mirror.freshness.announce(now)
        room = EXPECTATIONS_MAX - len(self._expected)
        self._expected += [Expected(change, number, now) for change in ours][:room]
        self.request(Trigger.WEBHOOK)
        self.mirror.changed.give()

    async def run(self, *, at_once: bool = True) -> None:
        """Refresh whenever asked to, and on schedule, until cancelled.

        Args:
            at_once: Begin with a refresh; otherwise with the first that is asked for.
        """
        if self._pending.outcome.done():  # it was run before
            self._pending = _Pending(_future())
        if at_once:
            self.request(Trigger.START)
        delay: float | None = None
        try:
            while True:
                await self._until_wanted(delay)
                delay = await self._refresh_once()
        finally:
            self._pending.outcome.cancel()

    async def _until_wanted(self, delay: float | None) -> None:
        if not await self._is_woken(delay):
            self._pending.triggers.append(Trigger.LAG if self._expected else Trigger.POLL)
        freshness = self.mirror.freshness
        while (pause := freshness.not_before - self._clock()) > 0:
            if {Trigger.MANUAL, Trigger.ACCEPT}.intersection(self._pending.triggers):
                return  # a person insists
            self._wake.clear()
            await self._is_woken(pause)

    async def _is_woken(self, timeout_seconds: float | None) -> bool:
        """Wait until somebody asks for a refresh; `False` when the time ran out first."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._wake.wait()
        except TimeoutError:
            return False

    async def _refresh_once(self) -> float | None:
        """Refresh now; returns the seconds to the next time, `None` for not of ourselves."""
        is_clone = self.mirror.repository is None
        async with self._places.taken(self.mirror.settings.upstream, is_clone=is_clone):
            self._is_refreshing = True
            try:
                return await self._refresh()
            finally:
                self._is_refreshing = False

    async def _refresh(self) -> float | None:
        pending, self._pending = self._pending, _Pending(_future())
        self._wake.clear()
        trigger = pending.triggers[0]
        covers = self.mirror.freshness.announced
        began_at = self._clock()
        error: MirrorError | None = None
        delay: float | None = None
        success: _Success | None = None
        try:
            async with asyncio.timeout(self._refresh_seconds_max):
                async with self.mirror.changing:
                    updated = await self._update(pending.triggers)
            covers = await self._hold_back(updated, covers)
            success = self._succeeded(updated, trigger, began_at=began_at, covers=covers)
            delay = success.delay_seconds
        except TimeoutError:
            error = UpstreamUnavailable(
                f"not done after {self._refresh_seconds_max:.0f} seconds (limits.refresh_timeout)",
                trouble=Trouble.TOOK_TOO_LONG,
            )
        except MirrorError as raised:
            error = raised
        except asyncio.CancelledError:
            pending.outcome.cancel()
            raise
        except Exception as raised:  # noqa: BLE001 - one repository's bug must not stop the others
            self._log.exception("refresh_broke")
            error = LocalError(f"unexpected {type(raised).__name__}: {raised}")
        if error is not None:
            delay = self._failed(error, trigger, began_at=began_at, covers=covers)
        try:
            if self.mirror.replicas is not None:
                await self.mirror.replicas.refreshed(self.mirror)
            if success is not None:
                self._tell_served(success, trigger)
            await self._on_served(self.mirror)
        except asyncio.CancelledError:
            pending.outcome.cancel()
            raise
        except Exception:  # noqa: BLE001 - who is told must not undo what was published
            self._log.exception("on_served_broke")
        self.mirror.changed.give()
        if not pending.outcome.done():
            if error is None:
                pending.outcome.set_result(None)
            else:
                pending.outcome.set_exception(error)
                pending.outcome.exception()  # seen: nobody has to be waiting
        return delay

    async def _update(self, triggers: Sequence[Trigger]) -> Updated:
        """Refresh the repository; first it is mended, where it is damaged."""
        mirror = self.mirror
        is_damage_met, accepts = Trigger.DAMAGE in triggers, Trigger.ACCEPT in triggers
        expected = [one.change for one in self._expected]
        believed = None if accepts else {one.ref for one in expected if one.after is None}
        if self._healer is not None and (is_damage_met or mirror.damage is not None):
            healed = await self._healer.heal(is_damage_met=is_damage_met, believed=believed)
            if healed is not None:
                return healed
        try:
            return await self._updater.update(
                mirror, self._remote, expected, accepts_deletions=accepts
            )
        except Damaged as error:
            if self._healer is None:
                raise
            mirror.damage = mirror.damage or str(error)
            healed = await self._healer.heal(is_damage_met=True, believed=believed)
            if healed is None:  # mended here
                return await self._updater.update(mirror, self._remote, accepts_deletions=accepts)
            return healed

    async def _hold_back(self, updated: Updated, covers: int) -> int:
        """Hold readers in all processes before the first of these shows what is new.

        Else one that has followed shows what the next, which has not, takes back: a reader that
        asks both sees a ref go back in time. Returns what the refresh covers.
        """
        mirror, freshness = self.mirror, self.mirror.freshness
        is_change = mirror.snapshot is not None and updated.snapshot is not mirror.snapshot
        if mirror.replicas is None or not is_change:
            return covers
        is_all = covers == freshness.announced
        number = freshness.hold_back()
        await mirror.replicas.announced(mirror)
        return number if is_all else covers

    def _succeeded(
        self, updated: Updated, trigger: Trigger, *, began_at: float, covers: int
    ) -> _Success:
        mirror, before = self.mirror, self.mirror.snapshot
        mirror.repository = updated.repository
        mirror.snapshot = updated.snapshot  # published: the next reader sees it
        mirror.last.succeeded_at = time.time()
        mirror.last.error = mirror.last.kind = None
        mirror.denied = None
        is_changed = updated.snapshot is not before
        if is_changed:
            try:
                self._on_published(mirror, before, updated)
            except Exception:  # noqa: BLE001 - who is told must not undo what was published
                self._log.exception("on_published_broke")
        unmet = [one for one in self._expected if not one.is_met(updated)]
        self._expected, given_up = sort_out(unmet, self._schedule, began_at)
        self._log_given_up(given_up)
        lagging = [one for one in self._expected if one.number <= covers]
        # What is lagging leaves its announcement, and those after it, uncovered.
        covers = min([covers, *(one.number - 1 for one in lagging)])
        came_at = mirror.freshness.confirm(began_at=began_at, covers=covers)
        now = self._clock()
        outcome = "changed" if is_changed else "unchanged"
        self._metrics.record_refresh(trigger, outcome, now - began_at)
        if is_changed:
            mirror.last.changed_at = mirror.last.succeeded_at
        return _Success(
            updated if is_changed else None,
            began_at=began_at,
            came_at=() if given_up else came_at,
            delay_seconds=self._delay_after(lagging, began_at, now),
        )

    def _delay_after(
        self, lagging: Sequence[Expected], began_at: float, now: float
    ) -> float | None:
        """Return the seconds until the next refresh after one that went well."""
        looks = [one.look_again_at(self._schedule, began_at) for one in lagging]
        due = min((look for look in looks if look is not None), default=None)
        if due is not None:
            return max(0.0, due - now)
        delay = self._schedule.after_success(self._chance())
        if self.mirror.vanishing is None:
            return delay
        look = self.mirror.settings.refs_vanish_after_seconds / LOOKS_MIN
        return look if delay is None else min(look, delay)

    def _tell_served(self, success: _Success, trigger: Trigger) -> None:
        """Tell operators of a refresh whose refs every process serves by now."""
        now = self._clock()
        for at in success.came_at:
            self._metrics.record_webhook_to_fetchable(now - at)
        if success.published is not None:
            snapshot = success.published.snapshot
            self._log.info(
                "published",
                trigger=trigger.value,
                snapshot=snapshot.number,
                refs=len(snapshot.refs),
                changed=success.published.changed_refs,
                received_bytes=success.published.received_bytes,
                milliseconds=round((now - success.began_at) * 1000, 1),
            )

    def _log_given_up(self, given_up: Sequence[Expected]) -> None:
        if given_up:
            names = [one.change.ref.decode("utf-8", "replace") for one in given_up]
            self._log.warning(
                "announced_but_not_listed", refs=names[:REFS_LOGGED_MAX], count=len(names)
            )

    def _failed(
        self, error: MirrorError, trigger: Trigger, *, began_at: float, covers: int
    ) -> float:
        mirror, freshness = self.mirror, self.mirror.freshness
        now = self._clock()
        asked = error.retry_after_seconds if isinstance(error, UpstreamUnavailable) else None
        freshness.fail(now, covers=covers, retry_after_seconds=asked)
        is_disk = isinstance(error, DiskTrouble)
        delay = self._schedule.after_failure(
            freshness.failures, self._chance(), asked, is_passing=is_disk
        )
        if isinstance(error, NotUpstream):
            mirror.denied = (mirror.denied[0] if mirror.denied else now, now)
        mirror.last.failed_at = time.time()
        mirror.last.error = str(error)
        mirror.last.kind = error.label
        self._metrics.record_refresh(trigger, error.label, now - began_at)
        self._metrics.record_refresh_failure(error.trouble)
        self._log.warning(
            "refresh_failed",
            trigger=trigger.value,
            error=str(error),
            kind=error.label,
            reason=error.trouble.value,
            failures=freshness.failures,
            next_try_seconds=round(delay, 1),
        )
        return delay


def _future() -> "asyncio.Future[None]":
    return asyncio.get_running_loop().create_future()
