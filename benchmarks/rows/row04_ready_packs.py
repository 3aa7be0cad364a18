"""Row 4: packs that were asked for before, beside nginx that serves the same bytes from a file.

The reader has the kernel throw the bytes away: what is left is the cost of sending.
"""

from collections.abc import Iterator

from benchmarks import checks
from benchmarks.figures import Kind, Measurement, Side, Target, memory_on_top
from benchmarks.http_client import Connection, WrongAnswer, ask_once
from benchmarks.protocol import fetch
from benchmarks.readers import read_together
from benchmarks.repositories import Repository
from benchmarks.run import Place, Run, take_turns
from benchmarks.service import Service

NUMBER = 4
NEEDS = ("git", "nginx", "fcgiwrap")
READERS = 32
ROUNDS = 3


def measure(run: Run) -> Iterator[Measurement]:
    """Two depth-1 clones by one client, one full clone by many."""
    small, large = run.repositories.depth_400_kb(), run.repositories.depth_13_mb()
    whole = run.repositories.pack_20_mb()
    with run.service(small, large, whole) as service:
        yield _alone(run, service, small, "400 KB", run.scale.times * 3)
        yield _alone(run, service, large, "13 MB", max(10, run.scale.times // 4))
        yield from _crowded(run, service, whole)


def _places(run: Run, service: Service, repository: Repository, depth: int | None) -> list[Place]:
    """Return the request, and the file with its answer, once that was found right."""
    commit = repository.commit()
    request = fetch(f"/{repository.name}", commit, depth=depth)
    answer = ask_once(service.port, request)
    checks.git_takes(answer, repository, run.directory / "check", want=commit)
    static = run.peer.static(f"pack-{repository.name}", answer)
    return [Place(service.port, request), Place(run.peer.port, static)]


def _alone(
    run: Run, service: Service, repository: Repository, size: str, times: int
) -> Measurement:
    places = _places(run, service, repository, 1)
    bytes_each = len(ask_once(places[1].port, places[1].request))
    ours, theirs = (Connection(place.port) for place in places)
    with ours, theirs:

        def read(connection: Connection, place: Place) -> None:
            _check_size(connection.drain(place.request), bytes_each)

        sides = take_turns(
            times, lambda _: read(ours, places[0]), lambda _: read(theirs, places[1])
        )
    return Measurement(
        NUMBER,
        f"clone --depth 1 of {size}, asked before, 1 client",
        sides[0],
        "nginx static",
        sides[1],
        target=Target(Kind.TIME_AT_MOST, 1.2),
        checked=f"{bytes_each:,} bytes, pack taken by git, fsck",
    )


def _crowded(run: Run, service: Service, repository: Repository) -> Iterator[Measurement]:
    places = _places(run, service, repository, None)
    bytes_each = len(ask_once(places[1].port, places[1].request))
    # A first round that is not counted: buffers that are kept for good are no growth.
    read_together(places[0], READERS, bytes_each, _check_size)
    before = service.memory_mb()
    service.forget_peak()
    sides: list[list[Side]] = [[], []]
    for _ in range(ROUNDS):
        for place, taken in zip(places, sides, strict=True):
            taken.append(read_together(place, READERS, bytes_each, _check_size))
    peak = service.memory_mb("VmHWM")
    yield Measurement(
        NUMBER,
        f"full clone of 20 MB, asked before, {READERS} clients at once",
        Side.of_rounds(sides[0]),
        "nginx static",
        Side.of_rounds(sides[1]),
        judged="rate",
        unit="MB/s",
        target=Target(Kind.RATE_AT_LEAST, 1.0),
        checked=f"{bytes_each:,} bytes, pack taken by git, fsck",
    )
    yield memory_on_top(NUMBER, before, peak, target=Target(Kind.AMOUNT_AT_MOST, 64))


def _check_size(size: int, expected: int) -> None:
    """The same pack may be cut into side-band packets in another way, no more than that."""
    if abs(size - expected) > expected / 100:
        raise WrongAnswer(f"an answer has {size:,} bytes, another one {expected:,}")
