"""Figures, targets and verdicts. Pure: no clock, no file.

Times are milliseconds, rates are per second, ratios are written so that the target can be read
beside them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the smallest value that `percent` of them do not exceed (nearest rank).

    Raises:
        ValueError: There are no values.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values, so no percentile")
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Side:
    """What one side did.

    Attributes:
        p50: The median time, in milliseconds.
        p99: The 99th percentile, in milliseconds.
        rate: How many, or how many megabytes, per second.
        amount: A count or a size, of the measurement's unit.
    """

    p50: float | None = None
    p99: float | None = None
    rate: float | None = None
    amount: float | None = None

    @classmethod
    def of_times(cls, milliseconds: Sequence[float]) -> "Side":
        return cls(p50=percentile(milliseconds, 50), p99=percentile(milliseconds, 99))

    @classmethod
    def of_rounds(cls, rounds: Sequence["Side"]) -> "Side":
        """Put rounds together: the median of each figure, so that one noisy round does not count.

        Of two rounds it is the better one for times and the worse one for rates.
        """

        def middle(name: str) -> float | None:
            values = [value for each in rounds if (value := getattr(each, name)) is not None]
            return percentile(values, 50) if values else None

        return cls(*(middle(name) for name in ("p50", "p99", "rate", "amount")))


class Kind(Enum):
    """How a target is read; `limit` is the number in it."""

    TIME_AT_MOST = "at most {limit:g}x"
    FASTER_AT_LEAST = "{limit:g}x faster"
    RATE_AT_LEAST = "at least {limit:g}x"
    AMOUNT_AT_MOST = "at most {limit:g} {unit}"


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be reached.

    Attributes:
        kind: How to compare.
        limit: A factor; of AMOUNT_AT_MOST an amount in the measurement's unit.
        plus_ms: Milliseconds that TIME_AT_MOST allows on top.
    """

    kind: Kind
    limit: float
    plus_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a target is met; else what factor is missing (2.0: twice as good would do)."""

    is_met: bool
    short_by: float = 1.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of the table.

    Attributes:
        row: The row of the issue's table that it belongs to.
        name: What was asked, how often.
        ours: The mirror.
        against: What it is compared with.
        theirs: That one's figures; empty for an absolute target.
        judged: Which figure the target is about: p50, p99, rate or amount.
        unit: Of `rate` and `amount`.
        target: `None` where the figure is for the record.
        checked: What was found right about the answers.
    """

    row: int
    name: str
    ours: Side
    against: str = ""
    theirs: Side = field(default_factory=Side)
    judged: str = "p50"
    unit: str = "ms"
    target: Target | None = None
    checked: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours through theirs; theirs through ours where the target is "times faster"."""
        ours, theirs = getattr(self.ours, self.judged), getattr(self.theirs, self.judged)
        if not ours or not theirs:
            return None
        if self.target is not None and self.target.kind is Kind.FASTER_AT_LEAST:
            return theirs / ours
        return ours / theirs

    @property
    def verdict(self) -> Verdict | None:
        """Compare with the target; `None` where there is none."""
        if self.target is None:
            return None
        allowed, found = self._allowed_and_found(self.target)
        if self.target.kind in (Kind.TIME_AT_MOST, Kind.AMOUNT_AT_MOST):
            allowed, found = found, allowed  # here less is better
        if found >= allowed:
            return Verdict(is_met=True)
        return Verdict(is_met=False, short_by=allowed / found if found else math.inf)

    def _allowed_and_found(self, target: Target) -> tuple[float, float]:
        ours = getattr(self.ours, self.judged)
        if ours is None:
            raise ValueError(f"{self.name}: no {self.judged} was measured")
        if target.kind is Kind.AMOUNT_AT_MOST:
            return target.limit, ours
        theirs = getattr(self.theirs, self.judged)
        if theirs is None:
            raise ValueError(f"{self.name}: no {self.judged} of {self.against} was measured")
        if target.kind is Kind.TIME_AT_MOST:
            return target.limit * theirs + target.plus_ms, ours
        if target.kind is Kind.FASTER_AT_LEAST:
            return target.limit, theirs / ours
        return target.limit * theirs, ours


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that could not be measured, and what would help."""

    row: int
    reason: str
    is_failure: bool = False


def memory_on_top(
    row: int, before_mb: float, peak_mb: float, *, target: Target | None = None
) -> Measurement:
    """Say how much memory the mirror took at its peak, beside what it had before."""
    return Measurement(
        row,
        f"memory on top of {before_mb:.0f} MB meanwhile, at its peak",
        Side(amount=max(0.0, peak_mb - before_mb)),
        judged="amount",
        unit="MB",
        target=target,
    )
