"""Refs that vanish upstream: deletion, or trouble that looks like it."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mirror.cli import main
from mirror.demo.forge import HttpBackend
from mirror.errors import NotYetMirrored, RefsVanished, UpstreamUnavailable
from mirror.refresh.changes import ListedChange
from mirror.refresh.doubt import EMPTY_SECONDS
from mirror.refresh.mirror import Mirror
from mirror.refresh.refresher import Trigger
from mirror.refresh.vanishing import LOOKS_MIN, VANISHED_MIN, Listed, Vanishing, judge
from mirror.repository.bare import BareRepository
from mirror.repository.missed_refs import NOTE, MissedRefs, find_missed, keep_missed
from mirror.wire.names import ObjectId, Ref, RefName
from tests.git_client import Upstream
from tests.mirror_service import NAME, MirrorService, configuration, serving
from tests.refresh.bench import Bench, Running, moved
from tests.refresh.conftest import MakeBench

AFTER_SECONDS = 600.0
BRANCHES = 30


def oid(number: int) -> ObjectId:
    return ObjectId(b"%040x" % number)


def ref(name: bytes, number: int) -> Ref:
    return Ref(RefName(name), oid(number), None)


def gone(name: bytes, number: int = 1) -> ListedChange:
    return ListedChange(RefName(name), ref(name, number), None)


def came(name: bytes, number: int) -> ListedChange:
    return ListedChange(RefName(name), None, ref(name, number))


def judged(
    changes: Sequence[ListedChange],
    before: Vanishing | None = None,
    *,
    known: int = BRANCHES,
    is_empty: bool = False,
    announced: frozenset[bytes] = frozenset(),
    now: float = 0.0,
    after_seconds: float = AFTER_SECONDS,
) -> Vanishing | None:
    return judge(
        Listed(changes, known, is_empty),
        before,
        announced={RefName(name) for name in announced},
        now=now,
        wall_now=now,
        after_seconds=after_seconds,
    )


def branches(count: int) -> list[ListedChange]:
    return [gone(b"refs/heads/b%d" % number, number) for number in range(count)]


# --- the rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "known", "is_empty", "is_kept"),
    [
        (1, 1, True, True),
        (1, 30, False, False),
        (VANISHED_MIN - 1, VANISHED_MIN, False, False),
        (VANISHED_MIN, VANISHED_MIN, False, True),
        (15, 30, False, False),
        (16, 30, False, True),
        (0, 30, False, False),
    ],
)
def test_all_or_more_than_half_at_once_are_too_many(
    count: int, known: int, is_empty: bool, is_kept: bool
) -> None:
    kept = judged(branches(count), known=known, is_empty=is_empty)
    assert (kept is not None) is is_kept
    if kept is not None:
        assert len(kept.since) == count


def test_a_stretch_of_looks_confirms_it_and_neither_time_nor_looks_alone() -> None:
    kept = judged(branches(20))
    assert kept is not None
    kept = judged(branches(20), kept, now=AFTER_SECONDS + 1)
    assert kept is not None, "two looks, however far apart"
    assert judged(branches(20), kept, now=AFTER_SECONDS + 2) is None
    kept = judged(branches(20))
    for look in range(10):
        kept = judged(branches(20), kept, now=float(look))
        assert kept is not None, "ten looks in ten seconds"
    assert kept is not None
    assert kept.looks == 11
    assert kept.noticed_at == 0.0


def test_what_vanishes_later_is_kept_for_its_own_time() -> None:
    kept = judged(branches(20))
    kept = judged(branches(21), kept, now=400.0)
    kept = judged(branches(21), kept, now=AFTER_SECONDS + 1)
    assert kept is not None
    assert list(kept.since) == [b"refs/heads/b20"]
    assert judged([gone(b"refs/heads/b20")], kept, now=1001.0) is None


def test_what_comes_back_begins_anew() -> None:
    kept = judged(branches(20))
    assert judged([], kept, now=500.0) is None
    kept = judged(branches(20), None, now=AFTER_SECONDS + 1)
    assert kept is not None
    assert kept.looks == 1


def test_a_rename_is_no_deletion_however_many() -> None:
    news = [came(b"refs/heads/team/b%d" % number, number) for number in range(30)]
    assert judged([*branches(30), *news]) is None


def test_a_ref_that_can_not_be_beside_a_listed_one_is_gone_for_sure() -> None:
    changes = [*branches(20), came(b"refs/heads/b3/x", 99), gone(b"refs/heads/y/z")]
    kept = judged([*changes, came(b"refs/heads/y", 98)])
    assert kept is not None
    assert kept.since.keys() == {change.name for change in branches(20)} - {b"refs/heads/b3"}


def test_webhooks_confirm_the_refs_that_they_name() -> None:
    names = frozenset(change.name for change in branches(30))
    assert judged(branches(30), is_empty=True, announced=frozenset(names)) is None
    some = frozenset(list(names)[:25])
    kept = judged(branches(30), is_empty=True, announced=some)
    assert kept is not None
    assert kept.since.keys() == names - some


def test_no_time_is_no_doubt() -> None:
    assert judged(branches(30), is_empty=True, after_seconds=0.0) is None


@given(st.lists(st.tuples(st.sets(st.integers(0, 39)), st.floats(0, 300)), max_size=12))
def test_nothing_is_believed_gone_before_its_time_and_nothing_is_kept_beyond_it(
    looks: list[tuple[set[int], float]],
) -> None:
    """However refs come and go: `missed` is a plain account of the same."""
    kept, now = None, 0.0
    missed: dict[RefName, float] = {}
    streak = 0
    for numbers, pause in looks:
        now += pause
        changes = [gone(b"refs/heads/b%d" % number, number) for number in sorted(numbers)]
        names = {change.name for change in changes}
        kept = judged(changes, kept, known=40, now=now)
        streak = streak + 1 if kept is not None else 0
        since = kept.since if kept is not None else {}
        assert since.keys() <= names
        missed = {name: missed.get(name, now) for name in since}
        assert all(since[name] == at for name, at in missed.items())
        assert streak < 3 or all(now - at < AFTER_SECONDS for at in missed.values())


# --- a mirror ----------------------------------------------------------------------------------


@pytest.fixture
async def bench(upstream: Upstream, make_bench: MakeBench) -> Bench:
    """A mirror of 31 refs, not polled."""
    tip = upstream.oid()
    upstream.branches({f"refs/heads/b{number}": tip for number in range(BRANCHES)})
    return make_bench(upstream, poll_interval_seconds=None)


@pytest.fixture
async def running(bench: Bench) -> AsyncIterator[Running]:
    async with Running(bench) as running:
        await running.refreshed(Trigger.START)
        yield running


def empty(upstream: Upstream) -> dict[str, str]:
    """Let the upstream lose all its refs; returns them."""
    refs = upstream.refs()
    for name in refs:
        upstream.delete_ref(name)
    return refs


async def test_an_empty_answer_is_an_outage_until_it_was_confirmed(running: Running) -> None:
    bench, before = running.bench, running.bench.mirror.snapshot
    refs = empty(bench.upstream)
    with capture_logs() as logs:
        for look in range(3):
            bench.clock.advance(100.0)
            with pytest.raises(RefsVanished, match="--accept-deletions"):
                await running.refreshed()
            assert bench.mirror.snapshot is before, look
            assert bench.mirror.last.error
        assert bench.mirror.freshness.failures == 3
        assert running.sample("git_mirror_refresh_failures_total", {"reason": "refs_vanished"}) == 3
        bench.clock.advance(AFTER_SECONDS)
        await running.refreshed()
    bench.mirrors({})
    assert bench.kept() == set(refs.values()), "its tips stay fetchable for a day"
    events = [entry["event"] for entry in logs if entry["event"].startswith("refs_vanished")]
    assert events == ["refs_vanished", "refs_vanished_ended"]


async def test_an_empty_answer_that_ends_was_nothing(running: Running) -> None:
    bench = running.bench
    refs = empty(bench.upstream)
    with pytest.raises(RefsVanished):
        await running.refreshed()
    bench.upstream.branches(refs)
    await running.refreshed()
    assert bench.mirror.vanishing is None
    bench.mirrors()


async def test_an_operator_s_word_is_enough(running: Running) -> None:
    empty(running.upstream)
    with pytest.raises(RefsVanished):
        await running.refreshed()
    await running.refreshed(Trigger.ACCEPT)
    running.bench.mirrors({})


async def test_webhooks_that_announced_the_deletions_are_enough(
    upstream: Upstream, make_bench: MakeBench
) -> None:
    bench = make_bench(upstream)
    await bench.update()
    main = upstream.oid()
    upstream.delete_ref("refs/heads/main")
    with pytest.raises(RefsVanished):
        await bench.update()
    await bench.update(moved(main, None))
    bench.mirrors({})


async def test_pushes_go_on_while_many_refs_are_missing(running: Running) -> None:
    """And it is looked again soon, although nobody polls."""
    bench, upstream = running.bench, running.upstream
    before = upstream.refs()
    for number in range(25):
        upstream.delete_ref(f"refs/heads/b{number}")
    tip = upstream.commit()
    await running.refreshed()
    assert bench.refs() == {**before, "refs/heads/main": tip}
    assert bench.mirror.vanishing is not None
    assert len(bench.mirror.vanishing.since) == 25
    assert bench.mirror.freshness.failures == 0
    for _ in range(2):
        bench.clock.advance(AFTER_SECONDS / 2 + 1)
        await running.refreshed()
    bench.mirrors()


async def test_a_doubt_goes_on_after_a_restart(bench: Bench) -> None:
    """By the time in which it was looked, whatever the clocks say after the start."""
    await bench.update()
    empty(bench.upstream)
    for _ in range(2):
        with pytest.raises(RefsVanished):
            await bench.update()
        bench.clock.advance(AFTER_SECONDS / 2 - 1)
    with pytest.raises(RefsVanished):
        await bench.update()
    note = bench.path / NOTE
    assert note.exists()

    bench.close()
    later = 1_000_000.0
    bench.now, bench.clock.now = bench.now + later, 7.0
    mirror = bench.mirror = Mirror(bench.settings, bench.path)
    mirror.repository = BareRepository.open(bench.path)
    mirror.snapshot = bench.updater.open(mirror.repository)
    mirror.vanishing = bench.updater.recall_vanished(mirror.repository)
    assert mirror.vanishing is not None
    assert mirror.vanishing.noticed_at == bench.now - later
    with pytest.raises(RefsVanished):
        await bench.update()
    bench.clock.advance(3.0)
    await bench.update()
    bench.mirrors({})
    assert not note.exists()


@pytest.mark.parametrize("spoil", [b"", b"x", b"\n\n"])
def test_a_note_that_is_not_what_was_written_is_none(tmp_path: Path, spoil: bytes) -> None:
    missed = MissedRefs(3, 1e9, {RefName(b"refs/heads/a"): 1.5, RefName(b"refs/heads/b"): 2.0})
    keep_missed(tmp_path, missed)
    assert find_missed(tmp_path) == missed
    (tmp_path / NOTE).write_bytes((tmp_path / NOTE).read_bytes()[:-4] + spoil)
    assert find_missed(tmp_path) is None
    keep_missed(tmp_path, None)
    assert not list(tmp_path.iterdir())


async def test_a_new_repository_is_not_believed_to_be_empty_at_once(
    upstream_root: Path, make_bench: MakeBench
) -> None:
    """It may be a hiccup of the forge; to readers it is not mirrored yet."""
    upstream = Upstream(upstream_root, "acme/new")
    async with Running(make_bench(upstream, poll_interval_seconds=None)) as running:
        bench = running.bench
        for _ in range(LOOKS_MIN):
            with pytest.raises(UpstreamUnavailable, match="--accept-deletions"):
                await running.refreshed()
        with pytest.raises(NotYetMirrored, match="believed to be empty after 60 s"):
            running.gate.current()
        assert running.sample("git_mirror_refresh_failures_total", {"reason": "no_refs"}) >= 3
        bench.clock.advance(EMPTY_SECONDS)
        await running.refreshed()
        bench.mirrors({})


@pytest.mark.parametrize("by", [Trigger.ACCEPT, Trigger.WEBHOOK])
async def test_an_operator_s_word_or_a_push_ends_the_doubt_about_a_new_repository(
    upstream_root: Path, make_bench: MakeBench, by: Trigger
) -> None:
    upstream = Upstream(upstream_root, "acme/new")
    async with Running(make_bench(upstream, poll_interval_seconds=None)) as running:
        with pytest.raises(UpstreamUnavailable):
            await running.refreshed(Trigger.START)
        if by is Trigger.WEBHOOK:
            upstream.commit()
        await running.refreshed(by)
        running.bench.mirrors()


async def test_a_damaged_mirror_is_not_cloned_anew_from_an_upstream_that_lost_its_refs(
    bench: Bench,
) -> None:
    await bench.update()
    refs = empty(bench.upstream)
    for accepts in (False, True):
        with nullcontext() if accepts else pytest.raises(RefsVanished, match="damaged"):
            async with bench.updater.cloned_beside(
                bench.mirror, bench.remote, believed=None if accepts else ()
            ) as (staged, _):
                assert not staged.read_refs().refs
    bench.upstream.branches(refs)
    async with bench.updater.cloned_beside(bench.mirror, bench.remote, believed=()) as (staged, _):
        assert len(staged.read_refs().refs) == len(refs)


async def test_refs_that_are_no_longer_asked_for_have_not_vanished(
    bench: Bench, make_bench: MakeBench
) -> None:
    await bench.update()
    snapshot, repository = bench.mirror.snapshot, bench.mirror.repository
    narrow = make_bench(bench.upstream, refs=("refs/heads/main",))
    narrow.mirror.snapshot, narrow.mirror.repository = snapshot, repository
    bench.mirror.repository = None  # it is the other's now
    await narrow.update()
    assert list(narrow.refs()) == ["refs/heads/main"]


async def test_many_refs_renamed_at_once_are_renamed(bench: Bench) -> None:
    """2,000 of them; 100,000 were tried by hand."""
    upstream = bench.upstream
    tip = upstream.oid()
    upstream.branches({f"refs/heads/old/{number:06}": tip for number in range(2_000)})
    await bench.update()
    upstream.git("pack-refs", "--all", "--prune")
    packed = (upstream.path / "packed-refs").read_bytes()
    (upstream.path / "packed-refs").write_bytes(packed.replace(b"heads/old/", b"heads/new/"))
    updated = await bench.update()
    assert updated.changed_refs == 4_000
    assert updated.received_bytes == 0
    assert bench.mirror.vanishing is None
    assert bench.refs() == upstream.refs()


# --- what people see ---------------------------------------------------------------------------


async def said(service: MirrorService, *arguments: str) -> tuple[int, str]:
    """Run a command beside the service."""
    file = str(service.service.settings.source)
    command = [arguments[0], "--config", file, *arguments[1:]]
    result = await asyncio.to_thread(CliRunner().invoke, main, command)
    return result.exit_code, result.output


async def test_people_see_what_vanished_and_can_have_it_believed(
    upstream: Upstream, forge: HttpBackend, tmp_path: Path
) -> None:
    tip = upstream.oid()
    upstream.branches({f"refs/heads/b{number}": tip for number in range(BRANCHES)})
    async with serving(configuration(forge, tmp_path), forge) as service:
        await service.mirrored()
        for number in range(25):
            upstream.delete_ref(f"refs/heads/b{number}")
        await service.announce(upstream)
        await service.settled()
        code, output = await said(service, "status", "--json")
        assert code == 1
        vanished = json.loads(output)["repositories"][NAME]["vanished"]
        assert vanished["refs"] == 25
        assert await service.metric("git_mirror_repository_vanished_refs", repository=NAME) == 25
        code, output = await said(service, "sync", NAME)
        assert code == 0
        assert "25 of which vanished upstream" in output
        code, output = await said(service, "sync", NAME, "--accept-deletions")
        assert (code, output.strip().splitlines()[-1]) == (0, f"{NAME}: up to date, 6 refs")
        code, _ = await said(service, "status")
        assert code == 0
