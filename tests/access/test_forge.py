"""The forge's word, asked of a real forge that wants a password."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from mirror.access import forge as module
from mirror.access.forge import REFUSED_SECONDS, RETRY_SECONDS, ForgeAccess
from mirror.access.presented import read_authorization
from mirror.demo.forge import HttpBackend
from mirror.errors import Overloaded, UpstreamUnavailable
from mirror.upstream.connect import open_session
from mirror.upstream.line import Line
from tests.git_client import Upstream

GOOD = aiohttp.encode_basic_auth("reader", "good")
BAD = aiohttp.encode_basic_auth("reader", "bad")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def forge(upstream_root: Path) -> AsyncIterator[HttpBackend]:
    async with HttpBackend(upstream_root, basic_auth=("reader", "good")) as running:
        yield running


@pytest.fixture
async def access(clock: Clock) -> AsyncIterator[ForgeAccess]:
    async with open_session() as session:
        found = ForgeAccess(
            lambda _: Line(session), valid_seconds=300, outage_seconds=3600, clock=clock
        )
        yield found
        await found.close()


@pytest.fixture
def url(forge: HttpBackend, upstream: Upstream) -> str:
    return forge.repository_url(upstream.name)


async def allows(access: ForgeAccess, header: str, url: str) -> bool:
    digest = read_authorization(header).digest
    return await access.allows(header, digest, "acme/gitops-repo", url)


async def test_the_forge_is_asked_once_for_a_stated_time(
    access: ForgeAccess, forge: HttpBackend, url: str, clock: Clock
) -> None:
    for _ in range(3):
        assert await allows(access, GOOD, url)
    assert len(forge.requests) == 1
    clock.now += 299
    assert await allows(access, GOOD, url)
    assert len(forge.requests) == 1
    clock.now += 1
    assert await allows(access, GOOD, url)
    assert len(forge.requests) == 2


async def test_a_bad_word_holds_for_seconds(
    access: ForgeAccess, forge: HttpBackend, url: str, clock: Clock
) -> None:
    assert not await allows(access, BAD, url)
    assert not await allows(access, BAD, url)
    assert len(forge.requests) == 1
    clock.now += REFUSED_SECONDS
    assert not await allows(access, BAD, url)
    assert len(forge.requests) == 2


async def test_one_headers_word_is_not_anothers_nor_one_repositorys(
    access: ForgeAccess, url: str
) -> None:
    assert await allows(access, GOOD, url)
    assert access.known(read_authorization(GOOD).digest, "acme/gitops-repo") is True
    assert access.known(read_authorization(BAD).digest, "acme/gitops-repo") is None
    assert access.known(read_authorization(GOOD).digest, "acme/other") is None


async def test_the_last_good_word_holds_through_an_outage_and_not_for_ever(
    access: ForgeAccess, forge: HttpBackend, url: str, clock: Clock
) -> None:
    assert await allows(access, GOOD, url)
    forge.faults.status = 503
    clock.now += 300
    assert await allows(access, GOOD, url)
    assert await allows(access, GOOD, url)
    assert len(forge.requests) == 2, "a forge that is down is not asked at every poll"
    clock.now += RETRY_SECONDS
    assert await allows(access, GOOD, url)
    clock.now += 3600
    with pytest.raises(UpstreamUnavailable, match="can't be asked"):
        await allows(access, GOOD, url)
    with pytest.raises(UpstreamUnavailable):
        await allows(access, BAD, url)


@pytest.mark.parametrize("status", [403, 404])
async def test_who_loses_the_permission_is_refused_at_the_next_question(
    access: ForgeAccess, forge: HttpBackend, url: str, clock: Clock, status: int
) -> None:
    assert await allows(access, GOOD, url)
    forge.faults.status = status
    clock.now += 300
    assert not await allows(access, GOOD, url)


async def test_a_forge_that_asks_to_slow_down_has_said_nothing(
    access: ForgeAccess, forge: HttpBackend, url: str
) -> None:
    forge.faults.status, forge.faults.retry_after = 403, "60"
    with pytest.raises(UpstreamUnavailable):
        await allows(access, GOOD, url)
    forge.faults.status, forge.faults.redirect = None, ("acme/gitops-repo", "acme/other")
    with pytest.raises(UpstreamUnavailable, match="answered 301"):
        await allows(access, GOOD, url)


async def test_many_at_once_ask_once_and_one_who_leaves_cancels_nothing(
    access: ForgeAccess, forge: HttpBackend, url: str
) -> None:
    forge.faults.stall = asyncio.Event()
    asking = [asyncio.create_task(allows(access, GOOD, url)) for _ in range(10)]
    await forge.wait_for_requests(1)
    asking[0].cancel()
    forge.faults.stall.set()
    assert await asyncio.gather(*asking[1:]) == [True] * 9
    assert len(forge.requests) == 1


async def test_so_many_new_headers_are_asked_about_at_once_and_no_more(
    access: ForgeAccess, forge: HttpBackend, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASKED_AT_ONCE_MAX", 1)
    forge.faults.stall = asyncio.Event()
    first = asyncio.create_task(allows(access, GOOD, url))
    await forge.wait_for_requests(1)
    with pytest.raises(Overloaded):
        await allows(access, BAD, url)
    forge.faults.stall.set()
    assert await first
