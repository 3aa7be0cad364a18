"""A refresh waits for the copies of its mirror in other processes."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from structlog.testing import capture_logs

from mirror.refresh.freshness import Verdict
from mirror.refresh.mirror import Mirror
from mirror.refresh.refresher import Trigger
from mirror.repository.snapshot import RefSnapshot
from tests.git_client import Upstream
from tests.refresh.bench import Running
from tests.refresh.conftest import MakeBench

FETCHABLE = "git_mirror_webhook_to_fetchable_seconds"


class SlowReplicas:
    """Copies that follow when the test says so."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.follow = asyncio.Event()

    async def announced(self, mirror: Mirror) -> None:
        """Readers are held by the announcement already."""

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


async def test_operators_are_told_of_what_all_serve_and_of_the_time_that_took(
    running: Running,
) -> None:
    replicas = running.bench.mirror.replicas = SlowReplicas()
    before = running.bench.upstream.oid()
    with capture_logs() as logs:
        running.announce(before, running.bench.upstream.commit())
        await replicas.told.wait()
        assert [log for log in logs if log["event"] == "published"] == []
        assert running.sample(f"{FETCHABLE}_count") == 0
        running.clock.advance(0.25)
        replicas.follow.set()
        await running.until(lambda: running.sample(f"{FETCHABLE}_count"))
    (published,) = (log for log in logs if log["event"] == "published")
    assert published["milliseconds"] >= 250
    assert running.sample(f"{FETCHABLE}_sum") >= 0.25


class AskingReplicas(SlowReplicas):
    """Copies that keep what readers were to do at each moment."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.follow.set()
        self.judged: list[tuple[str, RefSnapshot | None, Verdict]] = []
        self._meanwhile = meanwhile

    async def announced(self, mirror: Mirror) -> None:
        self._judge("announced", mirror)
        self._meanwhile()

    async def refreshed(self, mirror: Mirror) -> None:
        self._judge("refreshed", mirror)

    def _judge(self, when: str, mirror: Mirror) -> None:
        verdict = mirror.freshness.judge(0.0, 0.0, mirror.policy)
        self.judged.append((when, mirror.snapshot, verdict))


async def test_readers_of_all_processes_are_held_before_one_of_them_shows_what_a_poll_found(
    running: Running,
) -> None:
    mirror = running.bench.mirror
    replicas = mirror.replicas = AskingReplicas()
    old = mirror.snapshot
    running.bench.upstream.commit()
    await running.refreshed(Trigger.POLL)
    assert mirror.snapshot is not old
    assert replicas.judged == [
        ("announced", old, Verdict.WAIT),
        ("refreshed", mirror.snapshot, Verdict.FRESH),
    ]
    await running.refreshed(Trigger.POLL)
    assert len(replicas.judged) == 3, "nothing is held for a poll that brings nothing"


async def test_what_is_announced_while_readers_are_held_is_not_taken_for_brought(
    running: Running,
) -> None:
    mirror = running.bench.mirror
    replicas = mirror.replicas = AskingReplicas(lambda: running.refresher.announce(()))
    running.bench.upstream.commit()
    await running.refreshed(Trigger.POLL)
    assert replicas.judged[-1] == ("refreshed", mirror.snapshot, Verdict.WAIT)
    await running.refreshed(Trigger.POLL)
    assert replicas.judged[-1] == ("refreshed", mirror.snapshot, Verdict.FRESH)


async def test_who_waits_for_a_refresh_that_waits_for_replicas_is_told_of_the_end(
    running: Running,
) -> None:
    replicas = running.bench.mirror.replicas = SlowReplicas()
    outcome = running.refresher.request(Trigger.WANT)
    await replicas.told.wait()
    await running.stop()
    assert outcome.cancelled()
