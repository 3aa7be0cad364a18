"""News that come while a process takes so long to take over that nobody waits for them any more."""

import asyncio
from pathlib import Path

import pytest

from mirror import upgrading
from mirror.demo.forge import HttpBackend
from mirror.handover import held
from mirror.handover.messages import HandOverFailed
from tests.git_client import Upstream
from tests.lifecycle.taking_over import Next, taken_over
from tests.mirror_service import NAME, MirrorService, configuration, serving


@pytest.mark.parametrize("comes_up", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
async def test_the_old_process_holds_its_readers_for_them_and_passes_them_on(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    workers: int,
    comes_up: bool,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if workers > 1 and not request.config.getoption("--lifecycle"):
        pytest.skip("starts four processes: `make lifecycle` runs it")
    following = Next()
    monkeypatch.setattr(held, "HELD_SECONDS_MAX", 0.0)
    monkeypatch.setattr(upgrading, "Successor", following)
    file = configuration(forge, tmp_path / "m", workers=workers)
    async with serving(file, forge) as mirror:
        await mirror.mirrored()
        await mirror.settled()
        handing = asyncio.create_task(mirror.service.upgrade())
        await following.is_taking_over.wait()
        upstream.commit()
        announcing = asyncio.create_task(mirror.announce(upstream))
        await mirror.until(lambda one: one.freshness.is_pending)
        assert not announcing.done()  # nobody has refreshed
        if comes_up:
            following.is_serving.set_result(None)
            await handing
            assert following.more == {"announced": (NAME,)}
        else:
            following.is_serving.set_exception(HandOverFailed("it fell over"))
            with pytest.raises(HandOverFailed):
                await handing
            await mirror.caught_up(upstream)
        await announcing
        freshness = mirror.mirror().freshness
        freshness.satisfied = freshness.announced  # the next process would refresh: see `serving`


async def test_the_new_process_holds_its_readers_for_them_from_the_first(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    file = configuration(forge, tmp_path / "m")
    async with serving(file, forge) as mirror:
        await mirror.mirrored()
        await mirror.settled()
        upstream.commit()
        async with taken_over(mirror, file, announced=[NAME]) as (service, channel):
            new = MirrorService(service, forge, mirror.session)
            assert new.mirror().freshness.is_pending
            channel.tell("silent")
            await new.caught_up(upstream)
            assert not new.mirror().freshness.is_pending
        async with taken_over(mirror, file) as (service, channel):
            new = MirrorService(service, forge, mirror.session)
            assert not new.mirror().freshness.is_pending
