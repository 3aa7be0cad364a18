"""What a webhook announced and its upstream does not list yet: whether it came, when to look again.

Knows no clock: times come in.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mirror.refresh.schedule import Schedule
from mirror.refresh.update import Updated
from mirror.upstream.forges import UNKNOWN, RefChange

EXPECTATIONS_MAX: Final = 1000
"""Announced tips remembered per repository; what is over that is left to the upstream's listing."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a webhook announced, and when; `number` is the announcement's."""

    change: RefChange
    number: int
    announced_at: float

    def is_met(self, updated: Updated) -> bool:
        """Tell whether the upstream shows what it announced, or something later.

        Deliveries are late, lost and out of order, and the forge's own copies lag behind one
        another. What the ref is now tells them apart: what it was before the push means that the
        forge lags; any other tip is later when we hold what was announced, or what was before that,
        and else earlier.
        """
        change = self.change
        if change.after is UNKNOWN or (change.after is None and change.before is UNKNOWN):
            return True
        tip = updated.snapshot.find(change.ref)
        if tip == change.after:
            return True
        if tip == change.before:
            return False
        known = (oid for oid in (change.after, change.before) if oid is not UNKNOWN)
        return any(oid is None or updated.repository.source.contains(oid) for oid in known)

    def look_again_at(self, schedule: Schedule, began_at: float) -> float | None:
        """Return when to look again for what the look that began then did not find.

        `None` where the forge had its chance to show it.
        """
        age = schedule.next_look(began_at - self.announced_at)
        return None if age is None else self.announced_at + age


def sort_out(
    unmet: Iterable[Expected], schedule: Schedule, began_at: float
) -> tuple[list[Expected], list[Expected]]:
    """Tell what is worth another look from what the forge had its chance to show."""
    waited_for: list[Expected] = []
    given_up: list[Expected] = []
    for one in unmet:
        is_over = one.look_again_at(schedule, began_at) is None
        (given_up if is_over else waited_for).append(one)
    return waited_for, given_up
