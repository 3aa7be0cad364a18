"""Row 2: a new connection for each poll, as Argo CD does, beside nginx that closes each too.

wrk's times begin once it is connected; the time of a whole poll is clients through rate.
"""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks import checks
from benchmarks.figures import Kind, Measurement, Side, Target
from benchmarks.http_client import ask_once
from benchmarks.protocol import poll_v0
from benchmarks.rows.row01_polls import REFS_OF_1_KB
from benchmarks.run import Place, Run
from benchmarks.wrk import Load

NUMBER = 2
NEEDS = ("git", "nginx", "fcgiwrap", "wrk")
CLIENTS = 64


def measure(run: Run) -> Iterator[Measurement]:
    """A v0 poll of 1 KB."""
    repository = run.repositories.with_refs(REFS_OF_1_KB)
    with run.service(repository) as service:
        request = poll_v0(f"/{repository.name}")
        answer = ask_once(service.port, request)
        checks.lists(answer, repository.commit())
        places = (
            Place(service.port, request),
            Place(run.peer.port, run.peer.static("poll-closing", answer)),
        )
        ours, theirs = run.load(Load(CLIENTS, is_closing=True), *places)
        yield Measurement(
            NUMBER,
            f"poll v0, 1 KB, {CLIENTS} clients, a new connection each; time of a whole poll",
            _with_whole_time(ours),
            "nginx static",
            _with_whole_time(theirs),
            judged="amount",
            target=Target(Kind.TIME_AT_MOST, 1.3),
            checked=f"{len(answer):,} bytes",
        )


def _with_whole_time(side: Side) -> Side:
    return replace(side, amount=CLIENTS * 1000 / side.rate)
