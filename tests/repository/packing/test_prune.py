"""The steps that maintenance removes unreachable objects with, for each engine."""

import pytest

from mirror.errors import PackError
from mirror.repository.bare import BareRepository
from mirror.repository.packing.engine import PackEngine
from tests.repository.histories import Atlas, Scratch
from tests.repository.judge import Judge
from tests.repository.packing.building import pack_of, receive


@pytest.fixture
async def filled(
    engine: PackEngine, scratch: Scratch, atlas: Atlas, judge: Judge
) -> BareRepository:
    """All of the atlas in one pack."""
    repository = scratch.open()
    everything = sorted(judge.reachable(atlas.all(*atlas.names)))
    await receive(engine, repository, pack_of(atlas.scratch, everything))
    return repository


@pytest.mark.parametrize(
    "tips", ["main", "diverged nested-tag", "tree blob", "unrelated-2 cross-left cross-right", ""]
)
async def test_a_pack_of_what_tips_reach_has_just_that(
    engine: PackEngine, filled: BareRepository, atlas: Atlas, judge: Judge, tips: str
) -> None:
    with filled.quarantine() as quarantine:
        await engine.pack_reachable(quarantine, atlas.all(*tips.split()))
        packs = list((quarantine.objects / "pack").glob("*.pack"))
        source = quarantine.source()
        found = {oid for pack in source.packs() for oid in pack.ids()}
        source.close()
        assert len(packs) == bool(tips)
        assert not quarantine.received.exists()
    assert found == judge.reachable(atlas.all(*tips.split()))
    filled.close()


async def test_what_others_reach_is_left_out(
    engine: PackEngine, filled: BareRepository, atlas: Atlas, judge: Judge
) -> None:
    """And the two packs together are whole."""
    tips, without = atlas.all("diverged", "nested-tag"), atlas.all("main")
    with filled.quarantine() as quarantine:
        await engine.pack_reachable(quarantine, tips, without=without)
        source = quarantine.source()
        found = {oid for pack in source.packs() for oid in pack.ids()}
        source.close()
    wanted, left_out = judge.reachable(tips), judge.reachable(without)
    assert wanted - left_out <= found <= wanted
    assert len(found) < len(wanted)
    filled.close()


async def test_what_nothing_reaches_is_counted(
    engine: PackEngine, filled: BareRepository, atlas: Atlas
) -> None:
    live = [atlas["main"]]
    assert await engine.unreachable_bytes(filled, [atlas["root"]], live=live) == 0
    assert await engine.unreachable_bytes(filled, live, live=live) == 0
    found = await engine.unreachable_bytes(filled, [atlas["unrelated-2"]], live=live)
    assert 0 < found < filled.bytes_on_disk()
    filled.close()


async def test_a_directory_that_lacks_an_object_is_not_whole(
    engine: PackEngine, filled: BareRepository, atlas: Atlas, judge: Judge
) -> None:
    wanted = judge.reachable(atlas.all("main"))
    blob = next(
        oid
        for oid in sorted(wanted)
        if atlas.scratch.git("cat-file", "-t", oid.decode()) == b"blob\n"
    )
    for left_out in (None, blob):
        with filled.quarantine() as view:
            (view.objects / "info" / "alternates").unlink()
            view.received.write_bytes(pack_of(atlas.scratch, sorted(wanted - {left_out})))
            await engine.index_pack(view)
            check = engine.check_alone(filled, view.objects, [atlas["main"]], known=[])
            if left_out is None:
                await check
                continue
            with pytest.raises(PackError):
                await check
    filled.close()
