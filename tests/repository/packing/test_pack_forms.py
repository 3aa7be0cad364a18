"""How objects are sent: deltas that never run in a circle, pieces that come as they are ready."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mirror.errors import PackError
from mirror.repository.bare import BareRepository
from mirror.repository.packing.dulwich_engine import DulwichEngine
from mirror.repository.packing.engine import PackEngine, PackRequest
from mirror.repository.packing.pack_writer import CHAIN_MAX, CHUNK_BYTES
from mirror.wire.names import ObjectId
from tests.repository.histories import Atlas, Change, Scratch, lines
from tests.repository.judge import Judge
from tests.repository.packing.building import build, pack_of, receive
from tests.repository.packing.processes import children
from tests.repository.packs import (
    Kind,
    append_delta,
    blob_id,
    entries,
    make_pack,
    ref_delta,
    whole,
)


async def test_a_change_and_its_revert_are_sent_together(
    engine: PackEngine, scratch: Scratch, judge_of_scratch: Judge
) -> None:
    """Each is a good delta base of the other; one of them has to be whole."""
    one, two = lines(200), lines(200, change=7)
    *commits, tip = scratch.commits(
        Change({"a": one}),
        Change({"a": two, "b": one}, [0]),
        Change({"a": one, "b": two, "c": one}, [1]),
        Change({"a": two, "b": one, "c": two}, [2]),
        Change({"a": lines(200, change=8), "b": None}, [3]),
    )
    repository = scratch.open()
    for haves in ((), (commits[0],), (commits[2],)):
        for ofs_delta in (False, True):
            request = PackRequest(wants=(tip,), haves=haves, thin=True, ofs_delta=ofs_delta)
            received = judge_of_scratch.check(request, await build(engine, repository, request))
            judge_of_scratch.check_history(request, received)
    repository.close()


@pytest.fixture
def dulwich_engine() -> Iterator[DulwichEngine]:
    engine = DulwichEngine()
    yield engine
    engine.close()


async def push(
    engine: PackEngine, scratch: Scratch, repository: BareRepository, *commits: ObjectId
) -> None:
    """Bring commits as an upstream does: each as a thin pack on top of the one before."""
    haves = b""
    for commit in commits:
        words = ("pack-objects", "-q", "--revs", "--stdout", *(["--thin"] if haves else []))
        pack = scratch.git(*words, stdin=b"%b\n--not\n%b\n" % (commit, haves))
        await receive(engine, repository, pack)
        haves = commit


async def test_a_delta_that_came_from_upstream_goes_out_as_it_came(
    dulwich_engine: DulwichEngine, scratch: Scratch, tmp_path: Path
) -> None:
    """Its base was added to complete the pack, and the reader of the next commit has that."""
    commits = scratch.commits(Change({"a": lines(300)}), Change({"a": lines(300, change=3)}, [0]))
    repository = Scratch(tmp_path / "other/mirror.git").open()
    await push(dulwich_engine, scratch, repository, *commits)
    request = PackRequest(wants=(commits[1],), haves=(commits[0],), thin=True)
    pack = await build(dulwich_engine, repository, request)
    assert [entry.base for entry in entries(pack) if entry.base] == [blob_id(lines(300))]
    repository.close()


async def test_a_delta_on_what_the_reader_may_lack_is_not_passed_on(
    dulwich_engine: DulwichEngine, scratch: Scratch, judge_of_scratch: Judge, tmp_path: Path
) -> None:
    """One branch came as deltas on another, which this reader never fetched."""
    base, more = lines(300), b"and more"
    root, one, other = scratch.commits(
        Change({"a": b"short\n"}), Change({"a": base}, [0]), Change({"a": base + more}, [0])
    )
    repository = Scratch(tmp_path / "other/mirror.git").open()
    await push(dulwich_engine, scratch, repository, root, one)
    tree = scratch.git("rev-parse", f"{other.decode()}^{{tree}}").strip().decode()
    thin = [
        whole(Kind.COMMIT, scratch.git("cat-file", "commit", other.decode())),
        whole(Kind.TREE, scratch.git("cat-file", "tree", tree)),
        ref_delta(blob_id(base), append_delta(base, more)),
    ]
    await receive(dulwich_engine, repository, make_pack(thin))
    request = PackRequest(wants=(other,), haves=(root,), thin=True)
    judge_of_scratch.check(request, await build(dulwich_engine, repository, request))
    repository.close()


async def test_deltas_do_not_pile_up_without_end(
    dulwich_engine: DulwichEngine, scratch: Scratch, judge_of_scratch: Judge, tmp_path: Path
) -> None:
    """A mirror has a pack for each push, with a delta on the push before; 120 make a long chain."""
    changes = [Change({"a": lines(100, change=n)}, [n - 1] if n else []) for n in range(120)]
    commits = scratch.commits(*changes)
    repository = Scratch(tmp_path / "other/mirror.git").open()
    await push(dulwich_engine, scratch, repository, *commits)
    request = PackRequest(wants=(commits[-1],), ofs_delta=True)
    pack = await build(dulwich_engine, repository, request)
    judge_of_scratch.check(request, pack)
    chains: dict[int, int] = {}
    for entry in entries(pack):
        if isinstance(entry.base, int):
            chains[entry.offset] = chains.get(entry.base, 0) + 1
    assert max(chains.values()) == CHAIN_MAX
    assert len(chains) > 110
    repository.close()


async def test_objects_spread_over_many_packs_and_stored_twice_are_sent_once(
    engine: PackEngine, atlas: Atlas, scratch: Scratch, judge: Judge
) -> None:
    oids = sorted(judge.reachable(atlas.all("main", "diverged", "nested-tag")))
    rng = random.Random(7)
    repository = scratch.open()
    for _ in range(6):
        part = rng.sample(oids, len(oids) // 2)
        await receive(engine, repository, pack_of(atlas.scratch, part))
    await receive(engine, repository, pack_of(atlas.scratch, oids))
    for haves in ((), atlas.all("root"), atlas.all("crossed")):
        request = PackRequest(wants=atlas.all("main", "diverged", "nested-tag"), haves=haves)
        for asked in (request, replace(request, thin=True, ofs_delta=True)):
            judge.check(asked, await build(engine, repository, asked))
    repository.close()


async def test_a_pack_of_nothing_is_a_pack_too(
    engine: PackEngine, repository: BareRepository, atlas: Atlas, judge: Judge
) -> None:
    request = PackRequest(wants=atlas.all("main"), haves=atlas.all("main"), thin=True)
    pack = await build(engine, repository, request)
    assert entries(pack) == []
    judge.check(request, pack)


async def test_a_large_pack_comes_in_pieces(
    engine: PackEngine, scratch: Scratch, judge_of_scratch: Judge
) -> None:
    noise = random.Random(1)
    files = {f"file{n}": noise.randbytes(CHUNK_BYTES // 2) for n in range(12)}
    tip = scratch.commit({**files})
    repository = scratch.open()
    request = PackRequest(wants=(tip,))
    chunks = [chunk async for chunk in engine.build_pack(repository, request)]
    assert len(chunks) >= 3
    assert all(chunks)
    judge_of_scratch.check(request, b"".join(chunks))
    repository.close()


async def test_closing_the_iterator_early_ends_the_work(
    engine: PackEngine, scratch: Scratch
) -> None:
    noise = random.Random(1)
    tip = scratch.commit({f"file{n}": noise.randbytes(100_000) for n in range(40)})
    repository = scratch.open()
    before = children()
    for _ in range(3):
        chunks = engine.build_pack(repository, PackRequest(wants=(tip,)))
        assert (await anext(chunks)).startswith(b"PACK")
        await chunks.aclose()
        assert children() == before
    repository.close()


async def test_an_iterator_closed_before_its_first_piece_does_nothing(
    engine: PackEngine, repository: BareRepository, atlas: Atlas
) -> None:
    before = children()
    chunks = engine.build_pack(repository, PackRequest(wants=atlas.all("main")))
    await chunks.aclose()
    assert children() == before


async def test_what_is_not_there_can_not_be_sent(
    engine: PackEngine, repository: BareRepository, atlas: Atlas
) -> None:
    for oid in (b"1" * 40, b"0" * 40):
        with pytest.raises(PackError):
            await build(engine, repository, PackRequest(wants=(ObjectId(oid),)))


@pytest.mark.parametrize("kind", ["commit", "tree", "blob"])
async def test_a_gap_in_the_repository_is_an_error_and_not_a_gap_in_the_pack(
    engine: PackEngine, atlas: Atlas, scratch: Scratch, judge: Judge, kind: str
) -> None:
    missing = {
        "commit": atlas["deep"],
        "tree": atlas.scratch.oid(f"{atlas['main'].decode()}:new"),
        "blob": blob_id(lines(30)),
    }[kind]
    whole = judge.reachable(atlas.all("main"))
    assert missing in whole
    repository = scratch.open()
    await receive(engine, repository, pack_of(atlas.scratch, whole - {missing}))
    with pytest.raises(PackError):
        await build(engine, repository, PackRequest(wants=atlas.all("main")))
    repository.close()


async def test_a_damaged_object_is_not_passed_on(
    dulwich_engine: DulwichEngine, scratch: Scratch
) -> None:
    """Git sends it as it is stored, and leaves it to the reader to find out."""
    noise = random.Random(1).randbytes(4000)
    tip = scratch.commit({"noise": noise})
    (pack,) = (scratch.path / "objects/pack").glob("*.pack")
    content = bytearray(pack.read_bytes())
    place = content.index(noise[1000:1100])  # too random to be compressed: it is stored
    content[place] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(content)
    repository = scratch.open()
    with pytest.raises(PackError):
        await build(dulwich_engine, repository, PackRequest(wants=(tip,)))
    repository.close()
