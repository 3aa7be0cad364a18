"""Failed attempts by address: who guesses has to wait, and who is known never does. Pure.

A bucket for each address holds `FAILURES_MAX` failures and one more every `SECONDS_EACH`. It is
looked at only after what was shown was not known by heart: polls of clients that are let in take
nothing from it, wherever they come from.
"""

from collections import OrderedDict
from typing import Final

FAILURES_MAX: Final = 20
"""A misconfigured controller with a few pods behind one address, and no more."""

SECONDS_EACH: Final = 3.0

ADDRESSES_MAX: Final = 10_000
"""Those seen least recently are forgotten first."""


class Attempts:
    """The failures of all addresses."""

    def __init__(self) -> None:
        self._full_at: OrderedDict[str, float] = OrderedDict()  # when each will be as if new

    def wait_seconds(self, address: str, now: float) -> float:
        """Return how long an address has to wait for its next attempt; 0 for not at all."""
        full_at = self._full_at.get(address, now)
        return max(0.0, full_at - now - (FAILURES_MAX - 1) * SECONDS_EACH)

    def failed(self, address: str, now: float) -> None:
        """Take note of a failed attempt."""
        full_at = max(now, self._full_at.pop(address, now))
        self._full_at[address] = min(full_at + SECONDS_EACH, now + FAILURES_MAX * SECONDS_EACH)
        if len(self._full_at) > ADDRESSES_MAX:
            self._full_at.popitem(last=False)
