"""Row 7: a push to a repository that 500 applications watch, beside the same on http-backend.

500 polls on new connections (three shards with 20 in flight each), then 200 equal depth-1 clones
and 50 equal thin fetches with 64 in flight. Every answer must have the new commit. It begins when
the commit can be fetched, as controllers are told then; once more, for the record, it begins with
the webhook, so that polls are held.
"""

from collections.abc import Iterator

from benchmarks import checks
from benchmarks.crowd import Answered, stampede
from benchmarks.figures import Kind, Measurement, Side, Target
from benchmarks.http_client import ask_once
from benchmarks.protocol import fetch, poll_v0
from benchmarks.repositories import Repository, push
from benchmarks.run import Run
from benchmarks.service import Service

NUMBER = 7
NEEDS = ("git", "nginx", "fcgiwrap")
POLLS, POLLS_IN_FLIGHT = 500, 60
CLONES, FETCHES, PACKS_IN_FLIGHT = 200, 50, 64
ALLOWED_MS = 9.0
SHAPES = 2


def measure(run: Run) -> Iterator[Measurement]:
    """Push after push; both sides get the same requests."""
    repository = run.repositories.copy(run.repositories.gitops(), "stampede")
    upstream = run.peer.url(repository.name)
    polls: list[list[float]] = [[], []]
    packs: list[list[float]] = [[], []]
    refreshes, builds = [], []
    with run.service(repository) as service:
        for number in range(run.scale.stampedes):
            refreshed, built = service.refreshes(), service.builds()
            old, new = _push(service, repository, upstream, number)
            checks.lists(ask_once(service.port, poll_v0(f"/{repository.name}")), new)
            sides = (
                (service.port, f"/{repository.name}"),
                (run.peer.port, f"/{repository.name}.git"),
            )
            for side, (port, path) in enumerate(sides):
                polls[side] += _poll(port, path, new)
                packs[side] += _fetch(run, repository, port, path, old, new)
            refreshes.append(service.refreshes() - refreshed)
            builds.append(service.builds() - built)
        _, new = _push(service, repository, upstream, run.scale.stampedes)
        held = _poll(service.port, f"/{repository.name}", new)
    floor = _floor(run, repository)
    pushes = f"{run.scale.stampedes} push{'es' if run.scale.stampedes > 1 else ''}"
    for name, taken, checked in (
        (f"{POLLS} polls, {POLLS_IN_FLIGHT} in flight, {pushes}", polls, "commit in every answer"),
        (
            f"{CLONES} clones and {FETCHES} fetches, {PACKS_IN_FLIGHT} in flight",
            packs,
            "every pack whole; first of each shape taken by git, fsck",
        ),
    ):
        yield Measurement(
            NUMBER,
            name,
            Side.of_times(taken[0]),
            "nginx + http-backend",
            Side.of_times(taken[1]),
            judged="p99",
            target=Target(Kind.AMOUNT_AT_MOST, ALLOWED_MS),
            checked=checked,
        )
    for name, counts, limit in (
        ("refreshes from upstream per push", refreshes, 1),
        (f"packs built per push, {SHAPES} shapes", builds, SHAPES),
    ):
        yield Measurement(
            NUMBER,
            name,
            Side(amount=max(counts)),
            judged="amount",
            unit="",
            target=Target(Kind.AMOUNT_AT_MOST, limit),
        )
    yield Measurement(
        NUMBER,
        f"{POLLS} polls that begin with the webhook and are held",
        Side.of_times(held),
        checked="commit in every answer",
    )
    yield Measurement(
        NUMBER,
        f"{POLLS} polls of nginx static: what the crowd itself costs",
        Side(),
        "nginx static",
        floor,
    )


def _floor(run: Run, repository: Repository) -> Side:
    """Return what the crowd measures of a server that costs next to nothing."""
    answer = ask_once(run.peer.port, poll_v0(f"/{repository.name}.git"))
    static = run.peer.static("stampede", answer)
    answers = stampede(run.peer.port, [static] * POLLS, in_flight=POLLS_IN_FLIGHT)
    checks.all_equal(each.body() for each in answers)
    return Side.of_times(_times(answers, POLLS))


def _push(service: Service, repository: Repository, upstream: str, number: int) -> tuple[str, str]:
    old, new = push(repository, number)
    service.announce(repository.name, upstream, before=old, after=new)
    return old, new


def _poll(port: int, path: str, commit: str) -> list[float]:
    answers = stampede(port, [poll_v0(path)] * POLLS, in_flight=POLLS_IN_FLIGHT)
    for answer in answers:
        checks.lists(answer.body(), commit)
    return _times(answers, POLLS)


def _fetch(
    run: Run, repository: Repository, port: int, path: str, old: str, new: str
) -> list[float]:
    clone, thin = fetch(path, new, depth=1), fetch(path, new, have=old)
    # Four clones, then one fetch: both kinds are there from the first to the last.
    requests = ([clone] * (CLONES // FETCHES) + [thin]) * FETCHES
    answers = stampede(port, requests, in_flight=PACKS_IN_FLIGHT)
    seen = set()
    for answer in answers:
        body = answer.body()
        checks.pack_is_whole(body)
        if answer.request not in seen:
            seen.add(answer.request)
            had = old if answer.request == thin else None
            checks.git_takes(body, repository, run.directory / "check", want=new, have=had)
    return _times(answers, CLONES + FETCHES)


def _times(answers: list[Answered], expected: int) -> list[float]:
    if len(answers) != expected:
        raise AssertionError(f"{len(answers)} answers to {expected} requests")
    return [answer.milliseconds for answer in answers]
