"""A whole deployment day with real parts, and what must hold all along.

The forge is 100 ms away, git's own server. The mirror is a process. Controllers are Flux's go-git
client and the git command line; receivers are the libraries of Argo CD and Flux. Where there is no
Go, the day is played with stand-ins that check the same.

`make day SEED=n ROUNDS=k` plays other days.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mirror.config import load
from mirror.places import DataDirectory
from tests.clients import builds
from tests.clients.operations import Unavailable
from tests.e2e.day.controllers import ArgoCd, FluxSource, Poller
from tests.e2e.day.place import Place, secrets_of, set_up
from tests.e2e.day.pushing import Ci, Webhooks
from tests.e2e.day.receivers import RECEIVERS, Receivers, receivers
from tests.e2e.day.story import Story
from tests.git_client import GitClient
from tests.mirror_service import NAME
from tests.refresh.relay.receiving import SECRET

pytestmark = pytest.mark.timeout(900)  # with no build of the Go parts yet


@dataclass(frozen=True)
class Played:
    """A day that is over, with the service still there."""

    place: Place
    argo: ArgoCd
    flux: FluxSource | None
    ci: Ci


@pytest.fixture(params=["real", "stand-ins"])
def are_real(request: pytest.FixtureRequest) -> bool:
    """Whether there is Go for the parts of Argo CD and Flux; exactly one of both is played."""
    trouble = None
    try:
        builds.program("flux")
        builds.program("receivers")
    except Unavailable as error:
        trouble = str(error)
    if request.param == "real" and trouble is not None:
        pytest.skip(trouble)
    if request.param == "stand-ins" and trouble is None:
        pytest.skip("the real ones are here")
    return trouble is None


async def test_nobody_is_told_too_early_or_not_at_all_and_no_ref_goes_back_in_time(
    tmp_path: Path, workers: int, day_seed: int, *, are_real: bool
) -> None:
    began = time.monotonic()
    async with receivers(are_real=are_real) as hearing:
        relays = hearing.section(tmp_path / "mirror")
        async with set_up(tmp_path, seed=day_seed, workers=workers, relays=relays) as place:
            day = await play(place, hearing, are_real=are_real)
            report(day, day_seed, time.monotonic() - began)
            assert place.record.mistakes(RECEIVERS) == []
            await compare(day)
            assert await place.mirror.stop() == 0
    await check_what_is_left(place)


async def play(place: Place, hearing: Receivers, *, are_real: bool) -> Played:
    """Play the day, with everybody looking at the mirror all the while."""
    poller, argo = Poller(place), ArgoCd(place)
    flux = FluxSource(place, builds.program("flux")) if are_real else None
    hearing.on_told = argo.hear
    async with running(hearing.run(place)), asyncio.TaskGroup() as tasks:
        ci = Ci(place, Webhooks(place, tasks))
        await ci.prepare()
        await argo.prepare()
        for one in (poller, argo, flux):
            if one is not None:
                tasks.create_task(one.run())
        await Story(place, ci, poller, hearing).play()
        place.is_over = True
    return Played(place, argo, flux, ci)


async def compare(day: Played) -> None:
    """What the controllers have at the end is what the upstream has."""
    upstream = day.place.upstream.refs()
    assert upstream == day.place.record.history.tips()
    judge = day.place.client("argocd")
    assert await day.argo.refs() == upstream
    await judge.fsck(day.argo.clone)
    fresh = await judge.clone(day.place.url, "--mirror")
    assert await judge.refs(fresh) == upstream
    await judge.fsck(fresh)
    if day.flux is not None:
        assert day.flux.revision == upstream["refs/heads/main"]
        assert await judge.rev_parse(day.flux.artifact, "HEAD") == day.flux.revision
        await judge.fsck(day.flux.artifact)


async def check_what_is_left(place: Place) -> None:
    """The mirror on disk is sound, and no log holds a secret."""
    settings = load(place.directory / "mirror" / "mirror.yaml")
    judge = GitClient(place.directory / "judge")
    await judge.fsck(DataDirectory(settings.data_dir).repository(NAME))
    said = "".join(place.mirror.log)
    assert [one for one in (*secrets_of(place), SECRET) if one in said] == []
    assert "Traceback" not in said


def report(day: Played, seed: int, seconds: float) -> None:
    """Say which day that was; pytest shows it of a day that failed."""
    record = day.place.record
    pushes = sum(len(oids) - 1 for oids in record.history.refs.values())
    print(  # noqa: T201 - pytest keeps it for -rP and for failures
        f"seed {seed}: {seconds:.1f} s, {pushes} pushes,"
        f" {day.ci.rejected} rejected, webhooks {day.ci.webhooks.counts},"
        f" {len(record.told)} events, {len(record.sightings)} answers,"
        f" {sum(one.is_stale for one in record.sightings)} of them stale"
    )


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do something beside, until the end; if it fails, so does what it is beside."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work)
        yield
        task.cancel()
