"""A refresh waits for the copies of its mirror in other processes."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from mirror.refresh.mirror import Mirror
from mirror.refresh.refresher import Trigger
from tests.git_client import Upstream
from tests.refresh.bench import Running
from tests.refresh.conftest import MakeBench


class SlowReplicas:
    """Copies that follow when the test says so."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.follow = asyncio.Event()

    async def announced(self, mirror: Mirror) -> None:
        raise AssertionError(mirror.name)

    async def refreshed(self, mirror: Mirror) -> None:
        assert mirror.snapshot is not None
        self.told.set()
        await self.follow.wait()

    async def bundled(self, mirror: Mirror) -> None:
        raise AssertionError(mirror.name)


@pytest.fixture
async def running(upstream: Upstream, make_bench: MakeBench) -> AsyncIterator[Running]:
    async with Running(make_bench(upstream, poll_interval_seconds=None)) as running:
        await running.refreshed(Trigger.START)
        yield running


async def test_a_refresh_ends_only_when_what_it_brought_is_served_by_all(running: Running) -> None:
    replicas = running.bench.mirror.replicas = SlowReplicas()
    outcome = running.refresher.request(Trigger.WANT)
    await replicas.told.wait()
    assert not outcome.done()
    replicas.follow.set()
    await outcome


async def test_who_waits_for_a_refresh_that_waits_for_replicas_is_told_of_the_end(
    running: Running,
) -> None:
    replicas = running.bench.mirror.replicas = SlowReplicas()
    outcome = running.refresher.request(Trigger.WANT)
    await replicas.told.wait()
    await running.stop()
    assert outcome.cancelled()
