"""Whether what we have may be served now. Pure: the time is passed in.

The contract: refs older than a webhook we accepted are never served as if they were fresh. A
reader that comes while the refresh it announced runs is held, up to the policy's `hold`; then, or
when that refresh failed, it gets the last good refs marked stale, or a refusal. A restart counts
as an announcement, for what was accepted before it is not known any more.

`max_age` is the other rule: an answer confirmed by the upstream longer ago than that asks first.
"""

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import Final

ASK_AGAIN_SECONDS: Final = 1.0
"""While the upstream is down, readers are not each to wait for yet another attempt."""

ANNOUNCEMENTS_TIMED_MAX: Final = 1000
"""Announcements not covered yet whose times are kept: an upstream may be down for days."""


class Verdict(enum.Enum):
    """What a reader that asks now is to do."""

    FRESH = "fresh"
    WAIT = "wait"  # a refresh under way, or about to begin, may help
    STALE = "stale"  # there is nothing to wait for


@dataclass(frozen=True, slots=True)
class Policy:
    """A repository's rules.

    Attributes:
        hold_seconds: How long a reader may be held.
        refuse_stale: Refuse instead of serving stale refs.
        max_age_seconds: Ask the upstream first when the last confirmation is older; `None`: never.
    """

    hold_seconds: float
    refuse_stale: bool
    max_age_seconds: float | None


@dataclass(slots=True)
class Freshness:
    """What is known about the age of one repository's refs.

    Times are seconds of a monotonic clock. Announcements are numbered; a refresh satisfies all that
    came before it began, but for those whose tips the upstream does not show yet.

    Attributes:
        announced: The number of the latest announcement.
        satisfied: All announcements up to this number are covered by what is served.
        failed: The latest announcement for which a refresh failed: nobody waits for that again.
        confirmed_at: When the refresh began that last confirmed the refs; `None` for never.
        failures: How many refreshes failed in a row.
        ask_again_at: After a failure, readers don't make us ask the upstream before that.
        not_before: The upstream wants no request before that: its Retry-After.
    """

    announced: int = 1  # the start itself
    satisfied: int = 0
    failed: int = 0
    confirmed_at: float | None = None
    failures: int = 0
    ask_again_at: float = 0.0
    not_before: float = 0.0
    _uncovered: deque[tuple[int, float]] = field(default_factory=deque)

    @property
    def is_pending(self) -> bool:
        """Whether an announcement is not covered yet."""
        return self.satisfied < self.announced

    def announce(self, now: float) -> int:
        """Note that the upstream has changed; returns the announcement's number."""
        self.announced += 1
        if len(self._uncovered) < ANNOUNCEMENTS_TIMED_MAX:
            self._uncovered.append((self.announced, now))
        return self.announced

    def hold_back(self) -> int:
        """Hold readers until what is about to be published is; returns its number.

        It is numbered as an announcement, but nobody announced it: it is not timed.
        """
        self.announced += 1
        return self.announced

    def confirm(self, *, began_at: float, covers: int) -> list[float]:
        """Note that a refresh succeeded, which began at `began_at` and covers announcements.

        Returns when each of the announcements came that are covered only now.
        """
        self.confirmed_at = began_at
        self.failures = 0
        self.ask_again_at = self.not_before = 0.0
        self.satisfied = max(self.satisfied, covers)
        came_at = []
        while self._uncovered and self._uncovered[0][0] <= self.satisfied:
            came_at.append(self._uncovered.popleft()[1])
        return came_at

    def fail(self, now: float, *, covers: int, retry_after_seconds: float | None) -> None:
        """Note that the refresh that would have covered announcements up to `covers` failed."""
        self.failures += 1
        self.failed = max(self.failed, covers)
        pause = retry_after_seconds or 0.0
        self.not_before = max(self.not_before, now + pause)
        self.ask_again_at = max(self.not_before, now + ASK_AGAIN_SECONDS)

    def age_seconds(self, now: float) -> float | None:
        """Return how long ago the refs were confirmed, or `None` when they never were."""
        return None if self.confirmed_at is None else max(0.0, now - self.confirmed_at)

    def is_fresh(self, now: float, max_age_seconds: float | None) -> bool:
        """Tell whether a reader that comes now is served at once, with nothing to ask or mark.

        This is `judge` saying `FRESH`, without its cost: the answer to a repeated poll.
        """
        return self.satisfied >= self.announced and (
            max_age_seconds is None or _is_young(self.confirmed_at, now, max_age_seconds)
        )

    def is_overdue(self, now: float, asked_at: float, policy: Policy) -> bool:
        """Tell whether a reader that came at `asked_at` makes us ask the upstream."""
        if self.is_pending or now < self.ask_again_at:
            return False
        return not self._is_young_enough(asked_at, policy)

    def judge(
        self, now: float, asked_at: float, policy: Policy, *, needs: int | None = None
    ) -> Verdict:
        """Say what a reader is to do that came at `asked_at`.

        Args:
            now: The time.
            asked_at: When the reader came.
            policy: The repository's rules.
            needs: The latest announcement when the reader came; by default, the latest there is.
                What is announced while a reader waits is not its concern: under steady pushes it
                would wait for ever.
        """
        give_up_at = asked_at + policy.hold_seconds
        needed = self.announced if needs is None else needs
        if self.satisfied < needed:
            in_vain = self.failed >= needed or self.not_before >= give_up_at
        elif self._is_young_enough(asked_at, policy):
            return Verdict.FRESH
        else:
            in_vain = now < self.ask_again_at
        return Verdict.STALE if in_vain or now >= give_up_at else Verdict.WAIT

    def _is_young_enough(self, asked_at: float, policy: Policy) -> bool:
        """A reader's answer must have been confirmed at most `max_age_seconds` before it asked."""
        return _is_young(self.confirmed_at, asked_at, policy.max_age_seconds)


def _is_young(confirmed_at: float | None, asked_at: float, max_age_seconds: float | None) -> bool:
    if max_age_seconds is None:
        return True
    return confirmed_at is not None and asked_at - confirmed_at <= max_age_seconds
