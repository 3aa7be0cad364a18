"""What was received counts only if all that the new tips reach is there."""

from collections.abc import Callable, Iterable

import pytest

from mirror.errors import PackError
from mirror.repository.bare import BareRepository
from mirror.repository.objects import EMPTY_TREE
from mirror.repository.packing.engine import PackEngine, PackRequest
from mirror.repository.refs import StoredRefs
from mirror.wire.names import ObjectId, Ref, RefName
from tests.repository.histories import Atlas, Scratch, lines
from tests.repository.judge import Judge
from tests.repository.packing.building import build, pack_of, receive
from tests.repository.packs import blob_id


async def check(
    engine: PackEngine,
    repository: BareRepository,
    source: Scratch,
    oids: Iterable[ObjectId],
    tips: Iterable[ObjectId],
) -> None:
    """Receive a pack of `oids` and check what `tips` reach; it is never migrated."""
    with repository.quarantine() as quarantine:
        quarantine.received.write_bytes(pack_of(source, oids))
        await engine.index_pack(quarantine)
        await engine.check_connected(quarantine, list(tips))


def main_is(repository: BareRepository, tip: ObjectId) -> None:
    name = RefName(b"refs/heads/main")
    repository.write_refs(StoredRefs({name: Ref(name, tip)}, name))


@pytest.fixture
def mirror(scratch: Scratch) -> BareRepository:
    return scratch.open()


async def test_what_is_complete_passes(
    engine: PackEngine, mirror: BareRepository, atlas: Atlas, judge: Judge
) -> None:
    tips = atlas.all("main", "nested-tag", "tree-tag", "blob-tag", "empty-directory", "diverged")
    await check(engine, mirror, atlas.scratch, judge.reachable(tips), tips)
    mirror.close()


async def test_what_was_there_before_needs_not_come_again(
    engine: PackEngine, mirror: BareRepository, atlas: Atlas, judge: Judge
) -> None:
    old = judge.reachable(atlas.all("crossed"))
    await receive(engine, mirror, pack_of(atlas.scratch, old))
    main_is(mirror, atlas["crossed"])
    new = judge.reachable(atlas.all("main", "tag")) - old
    await check(engine, mirror, atlas.scratch, new, atlas.all("main", "tag", "crossed"))
    await check(engine, mirror, atlas.scratch, [], atlas.all("crossed", "left"))
    mirror.close()


MISSING: dict[str, Callable[[Atlas], ObjectId]] = {
    "the tip": lambda atlas: atlas["main"],
    "a parent": lambda atlas: atlas["deep"],
    "the root": lambda atlas: atlas["root"],
    "the second parent": lambda atlas: atlas["cross-right"],
    "a root tree": lambda atlas: atlas["root-tree"],
    "a tree": lambda atlas: atlas.scratch.oid(f"{atlas['main'].decode()}:new"),
    "a blob": lambda atlas: blob_id(lines(30)),
    "an old blob": lambda atlas: blob_id(lines(200, change=5)),
    "a symlink": lambda atlas: blob_id(b"run.sh"),
}


@pytest.mark.parametrize("missing", MISSING)
async def test_a_gap_is_found_wherever_it_is(
    engine: PackEngine, mirror: BareRepository, atlas: Atlas, judge: Judge, missing: str
) -> None:
    whole = judge.reachable(atlas.all("main"))
    gap = MISSING[missing](atlas)
    assert gap in whole
    with pytest.raises(PackError):
        await check(engine, mirror, atlas.scratch, whole - {gap}, atlas.all("main"))
    mirror.close()


@pytest.mark.parametrize("missing", ["tag", "crossed"])
async def test_what_a_tag_points_to_has_to_be_there(
    engine: PackEngine, mirror: BareRepository, atlas: Atlas, judge: Judge, missing: str
) -> None:
    whole = judge.reachable(atlas.all("nested-tag"))
    with pytest.raises(PackError):
        await check(
            engine, mirror, atlas.scratch, whole - {atlas[missing]}, atlas.all("nested-tag")
        )
    mirror.close()


@pytest.mark.parametrize("tip", ["tree", "tree-tag", "blob-tag"])
async def test_tips_that_are_no_commits_are_checked_too(
    engine: PackEngine, mirror: BareRepository, atlas: Atlas, judge: Judge, tip: str
) -> None:
    whole = judge.reachable(atlas.all(tip))
    await check(engine, mirror, atlas.scratch, whole, atlas.all(tip))
    gap = blob_id(b"x\n") if tip != "blob-tag" else atlas["blob"]
    with pytest.raises(PackError):
        await check(engine, mirror, atlas.scratch, whole - {gap}, atlas.all(tip))
    mirror.close()


async def test_a_gap_in_an_increment_is_found(
    engine: PackEngine, mirror: BareRepository, atlas: Atlas, judge: Judge
) -> None:
    old = judge.reachable(atlas.all("equal"))
    await receive(engine, mirror, pack_of(atlas.scratch, old))
    main_is(mirror, atlas["equal"])
    new = judge.reachable(atlas.all("main")) - old
    for gap in new:
        with pytest.raises(PackError):
            await check(engine, mirror, atlas.scratch, new - {gap}, atlas.all("main"))
    mirror.close()


async def test_what_lies_about_unreachable_is_not_taken_for_complete(
    engine: PackEngine, mirror: BareRepository, atlas: Atlas, judge: Judge
) -> None:
    """Part of a history can be left from a fetch that failed; no ref vouches for it."""
    ref = judge.reachable(atlas.all("diverged"))
    await receive(engine, mirror, pack_of(atlas.scratch, ref))
    main_is(mirror, atlas["diverged"])
    whole = judge.reachable(atlas.all("main"))
    broken = judge.reachable(atlas.all("equal")) - {atlas["left"]}
    await receive(engine, mirror, pack_of(atlas.scratch, broken - ref))
    with pytest.raises(PackError):
        await check(
            engine, mirror, atlas.scratch, whole - broken - {atlas["left"]}, atlas.all("main")
        )
    await check(engine, mirror, atlas.scratch, whole - broken, atlas.all("main"))
    mirror.close()


async def test_submodules_are_not_looked_for(
    engine: PackEngine, mirror: BareRepository, atlas: Atlas, judge: Judge
) -> None:
    whole = judge.reachable(atlas.all("submodule"))
    await check(engine, mirror, atlas.scratch, whole, atlas.all("submodule"))
    mirror.close()


async def test_the_empty_tree_is_known_without_being_there(
    engine: PackEngine, mirror: BareRepository, atlas: Atlas, judge: Judge
) -> None:
    """As for git: a server may leave it out, and then has our readers get it all the same."""
    whole = judge.reachable(atlas.all("empty-directory"))
    assert EMPTY_TREE in whole
    lacking = whole - {EMPTY_TREE}
    await check(engine, mirror, atlas.scratch, lacking, atlas.all("empty-directory"))
    await receive(engine, mirror, pack_of(atlas.scratch, lacking))
    request = PackRequest(wants=atlas.all("empty-directory"))
    received = judge.check(request, await build(engine, mirror, request))
    assert received.oids == whole
    mirror.close()
