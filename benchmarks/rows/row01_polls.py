"""Row 1: polls on kept-alive connections, beside nginx that serves the same bytes from a file.

nginx is asked with GET also for what the mirror is asked with POST: that favours nginx.
"""

from collections.abc import Iterator

from benchmarks import checks
from benchmarks.figures import Kind, Measurement, Target
from benchmarks.http_client import ask_once
from benchmarks.protocol import poll_v0, poll_v2
from benchmarks.run import Place, Run, plural
from benchmarks.wrk import Load

NUMBER = 1
NEEDS = ("git", "nginx", "fcgiwrap", "wrk")
REFS_OF_1_KB = 10
REFS_OF_100_KB = 1_400


def measure(run: Run) -> Iterator[Measurement]:
    """Polls of two sizes, by one client and by many."""
    small = run.repositories.with_refs(REFS_OF_1_KB)
    large = run.repositories.with_refs(REFS_OF_100_KB)
    with run.service(small, large) as service:
        for size, repository in (("1 KB", small), ("100 KB", large)):
            for version, poll in (("v0", poll_v0), ("v2", poll_v2)):
                request = poll(f"/{repository.name}")
                answer = ask_once(service.port, request)
                checks.lists(answer, repository.commit())
                static = run.peer.static(f"poll-{version}-{repository.name}", answer)
                ours = Place(service.port, request, service.processes())
                theirs = Place(run.peer.port, static, run.peer.processes())
                for clients in (1, 64):
                    sides = run.load(Load(clients), ours, theirs)
                    is_alone = clients == 1
                    yield Measurement(
                        NUMBER,
                        f"poll {version}, {size}, {plural(clients, 'client')}",
                        sides[0],
                        "nginx static",
                        sides[1],
                        judged="p50" if is_alone else "rate",
                        unit="requests/s",
                        target=Target(Kind.TIME_AT_MOST if is_alone else Kind.RATE_AT_LEAST, 1.0),
                        checked=f"{len(answer):,} bytes",
                    )
