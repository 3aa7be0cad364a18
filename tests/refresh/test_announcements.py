"""Webhooks are hints: late, lost, out of order, and ahead of what their own forge lists.

The forge lists old refs for as long as a test wants: `Lag` takes a push back while it lists.
"""

from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from mirror.demo.forge import Faults, ForgeRequest
from mirror.errors import UpstreamUnavailable
from mirror.refresh.expected import EXPECTATIONS_MAX
from mirror.refresh.refresher import Trigger
from mirror.refresh.schedule import LAG_LOOKS_SECONDS
from mirror.upstream.forges import UNKNOWN, RefChange
from mirror.wire.names import ObjectId, RefName
from tests.git_client import Upstream
from tests.refresh.bench import Running
from tests.refresh.conftest import MakeBench

LOOKS = (0.001, 0.002, 0.003, 0.004, 0.005)
FETCHABLE = "git_mirror_webhook_to_fetchable_seconds"


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again after next to nothing; the clock goes on with each look."""
    assert len(LOOKS) == len(LAG_LOOKS_SECONDS)
    monkeypatch.setattr("mirror.refresh.schedule.LAG_LOOKS_SECONDS", LOOKS)
    monkeypatch.setattr("mirror.refresh.schedule.LAG_LOOKS_APART_SECONDS_MIN", 0.0005)


@pytest.fixture
async def running(upstream: Upstream, make_bench: MakeBench) -> AsyncIterator[Running]:
    upstream.history(3)
    bench = make_bench(upstream, poll_interval_seconds=None)
    async with Running(bench) as running:
        await running.refreshed(Trigger.START)
        bench.forge.requests.clear()
        yield running


class Lag:
    """A forge whose listings lag behind: each shows the next of `shown`, the last for ever."""

    def __init__(self, running: Running, *shown: dict[str, str | None]) -> None:
        self._running = running
        self._shown = list(shown)
        running.forge.on_request = self._list

    async def _list(self, request: ForgeRequest) -> None:
        if request.operation != "ls-refs":
            return
        self._running.clock.advance(0.001)
        refs = self._shown.pop(0) if len(self._shown) > 1 else self._shown[0]
        for ref, tip in refs.items():
            if tip is None:
                self._running.upstream.delete_ref(ref)
            else:
                self._running.upstream.force(ref, tip)


def known_looks(running: Running) -> dict[str, float]:
    return {
        trigger: running.refreshes(trigger, "changed") + running.refreshes(trigger, "unchanged")
        for trigger in ("webhook", "lag")
    }


def is_pending(running: Running) -> bool:
    return running.mirror.freshness.is_pending


async def fresh(running: Running) -> None:
    await running.until(lambda: not is_pending(running))


async def test_a_webhook_starts_a_refresh_and_its_tip_is_served(running: Running) -> None:
    before = running.upstream.oid()
    after = running.upstream.commit()
    running.announce(before, after)
    assert is_pending(running)
    await fresh(running)
    assert running.bench.refs() == {"refs/heads/main": after}
    assert running.refreshes("webhook", "changed") == 1
    assert running.sample(f"{FETCHABLE}_count") == 1
    assert running.looks == 1


async def test_a_webhook_without_details_is_as_good(running: Running) -> None:
    running.upstream.commit()
    running.refresher.announce([])
    await fresh(running)
    running.bench.mirrors()
    assert running.sample(f"{FETCHABLE}_count") == 1


async def test_a_tip_that_the_forge_shows_only_at_the_third_look_is_waited_for(
    running: Running,
) -> None:
    old = running.upstream.oid()
    new = running.upstream.commit()
    Lag(running, {"main": old}, {"main": old}, {"main": new})
    running.announce(old, new)
    reader = running.reader()
    await running.held(reader)
    admitted = await reader
    assert admitted.stale_seconds is None
    assert admitted.snapshot.head == new.encode()
    assert known_looks(running) == {"webhook": 1, "lag": 2}
    assert running.sample(f"{FETCHABLE}_count") == 1
    assert running.sample(f"{FETCHABLE}_sum") == pytest.approx(0.003)


async def test_a_tip_that_the_forge_never_shows_is_given_up_with_a_warning(
    running: Running,
) -> None:
    old = running.upstream.oid()
    new = running.upstream.commit()
    Lag(running, {"main": old})
    with capture_logs() as logs:
        running.announce(old, new)
        await fresh(running)
    warnings = [log for log in logs if log["event"] == "announced_but_not_listed"]
    assert [(log["refs"], log["log_level"]) for log in warnings] == [
        (["refs/heads/main"], "warning")
    ]
    assert known_looks(running) == {"webhook": 1, "lag": len(LOOKS)}
    assert running.sample(f"{FETCHABLE}_count") == 0, "it never was fetchable"
    admitted = await running.gate.admit()
    assert (admitted.stale_seconds, admitted.snapshot.head) == (None, old.encode())


async def test_a_deletion_that_the_forge_does_not_show_yet_is_waited_for(
    running: Running,
) -> None:
    tip = running.upstream.force("gone", "main")
    await running.refreshed()
    Lag(running, {}, {}, {"gone": None})
    running.announce(tip, None, "refs/heads/gone")
    await fresh(running)
    assert known_looks(running) == {"webhook": 1, "lag": 2}
    assert "refs/heads/gone" not in running.bench.refs()


async def test_a_new_branch_that_the_forge_does_not_show_yet_is_waited_for(
    running: Running,
) -> None:
    tip = running.upstream.commit("new")
    Lag(running, {"new": None}, {"new": tip})
    running.announce(None, tip, "refs/heads/new")
    await fresh(running)
    assert running.bench.refs()["refs/heads/new"] == tip
    assert known_looks(running) == {"webhook": 1, "lag": 1}


async def test_a_rollback_that_the_forge_does_not_show_yet_is_waited_for(
    running: Running,
) -> None:
    """That we hold the commit which main is forced back to does not mean that main is there."""
    new, old = running.upstream.oid("main"), running.upstream.oid("main~1")
    Lag(running, {"main": new}, {"main": old})
    running.announce(new, old)
    await fresh(running)
    assert running.bench.refs() == {"refs/heads/main": old}
    assert known_looks(running) == {"webhook": 1, "lag": 1}


async def test_of_several_pushes_the_last_is_waited_for(running: Running) -> None:
    """Two pushes in a row, and a forge that shows first neither, then one, then both."""
    a = running.upstream.oid()
    b, c = running.upstream.history(2)
    Lag(running, {"main": a}, {"main": b}, {"main": c})
    running.announce(a, b)
    running.announce(b, c)
    await fresh(running)
    assert running.bench.refs() == {"refs/heads/main": c}
    assert running.sample(f"{FETCHABLE}_count") == 2


async def test_a_push_whose_forerunner_was_lost_is_waited_for(running: Running) -> None:
    """Of A to B and B to C only the latter is announced, and the forge shows A at first."""
    a = running.upstream.oid()
    b, c = running.upstream.history(2)
    Lag(running, {"main": a}, {"main": c})
    running.announce(b, c)
    await fresh(running)
    assert running.bench.refs() == {"refs/heads/main": c}


@pytest.mark.parametrize("is_late", [False, True])
async def test_webhooks_out_of_order_keep_nobody_waiting(running: Running, is_late: bool) -> None:
    a = running.upstream.oid()
    b, c = running.upstream.history(2)
    running.announce(b, c)
    if is_late:
        await fresh(running)
    running.announce(a, b)
    await fresh(running)
    assert running.bench.refs() == {"refs/heads/main": c}
    assert running.looks == 1 + is_late


async def test_a_push_that_was_forced_away_meanwhile_keeps_nobody_waiting(
    running: Running,
) -> None:
    old = running.upstream.oid()
    lost = running.upstream.commit()
    running.upstream.commit("main", {"other.txt": "1"}, parents=["main~1"])
    running.announce(old, lost)
    await fresh(running)
    assert running.looks == 1


async def test_a_branch_deleted_and_made_anew_keeps_nobody_waiting(running: Running) -> None:
    tip = running.upstream.force("again", "main")
    await running.refreshed()
    running.forge.requests.clear()
    running.upstream.commit("again")
    running.announce(tip, None, "refs/heads/again")
    await fresh(running)
    assert running.looks == 1


async def test_tips_that_a_webhook_does_not_name_are_not_waited_for(running: Running) -> None:
    """GitHub's `create` and `delete` events name the ref alone."""
    ref = RefName(b"refs/heads/main")
    running.refresher.announce([RefChange(ref, None, UNKNOWN), RefChange(ref, UNKNOWN, None)])
    await fresh(running)
    assert running.looks == 1


