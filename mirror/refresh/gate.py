"""What a reader is given now: the current refs, perhaps after a wait, perhaps marked stale.

The decision is `freshness`'s; here is the waiting. Whatever is asked here is asked for a reader,
and noted as such (`Mirror.read_at`).
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from mirror.errors import NotYetMirrored, StaleRefused
from mirror.refresh.freshness import Verdict
from mirror.refresh.mirror import Mirror
from mirror.refresh.refresher import Trigger
from mirror.repository.bare import BareRepository
from mirror.repository.snapshot import RefSnapshot

AGE_UNKNOWN_SECONDS: Final = 0
"""Shown for refs of which nobody kept when they were confirmed; that they are stale shows."""


class RefreshRequests(Protocol):
    """Where readers ask for a refresh: the refresher itself, or the way to it from a worker."""

    def request(self, trigger: Trigger) -> "asyncio.Future[None]":
        """See `Refresher.request`."""
        ...


@dataclass(frozen=True, slots=True)
class Admitted:
    """What a reader may see.

    Attributes:
        repository: Its objects.
        snapshot: Its refs.
        stale_seconds: `None` when fresh; else how long ago the refs were last confirmed.
        held_seconds: How long the reader had to wait.
    """

    repository: BareRepository
    snapshot: RefSnapshot
    stale_seconds: int | None
    held_seconds: float


class Gate:
    """Lets the readers of one repository in."""

    def __init__(
        self,
        mirror: Mirror,
        refresher: RefreshRequests,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._mirror = mirror
        self._refresher = refresher
        self._clock = clock
        self._wall_clock = wall_clock

    def current(self) -> Admitted:
        """Return what is there, whatever its age: for requests that name objects, not refs.

        Raises:
            NotYetMirrored: There is nothing yet.
        """
        mirror = self._mirror
        mirror.read_at = self._clock()
        if mirror.repository is None or mirror.snapshot is None:  # what `is_open` denies
            # What stands in the way may be lasting: then trying again is no advice.
            reason = mirror.last.error or "its first clone is under way; try again soon"
            raise NotYetMirrored(f"{mirror.name} is not mirrored yet: {reason}")
        return Admitted(mirror.repository, mirror.snapshot, None, 0.0)

    def is_fresh(self, snapshot: RefSnapshot) -> bool:
        """Tell whether `admit` would return `snapshot` now, at once and not marked stale."""
        mirror = self._mirror
        mirror.read_at = now = self._clock()
        return mirror.snapshot is snapshot and mirror.freshness.is_fresh(
            now, mirror.settings.max_age_seconds
        )

    def is_shown(self, snapshot: RefSnapshot) -> bool:
        """Tell whether `current` would return `snapshot`."""
        self._mirror.read_at = self._clock()
        return self._mirror.snapshot is snapshot

    def is_open(self) -> bool:
        """Tell whether there is anything to serve yet, so that `current` returns it."""
        self._mirror.read_at = self._clock()
        return self._mirror.snapshot is not None and self._mirror.repository is not None

    async def look_again(self, timeout_seconds: float) -> None:
        """Ask the upstream for what a reader wants and we lack, and wait for its answer.

        Many readers share one look; while the upstream is failing there is none.
        """
        if self._clock() < self._mirror.freshness.ask_again_at:
            return
        refreshed = self._refresher.request(Trigger.WANT)
        await asyncio.wait((refreshed,), timeout=timeout_seconds)

    async def admit(self) -> Admitted:
        """Return what may be served now, after a wait where the rules want one.

        Raises:
            NotYetMirrored: There is nothing yet.
            StaleRefused: It would be stale, and the repository's policy is to refuse that.
        """
        self.current()
        mirror = self._mirror
        policy = mirror.policy
        freshness = mirror.freshness
        asked_at = now = self._clock()
        needs = freshness.announced
        has_asked = False
        while True:
            if not has_asked and freshness.is_overdue(now, asked_at, policy):
                self._refresher.request(Trigger.MAX_AGE)
                has_asked = True
            verdict = freshness.judge(now, asked_at, policy, needs=needs)
            if verdict is not Verdict.WAIT:
                break
            await mirror.changed.wait(asked_at + policy.hold_seconds - now)
            now = self._clock()
        there = self.current()
        stale_seconds = None
        if verdict is Verdict.STALE:
            age = self._age_seconds(there.repository, now)
            stale_seconds = AGE_UNKNOWN_SECONDS if age is None else round(age)
            if policy.refuse_stale:
                raise StaleRefused(
                    f"{mirror.name} may be out of date (last confirmed {_ago(age)}) and its policy"
                    f" is on_stale: refuse; last error: {mirror.last.error or 'none'}"
                )
        return Admitted(there.repository, there.snapshot, stale_seconds, now - asked_at)

    def _age_seconds(self, repository: BareRepository, now: float) -> float | None:
        """Return how long ago the refs were confirmed, perhaps before this start."""
        age = self._mirror.freshness.age_seconds(now)
        if age is None and repository.confirmed_before is not None:
            return max(0.0, self._wall_clock() - repository.confirmed_before)
        return age


def _ago(age: float | None) -> str:
    return "nobody knows when" if age is None else f"{age:.0f} s ago"
