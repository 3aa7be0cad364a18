"""Repositories stay small and quick, and nothing that anybody may still want goes too early."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mirror.demo.forge import HttpBackend
from mirror.errors import LocalError, PackError
from mirror.metrics import Metrics
from mirror.refresh.maintenance import Maintainer
from mirror.refresh.mirror import Mirror
from mirror.refresh.update import KEPT_SECONDS
from mirror.repository import maintenance, pruning
from mirror.repository.bare import BareRepository
from mirror.repository.maintenance import Record
from mirror.repository.packing import dulwich_engine
from mirror.repository.packing.dulwich_engine import DulwichEngine
from mirror.repository.packing.engine import PackEngine, PackRequest
from mirror.wire.names import ObjectId
from tests.git_client import GitClient, Upstream
from tests.mirror_service import NAME, mirroring
from tests.refresh.bench import WAIT_SECONDS_MAX, Bench, Clock
from tests.refresh.conftest import MakeBench

HOUR = 3600
OVER = KEPT_SECONDS + pruning.PRUNE_MARGIN_SECONDS


@dataclass
class Upkeep:
    """A mirror on the bench, and who maintains it.

    Attributes:
        clock: The maintainer's, which stands still.
        is_done: Set when a mirror was maintained, well or not.
    """

    bench: Bench
    clock: Clock = field(default_factory=Clock)
    metrics: Metrics = field(default_factory=lambda: Metrics("test"))
    is_done: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.metrics.create_series(operations=(), triggers=(), forges=(), engines=(), damage=())
        self.maintainer = Maintainer(
            self.bench.engine,
            self.metrics,
            lambda: [self.mirror],
            clock=self.clock,
            wall_clock=lambda: self.bench.now,
        )
        record = self.metrics.record_maintenance

        def record_and_tell(work: str, outcome: str, seconds: float) -> None:
            record(work, outcome, seconds)
            self.is_done.set()

        self.metrics.record_maintenance = record_and_tell  # type: ignore[method-assign]

    @property
    def mirror(self) -> Mirror:
        return self.bench.mirror

    @property
    def repository(self) -> BareRepository:
        assert self.mirror.repository is not None
        return self.mirror.repository

    async def look(self) -> None:
        """Have the mirror looked at once."""
        await self.maintainer.look_at(self.mirror)

    def count(self, work: str, outcome: str = "ok") -> float:
        """Return how often such work had this outcome."""
        labels = {"work": work, "outcome": outcome}
        name = "git_mirror_maintenance_seconds_count"
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def holds(self, oid: str) -> bool:
        return self.bench.holds(oid)

    async def forced_away(self, ref: str = "develop", size: int = 0) -> str:
        """Let a tip be replaced by another; returns the old one."""
        old = self.bench.upstream.commit(ref, {"secret.txt": "s" * size or ref})
        await self.bench.update()
        self.bench.upstream.commit(ref, parents=[f"{ref}~1"])
        await self.bench.update()
        return old

    async def build(self, oid: str) -> AsyncIterator[bytes]:
        request = PackRequest(wants=(ObjectId(oid.encode()),), ofs_delta=True)
        async for chunk in self.bench.engine.build_pack(self.repository, request):
            yield chunk


@pytest.fixture
async def upkeep(rich: Upstream, make_bench: MakeBench, engine: PackEngine) -> Upkeep:
    """A mirror with two branches and a tag, with each engine."""
    upkeep = Upkeep(make_bench(rich, engine=engine))
    await upkeep.bench.update()
    return upkeep


@pytest.fixture
async def quick(rich: Upstream, make_bench: MakeBench) -> Upkeep:
    """The same with git alone, where the engine makes no difference."""
    upkeep = Upkeep(make_bench(rich))
    await upkeep.bench.update()
    return upkeep


# --- old tips ----------------------------------------------------------------------------------


async def test_what_a_force_push_took_away_is_removed_after_a_day_and_a_margin(
    upkeep: Upkeep,
) -> None:
    bench = upkeep.bench
    old = await upkeep.forced_away()
    bench.now += OVER - 1
    await upkeep.look()
    assert upkeep.holds(old)
    assert bench.kept() == {old}
    bench.now += 1
    await upkeep.look()
    assert not upkeep.holds(old)
    assert bench.kept() == set()
    assert upkeep.count("prune") == 1
    assert upkeep.mirror.unreachable_bytes == 0
    assert len(upkeep.repository.pack_files()) == 1
    bench.mirrors()
    bench.upstream.commit()
    await bench.update()
    bench.mirrors()


async def test_a_reader_in_the_middle_of_a_clone_of_a_pruned_tip_ends_well(
    upkeep: Upkeep,
) -> None:
    bench = upkeep.bench
    noise = os.urandom(1_500_000).hex()  # more than all buffers between git and us
    old = bench.upstream.commit("develop", {"noise.txt": noise})
    await bench.update()
    bench.upstream.commit("develop", parents=["develop~1"])
    await bench.update()
    pack = upkeep.build(old)
    received = [await anext(pack)]
    bench.now += OVER
    await upkeep.look()
    assert not upkeep.holds(old)
    received += [chunk async for chunk in pack]
    reader = Upstream(bench.staging.parent / "reader")
    reader.git("index-pack", "--stdin", "--strict", stdin=b"".join(received))
    reader.git("rev-list", "--objects", "--quiet", old)


async def test_a_branch_that_was_merged_leaves_nothing_to_remove(quick: Upkeep) -> None:
    bench = quick.bench
    bench.upstream.commit("feature", {"f.txt": "f"}, parents=["main"])
    await bench.update()
    bench.upstream.commit("main", {"g.txt": "g"}, parents=["main", "feature"])
    bench.upstream.delete_ref("feature")
    await bench.update()
    bench.now += OVER
    await quick.look()
    assert bench.kept() == set()
    assert quick.count("prune") == 0


async def test_a_storm_of_force_pushes_does_not_grow_the_disk_for_ever(quick: Upkeep) -> None:
    """One of 100 KB every four hours: what is there is of the last day and a bit alone."""
    bench, sizes = quick.bench, []
    for _ in range(18):
        bench.upstream.commit("develop", {"noise": os.urandom(100_000)}, parents=["main"])
        await bench.update()
        bench.now += 4 * HOUR
        quick.clock.advance(4 * HOUR)
        await quick.look()
        sizes.append(quick.repository.bytes_on_disk())
    assert max(sizes[9:]) < 1.1 * max(sizes[:9]) < 1_100_000
    assert len(bench.kept()) <= OVER / (4 * HOUR)
    bench.mirrors()


async def test_a_little_of_a_large_repository_waits_for_a_week(
    quick: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "PRUNED_AT_ONCE_BYTES_MAX", 0)
    monkeypatch.setattr(maintenance, "PRUNED_SHARE", 0.5)
    old = await quick.forced_away()
    quick.bench.now += OVER
    await quick.look()
    assert quick.holds(old)
    assert quick.bench.kept() == set()
    found = quick.mirror.unreachable_bytes
    assert 0 < found < 2000
    quick.bench.now += HOUR
    other = await quick.forced_away("main")
    quick.bench.now += OVER
    await quick.look()
    assert quick.mirror.unreachable_bytes > found
    quick.bench.now += maintenance.UNREACHABLE_SECONDS_MAX - HOUR - OVER
    await quick.look()
    assert not quick.holds(old)
    assert not quick.holds(other)


async def test_before_the_largest_pack_is_merged_what_refs_reach_gets_one_of_its_own(
    upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where clones are quicker for it; what kept tips alone reach stays, in another."""
    monkeypatch.setattr(maintenance, "REWRITTEN_BYTES_MIN", 0)
    monkeypatch.setattr(maintenance, "REWRITTEN_SHARE", 0.01)
    bench, maintainer = upkeep.bench, upkeep.maintainer
    old = await upkeep.forced_away()
    maintainer._records[upkeep.mirror.name] = Record(merge_at=2)
    await upkeep.look()
    assert upkeep.holds(old)
    bench.mirrors()
    if not bench.engine.copies_packs:
        assert (upkeep.count("merge"), upkeep.count("rewrite")) == (1, 0)
        return
    assert (upkeep.count("merge"), upkeep.count("rewrite")) == (0, 1)
    shown = bench.git("rev-list", "--objects", "--no-object-names", "--branches", "--tags")
    packs = [{oid.decode() for oid in pack.ids()} for pack in upkeep.repository.source.packs()]
    assert set(shown.split()) in packs
    assert len(packs) == 2
    assert maintainer._records[upkeep.mirror.name].beside > 0


