"""Many packs become few, while others read, and nothing is lost: not even what no ref names."""

import asyncio
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from mirror.config import EngineChoice
from mirror.errors import PackError
from mirror.repository.bare import BareRepository
from mirror.repository.packing import dulwich_engine
from mirror.repository.packing.dulwich_engine import DulwichEngine
from mirror.repository.packing.engine import PackEngine, PackRequest
from mirror.repository.quarantine import Quarantine
from mirror.stores import open_engine
from mirror.wire.names import ObjectId
from tests.repository.histories import Atlas, Scratch
from tests.repository.judge import Judge
from tests.repository.packing.building import build, pack_of, receive
from tests.repository.packing.processes import open_files, settle
from tests.repository.packs import Kind, blob_id, make_pack, whole

UNREACHABLE = b"no ref names this\n"


@pytest.fixture
def everything(atlas: Atlas, judge: Judge) -> list[ObjectId]:
    return sorted(judge.reachable(atlas.all(*atlas.names)))


@pytest.fixture
def scattered(
    scratch: Scratch, atlas: Atlas, everything: list[ObjectId]
) -> Iterator[BareRepository]:
    """The atlas in a dozen packs that overlap, and one object that is nowhere named."""
    rng = random.Random(5)
    parts = [everything[start::8] for start in range(8)]
    parts += [rng.sample(everything, 60) for _ in range(4)]
    for part in parts:
        scratch.git("index-pack", "--stdin", stdin=pack_of(atlas.scratch, part))
    scratch.git("index-pack", "--stdin", stdin=make_pack([whole(Kind.BLOB, UNREACHABLE)]))
    scratch.refs({"refs/heads/main": atlas["main"], "refs/tags/nested": atlas["nested-tag"]})
    repository = scratch.open()
    yield repository
    repository.close()


async def test_many_packs_become_few_and_nothing_is_lost(
    engine: PackEngine,
    scattered: BareRepository,
    scratch: Scratch,
    atlas: Atlas,
    judge: Judge,
    everything: list[ObjectId],
) -> None:
    before = len(scattered.pack_files())
    assert before >= 12
    await engine.repack(scattered)
    assert len(scattered.pack_files()) <= 2
    scratch.git("fsck", "--strict", "--full")
    reopened = BareRepository.open(scratch.path)
    for repository in (scattered, reopened):
        assert all(repository.source.contains(oid) for oid in everything)
        assert repository.source.raw(blob_id(UNREACHABLE)) == (Kind.BLOB, UNREACHABLE)
    request = PackRequest(wants=atlas.all("main", "diverged"), haves=atlas.all("root"))
    judge.check(request, await build(engine, scattered, request))
    reopened.close()


async def test_it_can_be_done_again_and_again(
    engine: PackEngine, scattered: BareRepository, scratch: Scratch, everything: list[ObjectId]
) -> None:
    for number in range(3):
        await engine.repack(scattered)
        await receive(engine, scattered, make_pack([whole(Kind.BLOB, b"push %d\n" % number)]))
    await engine.repack(scattered)
    assert len(scattered.pack_files()) <= 3
    scratch.git("fsck", "--strict", "--full")
    assert all(scattered.source.contains(oid) for oid in everything)
    assert scattered.source.contains(blob_id(b"push 1\n"))


async def test_an_empty_repository_can_be_repacked(engine: PackEngine, scratch: Scratch) -> None:
    repository = scratch.open()
    await engine.repack(repository)
    assert repository.pack_files() == []
    repository.close()


async def test_a_repository_of_one_pack_stays_whole(
    engine: PackEngine, scratch: Scratch, atlas: Atlas, everything: list[ObjectId]
) -> None:
    repository = scratch.open()
    await receive(engine, repository, pack_of(atlas.scratch, everything))
    await engine.repack(repository)
    assert len(repository.pack_files()) == 1
    assert all(repository.source.contains(oid) for oid in everything)
    repository.close()


