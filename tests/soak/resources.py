"""What the service takes: looked up in /proc and in the data directory; and whether it is flat."""

import os
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WARM_UP_SECONDS: Final = 60.0
"""Of each life, not judged: caches fill, thread pools grow."""

MEMORY_SECONDS_MIN: Final = 120.0
"""After the warm-up; a shorter life says nothing about a slope."""

MEMORY_BYTES_EACH_MINUTE_MAX: Final = 1024 * 1024
MEMORY_BYTES_SLACK: Final = 24 * 1024 * 1024
"""Per process: what a flood or a large fetch has allocated, and the allocator keeps. Without events
a process stays at 77 MB; after floods, readers that stop and packs in memory it is at 90 to 99."""

DESCRIPTORS_SLACK: Final = 24
THREADS_SLACK: Final = 12
"""Pools that had no reason to grow before; between calms, when nobody asks for anything."""

MIRROR_BYTES_SLACK: Final = 8 * 1024 * 1024
"""Repositories below the place come and go."""
MIRROR_BYTES_EACH_PUSH: Final = 16 * 1024
"""A pack with its index, and what is noted of it: a push makes three small objects."""

LEFTOVERS: Final = ("*.lock", "*.tmp", "tmp_*", ".tmp-*", "tmp_objdir-incoming-*")
_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Process:
    """One process, at one moment.

    Attributes:
        began: When it was started, in ticks: with the pid it is unique.
        memory_bytes: Anonymous memory: mapped packs are the page cache's.
    """

    pid: int
    parent: int
    began: int
    name: str
    state: str
    memory_bytes: int
    threads: int
    descriptors: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The service at one moment.

    Attributes:
        at: Seconds since the life began.
        processes: The main process and its workers.
        children: The gits.
        zombies: Pids of those that nobody has reaped.
    """

    at: float
    processes: int
    memory_bytes: int
    threads: int
    descriptors: int
    children: int
    zombies: frozenset[int]


def tree_of(pid: int) -> list[Process]:
    """Return a process and all below it; empty where there is none."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (one := _process(entry)) is not None:
            found[one.pid] = one
    tree, left = [], [pid]
    while left:
        parent = left.pop()
        if parent in found:
            tree.append(found[parent])
        left += [one.pid for one in found.values() if one.parent == parent]
    return tree


def waited_seconds() -> float:
    """Return how long this process has waited for a processor in all: proc_pid_schedstat(5)."""
    return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9


def is_alive(process: Process) -> bool:
    """Tell whether that very process is there still."""
    now = _process(Path(f"/proc/{process.pid}"))
    return now is not None and now.began == process.began and now.state != "Z"


def _process(entry: Path) -> Process | None:
    try:
        name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
        fields = rest.split()
        status = (entry / "status").read_text()
        try:
            descriptors = len(os.listdir(entry / "fd"))  # noqa: PTH208 - no paths are wanted
        except PermissionError:
            descriptors = 0
    except (FileNotFoundError, ProcessLookupError):
        return None
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    memory = int(lines.get("RssAnon", "0 kB").split()[0]) * _KIB
    return Process(
        pid=int(entry.name),
        parent=int(fields[1]),
        began=int(fields[19]),
        name=name,
        state=fields[0],
        memory_bytes=memory,
        threads=int(fields[17]),
        descriptors=descriptors,
    )


def sample_of(tree: Sequence[Process], at: float) -> Sample:
    """Sum up: gits come and go, what is not git is the service."""
    own = [one for one in tree if not one.name.startswith("git") and one.state != "Z"]
    return Sample(
        at=at,
        processes=len(own),
        memory_bytes=sum(one.memory_bytes for one in own),
        threads=sum(one.threads for one in own),
        descriptors=sum(one.descriptors for one in own),
        children=sum(one.name.startswith("git") and one.state != "Z" for one in tree),
        zombies=frozenset(one.pid for one in tree if one.state == "Z"),
    )