async def test_a_push_that_follows_an_unknown_tip_is_waited_for(running: Running) -> None:
    old = running.upstream.oid()
    new = running.upstream.commit()
    Lag(running, {"main": old}, {"main": new})
    change = RefChange(RefName(b"refs/heads/main"), UNKNOWN, ObjectId(new.encode()))
    running.refresher.announce([change])
    await fresh(running)
    assert running.bench.refs() == {"refs/heads/main": new}


async def test_a_webhook_for_a_ref_that_is_not_mirrored_asks_nobody(running: Running) -> None:
    running.announce(None, "1" * 40, "refs/pull/7/head")
    running.announce(None, "1" * 40, "refs/notes/x")
    await running.refreshed(Trigger.WANT)
    assert not is_pending(running)
    assert known_looks(running) == {"webhook": 0, "lag": 0}


async def test_one_mirrored_ref_among_others_is_enough(running: Running) -> None:
    tip = running.upstream.commit()
    running.refresher.announce(
        [
            RefChange(RefName(b"refs/pull/7/head"), None, ObjectId(b"1" * 40)),
            RefChange(RefName(b"refs/heads/main"), None, ObjectId(tip.encode())),
        ]
    )
    await fresh(running)
    assert known_looks(running) == {"webhook": 1, "lag": 0}


