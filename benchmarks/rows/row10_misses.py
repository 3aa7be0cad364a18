"""Row 10: packs that nobody asked for before, beside `git upload-pack` with the same request.

Each request is another (want, have) pair along the history, so that no cache can know it. git's
side is the start of its process and its answer on a pipe, without any HTTP: what a server that
starts git for each request pays at least.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import checks
from benchmarks.figures import Kind, Measurement, Target
from benchmarks.http_client import Connection
from benchmarks.peers import upload_pack
from benchmarks.protocol import fetch
from benchmarks.repositories import COMMITS_OF_HISTORY, Repository
from benchmarks.run import Run, take_turns
from benchmarks.service import Service

NUMBER = 10
NEEDS = ("git", "nginx", "fcgiwrap")
IN_PROCESS = Target(Kind.TIME_AT_MOST, 0.5)
BY_GIT = Target(Kind.TIME_AT_MOST, 1.0, plus_ms=3.0)
COST_OF_BIG = 4
"""Whole packs take about so many times longer: fewer of them are asked for."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is asked for: `behind` is `None` for a client that has nothing."""

    name: str
    behind: int | None
    depth: int | None
    target: Target
    is_big: bool = False


SHAPES = (
    Shape("fetch of 1 commit", 1, None, IN_PROCESS),
    Shape("fetch, 100 commits behind", 100, None, BY_GIT),
    Shape("fetch, 1,000 commits behind", 1_000, None, BY_GIT, is_big=True),
    Shape("clone --depth 1", None, 1, BY_GIT, is_big=True),
    Shape("full clone", None, None, BY_GIT, is_big=True),
)


def measure(run: Run) -> Iterator[Measurement]:
    """Shape by shape."""
    repository = run.repositories.history()
    with run.service(repository) as service:
        for shape in SHAPES:
            times = run.scale.times
            count = max(8, times // COST_OF_BIG) if shape.is_big else times
            yield _compare(run, service, repository, shape, count)


def _compare(
    run: Run, service: Service, repository: Repository, shape: Shape, count: int
) -> Measurement:
    behind, depth = shape.behind, shape.depth
    commits = repository.line_of(COMMITS_OF_HISTORY)
    pairs = [
        (commits[number], commits[number + behind] if behind else None)
        for number in range(count + 1)
    ]
    requests = [fetch(f"/{repository.name}", want, have=have, depth=depth) for want, have in pairs]
    place = run.directory / "check"
    with Connection(service.port) as connection:

        def ours(number: int) -> float:
            began_at = time.perf_counter()
            answer = connection.ask(requests[number])
            took = (time.perf_counter() - began_at) * 1000
            checks.pack_is_whole(answer)
            return took

        def theirs(number: int) -> float:
            began_at = time.perf_counter()
            answer = upload_pack(repository.bare, requests[number].body)
            took = (time.perf_counter() - began_at) * 1000
            checks.pack_is_whole(answer)
            return took

        # The last one is for git to judge, off the clock; it also opens files and connections.
        want, have = pairs[count]
        checks.git_takes(connection.ask(requests[count]), repository, place, want=want, have=have)
        built = service.builds()
        sides = take_turns(count, ours, theirs)
        built = service.builds() - built
    return Measurement(
        NUMBER,
        f"{shape.name}, {count} different ones",
        sides[0],
        "git upload-pack",
        sides[1],
        target=shape.target,
        checked=f"every pack whole; one taken by git, fsck; {built:.0f} packs built",
    )