def memory_mistakes(samples: Sequence[Sample]) -> Iterator[str]:
    """Judge the slope of a life's memory: that of the line through all samples after the warm-up.

    It may rise by `MEMORY_BYTES_EACH_MINUTE_MAX` and, in all, by `MEMORY_BYTES_SLACK` for each
    process beyond that.
    """
    judged = [one for one in samples if one.at >= WARM_UP_SECONDS]
    if not judged or judged[-1].at - judged[0].at < MEMORY_SECONDS_MIN:
        return
    minutes = [one.at / 60 for one in judged]
    slope = statistics.linear_regression(minutes, [one.memory_bytes for one in judged]).slope
    lasted = minutes[-1] - minutes[0]
    processes = max(one.processes for one in judged)
    allowed = MEMORY_BYTES_EACH_MINUTE_MAX + MEMORY_BYTES_SLACK * processes / lasted
    if slope > allowed:
        yield (
            f"memory rose by {slope / 1e6:.1f} MB a minute for {lasted:.1f} minutes, from"
            f" {judged[0].memory_bytes / 1e6:.0f} to {judged[-1].memory_bytes / 1e6:.0f} MB;"
            f" allowed are {allowed / 1e6:.1f}"
        )


def calm_mistakes(calms: Sequence[Sample]) -> Iterator[str]:
    """Judge the calms of a life, the latest against the first after the warm-up."""
    judged = [one for one in calms if one.at >= WARM_UP_SECONDS]
    if len(judged) < 2:
        return
    first, last = judged[0], judged[-1]
    for what, before, now, slack in (
        ("descriptors", first.descriptors, last.descriptors, DESCRIPTORS_SLACK),
        ("threads", first.threads, last.threads, THREADS_SLACK),
        ("children", first.children, last.children, 2),
    ):
        if now > before + slack * max(first.processes, 1):
            yield f"{what} rose from {before} to {now} within {last.at - first.at:.0f} s"


def zombie_mistakes(before: Sample, now: Sample) -> Iterator[str]:
    """Judge two samples, seconds apart: a child is reaped within that time."""
    for pid in before.zombies & now.zombies:
        yield f"process {pid} is a zombie for {now.at - before.at:.1f} s"


# --- disk ----------------------------------------------------------------------------------------


def bytes_by_kind(data: Path) -> Counter[str]:
    """Return the size of all files below each part of the data directory."""
    found: Counter[str] = Counter()
    for directory, _, files in os.walk(data):
        kind = Path(directory).relative_to(data).parts[:1] or ("(top)",)
        for file in files:
            try:
                found[kind[0]] += (Path(directory) / file).stat().st_size
            except FileNotFoundError:
                continue  # it has just gone
    return found


def disk_mistakes(
    first: Mapping[str, int], now: Mapping[str, int], *, pushes: int, limits: Mapping[str, int]
) -> Iterator[str]:
    """Judge the disk at a calm, against the first calm.

    Args:
        first: Bytes by kind at the first calm.
        now: The same now.
        pushes: How many changes of a ref came in between.
        limits: By kind, what is configured in bytes.
    """
    for kind, limit in {"set-aside": 0, **limits}.items():
        if now.get(kind, 0) > limit:
            yield f"{kind} has {now[kind]:,} bytes, more than {limit:,}"
    before, after = (one.get("repositories", 0) for one in (first, now))
    allowed = before + MIRROR_BYTES_SLACK + MIRROR_BYTES_EACH_PUSH * pushes
    if after > allowed:
        yield f"repositories rose from {before:,} to {after:,} bytes with {pushes} pushes"


def leftovers(data: Path) -> list[str]:
    """Return what is to be there only while something is under way."""
    passing = [data / "staging", data / "trash", data / "packs" / "tmp", data / "lfs" / "tmp"]
    found = [one for place in passing if place.is_dir() for one in place.iterdir()]
    for pattern in LEFTOVERS:
        found += (data / "repositories").rglob(pattern)
    return sorted(str(one.relative_to(data)) for one in found)
