"""Row 9: what a poll and idle memory cost as repositories and refs become many.

The mirrors of many repositories are copies of one that the mirror itself made, under other names;
their upstreams are other names of one repository.
"""

import contextlib
import resource
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import checks
from benchmarks.figures import Kind, Measurement, Side, Skipped, Target
from benchmarks.http_client import Request, ask_once
from benchmarks.processes import NotStarted
from benchmarks.protocol import poll_v0, poll_v2
from benchmarks.repositories import Repository
from benchmarks.run import Place, Run
from benchmarks.service import Service, open_service
from benchmarks.wrk import Load

NUMBER = 9
NEEDS = ("git", "nginx", "fcgiwrap", "wrk")
REFS_EACH = 20
CLIENTS = 64
FLAT = Target(Kind.RATE_AT_LEAST, 0.85)
"""Flat, but for the noise between two processes. At full load it is work that is compared, and not
how soon a processor wakes up."""

ONE_REF = ("refs/heads/main",)


def measure(run: Run) -> Iterator[Measurement | Skipped]:
    """First by repositories, then by refs."""
    yield from _by_repositories(run)
    yield from _by_refs(run)


def _by_repositories(run: Run) -> Iterator[Measurement | Skipped]:
    repository = run.repositories.with_refs(REFS_EACH)
    with contextlib.suppress(FileExistsError):
        (run.peer.root / "many.git").symlink_to(repository.bare)
    template = _mirror_of(run, "many/00000")
    counts, services = [], []
    with contextlib.ExitStack() as stack:
        for count in run.scale.hosted:
            try:
                services.append(stack.enter_context(_with_copies(run, template, count)))
            except NotStarted as error:
                allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
                reason = f"{count:,} repositories, {allowed:,} open files allowed: {error}"
                yield Skipped(NUMBER, reason, is_failure=True)
            else:
                counts.append(count)
        requests = [poll_v0(f"/{_name(count // 2)}") for count in counts]
        for service, request in zip(services, requests, strict=True):
            checks.lists(ask_once(service.port, request), repository.commit())
        yield from _poll_costs(run, services, requests, "poll v0 among {:,} repositories", counts)
        for count, service in zip(counts, services, strict=True):
            what = f"{count:,} repositories of {REFS_EACH} refs"
            yield _idle(what, service.memory_mb())
            yield Measurement(
                NUMBER,
                f"open files of {what}",
                Side(amount=service.open_files()),
                judged="amount",
                unit="",
            )


def _by_refs(run: Run) -> Iterator[Measurement]:
    counts = run.scale.refs
    repositories = [run.repositories.with_refs(count) for count in counts]
    with contextlib.ExitStack() as stack:
        services = [stack.enter_context(run.service(each)) for each in repositories]
        one = [poll_v2(f"/{each.name}", ONE_REF) for each in repositories]
        whole = [poll_v0(f"/{each.name}") for each in repositories]
        for service, repository, request in zip(services, repositories, one, strict=True):
            checks.lists(ask_once(service.port, request), repository.commit())
        yield from _poll_costs(run, services, one, "poll v2 of 1 ref among {:,}", counts)
        yield from _whole_listings(run, services, repositories, whole)
        for service, count in zip(services, counts, strict=True):
            # After the polls: encoded listings are part of what is kept.
            if count in (counts[0], run.scale.many_refs):
                yield _idle(f"1 repository of {count:,} refs, polled before", service.memory_mb())


def _poll_costs(
    run: Run,
    services: list[Service],
    requests: list[Request],
    name: str,
    counts: Sequence[int],
) -> Iterator[Measurement]:
    places = [
        Place(service.port, request) for service, request in zip(services, requests, strict=True)
    ]
    sides = run.load(Load(CLIENTS), *places)
    for count, side in list(zip(counts, sides, strict=True))[1:]:
        yield Measurement(
            NUMBER,
            f"{name.format(count)}, {CLIENTS} clients",
            side,
            f"among {counts[0]:,}",
            sides[0],
            judged="rate",
            unit="requests/s",
            target=FLAT,
            checked="tip listed",
        )


def _whole_listings(
    run: Run, services: list[Service], repositories: list[Repository], requests: list[Request]
) -> Iterator[Measurement]:
    """Yield what all refs cost in v0, for the record: here bytes grow with refs."""
    for service, repository, request in zip(services, repositories, requests, strict=True):
        answer = ask_once(service.port, request)
        checks.lists(answer, repository.commit())
        file = run.peer.static(f"listing-{repository.name}", answer)
        ours, theirs = run.load(
            Load(1),
            Place(service.port, request, service.processes()),
            Place(run.peer.port, file, run.peer.processes()),
        )
        yield Measurement(
            NUMBER,
            f"poll v0 of {repository.name.removeprefix('refs-')} refs, 1 client",
            ours,
            "nginx static",
            theirs,
            checked=f"{len(answer):,} bytes",
        )


def _idle(name: str, megabytes: float) -> Measurement:
    return Measurement(
        NUMBER, f"idle memory of {name}", Side(amount=megabytes), judged="amount", unit="MB"
    )


def _name(number: int) -> str:
    return f"many/{number:05d}"


def _mirror_of(run: Run, name: str) -> Path:
    """Have the mirror make one mirror; returns where it is."""
    place = run.new_directory()
    upstreams = {name: run.peer.url(name)}
    with open_service(place, upstreams, overrides=run.overrides) as service:
        data = service.data
    return data / "repositories" / f"{name}.git"


@contextlib.contextmanager
def _with_copies(run: Run, template: Path, count: int) -> Iterator[Service]:
    place = run.new_directory()
    upstreams = {_name(number): run.peer.url(_name(number)) for number in range(count)}
    config = (template / "config").read_text()
    for name, url in upstreams.items():
        bare = place / "data" / "repositories" / f"{name}.git"
        shutil.copytree(template, bare)
        (bare / "config").write_text(config.replace(run.peer.url(_name(0)), url))
    with open_service(place, upstreams, overrides=run.overrides) as service:
        yield service