# --- at the same time --------------------------------------------------------------------------


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, engine: PackEngine, do: Callable[[], Awaitable[object]]
) -> None:
    """Do something when the new pack is there and the old ones are, too; once."""
    index = engine.index

    async def index_and_do(repository: BareRepository, **options: Any) -> None:
        monkeypatch.setattr(engine, "index", index)
        await index(repository, **options)
        await do()

    monkeypatch.setattr(engine, "index", index_and_do)


async def test_a_push_that_comes_while_a_repository_is_written_anew_survives_it(
    upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = upkeep.bench
    old = await upkeep.forced_away()
    bench.now += OVER

    async def push() -> None:
        bench.upstream.commit()
        bench.upstream.commit("develop", {"new.txt": "new"})
        await bench.update()

    meanwhile(monkeypatch, bench.engine, push)
    await upkeep.look()
    assert upkeep.count("prune") == 1
    assert not upkeep.holds(old)
    bench.mirrors()


async def test_a_ref_that_comes_back_to_what_is_being_removed_keeps_it(
    upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objects are here, so nothing is received: they are in the old packs alone."""
    bench = upkeep.bench
    old = await upkeep.forced_away()
    bench.now += OVER

    async def come_back() -> None:
        bench.upstream.force("develop", old)
        await bench.update()

    meanwhile(monkeypatch, bench.engine, come_back)
    with capture_logs() as logs:
        await upkeep.look()
    assert upkeep.count("prune", "pack_error") == 1
    assert [log["work"] for log in logs if log["event"] == "maintenance_failed"] == ["prune"]
    bench.mirrors()
    upkeep.clock.advance(maintenance.PRUNE_AGAIN_SECONDS)
    await upkeep.look()
    assert upkeep.count("prune") == 1
    assert len(upkeep.repository.pack_files()) == 2, "that of refs, and of what was kept meanwhile"
    bench.mirrors()


async def test_an_end_in_the_middle_is_made_good_after_the_next_start(
    upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = upkeep.bench
    old = await upkeep.forced_away()
    bench.now += OVER

    async def end() -> None:
        raise asyncio.CancelledError

    meanwhile(monkeypatch, bench.engine, end)
    with pytest.raises(asyncio.CancelledError):
        await upkeep.look()
    assert upkeep.count("prune", "abandoned") == 1
    bench.close()
    bench.mirror.repository = BareRepository.open(bench.path)
    bench.is_whole()
    anew = Upkeep(bench)
    await anew.look()
    assert anew.count("prune") == 1
    assert not anew.holds(old)
    bench.mirrors()


async def test_what_is_left_by_a_git_that_was_killed_goes_at_the_next_look(quick: Upkeep) -> None:
    packs = quick.repository.objects / "pack"
    left = [packs / ".tmp-77-pack-abc.pack", packs / "tmp_pack_x", packs / "multi-pack-index.lock"]
    for file in left:
        file.touch()
    await quick.bench.engine.repack(quick.repository)
    assert not any(file.exists() for file in left)


async def test_a_refresh_that_takes_long_holds_up_no_other_repository(
    quick: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "BEGIN_SECONDS_MAX", 0.0)
    await quick.forced_away()
    quick.bench.now += OVER
    async with quick.mirror.changing:
        with capture_logs() as logs:
            await quick.look()
    assert "a refresh is under way" in logs[0]["error"]
    assert quick.bench.kept()


# --- many packs --------------------------------------------------------------------------------


async def pushed(upkeep: Upkeep, count: int) -> None:
    for _ in range(count):
        upkeep.bench.upstream.commit()
        await upkeep.bench.update()


async def test_many_packs_are_merged(upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "PACKS_MAX", 3)
    upkeep.maintainer._records["acme/gitops-repo"] = Record(merge_at=4, is_looked_at=True)
    await pushed(upkeep, 4)
    with capture_logs() as logs:
        await upkeep.look()
    assert len(upkeep.repository.pack_files()) < 4
    (log,) = (each for each in logs if each["event"] == "maintained")
    assert (log["work"], log["packs_before"]) == ("merge", 5)
    assert upkeep.count("merge") == 1
    await pushed(upkeep, 1)
    upkeep.bench.mirrors()


@pytest.mark.parametrize("error", [PackError("no memory"), ZeroDivisionError("a bug")])
async def test_a_merge_that_fails_is_not_tried_at_every_push(
    quick: Upkeep, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(maintenance, "PACKS_MAX", 1)
    quick.maintainer._records["acme/gitops-repo"] = Record(merge_at=2, is_looked_at=True)
    tries = []

    async def repack(repository: BareRepository) -> None:
        tries.append(len(repository.pack_files()))
        raise error

    monkeypatch.setattr(quick.bench.engine, "repack", repack)
    for _ in range(6):
        await pushed(quick, 1)
        await quick.look()
    assert tries == [2, 4]
    assert quick.count("merge", getattr(error, "label", "local_error")) == 2
    quick.bench.mirrors()


async def test_without_git_a_large_repository_is_not_written_anew(
    rich: Upstream, make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dulwich_engine, "REPACKED_OBJECTS_MAX", 10)
    with closing(DulwichEngine()) as engine:
        upkeep = Upkeep(make_bench(rich, engine=engine))
        await upkeep.bench.update()
        await upkeep.forced_away()
        upkeep.bench.now += OVER
        with capture_logs() as logs:
            await upkeep.look()
            await upkeep.look()
        (failure,) = logs
        assert "without git" in failure["error"]
        assert upkeep.mirror.unreachable_bytes > 0
        upkeep.bench.mirrors()


async def test_a_full_disk_puts_it_off(quick: Upkeep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "free_bytes", lambda _: 1000)
    old = await quick.forced_away()
    quick.bench.now += OVER
    with capture_logs() as logs:
        await quick.look()
    assert "1000 bytes are free" in logs[0]["error"]
    assert quick.holds(old)
    assert not list(quick.repository.objects.glob("tmp_*"))


# --- when --------------------------------------------------------------------------------------


@asynccontextmanager
async def working(upkeep: Upkeep) -> AsyncIterator[None]:
    task = asyncio.create_task(upkeep.maintainer.run())
    try:
        yield
    finally:
        assert not task.done(), task
        task.cancel()
        await asyncio.wait((task,))


async def test_a_big_first_clone_gets_an_index_of_its_commits_once_it_is_published(
    quick: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "INDEXED_BYTES_MIN", 1)
    async with working(quick), asyncio.timeout(WAIT_SECONDS_MAX):
        quick.maintainer.published(quick.mirror)
        await quick.is_done.wait()
    assert quick.count("index") == 1
    quick.bench.git("commit-graph", "verify")
    quick.bench.mirrors()


async def test_every_repository_is_looked_at_now_and_then(
    quick: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept tips become old while nothing happens."""
    monkeypatch.setattr("mirror.refresh.maintenance.FIRST_LOOK_SECONDS", 0.0)
    await quick.forced_away()
    quick.bench.now += OVER
    async with working(quick), asyncio.timeout(WAIT_SECONDS_MAX):
        await quick.is_done.wait()
    assert quick.count("prune") == 1


async def test_what_is_done_to_a_repository_ends_when_it_is_removed(
    quick: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "INDEXED_BYTES_MIN", 1)
    begun = asyncio.Event()

    async def repack(_: BareRepository) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(quick.bench.engine, "repack", repack)
    async with working(quick), asyncio.timeout(WAIT_SECONDS_MAX):
        quick.maintainer.published(quick.mirror)
        await begun.wait()
        await quick.maintainer.forget(quick.mirror.name)
        assert quick.count("index", "abandoned") == 1


async def test_nothing_is_done_to_a_repository_while_it_is_mended(
    quick: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "INDEXED_BYTES_MIN", 1)
    begun: asyncio.Queue[BareRepository] = asyncio.Queue()

    async def repack(repository: BareRepository) -> None:
        begun.put_nowait(repository)
        await asyncio.Event().wait()

    monkeypatch.setattr(quick.bench.engine, "repack", repack)
    async with working(quick), asyncio.timeout(WAIT_SECONDS_MAX):
        quick.maintainer.published(quick.mirror)
        await begun.get()
        async with quick.maintainer.paused(quick.mirror.name):
            assert quick.count("index", "abandoned") == 1
            quick.maintainer.published(quick.mirror)
            for _ in range(10):
                await asyncio.sleep(0)
            assert begun.empty()
        await begun.get()  # its turn comes after that


@pytest.mark.parametrize("step", ["repack", "prune"])
async def test_no_pack_of_a_clone_that_took_the_place_is_removed(
    quick: Upkeep, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packs are named by their content: a new clone may have one of the same name."""
    await pushed(quick, 3)
    repository, path = quick.repository, quick.mirror.path
    remove = BareRepository.remove_packs
    there: list[list[str]] = []

    def replaced_before(one: BareRepository, names: Collection[str]) -> None:
        path.rename(path.with_name("old.git"))
        shutil.copytree(path.with_name("old.git"), path)
        there.append(sorted(pack.name for pack in repository.pack_files()))
        assert names
        remove(one, names)

    monkeypatch.setattr(BareRepository, "remove_packs", replaced_before)
    engine = quick.bench.engine
    with pytest.raises(LocalError, match="cloned anew"):
        if step == "repack":
            await engine.repack(repository)
        else:
            await pruning.prune(repository, engine, changing=quick.mirror.changing)
    assert there == [sorted(pack.name for pack in repository.pack_files())]


# --- with real clients -------------------------------------------------------------------------


async def test_an_old_tip_can_be_fetched_until_it_is_pruned_and_clones_go_on(
    forge: HttpBackend,
    rich: Upstream,
    git_client: GitClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two processes serve: neither holds on to the packs that went."""
    async with mirroring(forge, tmp_path, workers=2) as running:
        old = rich.commit("develop", {"secret.txt": "secret"})
        await running.announce(rich, "refs/heads/develop")
        await running.caught_up(rich)
        rich.commit("develop", parents=["develop~1"])
        await running.announce(rich, "refs/heads/develop")
        await running.caught_up(rich)
        clone = await git_client.clone(running.url())
        await git_client.fetch(clone, "origin", old)
        monkeypatch.setattr(pruning, "PRUNE_MARGIN_SECONDS", -2 * KEPT_SECONDS)
        assert running.service.maintainer is not None
        clones = [git_client.clone(running.url(), name=f"same-time-{each}") for each in range(4)]
        look = running.service.maintainer.look_at(running.mirror())
        cloned, _ = await asyncio.gather(asyncio.gather(*clones), look)
        other = await git_client.clone(running.url(), "--branch=main", "--single-branch")
        for each in (*cloned, other):
            await git_client.fsck(each)
        refused = 0
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while refused < 4:  # each connection may be another worker's, which lets go in its time
                answer = await git_client.run("fetch", "origin", old, cwd=other, check=False)
                assert answer.returncode != 0
                refused = refused + 1 if "not our ref" in answer.stderr else 0
        labels = {"work": "prune", "outcome": "ok"}
        assert await running.metric("git_mirror_maintenance_seconds_count", **labels) == 1
        assert await running.metric("git_mirror_repository_packs", repository=NAME) == 1
