"""What happened in a soak: counts, times, figures and what did not hold; and the report of it."""

import asyncio
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from tests.soak.resources import Sample

TIMES_KEPT_MAX: Final = 2000
"""Of each phase and kind: a random choice beyond that."""

SHOWN: Final = ("poll", "fetch", "webhook")
"""Of which times are in the report: those of pulled repositories and programs are mostly theirs."""

LIFE_SHOWN_SECONDS_MIN: Final = 30.0

VIOLATIONS_KEPT_MAX: Final = 200
"""All are counted; a service that is broken says the same again and again."""


class Trouble(StrEnum):
    """What explains that something fails."""

    SERVICE = "the service ends or starts"
    WORKER = "a worker was killed"
    UPSTREAM = "the upstream misbehaves"
    RECEIVER = "a receiver misbehaves"
    DISK = "the disk takes nothing"
    DAMAGE = "files were damaged, and are not mended yet"
    CONFIGURATION = "the configuration file has mistakes"
    MACHINE = "the machine has no processor for anybody"


TAIL_SECONDS: Final[Mapping[Trouble, float]] = {
    Trouble.SERVICE: 2.0,
    Trouble.WORKER: 5.0,
    Trouble.UPSTREAM: 35.0,  # the mirror remembers for 30 s that a repository was not there
    Trouble.RECEIVER: 5.0,
    Trouble.DISK: 5.0,
    Trouble.DAMAGE: 5.0,
    Trouble.CONFIGURATION: 2.0,
    Trouble.MACHINE: 8.0,  # what was begun is late still: a worker is waited for 2 s, others 5 s
}
"""How long after its end a trouble still explains something."""


EVERYTHING: Final = ""
"""What a trouble is of, unless it is of one repository alone."""


class Conditions:
    """Which troubles there are, and until when there were some."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._active: Counter[tuple[Trouble, str]] = Counter()
        self._until: dict[tuple[Trouble, str], float] = {}

    @contextmanager
    def during(self, *troubles: Trouble, of: str = EVERYTHING) -> Iterator[None]:
        """Have trouble meanwhile, with everything or with one repository."""
        keys = [(one, of) for one in troubles]
        self._active.update(keys)
        try:
            yield
        finally:
            self._active.subtract(keys)
            for one in troubles:
                self._until[one, of] = self._clock() + TAIL_SECONDS[one]

    def note(self, trouble: Trouble) -> None:
        """There was trouble just now."""
        with self.during(trouble):
            pass

    def explain(self, since: float, *troubles: Trouble, of: str = EVERYTHING) -> bool:
        """Tell whether there was one of these at any time from `since` until now.

        Args:
            since: When it began what is to be explained.
            troubles: They.
            of: The repository that it is about; then those with everything count, too.
        """
        return any(
            self._active[key] > 0 or self._until.get(key, float("-inf")) >= since
            for one in troubles
            for key in ((one, of), (one, EVERYTHING))
        )


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that did not hold.

    Attributes:
        at: Seconds since the soak began.
        phase: What went on.
        who: Who saw it.
    """

    at: float
    phase: str
    who: str
    what: str


@dataclass(slots=True)
class Times:
    """How long something took, in seconds: a fair choice of all."""

    kept: list[float] = field(default_factory=list)
    count: int = 0

    def add(self, seconds: float, chance: random.Random) -> None:
        self.count += 1
        if len(self.kept) < TIMES_KEPT_MAX:
            self.kept.append(seconds)
        elif (at := chance.randrange(self.count)) < TIMES_KEPT_MAX:
            self.kept[at] = seconds

    def percentile(self, percent: int) -> float:
        if len(self.kept) < 2:
            return self.kept[0] if self.kept else 0.0
        return statistics.quantiles(self.kept, n=100, method="inclusive")[percent - 1]


@dataclass(slots=True)
class Life:
    """One run of the service.

    Attributes:
        began: Seconds since the soak began.
        samples: Every few seconds.
        calms: Those at calms.
        ended_by: An event.
    """

    number: int
    workers: int
    began: float
    samples: list[Sample] = field(default_factory=list)
    calms: list[Sample] = field(default_factory=list)
    lasted: float = 0.0
    ended_by: str = ""


