"""Whether what we have may be served now. Pure: the time is passed in.

The contract: refs older than a webhook we accepted are never served as if they were fresh. A
reader that comes while the refresh it announced runs is held, up to the policy's `hold`; then, or
when that refresh failed, it gets the last good refs marked stale, or a refusal. A restart counts
as an announcement, for what was accepted before it is not known any more.

`max_age` is the other rule: an answer confirmed by the upstream longer ago than that asks first.
"""

import enum
from dataclasses import dataclass
from typing import Final

ASK_AGAIN_SECONDS: Final = 1.0
"""While the upstream is down, readers are not each to wait for yet another attempt."""


class Verdict(enum.Enum):
    """What a reader that asks now is to do."""

    FRESH = "fresh"
    WAIT = "wait"  # for the refresh under way
    ASK = "ask"  # for a refresh, and wait for that
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
    came before it began.

    Attributes:
        announced: The number of the latest announcement.
        satisfied: All announcements up to this number are covered by what is served.
        failed: The latest announcement for which a refresh failed: nobody waits for that again.
        announced_at: When the oldest announcement that is not satisfied came.
        confirmed_at: When the refresh began that last confirmed the refs; `None` for never.
        failures: How many refreshes failed in a row.
        ask_again_at: After a failure, readers don't make us ask the upstream before that.
    """

    announced: int = 1  # the start itself
    satisfied: int = 0
    failed: int = 0
    announced_at: float | None = None
    confirmed_at: float | None = None
    failures: int = 0
    ask_again_at: float = 0.0

    @property
    def is_pending(self) -> bool:
        """Whether an announcement is not covered yet."""
        return self.satisfied < self.announced

    def announce(self, now: float) -> int:
        """Note that the upstream has changed; returns the announcement's number."""
        if not self.is_pending:
            self.announced_at = now
        self.announced += 1
        return self.announced

    def confirm(self, *, began_at: float, covers: int) -> None:
        """Note that a refresh succeeded, which began at `began_at` and covers announcements."""
        self.confirmed_at = began_at
        self.failures = 0
        self.satisfied = max(self.satisfied, covers)
        if not self.is_pending:
            self.announced_at = None

    def fail(self, now: float, *, covers: int, retry_after_seconds: float | None) -> None:
        """Note that the refresh that would have covered announcements up to `covers` failed."""
        self.failures += 1
        self.failed = max(self.failed, covers)
        self.ask_again_at = now + max(ASK_AGAIN_SECONDS, retry_after_seconds or 0.0)

    def age_seconds(self, now: float) -> float | None:
        """Return how long ago the refs were confirmed, or `None` when they never were."""
        return None if self.confirmed_at is None else max(0.0, now - self.confirmed_at)

    def judge(self, now: float, asked_at: float, policy: Policy) -> Verdict:
        """Say what a reader is to do that came at `asked_at`."""
        held_out = now - asked_at >= policy.hold_seconds
        if self.is_pending:
            waits = self.failed < self.announced and not held_out
            return Verdict.WAIT if waits else Verdict.STALE
        if policy.max_age_seconds is None or self._young_enough(asked_at, policy.max_age_seconds):
            return Verdict.FRESH
        return Verdict.STALE if held_out or now < self.ask_again_at else Verdict.ASK

    def _young_enough(self, asked_at: float, max_age_seconds: float) -> bool:
        """A reader's answer must have been confirmed at most `max_age_seconds` before it asked."""
        return self.confirmed_at is not None and asked_at - self.confirmed_at <= max_age_seconds
