"""Row 13: a mirror that took thousands of pushes, beside one that was cloned just now.

Each push is one refresh: a webhook, and the commit read back. One in ten is taken back by the next
(a force-push); one in 25 also makes a branch, which the next deletes. They are compared right after
the last push, while all that was taken back is kept, and again as after a day: the mirror stops,
its kept tips are made old, and it starts again. The other mirror clones the same upstream, which
was packed anew before, with new deltas: those of fast-import, which made the commits, are of a kind
that no forge ever has.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks import checks
from benchmarks.figures import Kind, Measurement, Side, Target
from benchmarks.git import git
from benchmarks.http_client import Connection, Request, WrongAnswer, ask_once
from benchmarks.protocol import fetch, poll_v0, poll_v2
from benchmarks.repositories import Repository, pushes
from benchmarks.run import Place, Run, take_turns
from benchmarks.service import Service, open_service
from benchmarks.wrk import Load
from mirror.repository.bare import BareRepository

NUMBER = 13
NEEDS = ("git", "nginx", "fcgiwrap", "wrk")
LEVEL = Target(Kind.TIME_AT_MOST, 1.1)
LEVEL_TIME = Target(Kind.TIME_AT_MOST, 1.1, plus_ms=0.2)
CLIENTS = 16
PRUNED_SECONDS_MAX: Final = 120.0
SHAPES = (("fetch of 1 commit", 1), ("fetch, 100 commits behind", 100), ("full clone", None))
KEPT_UNTIL: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _Mirror:
    service: Service
    bare: Path

    def size(self) -> int:
        return sum(each.stat().st_size for each in self.bare.rglob("*") if each.is_file())

    def packs(self) -> int:
        return len(list((self.bare / "objects" / "pack").glob("*.pack")))


def measure(run: Run) -> Iterator[Measurement]:
    """Push, compare, let a day pass, compare."""
    repository = run.repositories.copy(run.repositories.history(), "pushed-to")
    upstreams = {repository.name: run.peer.url(repository.name)}
    place, count = run.new_directory(), run.scale.many_pushes
    with open_service(place, upstreams, overrides=run.overrides) as service:
        mirror = _Mirror(service, _bare(place, repository))
        yield from _push_all(mirror, repository, upstreams[repository.name], count)
        git("gc", "--quiet", "--prune=now", cwd=repository.bare)
        git("repack", "-adfq", cwd=repository.bare)
        with open_service(run.new_directory(), upstreams, overrides=run.overrides) as cloned:
            new = _Mirror(cloned, _bare(cloned.directory, repository))
            yield from _compare(run, mirror, new, repository, f"right after {count:,} pushes")
    _age(mirror.bare)
    with (
        open_service(place, upstreams, overrides=run.overrides) as service,
        open_service(run.new_directory(), upstreams, overrides=run.overrides) as cloned,
    ):
        old = _Mirror(service, mirror.bare)
        new = _Mirror(cloned, _bare(cloned.directory, repository))
        checks.lists(ask_once(service.port, poll_v0(f"/{repository.name}")), repository.commit())
        _wait_until_pruned(old)
        git("fsck", "--strict", "--full", cwd=old.bare)
        yield from _compare(run, old, new, repository, f"a day after {count:,} pushes")


def _bare(place: Path, repository: Repository) -> Path:
    return place / "data" / "repositories" / f"{repository.name}.git"


def _push_all(
    mirror: _Mirror, repository: Repository, upstream: str, count: int
) -> Iterator[Measurement]:
    service, before = mirror.service, repository.commit()
    times: list[float] = []
    most = 0
    cpu_ms = service.processor_ms()
    for new in pushes(repository, count):
        began_at = time.perf_counter()
        service.announce(repository.name, upstream, before=before, after=new)
        request = poll_v2(f"/{repository.name}", ("refs/heads/main",))
        checks.lists(ask_once(service.port, request), new)
        times.append((time.perf_counter() - began_at) * 1000)
        before = new
        most = max(most, mirror.packs())
    cpu_ms = service.processor_ms() - cpu_ms
    merges = service.metric("git_mirror_maintenance_seconds_count", work="merge", outcome="ok")
    seconds = service.metric("git_mirror_maintenance_seconds_sum", work="merge", outcome="ok")
    tenth = max(1, count // 10)
    yield Measurement(
        NUMBER,
        f"the last {tenth:,} of {count:,} pushes, from webhook to listed",
        Side.of_times(times[-tenth:]),
        f"the first {tenth:,}",
        Side.of_times(times[:tenth]),
        target=LEVEL_TIME,
        checked=f"each commit listed; at most {most} packs; {merges:.0f} merges in {seconds:.0f} s",
    )
    yield Measurement(
        NUMBER,
        "processor time of the mirror and its git for each push",
        Side(amount=cpu_ms / count),
        judged="amount",
    )


def _age(bare: Path) -> None:
    """Make the kept tips old: as if they had been taken back long ago."""
    repository = BareRepository.open_beside(bare)
    stored = repository.read_refs()
    repository.write_refs(replace(stored, kept=dict.fromkeys(stored.kept, KEPT_UNTIL)))
    repository.close()


def _wait_until_pruned(mirror: _Mirror) -> None:
    deadline = time.monotonic() + PRUNED_SECONDS_MAX
    labels = {"work": "prune", "outcome": "ok"}
    while not mirror.service.metric("git_mirror_maintenance_seconds_count", **labels):
        if time.monotonic() > deadline:
            raise WrongAnswer(f"nothing was pruned in {PRUNED_SECONDS_MAX:.0f} s")
        time.sleep(0.2)


def _compare(
    run: Run, old: _Mirror, new: _Mirror, repository: Repository, after: str
) -> Iterator[Measurement]:
    fresh = "cloned just now"
    yield Measurement(
        NUMBER,
        f"bytes on disk {after}",
        Side(amount=old.size() / 1e6),
        fresh,
        Side(amount=new.size() / 1e6),
        judged="amount",
        unit="MB",
        target=LEVEL,
        checked="fsck",
    )
    packs = [Side(amount=each.packs()) for each in (old, new)]
    yield Measurement(NUMBER, f"packs {after}", packs[0], fresh, packs[1], judged="amount", unit="")
    polled = poll_v0(f"/{repository.name}")
    polls = run.load(Load(CLIENTS), *(Place(each.service.port, polled) for each in (old, new)))
    for judged in ("p50", "p99"):
        yield Measurement(
            NUMBER,
            f"poll {after}, {CLIENTS} clients: {judged}",
            polls[0],
            fresh,
            polls[1],
            judged=judged,
            target=LEVEL_TIME,
            checked="tip listed",
        )
    for name, behind in SHAPES:
        yield from _fetches(run, old, new, repository, name=f"{name} {after}", behind=behind)


def _fetches(
    run: Run, old: _Mirror, new: _Mirror, repository: Repository, *, name: str, behind: int | None
) -> Iterator[Measurement]:
    times = run.scale.times if behind is not None else max(8, run.scale.times // 8)
    commits = repository.line_of(times + 1 + (behind or 0))
    requests = [
        fetch(f"/{repository.name}", commits[at], have=commits[at + behind] if behind else None)
        for at in range(times + 1)
    ]
    sizes: list[int] = []
    used_ms = dict.fromkeys((old.service, new.service), 0.0)
    with Connection(old.service.port) as ours, Connection(new.service.port) as theirs:

        def timed(service: Service, connection: Connection, request: Request) -> float:
            used_before = service.processor_ms()
            began_at = time.perf_counter()
            answer = connection.ask(request)
            took = (time.perf_counter() - began_at) * 1000
            used_ms[service] += service.processor_ms() - used_before
            sizes.append(len(checks.pack_is_whole(answer).pack))
            return took

        have = commits[times + behind] if behind else None
        for connection in (ours, theirs):
            answer = connection.ask(requests[times])
            place = run.directory / "check"
            checks.git_takes(answer, repository, place, want=commits[times], have=have)
        sides = take_turns(
            times,
            lambda number: timed(old.service, ours, requests[number]),
            lambda number: timed(new.service, theirs, requests[number]),
        )
    ratio = sum(sizes[0::2]) / sum(sizes[1::2])
    yield Measurement(
        NUMBER,
        f"{name}, {times} different ones",
        sides[0],
        "cloned just now",
        sides[1],
        target=LEVEL_TIME,
        checked=f"every pack whole; one taken by git, fsck; {ratio:.2f}x the bytes",
    )
    if behind is None:  # the rest is too little for the kernel's clock
        yield Measurement(
            NUMBER,
            f"{name}, processor time of the mirror and its git",
            Side(amount=used_ms[old.service] / times),
            "cloned just now",
            Side(amount=used_ms[new.service] / times),
            judged="amount",
            target=LEVEL,
        )