class Ledger:
    """The book of a soak.

    Attributes:
        phase: What goes on now.
        judged: How many answers, packs, clones and events were judged, by kind.
        clients: How often each kind of client did its work.
        excused: How often it failed, and a trouble explained that.
        events: How often each befell the service.
        damaged: Files in which a bit was flipped, by kind.
        pushes: By kind.
        webhooks: By what became of them.
        starved: For how many seconds the machine was too busy to judge what is late.
        log: How often each event of the log was written.
        disk: Bytes by kind, at each calm.
    """

    def __init__(
        self, seed: int, *, stops: bool, tell: Callable[[str], object] = lambda _: None
    ) -> None:
        """Args:
        seed: Of the soak.
        stops: Whether it is over at the first violation.
        tell: Told at once of each violation that is kept, in a line.
        """
        self.seed = seed
        self.phase = "start"
        self.is_stopped = asyncio.Event()
        self.violations: list[Violation] = []
        self.count = 0
        self.judged: Counter[str] = Counter()
        self.clients: Counter[str] = Counter()
        self.excused: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.damaged: Counter[str] = Counter()
        self.pushes: Counter[str] = Counter()
        self.webhooks: Counter[str] = Counter()
        self.log: Counter[str] = Counter()
        self.stale = 0
        self.starved = 0.0
        self.lives: list[Life] = []
        self.disk: list[Counter[str]] = []
        self.notes: list[str] = []
        self._began = time.monotonic()
        self._stops = stops
        self._tell = tell
        self._times: defaultdict[tuple[str, str], Times] = defaultdict(Times)
        self._chance = random.Random(seed)

    @property
    def seconds(self) -> float:
        """Since the soak began."""
        return time.monotonic() - self._began

    def violate(self, who: str, *what: str) -> None:
        """Note what did not hold."""
        for one in what:
            self.count += 1
            if len(self.violations) < VIOLATIONS_KEPT_MAX:
                self.violations.append(Violation(self.seconds, self.phase, who, one))
                self._tell(f"{self.seconds:.1f} s, {self.phase}, {who}: {one[:2000]}")
            if self._stops:
                self.is_stopped.set()

    def took(self, kind: str, seconds: float) -> None:
        """Note how long something took in the phase of now."""
        self._times[self.phase.split(",")[0], kind].add(seconds, self._chance)

    # --- the report ----------------------------------------------------------------------------

    def report(self) -> str:
        """Return what happened, as Markdown."""
        parts = [
            f"# Soak: {_minutes(self.seconds)}, seed {self.seed}",
            f"**{self.count} violations**"
            if self.count
            else f"No violation in {sum(self.judged.values()):,} judgements.",
            *self._violations(),
            self._counts(),
            self._latencies(),
            self._lives(),
            self._disk(),
        ]
        if self.starved:
            parts.append(
                f"For {self.starved:.0f} s the machine was so busy with other things that the soak"
                " waited for a processor for half of the time: what was late then is no violation."
            )
        if self.notes:
            parts.append("\n".join(f"* {one}" for one in self.notes))
        return "\n\n".join(parts) + "\n"

    def _violations(self) -> Iterator[str]:
        for one in self.violations:
            yield f"* **{one.at:.1f} s**, {one.phase}, {one.who}:\n\n```\n{one.what[:3000]}\n```"
        if self.count > len(self.violations):
            yield f"* and {self.count - len(self.violations)} more"

    def _counts(self) -> str:
        rows = [
            ("judged", self.judged),
            ("clients", self.clients),
            ("failures that trouble explains", self.excused),
            ("events", self.events),
            ("bits flipped", self.damaged),
            ("pushes", self.pushes),
            ("webhooks", self.webhooks),
            ("log lines", self.log),
        ]
        table = [
            (what, f"{sum(counts.values()):,}", _listed(counts)) for what, counts in rows if counts
        ]
        table.append(("answers marked as stale", f"{self.stale:,}", ""))
        return _table(("What", "Count", "Of which"), table)

    def _latencies(self) -> str:
        kinds = [one for one in SHOWN if any(kind == one for _, kind in self._times)]
        rows = []
        for phase in sorted({phase for phase, kind in self._times if kind in SHOWN}):
            row = [phase]
            for kind in kinds:
                times = self._times.get((phase, kind), Times())
                middle, late = (times.percentile(one) * 1000 for one in (50, 99))
                row.append(f"{middle:.1f} / {late:.1f} ({times.count})" if times.count else "")
            rows.append(row)
        return _table(("Meanwhile", *(f"{kind}: p50 / p99 ms (n)" for kind in kinds)), rows)

    def _lives(self) -> str:
        rows = []
        for one in self.lives:
            if one.lasted < LIFE_SHOWN_SECONDS_MIN or not one.samples:
                continue
            memory = [each.memory_bytes / 1e6 for each in one.samples]
            rows.append(
                (
                    str(one.number),
                    str(one.workers),
                    f"{one.lasted:.0f} s",
                    one.ended_by,
                    _trend(memory),
                    _trend([each.descriptors for each in one.calms or one.samples]),
                    _trend([each.threads for each in one.calms or one.samples]),
                    _trend([each.children for each in one.calms or one.samples]),
                )
            )
        head = ("Life", "Workers", "Lasted", "Ended by", "Memory MB", "Descriptors", "Threads")
        return _table((*head, "Children"), rows) + (
            f"\n\n{len(self.lives) - len(rows)} of {len(self.lives)} lives were shorter than"
            f" {LIFE_SHOWN_SECONDS_MIN:.0f} s. First / last / most; memory is anonymous memory of"
            " the service's processes; the others are those of calms, where there was one."
        )

    def _disk(self) -> str:
        kinds = sorted({kind for one in self.disk for kind in one})
        rows = [(kind, _trend([one[kind] / 1e6 for one in self.disk])) for kind in kinds]
        return _table(("Below data_dir", "MB: first / last / most, at calms"), rows)


def _trend(values: Sequence[float]) -> str:
    if not values:
        return ""
    shown = (values[0], values[-1], max(values))
    return " / ".join(f"{one:.1f}".removesuffix(".0") for one in shown)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
