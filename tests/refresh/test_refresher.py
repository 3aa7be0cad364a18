"""When the upstream is asked: who shares a refresh, who waits for whom, and what goes wrong."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mirror.demo.forge import Faults, ForgeRequest, HttpBackend
from mirror.errors import LocalError, NotUpstream, UpstreamUnavailable
from mirror.refresh.freshness import Freshness
from mirror.refresh.mirror import Mirror
from mirror.refresh.places import RefreshPlaces
from mirror.refresh.refresher import Trigger
from mirror.refresh.update import Updated
from mirror.repository.snapshot import RefSnapshot
from tests.git_client import Upstream
from tests.refresh.bench import WAIT_SECONDS_MAX, Bench, Gatekeeper, Running
from tests.refresh.conftest import MakeBench


@pytest.fixture
async def bench(upstream: Upstream, make_bench: MakeBench) -> Bench:
    """A repository that is not polled: a test alone decides when the upstream is asked."""
    return make_bench(upstream, poll_interval_seconds=None)


@pytest.fixture
async def running(bench: Bench) -> AsyncIterator[Running]:
    """Its refresher, done with the first clone."""
    async with Running(bench) as running:
        await running.refreshed(Trigger.START)
        bench.forge.requests.clear()
        yield running


# --- sharing -----------------------------------------------------------------------------------


async def test_the_start_clones_and_publishes(bench: Bench) -> None:
    async with Running(bench) as running:
        await running.refreshed(Trigger.START)
        bench.mirrors()
        assert running.refreshes("start", "changed") == 1
        assert not bench.mirror.freshness.is_pending
        last = bench.mirror.last
        assert last.succeeded_at == last.changed_at
        assert (last.failed_at, last.error) == (None, None)
        assert running.sample("git_mirror_webhook_to_fetchable_seconds_count") == 0


async def test_a_hundred_wants_at_once_are_one_refresh(running: Running) -> None:
    running.upstream.commit()
    outcomes = [running.refresher.request(Trigger.WANT) for _ in range(100)]
    await asyncio.wait(outcomes)
    assert running.forge.operations == ["ls-refs", "fetch"]
    assert running.refreshes("want", "changed") == 1
    assert running.bench.refs() == running.upstream.refs()


async def test_requests_that_come_during_a_refresh_share_the_one_after_it(
    running: Running,
) -> None:
    keeper = Gatekeeper(running.forge)
    first = running.refresher.request(Trigger.MANUAL)
    await keeper.wait_for(1)
    later = {running.refresher.request(trigger) for trigger in (Trigger.WANT, Trigger.MAX_AGE)}
    assert first not in later
    assert len(later) == 1
    keeper.let_through()
    await first
    assert not any(outcome.done() for outcome in later)
    await asyncio.wait(later)
    assert running.looks == 2
    assert running.refreshes("manual", "unchanged") == 1
    assert running.refreshes("want", "unchanged") == 1, "counted for who asked first"


async def test_one_refresh_at_a_time_whatever_is_asked(running: Running) -> None:
    keeper = Gatekeeper(running.forge)
    keeper.let_through()
    for _ in range(20):
        running.upstream.commit()
        running.refresher.request(Trigger.WANT)
        running.announce(None, running.upstream.oid(), "refs/heads/other")
        await running.forge.wait_for_requests(len(running.forge.requests) + 1)
    await running.refreshed()
    assert keeper.most == 1
    running.bench.mirrors()


async def test_a_caller_that_hangs_up_does_not_cancel_the_refresh_others_wait_for(
    running: Running,
) -> None:
    running.upstream.commit()
    keeper = Gatekeeper(running.forge)

    async def wait_for_it() -> None:
        await asyncio.wait((running.refresher.request(Trigger.WANT),), timeout=WAIT_SECONDS_MAX)

    callers = [asyncio.create_task(wait_for_it()) for _ in range(3)]
    await keeper.wait_for(1)
    callers[0].cancel()
    await asyncio.wait((callers[0],))
    keeper.let_through()
    await asyncio.wait(callers)
    assert [caller.cancelled() for caller in callers] == [True, False, False]
    running.bench.mirrors()


async def test_who_waits_when_the_service_ends_is_let_go(bench: Bench) -> None:
    keeper = Gatekeeper(bench.forge)
    running = Running(bench)
    running.start()
    under_way = running.refresher.request(Trigger.MANUAL)
    await keeper.wait_for(1)
    pending = running.refresher.request(Trigger.MANUAL)
    await running.stop()
    assert under_way.cancelled()
    assert pending.cancelled()
    assert not list(bench.staging.iterdir())


async def test_a_failure_reaches_all_who_waited(running: Running) -> None:
    running.forge.faults = Faults(status=404)
    outcomes = [asyncio.shield(running.refresher.request(Trigger.WANT)) for _ in range(3)]
    found = await asyncio.gather(*outcomes, return_exceptions=True)
    assert [type(error) for error in found] == [NotUpstream] * 3
    assert running.refreshes("want", "upstream_refused") == 1
    assert "404" in str(running.mirror.last.error)
    running.forge.faults = Faults()
    await running.refreshed()
    assert running.mirror.last.error is None
    assert running.mirror.freshness.failures == 0


# --- how many at once --------------------------------------------------------------------------


async def several(
    stack: AsyncExitStack,
    root: Path,
    make_bench: MakeBench,
    places: RefreshPlaces,
    names: list[str],
) -> list[Running]:
    running = []
    for name in names:
        upstream = Upstream(root, f"acme/{name}")
        upstream.commit()
        bench = make_bench(upstream, poll_interval_seconds=None)
        running.append(await stack.enter_async_context(Running(bench, places=places)))
    return running


async def test_first_clones_leave_half_of_the_places_to_others(
    upstream_root: Path, forge: HttpBackend, make_bench: MakeBench
) -> None:
    places = RefreshPlaces.of(4)
    async with AsyncExitStack() as stack:
        (old,) = await several(stack, upstream_root, make_bench, places, ["old"])
        await old.refreshed()
        keeper = Gatekeeper(forge)
        forge.requests.clear()
        clones = await several(stack, upstream_root, make_bench, places, ["a", "b", "c"])
        await keeper.wait_for(2)
        old.refresher.request(Trigger.WEBHOOK)
        await keeper.wait_for(3)
        asked = [request.path.split("/")[2] for request in forge.requests]
        assert asked == ["a.git", "b.git", "old.git"]
        keeper.let_through()
        for running in clones:
            await running.refreshed()
        for running in clones:
            running.bench.mirrors()


async def test_refreshes_over_the_bound_wait_for_their_turn(
    upstream_root: Path, forge: HttpBackend, make_bench: MakeBench
) -> None:
    places = RefreshPlaces.of(2)
    async with AsyncExitStack() as stack:
        all_of_them = await several(stack, upstream_root, make_bench, places, list("abcd"))
        for running in all_of_them:
            await running.refreshed()
        keeper = Gatekeeper(forge)
        outcomes = [running.refresher.request(Trigger.WEBHOOK) for running in all_of_them]
        await keeper.wait_for(2)
        # What is asked for while it waits for a place belongs to the same refresh.
        assert all_of_them[3].refresher.request(Trigger.WANT) is outcomes[3]
        keeper.let_through()
        await asyncio.wait(outcomes)
        assert keeper.most == 2


async def test_a_silent_forge_leaves_a_quarter_of_the_places_to_others(
    upstream_root: Path, forge: HttpBackend, make_bench: MakeBench
) -> None:
    places = RefreshPlaces.of(4)
    async with AsyncExitStack() as stack:
        silent = await several(stack, upstream_root, make_bench, places, list("abcd"))
        upstream = Upstream(upstream_root, "acme/elsewhere")
        upstream.commit()
        elsewhere = f"{forge.url.replace('127.0.0.1', 'localhost')}/acme/elsewhere.git"
        bench = make_bench(upstream, url=elsewhere, poll_interval_seconds=None)
        other = await stack.enter_async_context(Running(bench, places=places))
        for running in (*silent, other):
            await running.refreshed()
        stalled = asyncio.Event()
        forge.faults = Faults(stall=stalled, only=lambda request: "elsewhere" not in request.path)
        forge.requests.clear()
        outcomes = [running.refresher.request(Trigger.WEBHOOK) for running in silent]
        await forge.wait_for_requests(3)
        await other.refreshed(Trigger.WEBHOOK)
        assert not any(outcome.done() for outcome in outcomes)
        assert len(forge.requests) == 4
        stalled.set()
        await asyncio.wait(outcomes)


def test_one_place_is_one_for_clones_too() -> None:
    places = RefreshPlaces.of(1)
    assert not places.all.locked()
    assert not places.clones.locked()


# --- polls -------------------------------------------------------------------------------------


async def test_a_poll_finds_what_no_webhook_told(upstream: Upstream, make_bench: MakeBench) -> None:
    bench = make_bench(upstream, poll_interval_seconds=0.001)
    async with Running(bench) as running:
        await running.until(lambda: running.mirror.snapshot is not None)
        upstream.commit()
        await running.until(lambda: bench.refs() == upstream.refs())
        await running.until(lambda: running.refreshes("poll", "changed") == 1)
    bench.mirrors()


async def test_a_refresh_that_was_asked_for_is_the_next_poll(bench: Bench) -> None:
    async with Running(bench) as running:
        await running.refreshed(Trigger.START)
        for _ in range(3):
            await running.refreshed(Trigger.WANT)
        assert running.refreshes("want", "unchanged") == 3
        assert running.refreshes("poll", "unchanged") == 0


async def test_failures_are_spaced_out_and_retried_by_themselves(running: Running) -> None:
    running.forge.faults = Faults(status=500)
    with capture_logs() as logs:
        for _ in range(4):
            with pytest.raises(UpstreamUnavailable):
                await running.refreshed()
    delays = [log["next_try_seconds"] for log in logs if log["event"] == "refresh_failed"]
    assert delays == [1.0, 2.0, 4.0, 8.0]
    assert running.refreshes("manual", "upstream_unavailable") == 4


async def test_a_repository_that_is_not_polled_is_retried_when_it_fails_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirror.refresh.schedule.BACKOFF_SECONDS_MIN", 0.001)
    bench.forge.faults = Faults(status=500)
    async with Running(bench) as running:
        await running.until(lambda: running.mirror.freshness.failures == 3)
        bench.forge.faults = Faults()
        await running.until(lambda: running.mirror.snapshot is not None)
        assert running.refreshes("poll", "changed") == 1


# --- Retry-After -------------------------------------------------------------------------------


async def test_retry_after_silences_polls_readers_and_webhooks(running: Running) -> None:
    running.forge.faults = Faults(status=429, retry_after="30")
    with pytest.raises(UpstreamUnavailable):
        await running.refreshed()
    running.forge.faults = Faults()
    running.forge.requests.clear()
    tip = running.upstream.commit()
    running.announce(None, tip)
    wanted = running.refresher.request(Trigger.WANT)
    await running.idle()
    running.clock.advance(29)
    running.refresher.request(Trigger.MAX_AGE)
    await running.idle()
    assert running.forge.requests == []
    assert not wanted.done()
    running.clock.advance(1.001)
    running.refresher.request(Trigger.MAX_AGE)
    await asyncio.wait((wanted,))
    assert running.forge.operations == ["info/refs", "ls-refs", "fetch"]
    assert running.bench.refs()["refs/heads/main"] == tip


async def test_a_person_who_insists_is_not_silenced(running: Running) -> None:
    running.forge.faults = Faults(status=503, retry_after="3600")
    with pytest.raises(UpstreamUnavailable):
        await running.refreshed()
    running.forge.faults = Faults()
    await running.refreshed(Trigger.MANUAL)
    await running.refreshed(Trigger.WANT)
    assert running.refreshes("want", "unchanged") == 1, "it answers again: the pause is over"


async def test_a_pause_ends_by_itself(running: Running) -> None:
    running.forge.faults = Faults(status=429, retry_after="30")
    with pytest.raises(UpstreamUnavailable):
        await running.refreshed()
    running.forge.faults = Faults()
    running.clock.advance(29.99)
    running.clock.tick = 0.001
    await running.refreshed(Trigger.WANT)
    assert running.refreshes("want", "unchanged") == 1


# --- what must not happen ----------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before", "after"])
async def test_a_bug_of_ours_does_not_end_the_refreshes(
    running: Running, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    running.upstream.commit()
    with monkeypatch.context() as patch, capture_logs() as logs:
        if where == "before":
            patch.setattr(running.bench.updater, "_list", lambda *_: 1 / 0)
        else:
            patch.setattr(Freshness, "confirm", lambda *_, **__: 1 / 0)
        with pytest.raises(LocalError, match="unexpected ZeroDivisionError"):
            await running.refreshed()
    assert "refresh_broke" in [log["event"] for log in logs]
    assert running.refreshes("manual", "local_error") == 1
    await running.refreshed()
    running.bench.mirrors()


async def test_a_refresh_that_takes_too_long_is_given_up(bench: Bench) -> None:
    async with Running(bench, seconds_max=0.05) as running:
        bench.forge.faults = Faults(stall=asyncio.Event())
        with pytest.raises(UpstreamUnavailable, match=r"not done after 0 seconds \(limits\."):
            await running.refreshed()
        assert running.mirror.progress is None
        assert not list(bench.staging.iterdir())


async def test_a_race_with_a_force_push_mends_itself(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing and the fetch the listed tip goes away: the next try finds another."""
    monkeypatch.setattr("mirror.refresh.schedule.BACKOFF_SECONDS_MIN", 0.001)
    upstream = running.upstream
    for key in ("allowAnySHA1InWant", "allowReachableSHA1InWant", "allowTipSHA1InWant"):
        upstream.config(f"uploadpack.{key}", "false")
    upstream.commit()

    async def force(request: ForgeRequest) -> None:
        if request.is_fetch():
            running.forge.on_request = None
            upstream.commit("main", {"forced.txt": "1"}, parents=["main~1"])
            upstream.git("gc", "--prune=now", "--quiet")

    running.forge.on_request = force
    running.refresher.request(Trigger.WANT)
    await running.until(lambda: running.bench.refs() == upstream.refs())
    assert running.refreshes("want", "upstream_unavailable") == 1
    assert running.refreshes("poll", "changed") == 1
    running.bench.mirrors()


# --- telling -----------------------------------------------------------------------------------


async def test_who_is_told_of_a_publication_learns_it_before_those_who_waited(
    bench: Bench,
) -> None:
    told: list[tuple[RefSnapshot | None, Updated]] = []

    def on_published(mirror: Mirror, before: RefSnapshot | None, updated: Updated) -> None:
        assert mirror.snapshot is updated.snapshot
        told.append((before, updated))
        if len(told) == 2:
            raise RuntimeError("a bug of who is told")

    async with Running(bench, on_published=on_published) as running:
        await running.refreshed(Trigger.START)
        first = bench.mirror.snapshot
        await running.refreshed()
        assert [before for before, _ in told] == [None], "an unchanged repository is no news"
        bench.upstream.commit()
        with capture_logs() as logs:
            await running.refreshed()
        assert [before for before, _ in told] == [None, first]
        assert "on_published_broke" in [log["event"] for log in logs]
        bench.mirrors()
