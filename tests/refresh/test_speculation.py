"""What webhooks announce is fetched while the refs are listed; only what is listed ever counts."""

import asyncio
from pathlib import Path

import pytest

from mirror.demo.forge import Faults, ForgeRequest, HttpBackend
from mirror.demo.latency import LatencyProxy
from mirror.repository.packing.engine import PackEngine
from mirror.upstream.connect import open_session
from tests.git_client import Upstream
from tests.refresh.bench import WAIT_SECONDS_MAX, Bench, Running, moved
from tests.refresh.conftest import MakeBench


@pytest.fixture
async def bench(upstream: Upstream, make_bench: MakeBench, engine: PackEngine) -> Bench:
    """A mirror that is up to date, of an upstream with two branches."""
    upstream.history(5)
    upstream.commit("develop", parents=["main~1"])
    bench = make_bench(upstream, engine=engine)
    await bench.update()
    bench.forge.requests.clear()
    return bench


def listing_waits_for_the_fetch(forge: HttpBackend) -> None:
    """Let the forge list nothing before it was asked for a pack."""

    async def hold_up(request: ForgeRequest) -> None:
        if request.operation in {"ls-refs", "info/refs"}:
            await forge.wait_for_requests(1, "fetch")

    forge.on_request = hold_up


async def updated(bench: Bench, *changes: tuple[str | None, str | None, str]) -> None:
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        await bench.update(*(moved(*change) for change in changes))
    bench.mirrors()


def wants(request: ForgeRequest) -> set[str]:
    lines = request.body.split(b"want ")[1:]
    return {line[:40].decode() for line in lines}


MAIN, DEVELOP = "refs/heads/main", "refs/heads/develop"


@pytest.mark.parametrize("is_v0", [False, True])
async def test_the_pack_is_asked_for_before_the_listing_came(
    upstream: Upstream, make_bench: MakeBench, engine: PackEngine, is_v0: bool
) -> None:
    bench = make_bench(upstream, engine=engine)
    bench.forge.faults = Faults(force_protocol_v0=is_v0)
    await bench.update()
    bench.forge.requests.clear()
    old, new = upstream.oid(), upstream.commit()
    listing_waits_for_the_fetch(bench.forge)
    await updated(bench, (old, new, MAIN))
    listing = "info/refs" if is_v0 else "ls-refs"
    assert sorted(bench.forge.operations) == sorted([listing, "fetch"])


async def test_two_pushes_in_a_row_are_one_round_trip(bench: Bench) -> None:
    a, (b, c) = bench.upstream.oid(), bench.upstream.history(2)
    listing_waits_for_the_fetch(bench.forge)
    await updated(bench, (a, b, MAIN), (b, c, MAIN))
    assert sorted(bench.forge.operations) == ["fetch", "ls-refs"]


async def test_pushes_to_two_branches_are_one_round_trip(bench: Bench) -> None:
    main, develop = bench.upstream.oid(), bench.upstream.oid("develop")
    listing_waits_for_the_fetch(bench.forge)
    await updated(
        bench,
        (main, bench.upstream.commit(), MAIN),
        (develop, bench.upstream.commit("develop"), DEVELOP),
    )
    assert sorted(bench.forge.operations) == ["fetch", "ls-refs"]


async def test_webhooks_that_come_in_the_wrong_order_end_in_the_true_state(bench: Bench) -> None:
    a, (b, c) = bench.upstream.oid(), bench.upstream.history(2)
    await updated(bench, (b, c, MAIN), (a, b, MAIN))
    bench.forge.requests.clear()
    await updated(bench, (a, b, MAIN))
    assert bench.forge.operations == ["ls-refs"], "what is here is not fetched again"


async def test_a_push_whose_webhook_was_lost_is_fetched_with_the_next(bench: Bench) -> None:
    bench.upstream.commit("develop")
    bench.upstream.tag("v1", "develop")
    old, new = bench.upstream.oid(), bench.upstream.commit()
    await updated(bench, (old, new, MAIN))
    first, second = (request for request in bench.forge.requests if request.is_fetch())
    assert wants(first) == {new}
    assert wants(second) == {bench.upstream.oid("develop"), bench.upstream.oid("v1")}


async def test_a_later_push_than_the_announced_one_is_fetched(bench: Bench) -> None:
    a, (b, c) = bench.upstream.oid(), bench.upstream.history(2)
    await updated(bench, (a, b, MAIN))
    assert bench.refs()[MAIN] == c


async def test_a_tag_alone_is_one_round_trip(bench: Bench) -> None:
    tag = bench.upstream.tag("v1")
    listing_waits_for_the_fetch(bench.forge)
    await updated(bench, (None, tag, "refs/tags/v1"))
    assert sorted(bench.forge.operations) == ["fetch", "ls-refs"]


async def test_a_branch_that_was_deleted_asks_for_no_pack(bench: Bench) -> None:
    old = bench.upstream.oid("develop")
    bench.upstream.delete_ref("develop")
    await updated(bench, (old, None, DEVELOP))
    assert bench.forge.operations == ["ls-refs"]


