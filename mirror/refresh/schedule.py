"""When to look at the upstream next. Pure: time and chance are passed in.

* All well: the poll interval, give or take a tenth, so that a thousand repositories spread out.
* Failing: 1 s, doubled with each failure, up to the longer of the poll interval and a minute, each
  shortened by up to half at random. What the upstream's Retry-After says is the least.
* A disk that took nothing: the same, but at most a minute, however seldom the upstream is polled.
* The upstream does not show yet what its webhook announced (forges replicate): soon again, a few
  times. What counts is the age of the announcement, so that others that follow prolong nothing.
"""

from dataclasses import dataclass
from typing import Final

POLL_JITTER: Final = 0.1
BACKOFF_SECONDS_MIN: Final = 1.0
BACKOFF_SECONDS_MAX: Final = 60.0
LAG_LOOKS_SECONDS: Final = (0.1, 0.35, 0.85, 1.85, 3.85)
"""Ages of an announcement at which to look for it again. A look later than the last settles it: the
forge has had its chance, and what it lists is true."""

LAG_LOOKS_APART_SECONDS_MIN: Final = 0.05
"""A timer may be a little early, and a look that just was says as much."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a repository is looked at.

    Attributes:
        poll_interval_seconds: `None` for never.
    """

    poll_interval_seconds: float | None

    def after_success(self, chance: float) -> float | None:
        """Return the seconds to the next poll, or `None` for no poll.

        Args:
            chance: A random number of [0, 1).
        """
        if self.poll_interval_seconds is None:
            return None
        return self.poll_interval_seconds * (1 - POLL_JITTER + 2 * POLL_JITTER * chance)

    def after_failure(
        self,
        failures: int,
        chance: float,
        retry_after_seconds: float | None = None,
        *,
        is_passing: bool = False,
    ) -> float:
        """Return the seconds to the next try.

        Args:
            failures: How many tries failed in a row, at least 1.
            chance: A random number of [0, 1).
            retry_after_seconds: What the upstream asked for.
            is_passing: What failed is this machine's, and mended at any moment.
        """
        longest = BACKOFF_SECONDS_MAX
        if not is_passing:
            longest = max(longest, self.poll_interval_seconds or 0.0)
        delay = min(BACKOFF_SECONDS_MIN * 2.0 ** min(failures - 1, 30), longest)
        return max(delay * (1 - chance / 2), retry_after_seconds or 0.0)

    def next_look(self, age_seconds: float) -> float | None:
        """Return the age of an announcement at which to look for it again; `None`: no more.

        Args:
            age_seconds: Its age when the look began that did not find it.
        """
        earliest = age_seconds + LAG_LOOKS_APART_SECONDS_MIN
        return next((age for age in LAG_LOOKS_SECONDS if age >= earliest), None)
