"""Row 8: polls while the mirror is busy with other repositories, beside the same polls in peace.

16 clients poll about every 10 ms each. The upstream and the client of the big clone run with a
lower priority, because in life they run on other machines.
"""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import checks
from benchmarks.figures import Kind, Measurement, Side, Target, memory_on_top
from benchmarks.git import ENVIRONMENT, GIT_SECONDS_MAX, git
from benchmarks.http_client import WrongAnswer, ask_once
from benchmarks.peers import open_peer
from benchmarks.protocol import poll_v0, poll_v2
from benchmarks.repositories import Repository, push
from benchmarks.run import Run
from benchmarks.service import Service
from benchmarks.wrk import Load, Wrk

NUMBER = 8
NEEDS = ("git", "nginx", "fcgiwrap", "wrk")
LOAD = Load(16, pause_ms=(5, 15))
BUSY_SECONDS_MAX = 600
REPACK_SECONDS_MAX = 60.0
PUSHES = 30
"""The mirror merges packs when there are more than 24."""

REF_CHANGES = 5

NICE = 10


def measure(run: Run) -> Iterator[Measurement]:
    """A first clone, a client's clone, a repack, many refs; peace before and after each."""
    repositories, scale = run.repositories, run.scale
    polled = repositories.gitops()
    churning = repositories.copy(repositories.pack_20_mb(), "churning")
    big = repositories.unpublished(repositories.big(scale.big_megabytes))
    place = run.new_directory()
    crowded = repositories.copy(repositories.with_refs(scale.many_refs), "crowded")
    soon = frozenset({polled.name, churning.name, crowded.name})
    with (
        open_peer(place / "peer", run.peer.root, nice=NICE) as upstream,
        run.service(polled, churning, crowded, big, wait_for=soon, peer=upstream) as service,
    ):
        checks.lists(ask_once(service.port, poll_v0(f"/{polled.name}")), polled.commit())

        def mirror() -> str:
            repositories.publish(big)
            service.sync(big.name)
            return "refs fresh"

        def clone() -> str:
            _clone(service.url(big.name), place / "clone")
            return "clone's tip and connectivity"

        def repack() -> str:
            return _repack(service, churning, upstream.url(churning.name))

        def change_a_ref() -> str:
            for number in range(REF_CHANGES):
                _push(service, crowded, upstream.url(crowded.name), number)
            return "every commit"

        for name, work in (
            (f"the mirror first clones {scale.big_megabytes} MB", mirror),
            (f"a client clones {scale.big_megabytes} MB", clone),
            (f"{PUSHES} pushes to another of 20 MB, and its repack", repack),
            (f"{REF_CHANGES} pushes to another of {scale.many_refs:,} refs", change_a_ref),
        ):
            yield from _compare(run, service, polled, name, work)
        _check_clone(place / "clone", big)


def _compare(
    run: Run, service: Service, polled: Repository, name: str, work: Callable[[], str]
) -> Iterator[Measurement]:
    before = service.memory_mb()
    service.forget_peak()
    peace = [_polls(run, service, polled, run.scale.wrk_seconds * 2)]
    load = _begin(run, service, polled, BUSY_SECONDS_MAX)
    try:
        began_at = time.monotonic()
        checked = work()
        seconds = time.monotonic() - began_at
    finally:
        busy = load.finish(is_early=True)
    peak = service.memory_mb("VmHWM")
    peace.append(_polls(run, service, polled, run.scale.wrk_seconds * 2))
    yield Measurement(
        NUMBER,
        f"polls while {name} ({seconds:.1f} s)",
        busy.side(),
        "the same in peace",
        Side.of_rounds(peace),
        judged="p99",
        target=Target(Kind.TIME_AT_MOST, 2.0),
        checked=checked,
    )
    yield memory_on_top(NUMBER, before, peak)


def _begin(run: Run, service: Service, polled: Repository, seconds: int) -> Wrk:
    request = poll_v0(f"/{polled.name}")
    return Wrk(service.port, request, LOAD, seconds=seconds, directory=run.directory)


def _polls(run: Run, service: Service, polled: Repository, seconds: int) -> Side:
    return _begin(run, service, polled, seconds).finish().side()


def _clone(url: str, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run(
        ["nice", "-n", str(NICE), "git", "clone", "--quiet", "--bare", url, str(place)],
        env=ENVIRONMENT,
        check=True,
        timeout=GIT_SECONDS_MAX,
    )


def _check_clone(clone: Path, repository: Repository) -> None:
    if git("rev-parse", "HEAD", cwd=clone) != repository.commit():
        raise WrongAnswer("the big clone has another tip")
    git("fsck", "--connectivity-only", "--no-dangling", cwd=clone)


def _repack(service: Service, repository: Repository, upstream: str) -> str:
    """Push until the mirror merges its packs; returns what came of it."""
    packs = service.data / "repositories" / f"{repository.name}.git" / "objects" / "pack"
    most = 0
    for number in range(PUSHES):
        _push(service, repository, upstream, number)
        most = max(most, len(list(packs.glob("*.pack"))))
    deadline = time.monotonic() + REPACK_SECONDS_MAX
    while (left := len(list(packs.glob("*.pack")))) >= min(most, 24):
        if time.monotonic() > deadline:
            return f"every commit; no repack seen, {left} packs"
        time.sleep(0.05)
    return f"every commit; from {most} packs to {left}"


def _push(service: Service, repository: Repository, upstream: str, number: int) -> None:
    """Push to the upstream, deliver the webhook, and poll until the commit is there."""
    old, new = push(repository, number)
    service.announce(repository.name, upstream, before=old, after=new)
    request = poll_v2(f"/{repository.name}", ("refs/heads/main",))
    checks.lists(ask_once(service.port, request), new)