async def test_a_pack_that_holds_all_the_others_is_kept_as_it_is(
    scratch: Scratch, atlas: Atlas, everything: list[ObjectId]
) -> None:
    """Dulwich would give the new pack its very name, and a reader has its index open."""
    engine = DulwichEngine()
    repository = scratch.open()
    await receive(engine, repository, pack_of(atlas.scratch, everything))
    (large,) = repository.pack_files()
    content = large.read_bytes()
    half = everything[: len(everything) // 2 + 1]
    await receive(engine, repository, pack_of(atlas.scratch, half))
    await engine.repack(repository)
    assert repository.pack_files() == [large]
    assert large.read_bytes() == content
    scratch.git("fsck", "--strict", "--full")
    repository.close()
    engine.close()


async def test_packs_being_sent_are_finished_as_they_began(
    engine: PackEngine, scattered: BareRepository, atlas: Atlas, judge: Judge
) -> None:
    """Their first piece is out, and then the packs they are made from are gone."""
    requests = [
        PackRequest(wants=atlas.all("main", "diverged", "unrelated-2")),
        PackRequest(wants=atlas.all("main"), haves=atlas.all("root"), thin=True, ofs_delta=True),
    ]
    streams = [engine.build_pack(scattered, request) for request in requests * 3]
    begun = [await anext(stream) for stream in streams]
    await engine.repack(scattered)
    for request, first, stream in zip(requests * 3, begun, streams, strict=True):
        judge.check(request, first + b"".join([chunk async for chunk in stream]))


class Readers:
    """Threads that read objects at random until they are told to stop."""

    def __init__(self, repository: BareRepository, oids: Sequence[ObjectId]) -> None:
        self._repository = repository
        self._oids = oids
        self._stop = threading.Event()
        self.errors: list[BaseException] = []
        self.reads = 0

    def _read(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self._stop.is_set():
            try:
                self._repository.source.raw(rng.choice(self._oids))
                # What is not here makes it look for new packs.
                assert not self._repository.source.contains(
                    ObjectId(b"%040x" % rng.getrandbits(64))
                )
            except BaseException as error:  # noqa: BLE001 - whatever it is, the test is to see it
                self.errors.append(error)
            self.reads += 1

    @contextmanager
    def at_work(self, count: int) -> Iterator[None]:
        threads = [threading.Thread(target=self._read, args=(seed,)) for seed in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()


async def test_readers_in_threads_notice_nothing(
    engine: PackEngine, scattered: BareRepository, everything: list[ObjectId]
) -> None:
    readers = Readers(scattered, everything)
    with readers.at_work(4):
        for number in range(4):
            await engine.repack(scattered)
            await receive(engine, scattered, make_pack([whole(Kind.BLOB, b"push %d\n" % number)]))
    assert readers.errors == []
    assert readers.reads > 0


async def test_packs_built_all_the_while_are_right(
    engine: PackEngine, scattered: BareRepository, atlas: Atlas, judge: Judge
) -> None:
    request = PackRequest(wants=atlas.all("main"), haves=atlas.all("deep"), thin=True)
    done = asyncio.Event()

    async def reader() -> list[bytes]:
        packs: list[bytes] = []
        while not done.is_set() or not packs:
            packs.append(await build(engine, scattered, request))
        return packs

    async def repack() -> None:
        for number in range(3):
            await engine.repack(scattered)
            await receive(engine, scattered, make_pack([whole(Kind.BLOB, b"push %d\n" % number)]))
        done.set()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(reader()) for _ in range(3)]
        group.create_task(repack())
    for pack in {pack for task in tasks for pack in task.result()}:
        judge.check(request, pack)


async def test_a_repack_that_fails_leaves_all_as_it_was(
    scattered: BareRepository,
    scratch: Scratch,
    everything: list[ObjectId],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = DulwichEngine()
    before = set(scattered.path.rglob("*"))

    def fail(quarantine: Quarantine) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Quarantine, "migrate", fail)
    with pytest.raises(PackError, match="No space left"):
        await engine.repack(scattered)
    assert set(scattered.path.rglob("*")) == before
    assert all(scattered.source.contains(oid) for oid in everything)
    scratch.git("fsck", "--strict", "--full")
    engine.close()


async def test_a_pack_that_comes_during_the_repack_survives_it(
    scattered: BareRepository, scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push between the look at what there is and the removal of what is old."""
    engine = DulwichEngine()
    index_pack = dulwich_engine._index_pack
    late = make_pack([whole(Kind.BLOB, b"just pushed\n")])

    def meanwhile(quarantine: Quarantine, progress: None, is_abandoned: Callable[[], bool]) -> None:
        index_pack(quarantine, progress, is_abandoned)
        scratch.git("index-pack", "--stdin", stdin=late)

    monkeypatch.setattr(dulwich_engine, "_index_pack", meanwhile)
    await engine.repack(scattered)
    assert scattered.source.raw(blob_id(b"just pushed\n")) == (Kind.BLOB, b"just pushed\n")
    assert len(scattered.pack_files()) == 2
    engine.close()


async def test_packs_that_are_gone_are_let_go_of(
    engine: PackEngine, scattered: BareRepository
) -> None:
    """Their space on disk is free only when nobody has them open any longer."""
    await engine.repack(scattered)
    await settle()
    gone = [name for name in open_files() if str(scattered.path) in name and "(deleted)" in name]
    assert gone == []


async def test_a_lock_left_by_a_git_that_was_killed_is_no_hindrance(
    engine: PackEngine, scattered: BareRepository
) -> None:
    info = scattered.objects / "info"
    info.mkdir(exist_ok=True)
    (info / "commit-graph.lock").touch()
    await engine.repack(scattered)
    assert len(scattered.pack_files()) <= 2


@pytest.mark.parametrize("commits", [None, 1, 1000])
@pytest.mark.parametrize("haves", ["", "equal", "root", "left cross-right", "diverged"])
async def test_packs_are_right_with_bitmaps_and_without(
    engine: PackEngine,
    scattered: BareRepository,
    atlas: Atlas,
    judge: Judge,
    haves: str,
    commits: int | None,
) -> None:
    """How far a reader is behind decides about bitmaps, never about what it gets."""
    await engine.repack(scattered)
    bitmaps = list((scattered.objects / "pack").glob("multi-pack-index-*.bitmap"))
    assert bool(bitmaps) == (engine.name == "git")
    for wants in ("main", "crossed", "nested-tag", "main diverged unrelated-2", "tree blob"):
        for thin in (False, True):
            request = PackRequest(
                wants=atlas.all(*wants.split()),
                haves=atlas.all(*haves.split()),
                thin=thin,
                ofs_delta=True,
                commits=commits,
            )
            received = judge.check(request, await build(engine, scattered, request))
            judge.check_history(request, received)


async def test_a_merge_whose_index_fails_leaves_no_pack_twice(
    scattered: BareRepository,
    scratch: Scratch,
    everything: list[ObjectId],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And no index that names packs which are gone."""
    before = {pack.name for pack in scattered.pack_files()}
    async with open_engine(EngineChoice.GIT) as git:
        with monkeypatch.context() as patched:

            async def fail(*_: object, **__: object) -> None:
                raise PackError("no room")

            scratch.git("multi-pack-index", "write")
            patched.setattr(git, "index", fail)
            with pytest.raises(PackError, match="no room"):
                await git.repack(scattered)
        after = {pack.name for pack in scattered.pack_files()}
        assert len(after) <= 2 < len(before)
        scratch.git("fsck", "--strict", "--full")
        await git.repack(scattered)
    assert {pack.name for pack in scattered.pack_files()} == after
    assert all(scattered.source.contains(oid) for oid in everything)
