"""Row 6: from a webhook's delivery until the first client has the commit; upstream 100 ms away.

The first client is there at once: it asks for the refs while the mirror still fetches, is held,
and then asks for the commit it reads in the answer.
"""

import contextlib
import time
from collections.abc import Iterator

from benchmarks import checks
from benchmarks.figures import Kind, Measurement, Side, Target
from benchmarks.http_client import Connection
from benchmarks.peers import far_away
from benchmarks.protocol import fetch, poll_v0
from benchmarks.repositories import push
from benchmarks.run import Run
from benchmarks.service import open_service

NUMBER = 6
NEEDS = ("git", "nginx", "fcgiwrap")
RTT_SECONDS = 0.1
ALLOWED_MS = 25.0


def measure(run: Run) -> Iterator[Measurement]:
    """Push after push, each with its webhook."""
    place = run.new_directory()
    repository = run.repositories.copy(run.repositories.gitops(), "push-to-fetch")
    path = f"/{repository.name}"
    times = []
    with contextlib.ExitStack() as stack:
        far = far_away(run.peer.port, rtt_seconds=RTT_SECONDS, log=place / "line.log")
        upstream = f"http://127.0.0.1:{stack.enter_context(far)}{path}.git"
        mirror = open_service(place, {repository.name: upstream}, overrides=run.overrides)
        service = stack.enter_context(mirror)
        client = stack.enter_context(Connection(service.port))
        for number in range(run.scale.pushes):
            old, new = push(repository, number)
            began_at = time.perf_counter()
            service.announce(repository.name, upstream, before=old, after=new)
            listed = client.ask(poll_v0(path))
            answer = client.ask(fetch(path, new, have=old))
            times.append((time.perf_counter() - began_at) * 1000)
            checks.lists(listed, new)
            checks.git_takes(answer, repository, place / "check", want=new, have=old)
    yield Measurement(
        NUMBER,
        f"webhook to first client's fetch, {run.scale.pushes} pushes",
        Side.of_times(times),
        "1 RTT",
        Side(p50=RTT_SECONDS * 1000),
        target=Target(Kind.TIME_AT_MOST, 1.0, plus_ms=ALLOWED_MS),
        checked="every commit; pack taken by git, fsck",
    )
