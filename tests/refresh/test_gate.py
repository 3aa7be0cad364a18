"""What readers get: fresh refs, perhaps after a wait, or stale ones and a word about it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mirror.config import OnStale
from mirror.demo.forge import Faults
from mirror.errors import NotYetMirrored, StaleRefused, UpstreamUnavailable
from mirror.refresh.freshness import ASK_AGAIN_SECONDS
from mirror.refresh.gate import AGE_UNKNOWN_SECONDS, Admitted, Gate
from mirror.refresh.refresher import Trigger
from tests.git_client import Upstream
from tests.refresh.bench import Gatekeeper, Running
from tests.refresh.conftest import MakeBench

HOLD = 5.0


class Start:
    """Starts repositories that are not polled, done with their first clone."""

    def __init__(self, make_bench: MakeBench, upstream: Upstream) -> None:
        self._make_bench = make_bench
        self._upstream = upstream
        self._running: list[Running] = []

    async def __call__(self, **settings: Any) -> Running:
        bench = self._make_bench(self._upstream, poll_interval_seconds=None, **settings)
        running = Running(bench)
        running.start()
        self._running.append(running)
        await running.refreshed(Trigger.START)
        bench.forge.requests.clear()
        return running

    async def stop(self) -> None:
        for running in self._running:
            await running.stop()


@pytest.fixture
async def start(make_bench: MakeBench, upstream: Upstream) -> AsyncIterator[Start]:
    starting = Start(make_bench, upstream)
    yield starting
    await starting.stop()


def is_fresh(admitted: Admitted, upstream: Upstream) -> bool:
    return admitted.stale_seconds is None and admitted.snapshot.head == upstream.oid().encode()


async def test_with_nothing_announced_a_reader_gets_what_is_there_at_once(start: Start) -> None:
    running = await start()
    admitted = await running.gate.admit()
    assert is_fresh(admitted, running.upstream)
    assert admitted.held_seconds == 0
    assert admitted.repository is running.mirror.repository
    assert running.forge.requests == []


async def test_only_the_refs_shown_now_are_fresh_and_only_until_a_push_is_announced(
    start: Start,
) -> None:
    running = await start()
    first = running.gate.current().snapshot
    assert running.gate.is_fresh(first)
    old = running.upstream.oid()
    running.announce(old, running.upstream.commit())
    assert not running.gate.is_fresh(first), "announced, though not yet here"
    second = (await running.gate.admit()).snapshot
    assert running.gate.is_fresh(second)
    assert not running.gate.is_fresh(first)


async def test_refs_are_fresh_for_no_longer_than_max_age(start: Start) -> None:
    running = await start(max_age_seconds=30.0)
    snapshot = running.gate.current().snapshot
    running.clock.advance(29)
    assert running.gate.is_fresh(snapshot)
    running.clock.advance(2)
    assert not running.gate.is_fresh(snapshot)


async def test_before_the_first_clone_there_is_no_answer_and_never_an_empty_one(
    upstream: Upstream, make_bench: MakeBench
) -> None:
    running = Running(make_bench(upstream, poll_interval_seconds=None))
    assert not running.gate.is_open()
    with pytest.raises(NotYetMirrored, match=r"^acme/gitops-repo is not mirrored yet: .*; try"):
        await running.gate.admit()
    running.forge.faults = Faults(status=404)
    async with running:
        await running.until(lambda: running.mirror.freshness.failures)
        with pytest.raises(NotYetMirrored, match=r"not mirrored yet: .* answered 404: there is no"):
            running.gate.current()


# --- webhooks ----------------------------------------------------------------------------------


async def test_readers_are_held_until_what_was_announced_is_published(start: Start) -> None:
    running = await start()
    keeper = Gatekeeper(running.forge)
    old = running.upstream.oid()
    running.announce(old, running.upstream.commit())
    readers = [running.reader() for _ in range(50)]
    await keeper.wait_for(1)
    running.clock.advance(3)
    await running.held(*readers)
    keeper.let_through()
    for admitted in await asyncio.gather(*readers):
        assert is_fresh(admitted, running.upstream)
        assert admitted.held_seconds == 3
    assert running.forge.operations == ["ls-refs", "fetch"]


async def test_what_a_reader_may_have_regardless_of_age_is_not_held(start: Start) -> None:
    running = await start()
    running.refresher.announce([])
    assert running.gate.current().stale_seconds is None


async def test_when_the_hold_runs_out_readers_get_the_last_good_refs_and_their_age(
    start: Start,
) -> None:
    running = await start(hold_seconds=HOLD)
    old = running.upstream.oid()
    keeper = Gatekeeper(running.forge)
    running.clock.advance(100)
    running.announce(old, running.upstream.commit())
    early = running.reader()
    await keeper.wait_for(1)
    running.clock.advance(2)
    late = running.reader()
    await running.held(early, late)
    running.clock.advance(HOLD - 2)
    running.mirror.changed.give()
    admitted = await early
    assert admitted.stale_seconds == 105
    assert admitted.snapshot.head == old.encode()
    assert admitted.held_seconds == HOLD
    await running.held(late)
    keeper.let_through()
    assert is_fresh(await late, running.upstream), "each has its own time"


async def test_the_hold_runs_out_by_itself(start: Start) -> None:
    running = await start(hold_seconds=0.02)
    gate = Gate(running.mirror, running.refresher)  # with the clock of this world
    Gatekeeper(running.forge)
    running.refresher.announce([])
    running.mirror.freshness.confirmed_at = None
    admitted = await gate.admit()
    assert admitted.stale_seconds == AGE_UNKNOWN_SECONDS
    assert admitted.held_seconds >= 0.02


async def test_a_repository_may_refuse_stale_answers(start: Start) -> None:
    running = await start(on_stale=OnStale.REFUSE)
    running.clock.advance(100)
    running.forge.faults = Faults(status=500)
    running.refresher.announce([])
    reader = running.reader()
    with pytest.raises(StaleRefused) as caught:
        await reader
    assert "last confirmed 100 s ago" in str(caught.value)
    assert "on_stale: refuse" in str(caught.value)
    assert "answered 500" in str(caught.value)


async def test_a_refusal_after_a_restart_does_not_invent_an_age(
    upstream: Upstream, make_bench: MakeBench
) -> None:
    bench = make_bench(upstream, poll_interval_seconds=None, on_stale=OnStale.REFUSE)
    await bench.update()
    bench.forge.faults = Faults(status=500)
    async with Running(bench) as running:
        with pytest.raises(StaleRefused, match="last confirmed nobody knows when"):
            await running.gate.admit()


async def test_a_failed_refresh_lets_all_go_and_nobody_waits_for_it_again(start: Start) -> None:
    running = await start()
    keeper = Gatekeeper(running.forge)
    running.forge.faults = Faults(status=500)
    running.clock.advance(60)
    running.refresher.announce([])
    readers = [running.reader() for _ in range(10)]
    await keeper.wait_for(1)
    await running.held(*readers)
    keeper.let_through()
    admitted = await asyncio.gather(*readers)
    assert [one.stale_seconds for one in admitted] == [60] * 10
    running.clock.advance(10)
    next_one = await running.gate.admit()
    assert (next_one.stale_seconds, next_one.held_seconds) == (70, 0)


async def test_a_reader_that_leaves_takes_nobody_along(start: Start) -> None:
    running = await start()
    keeper = Gatekeeper(running.forge)
    running.announce(running.upstream.oid(), running.upstream.commit())
    leaves, stays = running.reader(), running.reader()
    await keeper.wait_for(1)
    await running.held(leaves, stays)
    leaves.cancel()
    await asyncio.wait((leaves,))
    keeper.let_through()
    assert is_fresh(await stays, running.upstream)
    assert not running.mirror.changed._waiters


async def test_readers_do_not_wait_for_an_upstream_that_asked_for_a_long_pause(
    start: Start,
) -> None:
    running = await start()
    running.forge.faults = Faults(status=429, retry_after="60")
    with pytest.raises(UpstreamUnavailable):
        await running.refreshed()
    running.refresher.announce([])
    admitted = await running.gate.admit()
    assert (admitted.stale_seconds, admitted.held_seconds) == (0, 0)


async def test_a_first_refresh_that_fails_after_a_restart_serves_stale_refs(
    upstream: Upstream, make_bench: MakeBench
) -> None:
    bench = make_bench(upstream, poll_interval_seconds=None)
    await bench.update()
    bench.forge.faults = Faults(status=503)
    async with Running(bench) as running:
        admitted = await running.gate.admit()
    assert admitted.stale_seconds == AGE_UNKNOWN_SECONDS
    assert admitted.snapshot.head == upstream.oid().encode()


# --- max_age -----------------------------------------------------------------------------------


async def test_max_age_0_asks_before_every_answer(start: Start) -> None:
    running = await start(max_age_seconds=0.0)
    for number in range(1, 4):
        running.clock.advance(1)
        running.upstream.commit()
        assert is_fresh(await running.gate.admit(), running.upstream)
        assert running.looks == number, "once, although progress is told in between"
    assert running.refreshes("max_age", "changed") == 3


async def test_max_age_0_of_many_readers_is_asked_once(start: Start) -> None:
    running = await start(max_age_seconds=0.0)
    running.clock.advance(1)
    running.upstream.commit()
    readers = [running.reader() for _ in range(100)]
    for admitted in await asyncio.gather(*readers):
        assert is_fresh(admitted, running.upstream)
    assert running.looks == 1


async def test_a_refresh_that_began_before_a_reader_came_does_not_do_for_max_age_0(
    start: Start,
) -> None:
    running = await start(max_age_seconds=0.0)
    keeper = Gatekeeper(running.forge)
    running.clock.advance(1)
    early = running.reader()
    await keeper.wait_for(1)
    running.clock.advance(1)
    late = [running.reader() for _ in range(10)]
    await running.held(early, *late)
    keeper.let_through()
    await asyncio.gather(early, *late)
    assert running.looks == 2


async def test_an_answer_young_enough_is_given_at_once(start: Start) -> None:
    running = await start(max_age_seconds=30.0)
    running.clock.advance(30)
    await running.gate.admit()
    assert running.looks == 0
    running.clock.advance(1)
    await running.gate.admit()
    assert running.looks == 1


async def test_with_the_upstream_down_max_age_readers_are_answered_at_once(
    start: Start,
) -> None:
    running = await start(max_age_seconds=0.0)
    running.forge.faults = Faults(status=500)
    running.clock.advance(10)
    first = await running.gate.admit()
    assert first.stale_seconds == 10
    asked = len(running.forge.requests)
    running.clock.advance(ASK_AGAIN_SECONDS / 2)
    for _ in range(20):
        assert (await running.gate.admit()).held_seconds == 0
    assert len(running.forge.requests) == asked
    running.clock.advance(ASK_AGAIN_SECONDS)
    assert (await running.gate.admit()).stale_seconds == 12
    assert len(running.forge.requests) > asked
    running.forge.faults = Faults()
    running.clock.advance(ASK_AGAIN_SECONDS)
    assert is_fresh(await running.gate.admit(), running.upstream)


async def test_max_age_readers_of_a_silent_upstream_are_held_no_longer_than_the_hold(
    start: Start,
) -> None:
    running = await start(max_age_seconds=0.0, hold_seconds=HOLD)
    keeper = Gatekeeper(running.forge)
    running.clock.advance(10)
    reader = running.reader()
    await keeper.wait_for(1)
    await running.held(reader)
    running.clock.advance(HOLD)
    running.mirror.changed.give()
    assert (await reader).stale_seconds == 10 + HOLD
    keeper.let_through()


async def test_without_a_hold_max_age_readers_have_the_next_one_served(start: Start) -> None:
    running = await start(max_age_seconds=1.0, hold_seconds=0.0)
    running.clock.advance(10)
    old = running.upstream.oid()
    running.upstream.commit()
    admitted = await running.gate.admit()
    assert (admitted.stale_seconds, admitted.snapshot.head) == (10, old.encode())
    await running.until(lambda: running.refreshes("max_age", "changed"))
    assert is_fresh(await running.gate.admit(), running.upstream)


async def test_a_webhook_while_a_reader_waits_keeps_it_no_longer_than_its_own_look(
    start: Start,
) -> None:
    """Under steady pushes every reader would otherwise be held for the whole `hold`."""
    running = await start(max_age_seconds=0.0)
    keeper = Gatekeeper(running.forge)
    running.clock.advance(1)
    reader = running.reader()
    await keeper.wait_for(1)
    old = running.upstream.oid()
    running.announce(old, running.upstream.commit())
    keeper.let_through()
    assert (await reader).stale_seconds is None
    await running.until(lambda: running.looks == 2)
    assert is_fresh(await running.gate.admit(), running.upstream)
