"""After a push the packs that its readers will ask for are there before they ask."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.config import EngineChoice
from mirror.demo.forge import HttpBackend
from tests.engines import AUTO
from tests.git_client import GitClient, Upstream
from tests.mirror_service import WAIT_SECONDS_MAX, MirrorService, mirroring
from tests.web.asking import fetch_v0, fetch_v2, read_answer

FIRST = "git_mirror_first_fetches_total"
BUILDS = "git_mirror_pack_build_seconds_count"
FORESEEN = "git_mirror_foreseen_packs_total"


@pytest.fixture(params=["git", AUTO, "dulwich"])
async def mirror(
    request: pytest.FixtureRequest, forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> AsyncIterator[MirrorService]:
    async with mirroring(
        forge, tmp_path / "mirror", names=[upstream.name], engine=request.param
    ) as running:
        yield running


async def push(mirror: MirrorService, upstream: Upstream, number: int) -> str:
    upstream.commit(files={"base/app.yaml": f"image: web:1.0.{number}\n"})
    await mirror.announce(upstream)
    await mirror.caught_up(upstream)
    return upstream.oid()


async def builds(mirror: MirrorService) -> float:
    engines = ("git", "dulwich")
    done = [await mirror.metric(BUILDS, engine=engine, outcome="ok") for engine in engines]
    small = await mirror.metric("git_mirror_small_pack_build_seconds_count")
    return sum(one or 0 for one in (*done, small))


async def foreseen(mirror: MirrorService, count: int) -> None:
    """Wait until so many packs were made, or found ready, ahead of their readers."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while True:
            outcomes = ("built", "ready")
            made = [await mirror.metric(FORESEEN, outcome=outcome) for outcome in outcomes]
            if sum(one or 0 for one in made) >= count:
                return


async def first_fetches(mirror: MirrorService) -> dict[str, float]:
    results = ("hit", "joined", "miss")
    return {result: await mirror.metric(FIRST, result=result) or 0.0 for result in results}


async def test_a_shallow_clone_is_there_before_the_next_is_asked_for(
    mirror: MirrorService, upstream: Upstream
) -> None:
    """Whatever the client is called, and whichever version of the protocol it speaks."""
    tip = upstream.oid()
    await mirror.upload_pack(fetch_v2(tip, more=["deepen 1"]), version=2)
    new = await push(mirror, upstream, 1)
    await foreseen(mirror, 1)
    answers = [
        await mirror.upload_pack(fetch_v2(new, more=["deepen 1"]), version=2),
        await mirror.upload_pack(
            fetch_v0(new, capabilities="side-band-64k ofs-delta agent=x", more=["deepen 1"])
        ),
    ]
    packs = [read_answer(answer.body).pack for answer in answers]
    assert packs[0] == packs[1]
    assert packs[0].startswith(b"PACK")
    assert await first_fetches(mirror) == {"hit": 1, "joined": 0, "miss": 0}


async def test_the_upstreams_own_pack_is_the_answer_to_who_was_where_we_were(
    mirror: MirrorService, upstream: Upstream
) -> None:
    old = upstream.oid()
    before = await builds(mirror)
    new = await push(mirror, upstream, 1)
    more = ["thin-pack", f"have {old}"]
    answer = await mirror.upload_pack(fetch_v2(new, more=more), version=2)
    assert read_answer(answer.body).pack.startswith(b"PACK")
    if mirror.service.settings.engine is not EngineChoice.GIT:  # git alone does not tell
        assert await builds(mirror) == before


async def test_readers_that_follow_every_push_find_each_increment_ready(
    mirror: MirrorService, upstream: Upstream, git_client: GitClient
) -> None:
    clone = await git_client.clone(mirror.url())
    for number in range(1, 5):
        new = await push(mirror, upstream, number)
        if number > 1:
            await foreseen(mirror, number - 1)  # or under way: there may be more than one shape
        await git_client.fetch(clone)
        assert await git_client.rev_parse(clone, "origin/main") == new
    await git_client.fsck(clone)
    results = await first_fetches(mirror)
    assert results["miss"] <= 1
    assert sum(results.values()) == 4


async def test_a_push_that_nobody_was_learned_from_costs_nothing(
    mirror: MirrorService, upstream: Upstream
) -> None:
    before = await builds(mirror)
    for number in range(3):
        await push(mirror, upstream, number)
    assert await builds(mirror) == before
    assert await mirror.metric(FORESEEN, outcome="built") == 0