async def test_a_tip_that_a_force_push_took_away_is_never_the_mirrors(bench: Bench) -> None:
    """The forge still has it and sends it, but lists another."""
    old, gone = bench.upstream.oid(), bench.upstream.commit()
    forced = bench.upstream.commit(files={"forced.txt": "1"}, parents=["main~2"])
    listing_waits_for_the_fetch(bench.forge)
    await updated(bench, (old, gone, MAIN))
    assert bench.refs()[MAIN] == forced
    assert not bench.holds(gone), "no reader can fetch what is listed nowhere"


async def test_of_two_announced_tips_one_that_is_gone_keeps_the_other_from_nobody(
    bench: Bench,
) -> None:
    main, develop = bench.upstream.oid(), bench.upstream.oid("develop")
    gone = bench.upstream.commit("develop")
    bench.upstream.force("develop", develop)
    new = bench.upstream.commit()
    await updated(bench, (develop, gone, DEVELOP), (main, new, MAIN))
    assert bench.holds(new)
    assert not bench.holds(gone)


async def test_a_tip_that_the_forge_does_not_know_costs_nothing_but_the_listing(
    bench: Bench,
) -> None:
    """Forges replicate: the copy that is asked may not have it yet, or not any more."""
    old, new = bench.upstream.oid(), bench.upstream.commit()
    await updated(bench, (old, "1" * 40, MAIN))
    assert bench.refs()[MAIN] == new


@pytest.mark.parametrize("fault", ["status", "cut"])
async def test_a_guess_that_fails_on_the_line_is_made_good(bench: Bench, fault: str) -> None:
    old, new = bench.upstream.oid(), bench.upstream.commit()
    faults = Faults(status=500) if fault == "status" else Faults(cut_after_bytes=60)
    faults.only = lambda request: bench.forge.operations.count("fetch") == 1 and request.is_fetch()
    bench.forge.faults = faults
    listing_waits_for_the_fetch(bench.forge)
    await updated(bench, (old, new, MAIN))
    assert bench.forge.operations.count("fetch") == 2


async def test_a_guess_of_which_nothing_is_listed_is_not_waited_for(bench: Bench) -> None:
    """Nor is anything of it left, in the mirror or under way."""
    old, gone = bench.upstream.oid(), bench.upstream.commit()
    bench.upstream.force("main", old)
    never = asyncio.Event()
    bench.forge.faults = Faults(stall=never, only=ForgeRequest.is_fetch)
    listing_waits_for_the_fetch(bench.forge)
    await updated(bench, (old, gone, MAIN))
    bench.mirrors()
    never.set()


async def test_a_refresh_that_is_cancelled_takes_its_guess_along(bench: Bench) -> None:
    old, new = bench.upstream.oid(), bench.upstream.commit()
    bench.forge.faults = Faults(stall=asyncio.Event())
    updating = asyncio.create_task(bench.update(moved(old, new)))
    await bench.forge.wait_for_requests(2)
    updating.cancel()
    await asyncio.wait((updating,))
    bench.forge.faults = Faults()
    assert not list((bench.path / "objects").glob("tmp_*"))
    await updated(bench, (old, new, MAIN))


async def test_webhooks_make_the_refresher_guess(upstream: Upstream, make_bench: MakeBench) -> None:
    bench = make_bench(upstream, poll_interval_seconds=None)
    async with Running(bench) as running:
        await running.refreshed()
        listing_waits_for_the_fetch(bench.forge)
        bench.forge.requests.clear()
        running.announce(upstream.oid(), upstream.commit())
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await running.until(lambda: not running.mirror.freshness.is_pending)
        assert sorted(bench.forge.operations) == ["fetch", "ls-refs"]
        bench.mirrors()


async def test_two_connections_are_open_before_the_first_push(
    upstream: Upstream,
    forge: HttpBackend,
    engine: PackEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And polls take them in turn, so that none falls asleep.

    The line is slow, so that one is still busy when the other is wanted.
    """
    monkeypatch.setattr("mirror.refresh.update.WARMING_SECONDS_MAX", WAIT_SECONDS_MAX)
    secret = tmp_path / "secret"
    secret.write_text("webhook secret of sixteen and more\n", encoding="utf-8")
    async with (
        open_session() as session,
        LatencyProxy("127.0.0.1", forge.port, 0.2) as line,
    ):
        url = f"{line.url}/{upstream.name}.git"
        data = tmp_path / "data"
        bench = Bench(forge, upstream, session, engine, data, url=url, webhook_secret_file=secret)
        await bench.update()
        assert line.connections == 2
        for _ in range(3):
            await bench.update()
        await bench.update(moved(upstream.oid(), upstream.commit()))
        bench.mirrors()
        assert line.connections == 2, "the push found both open"
        assert forge.operations.count("info/refs") == 2, "and no poll needs more than its listing"
        bench.close()
