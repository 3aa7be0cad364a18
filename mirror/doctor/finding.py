"""One thing that was looked at, and what to think of it. Pure."""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

P99_SAMPLES_MIN: Final = 50
"""Of fewer, the p99 says no more than the longest."""


class Verdict(enum.StrEnum):
    """What to think of a finding."""

    OK = "ok"
    NOTE = "note"  # not known, or not to be judged from here
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: What was looked at: a host, a repository, `this machine`.
        check: In which respect.
        verdict: What to think of it.
        figure: What was found, for people.
        advice: What to do about it; empty where nothing is to be done.
        data: The figures, for machines; times in milliseconds.
    """

    subject: str
    check: str
    verdict: Verdict
    figure: str
    advice: str = ""
    data: dict[str, float | int | str | None] = field(default_factory=dict)


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that `share` of them (0 to 1) are not above.

    Raises:
        ValueError: There are no samples.
    """
    if not samples:
        raise ValueError("no samples")
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def judged(value: float, *, warning: float, problem: float) -> Verdict:
    """Judge a value that is the better the smaller it is."""
    if value >= problem:
        return Verdict.PROBLEM
    return Verdict.WARNING if value >= warning else Verdict.OK


def milliseconds(value: float) -> str:
    """Return a time in milliseconds, as exact as it deserves."""
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def times(samples: Sequence[float]) -> tuple[str, dict[str, float | int | str | None]]:
    """Return samples of milliseconds in words, and as data."""
    p50, p99 = percentile(samples, 0.5), percentile(samples, 0.99)
    name = "p99" if len(samples) >= P99_SAMPLES_MIN else "at most"
    words = f"p50 {milliseconds(p50)}, {name} {milliseconds(p99)} of {len(samples)}"
    return words, {"p50_ms": round(p50, 3), "p99_ms": round(p99, 3), "count": len(samples)}