async def test_a_webhook_that_was_lost_is_made_up_for_by_the_next(running: Running) -> None:
    before = running.upstream.oid()
    running.upstream.commit("lost")
    running.upstream.tag("v1")
    running.announce(before, running.upstream.commit())
    await fresh(running)
    running.bench.mirrors()


async def test_pushes_that_follow_do_not_prolong_the_wait_for_one_that_never_shows(
    running: Running,
) -> None:
    """A busy repository: a webhook with every look must not keep readers waiting for ever."""
    old, lost = running.upstream.oid(), running.upstream.commit()
    running.upstream.force("main", old)
    branches = [running.upstream.commit(f"b{number}") for number in range(30)]
    left = list(enumerate(branches))

    async def push(request: ForgeRequest) -> None:
        if request.operation != "ls-refs":
            return
        running.clock.advance(0.001)
        if left:
            number, tip = left.pop()
            running.announce(None, tip, f"refs/heads/b{number}")

    running.forge.on_request = push
    with capture_logs() as logs:
        running.announce(old, lost)
        first = running.mirror.freshness.announced
        await running.until(lambda: running.mirror.freshness.satisfied >= first)
        assert left, "long before the pushes come to an end"
        await fresh(running)
    assert [log["refs"] for log in logs if log["event"] == "announced_but_not_listed"] == [
        ["refs/heads/main"]
    ]


async def test_a_webhook_during_a_refresh_is_covered_by_the_next_one_only(
    running: Running,
) -> None:
    old = running.upstream.oid()
    new = running.upstream.commit()
    announced = False

    async def push(request: ForgeRequest) -> None:
        nonlocal announced
        if request.operation == "ls-refs" and not announced:
            announced = True
            running.announce(old, new)

    running.forge.on_request = push
    await running.refreshed(Trigger.WANT)
    assert running.bench.refs() == {"refs/heads/main": new}, "which came with it by chance"
    assert is_pending(running)
    await fresh(running)
    assert known_looks(running) == {"webhook": 1, "lag": 0}


async def test_each_webhook_is_timed_until_it_can_be_fetched(running: Running) -> None:
    async def slowly(request: ForgeRequest) -> None:
        if request.operation == "ls-refs":
            running.clock.advance(2)

    running.forge.on_request = slowly
    tips = [running.upstream.oid(), *running.upstream.history(2)]
    running.announce(tips[0], tips[1])
    running.clock.advance(1)
    running.announce(tips[1], tips[2])
    await fresh(running)
    assert running.sample(f"{FETCHABLE}_count") == 2
    assert running.sample(f"{FETCHABLE}_sum") == 3 + 2


async def test_what_was_announced_during_an_outage_is_fresh_when_it_is_over(
    running: Running,
) -> None:
    running.forge.faults = Faults(status=500)
    old = running.upstream.oid()
    new = running.upstream.commit()
    running.announce(old, new)
    await running.until(lambda: running.mirror.freshness.failures)
    assert is_pending(running)
    running.forge.faults = Faults()
    await running.refreshed()
    assert not is_pending(running)
    assert running.bench.refs() == {"refs/heads/main": new}


async def test_announcements_beyond_a_bound_are_left_to_the_listing(running: Running) -> None:
    running.forge.faults = Faults(status=500)
    with pytest.raises(UpstreamUnavailable):
        await running.refreshed()
    oid = ObjectId(b"1" * 40)
    for number in range(EXPECTATIONS_MAX // 100 + 5):
        names = [RefName(b"refs/heads/b%d-%d" % (number, n)) for n in range(100)]
        running.refresher.announce([RefChange(name, None, oid) for name in names])
    assert len(running.refresher._expected) == EXPECTATIONS_MAX


async def test_a_restart_counts_as_an_announcement(
    upstream: Upstream, make_bench: MakeBench
) -> None:
    """What was accepted before it is not known any more."""
    bench = make_bench(upstream, poll_interval_seconds=None)
    await bench.update()
    upstream.commit()
    async with Running(bench) as running:
        reader = running.reader()
        await running.held(reader)
        admitted = await reader
        assert admitted.stale_seconds is None
        assert admitted.snapshot.head == upstream.oid().encode()
        assert running.refreshes("start", "changed") == 1
