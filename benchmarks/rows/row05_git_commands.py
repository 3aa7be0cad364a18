"""Row 5: whole git processes, as a user or controller starts them.

Each fetch is made in a fresh copy of a clone that lacks the commit: a clone that has the objects
would ask for nothing.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import checks
from benchmarks.figures import Kind, Measurement, Side, Target
from benchmarks.git import git, timed
from benchmarks.peers import far_away
from benchmarks.repositories import push
from benchmarks.run import Run, take_turns

NUMBER = 5
NEEDS = ("git", "nginx", "fcgiwrap")
RTT_SECONDS = 0.1


def measure(run: Run) -> Iterator[Measurement]:
    """Through the mirror, from http-backend here, and from http-backend far away."""
    place = run.new_directory()
    repository = run.repositories.copy(run.repositories.gitops(), "git-commands")
    behind = place / "behind"
    git("clone", "--quiet", run.peer.url(repository.name), behind)
    _, commit = push(repository, 1)
    with (
        run.service(repository) as service,
        far_away(run.peer.port, rtt_seconds=RTT_SECONDS, log=place / "line.log") as line,
    ):
        urls = (
            service.url(repository.name),
            run.peer.url(repository.name),
            f"http://127.0.0.1:{line}/{repository.name}.git",
        )
        for name, act in (
            ("git ls-remote", _ls_remote),
            ("git fetch of 1 commit", _fetch),
            ("git clone --depth 1", _clone),
        ):

            def through(url: str, act=act) -> Callable[[int], float]:
                return lambda number: act(url, place / f"client-{number}", behind, commit)

            sides = take_turns(run.scale.processes, *map(through, urls))
            yield from _lines(name, sides)


def _lines(name: str, sides: list[Side]) -> Iterator[Measurement]:
    ours, near, far = sides
    checked = "commit, fsck" if "ls-remote" not in name else "commit"
    yield Measurement(
        NUMBER,
        name,
        ours,
        "nginx + http-backend",
        near,
        target=Target(Kind.TIME_AT_MOST, 1.0),
        checked=checked,
    )
    yield Measurement(
        NUMBER,
        name,
        ours,
        "direct, 100 ms RTT",
        far,
        target=Target(Kind.FASTER_AT_LEAST, 10),
        checked=checked,
    )


def _ls_remote(url: str, _place: Path, _behind: Path, commit: str) -> float:
    took, printed = timed("ls-remote", url)
    checks.lists(printed.replace("\t", " ").encode(), commit)
    return took


def _fetch(url: str, place: Path, behind: Path, commit: str) -> float:
    shutil.copytree(behind, place)
    try:
        git("remote", "set-url", "origin", url, cwd=place)
        took, _ = timed("fetch", "--quiet", "origin", cwd=place)
        checks.clone_is_whole(place, commit, "origin/main")
    finally:
        shutil.rmtree(place)
    return took


def _clone(url: str, place: Path, _behind: Path, commit: str) -> float:
    try:
        took, _ = timed("clone", "--quiet", "--depth", "1", url, place)
        checks.clone_is_whole(place, commit)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return took
