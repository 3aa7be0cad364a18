"""Whose turn it is at one receiver, and when to try again. Pure: time and chance are passed in.

* One delivery per repository at a time, so that a ref's changes arrive in their order; deliveries
  for several repositories go side by side, one alone while the receiver is not well.
* Repositories take turns, and within one a ref that failed goes behind the others: what a receiver
  chokes on holds up nothing else.
* The receiver as a whole (unreachable, silent, 429, 5xx, or none that we may talk to): 1 s,
  doubled with each failure up to a minute. What only a person can mend: 30 s up to five minutes.
* A single event that is refused while the receiver is well is put off likewise; others go on.
* Each pause is shortened by up to half at random. What Retry-After says is the least.
"""

from dataclasses import dataclass, field
from typing import Final

from mirror.refresh.relay.backlog import Backlog, Change

SIDE_BY_SIDE_MAX: Final = 4
"""Deliveries under way to one receiver: one slow answer is not to hold up all repositories."""

PASSING_SECONDS: Final = (1.0, 60.0)
LASTING_SECONDS: Final = (30.0, 300.0)
"""The first pause and the longest."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Something to tell the receiver now.

    Attributes:
        repository: Its name.
        changes: Of its refs; at least one.
        number: How many deliveries for the repository were acknowledged before.
    """

    repository: str
    changes: tuple[Change, ...]
    number: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a delivery failed.

    Attributes:
        text: For people.
        is_lasting: Whether somebody has to act.
        is_about_event: Whether the receiver refused this event, and may well take others.
        retry_after_seconds: What the receiver asked for.
    """

    text: str
    is_lasting: bool = False
    is_about_event: bool = False
    retry_after_seconds: float | None = None


@dataclass(slots=True)
class Outbox:
    """All that one receiver is still to be told.

    Attributes:
        batch_max: How many refs one delivery tells of.
        backlogs: By repository.
        failures: How often in a row the receiver was not well.
        not_before: It is not tried again before then.
    """

    batch_max: int = 1
    backlogs: dict[str, Backlog] = field(default_factory=dict)
    failures: int = 0
    not_before: float = 0.0
    _turns: dict[str, None] = field(default_factory=dict)
    _under_way: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        """Return how many refs it is to be told of."""
        return sum(len(self.backlogs[name]) for name in self._turns)

    @property
    def oldest(self) -> float | None:
        """Since when the receiver lacks something; `None` when it lacks nothing."""
        times = (self.backlogs[name].oldest for name in self._turns)
        return min((at for at in times if at is not None), default=None)

    @property
    def has_failed(self) -> bool:
        """Whether something that is to be told has failed."""
        return any(self.backlogs[name].has_failed for name in self._turns)

    def changed(self, repository: str) -> None:
        """Take note that the backlog of a repository is another one."""
        if len(self.backlogs[repository]) == 0:
            self._turns.pop(repository, None)
        else:
            self._turns.setdefault(repository)

    def next(self, now: float) -> Delivery | None:
        """Return what to begin to tell now; end it with `acknowledge` or `fail`."""
        if now < self.not_before or len(self._under_way) >= self._side_by_side:
            return None
        for name in self._turns:
            if name in self._under_way:
                continue
            backlog = self.backlogs[name]
            changes = backlog.begin(now, self.batch_max)
            if changes:
                self._under_way.add(name)
                return Delivery(name, changes, backlog.number)
        return None

    def due_at(self) -> float | None:
        """Return when `next` is to be asked again, if nothing happens before; `None`: never."""
        if len(self._under_way) >= self._side_by_side:
            return None
        waiting = (self.backlogs[name] for name in self._turns if name not in self._under_way)
        times = (at for one in waiting if (at := one.due_at()) is not None)
        due = min(times, default=None)
        return None if due is None else max(due, self.not_before)

    def acknowledge(self, delivery: Delivery) -> None:
        """Take note that the receiver was told."""
        self.failures, self.not_before = 0, 0.0
        self.backlogs[delivery.repository].acknowledge(delivery.changes)
        self._end(delivery)

    def fail(self, delivery: Delivery, trouble: Trouble, now: float, chance: float) -> float:
        """Take note that the receiver could not be told.

        Args:
            delivery: What it was to be told.
            trouble: Why it was not.
            now: The time.
            chance: A random number of [0, 1).

        Returns:
            When it is tried again.
        """
        backlog = self.backlogs[delivery.repository]
        if trouble.is_about_event:
            self.failures, self.not_before = 0, 0.0  # it is there
            backlog.put_off(delivery.changes, lambda count: now + _pause(count, trouble, chance))
        else:
            self.failures += 1
            self.not_before = now + _pause(self.failures, trouble, chance)
            backlog.put_off(delivery.changes, lambda _: self.not_before)
        self._end(delivery)
        again = backlog.due_at()
        return max(self.not_before, now if again is None else again)

    def give_up(self, delivery: Delivery, now: float) -> None:
        """Take note that nobody knows whether the receiver was told: it is to be told once more."""
        self.backlogs[delivery.repository].put_off(delivery.changes, lambda _: now)
        self._end(delivery)

    @property
    def _side_by_side(self) -> int:
        return 1 if self.failures else SIDE_BY_SIDE_MAX

    def _end(self, delivery: Delivery) -> None:
        self._under_way.discard(delivery.repository)
        self._turns.pop(delivery.repository, None)
        self.changed(delivery.repository)  # behind the others


def _pause(failures: int, trouble: Trouble, chance: float) -> float:
    first, longest = LASTING_SECONDS if trouble.is_lasting else PASSING_SECONDS
    pause = min(first * 2.0 ** min(failures - 1, 30), longest)
    return max(pause * (1 - chance / 2), trouble.retry_after_seconds or 0.0)
