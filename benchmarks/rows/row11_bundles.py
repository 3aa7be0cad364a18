"""Row 11: full clones with bundles and without.

The same git makes both: the one that GIT_MIRROR_TEST_NEWEST_GIT names, or else the machine's. From
2.40 on it asks for the list (`transfer.bundleURI`); an older one is told of the base bundle
(`--bundle-uri`), which is the only one here.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace

from benchmarks import checks
from benchmarks.figures import Measurement, Side
from benchmarks.git import git, timed
from benchmarks.http_client import Request, WrongAnswer, ask_once
from benchmarks.repositories import Repository, push
from benchmarks.run import Run, take_turns
from benchmarks.service import Service

NUMBER = 11
NEEDS = ("git", "nginx", "fcgiwrap")
CLIENT = os.environ.get("GIT_MIRROR_TEST_NEWEST_GIT", "git")
LISTED_FROM = (2, 40)
INTERVAL = "300d"
"""Bundles are made once, at the start."""

BUNDLED_SECONDS_MAX = 600.0


def measure(run: Run) -> Iterator[Measurement]:
    """After a push each, of two mirrors with the same upstream; then of one mirror at rest.

    In this order: a mirror learns from full clones to make their pack at each push, which one whose
    readers all use bundles never does.
    """
    megabytes = run.scale.big_megabytes
    big = run.repositories.copy(run.repositories.big(megabytes), f"bundled-{megabytes}-mb")
    bundling = replace(run, overrides={**run.overrides, "defaults.bundle_interval": INTERVAL})
    with run.service(big) as plain, bundling.service(big) as bundled:
        _wait_for_bundles(bundled, big)
        with_bundles = _options(bundled, big)
        yield from _compare(
            run,
            f"a push, then a full clone of {megabytes} MB",
            _Clones(run, bundled, big, with_bundles, pushes=True),
            _Clones(run, plain, big, pushes=True),
        )
        bundled.sync(big.name)  # with what was pushed for the other
        yield from _compare(
            run,
            f"a full clone of {megabytes} MB",
            _Clones(run, bundled, big, with_bundles),
            _Clones(run, bundled, big),
        )


class _Clones:
    """Clones of one kind, and the processor time that the mirror took for each."""

    def __init__(
        self,
        run: Run,
        service: Service,
        repository: Repository,
        options: tuple[str, ...] = (),
        *,
        pushes: bool = False,
    ) -> None:
        self._place = run.directory / "clone"
        self._peer = run.peer
        self._service = service
        self._repository = repository
        self._options = options
        self._pushes = pushes
        self.processor_ms: list[float] = []

    def make(self, number: int) -> float:
        """Make one; returns the milliseconds that git took."""
        name = self._repository.name
        before = self._service.processor_ms()
        if self._pushes:
            old, commit = push(self._repository, number)
            self._service.announce(name, self._peer.url(name), before=old, after=commit)
        else:
            commit = self._repository.commit()
        url = self._service.url(name)
        clone = ("clone", "--quiet", "--bare", *self._options, url, self._place)
        taken = self._bundles_taken()
        took, _ = timed(*clone, program=CLIENT)
        if bool(self._options) != (self._bundles_taken() > taken):
            raise WrongAnswer("bundles were taken where they should not be, or the other way round")
        self.processor_ms.append(self._service.processor_ms() - before)
        checks.clone_is_whole(self._place, commit)
        shutil.rmtree(self._place)
        return took

    def _bundles_taken(self) -> float:
        return self._service.metric("git_mirror_request_seconds_count", operation="bundle")


def _compare(run: Run, name: str, ours: _Clones, theirs: _Clones) -> Iterator[Measurement]:
    for side in (ours, theirs):  # what only the first one makes is there for both
        side.make(-1)
        side.processor_ms.clear()
    times = take_turns(max(3, run.scale.processes // 4), ours.make, theirs.make)
    against = "the same without bundles"
    yield Measurement(NUMBER, name, times[0], against, times[1], checked="commit, fsck")
    yield Measurement(
        NUMBER,
        f"{name}: the mirror's processor time",
        Side.of_times(ours.processor_ms),
        against,
        Side.of_times(theirs.processor_ms),
    )


def _options(service: Service, repository: Repository) -> tuple[str, ...]:
    """Return what has git use bundles."""
    numbers = re.findall(r"\d+", git("version", program=CLIENT))
    if tuple(map(int, numbers[:2])) >= LISTED_FROM:
        return ("--config", "transfer.bundleURI=true")
    listing = ask_once(service.port, Request(f"/{repository.name}/bundles/list")).decode()
    base = re.search(r"uri = (\S+)", listing)
    if base is None:
        raise WrongAnswer(f"no bundle in {listing[:200]!r}")
    return (f"--bundle-uri={service.url(repository.name)}/bundles/{base[1]}",)


def _wait_for_bundles(service: Service, repository: Repository) -> None:
    deadline = time.monotonic() + BUNDLED_SECONDS_MAX
    while service.status()[repository.name]["bundles"] is None:
        if time.monotonic() > deadline:
            raise WrongAnswer(f"no bundles of {repository.name} in {BUNDLED_SECONDS_MAX:.0f} s")
        time.sleep(0.1)
