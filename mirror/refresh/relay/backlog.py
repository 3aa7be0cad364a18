"""What one receiver is still to be told of one repository: served against acknowledged. Pure.

Only the refs in which the two differ are kept, each with what the receiver was told last, so a
backlog with nothing in it takes no room. Branches go before other refs, the default branch first
of all. Each attempt tells a ref's change as it is at that moment.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from mirror.wire.names import ObjectId, RefName
from mirror.wire.ref_table import RefTable

BRANCHES: Final = b"refs/heads/"


@dataclass(frozen=True, slots=True)
class Change:
    """What a receiver is told of a ref; `None` for not there.

    Attributes:
        ref: Its name.
        before: What the receiver was told last.
        after: What is served.
        since: When the first of the changes that this sums up was served.
    """

    ref: RefName
    before: ObjectId | None
    after: ObjectId | None
    since: float


IsTold = Callable[[RefName, ObjectId | None], bool]
"""Tells whether a receiver wants to know that a ref points to this now."""


@dataclass(slots=True)
class _Waiting:
    """A ref of which the receiver does not know what is served.

    Attributes:
        before: What it was told last.
        after: What is served.
        since: When the receiver's knowledge became old.
        served_at: When `after` was first served.
        failures: How often in a row `after` could not be told.
        not_before: It is not tried again before then.
        is_under_way: It is being told something at this moment.
    """

    before: ObjectId | None
    after: ObjectId | None
    since: float
    served_at: float
    failures: int = 0
    not_before: float = 0.0
    is_under_way: bool = False


class Backlog:
    """One repository, for one receiver."""

    def __init__(self, acknowledged: RefTable, is_told: IsTold, *, number: int = 0) -> None:
        """Begin with what the receiver has acknowledged.

        Args:
            acknowledged: The refs as it knows them.
            is_told: What it wants to know.
            number: How many deliveries it has acknowledged.
        """
        self.number = number
        self._served = acknowledged
        self._is_told = is_told
        self._branches: dict[RefName, _Waiting] = {}
        self._others: dict[RefName, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._branches) + len(self._others)

    @property
    def oldest(self) -> float | None:
        """Since when the receiver lacks something; `None` when it lacks nothing."""
        return min((one.since for _, one in self._items()), default=None)

    @property
    def has_failed(self) -> bool:
        """Whether something of it could not be told."""
        return any(one.failures for _, one in self._items())

    def publish(
        self, served: RefTable, default_branch: RefName | None, now: float
    ) -> dict[RefName, ObjectId | None]:
        """Take note of what every reader can fetch from now on.

        Takes its time by what has changed since the last call.

        Returns:
            The changes that the receiver is not told of: they count as acknowledged.
        """
        untold: dict[RefName, ObjectId | None] = {}
        new: dict[RefName, _Waiting] = {}
        for name, (was, ref) in served.difference(self._served).items():
            before = was.oid if was is not None else None
            after = ref.oid if ref is not None else None
            one = self._lane(name).get(name)
            if before == after:
                continue
            if not self._is_told(name, after):
                untold[name] = after
                self._forget(name)
            elif one is None:
                new[name] = _Waiting(before, after, now, now)
            elif one.before == after and not one.is_under_way:
                self._forget(name)
            else:  # another event, which may be to the receiver's liking
                one.after, one.served_at, one.failures, one.not_before = after, now, 0, 0.0
        for name in sorted(new, key=lambda name: (name != default_branch, name)):
            self._lane(name)[name] = new[name]
        self._served = served
        return untold

    def begin(self, now: float, count_max: int) -> tuple[Change, ...]:
        """Begin to tell at most so many refs; none when none is due.

        It ends with `acknowledge` or `put_off`. Nothing else is begun before.

        What failed before comes last, so that it can't keep others from being told.
        """
        fresh = ((name, one) for name, one in self._items() if not one.failures)
        failed = ((name, one) for name, one in self._items() if one.failures)
        due = (pair for pair in chain(fresh, failed) if pair[1].not_before <= now)
        chosen: list[Change] = []
        for name, one in islice(due, count_max):
            one.is_under_way = True
            chosen.append(Change(name, one.before, one.after, one.since))
        return tuple(chosen)

    def due_at(self) -> float | None:
        """Return when something is to be told next; `None` when nothing is."""
        return min((one.not_before for _, one in self._items()), default=None)

    def acknowledge(self, changes: Iterable[Change]) -> None:
        """Take note that the receiver was told."""
        self.number += 1
        for change in changes:
            one = self._lane(change.ref).get(change.ref)
            if one is None:
                continue  # of no interest any more
            one.is_under_way = False
            one.before, one.since = change.after, one.served_at
            if one.before == one.after:
                self._forget(change.ref)

    def put_off(self, changes: Iterable[Change], until: Callable[[int], float]) -> None:
        """Take note that the receiver could not be told; others come first now.

        Args:
            changes: What it was to be told.
            until: From how often that failed in a row to when to try again.
        """
        for change in changes:
            lane = self._lane(change.ref)
            one = lane.pop(change.ref, None)
            if one is None:
                continue
            lane[change.ref] = one
            one.is_under_way = False
            if one.after == change.after:
                one.failures += 1
                one.not_before = until(one.failures)
            elif one.before == one.after:
                # All is as before, but the receiver may have heard of what was in between.
                one.before = change.after

    def _forget(self, name: RefName) -> None:
        self._lane(name).pop(name, None)

    def _lane(self, name: RefName) -> dict[RefName, _Waiting]:
        return self._branches if name.startswith(BRANCHES) else self._others

    def _items(self) -> Iterator[tuple[RefName, _Waiting]]:
        return chain(self._branches.items(), self._others.items())
