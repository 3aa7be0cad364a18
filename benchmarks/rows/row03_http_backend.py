"""Row 3: what git's own server costs for the same, one client, kept-alive connections."""

from collections.abc import Iterator

from benchmarks import checks
from benchmarks.figures import Kind, Measurement, Target
from benchmarks.http_client import ask_once
from benchmarks.protocol import fetch, poll_v0, poll_v2
from benchmarks.run import Place, Run
from benchmarks.wrk import Load

NUMBER = 3
NEEDS = ("git", "nginx", "fcgiwrap", "wrk")


def measure(run: Run) -> Iterator[Measurement]:
    """Polls, and the fetch of one commit that everybody asks for."""
    repository = run.repositories.gitops()
    new, old = repository.line_of(2)
    cases = (
        ("poll v0", poll_v0),
        ("poll v2", poll_v2),
        ("fetch of 1 commit", lambda path: fetch(path, new, have=old)),
    )
    with run.service(repository) as service:
        for name, ask in cases:
            ours = Place(service.port, ask(f"/{repository.name}"))
            theirs = Place(run.peer.port, ask(f"/{repository.name}.git"))
            for place in (ours, theirs):
                answer = ask_once(place.port, place.request)
                if name.startswith("poll"):
                    checks.lists(answer, new)
                else:
                    checks.git_takes(
                        answer, repository, run.directory / "check", want=new, have=old
                    )
            sides = run.load(Load(1), ours, theirs)
            yield Measurement(
                NUMBER,
                f"{name}, 1 client",
                sides[0],
                "nginx + http-backend",
                sides[1],
                target=Target(Kind.FASTER_AT_LEAST, 40),
                checked="tip listed" if name.startswith("poll") else "pack taken by git, fsck",
            )
