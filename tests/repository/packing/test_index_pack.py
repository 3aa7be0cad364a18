"""Packs from upstreams: whole, thin, and spoilt in every way that bytes can be."""

import hashlib
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mirror.errors import PackError
from mirror.repository.bare import BareRepository
from mirror.repository.packing.engine import PackEngine
from mirror.repository.quarantine import Quarantine
from mirror.wire.names import ObjectId
from tests.repository.histories import Atlas, Change, Scratch, lines
from tests.repository.judge import Judge
from tests.repository.packing.building import pack_of, receive
from tests.repository.packing.processes import children, open_files, settle
from tests.repository.packs import (
    Kind,
    append_delta,
    blob_id,
    make_pack,
    ofs_delta,
    ref_delta,
    whole,
)

BASE = b"the base of it all\n"
EMPTY_PACK = make_pack([])


def files_below(path: Path) -> set[Path]:
    return set(path.rglob("*"))


@asynccontextmanager
async def indexed(
    engine: PackEngine, repository: BareRepository, pack: bytes
) -> AsyncIterator[Quarantine]:
    with repository.quarantine() as quarantine:
        quarantine.received.write_bytes(pack)
        await engine.index_pack(quarantine)
        yield quarantine


async def refuse(engine: PackEngine, repository: BareRepository, pack: bytes) -> None:
    """Check that a pack is refused, and that nothing is left of it."""
    before = files_below(repository.path)
    with pytest.raises(PackError):
        async with indexed(engine, repository, pack):
            raise AssertionError("a spoilt pack was taken")
    assert files_below(repository.path) == before


@pytest.fixture
def empty(scratch: Scratch) -> BareRepository:
    return scratch.open()


@pytest.fixture
def small_pack(atlas: Atlas) -> bytes:
    """Some objects of every kind, and deltas."""
    contents = [lines(30), lines(30, change=2)]
    deltas = [
        ref_delta(blob_id(contents[0]), append_delta(contents[0], b"more")),
        ofs_delta(len(whole(Kind.BLOB, contents[1])), append_delta(contents[1], b"more")),
    ]
    blobs = [whole(Kind.BLOB, content) for content in contents]
    rest = [
        whole(kind, atlas.scratch.git("cat-file", kind.name.lower(), atlas[name].decode()))
        for name, kind in (("tree", Kind.TREE), ("main", Kind.COMMIT), ("tag", Kind.TAG))
    ]
    return make_pack([deltas[0], *blobs, deltas[1], *rest])


async def test_a_full_pack_becomes_part_of_the_repository(
    engine: PackEngine, empty: BareRepository, atlas: Atlas, judge: Judge
) -> None:
    oids = judge.reachable(atlas.all(*atlas.names))
    async with indexed(engine, empty, pack_of(atlas.scratch, oids)) as quarantine:
        assert not empty.source.contains(atlas["main"])
        quarantine.received.unlink()
        quarantine.migrate()
    assert all(empty.source.contains(oid) for oid in oids)
    (pack,) = empty.pack_files()
    assert pack.with_suffix(".idx").exists()
    mirror = Scratch(empty.path)
    mirror.git("verify-pack", str(pack))
    mirror.git("fsck", "--strict", "--full")
    assert not list(empty.objects.glob("tmp_objdir*"))
    empty.close()


async def test_a_thin_pack_is_completed_from_the_repository(
    engine: PackEngine, empty: BareRepository, atlas: Atlas, judge: Judge
) -> None:
    await receive(engine, empty, pack_of(atlas.scratch, judge.reachable(atlas.all("equal"))))
    thin = atlas.scratch.git(
        "pack-objects", "-q", "--revs", "--thin", "--stdout",
        stdin=b"%b\n--not\n%b\n" % (atlas["main"], atlas["equal"]),
    )  # fmt: skip
    await receive(engine, empty, thin)
    mirror = Scratch(empty.path)
    mirror.git("rev-list", "--objects", "--quiet", atlas["main"].decode())
    mirror.git("fsck", "--strict", "--full")
    for pack in empty.pack_files():
        mirror.git("verify-pack", str(pack))
    empty.close()


async def test_deltas_may_build_on_deltas_whatever_their_order(
    engine: PackEngine, empty: BareRepository
) -> None:
    contents = [BASE]
    encoded = [whole(Kind.BLOB, BASE)]
    for number in range(60):
        more = b"and line %d\n" % number
        encoded.append(ref_delta(blob_id(contents[-1]), append_delta(contents[-1], more)))
        contents.append(contents[-1] + more)
    more = b"the end\n"
    encoded.append(ofs_delta(len(encoded[-1]), append_delta(contents[-1], more)))
    contents.append(contents[-1] + more)
    backwards = encoded[-3:0:-1]
    await receive(engine, empty, make_pack([*backwards, encoded[0], *encoded[-2:]]))
    for content in contents:
        assert empty.source.raw(blob_id(content)) == (Kind.BLOB, content)
    empty.close()


async def test_a_pack_of_nothing_is_taken(engine: PackEngine, empty: BareRepository) -> None:
    await receive(engine, empty, EMPTY_PACK)
    Scratch(empty.path).git("fsck", "--strict", "--full")
    assert not empty.source.contains(blob_id(BASE))
    empty.close()


async def test_the_same_pack_may_come_twice(
    engine: PackEngine, empty: BareRepository, small_pack: bytes
) -> None:
    await receive(engine, empty, small_pack)
    before = {file: file.stat().st_ino for file in files_below(empty.objects)}
    await receive(engine, empty, small_pack)
    assert {file: file.stat().st_ino for file in files_below(empty.objects)} == before
    empty.close()


async def test_a_pack_that_was_cut_off_is_refused(
    engine: PackEngine, empty: BareRepository, small_pack: bytes
) -> None:
    for length in [*range(33), *range(33, len(small_pack), 29), *range(-22, 0)]:
        await refuse(engine, empty, small_pack[:length])
    empty.close()


async def test_a_pack_with_one_wrong_byte_is_refused(
    engine: PackEngine, empty: BareRepository, small_pack: bytes
) -> None:
    for place in [*range(16), *range(16, len(small_pack), 13), len(small_pack) - 1]:
        spoilt = bytearray(small_pack)
        spoilt[place] ^= 0x10
        await refuse(engine, empty, bytes(spoilt))
    empty.close()


async def test_a_wrong_byte_under_a_right_checksum_is_refused_or_is_another_object(
    engine: PackEngine, empty: BareRepository, small_pack: bytes
) -> None:
    """Nothing but a PackError ever comes of it."""
    refused = 0
    for place in range(0, len(small_pack) - 20, 7):
        body = bytearray(small_pack[:-20])
        body[place] ^= 0x21
        spoilt = bytes(body) + hashlib.sha1(body, usedforsecurity=False).digest()
        try:
            async with indexed(engine, empty, spoilt):
                pass
        except PackError:
            refused += 1
    assert refused > 10
    empty.close()


@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"PACK", id="four bytes"),
        pytest.param(b"<html>Not a pack</html>" * 100, id="a web page"),
        pytest.param(bytes(5000), id="zeros"),
        pytest.param(b"PACK\0\0\0\2\xff\xff\xff\xff" + bytes(5000), id="a count of billions"),
        pytest.param(make_pack([whole(Kind.BLOB, BASE)], count=2), id="one object too few"),
        pytest.param(make_pack([whole(Kind.BLOB, BASE)], count=0), id="one object too many"),
        pytest.param(
            make_pack([b"\xbf" + b"\xff" * 9 + b"\x7f" + zlib.compress(b"")]), id="a size"
        ),
        pytest.param(make_pack([b"\xbf\xff"])[:-20], id="the end of a number missing"),
        pytest.param(make_pack([b"\x00" + zlib.compress(b"")]), id="type 0"),
        pytest.param(make_pack([b"\x50" + zlib.compress(b"")]), id="type 5"),
        pytest.param(make_pack([b"\x31" + zlib.compress(b"longer")]), id="longer than it says"),
        pytest.param(make_pack([b"\x39" + zlib.compress(b"short")]), id="shorter than it says"),
        pytest.param(make_pack([b"\x3fnot compressed at all"]), id="not compressed"),
        pytest.param(
            make_pack([ref_delta(ObjectId(b"1" * 40), append_delta(BASE, b"x"))]),
            id="a base that nobody has",
        ),
        pytest.param(
            make_pack([ofs_delta(5, append_delta(BASE, b"x"))]), id="a base before the beginning"
        ),
        pytest.param(
            make_pack([whole(Kind.BLOB, BASE), ofs_delta(3, append_delta(BASE, b"x"))]),
            id="a base that is no object",
        ),
        pytest.param(
            make_pack([whole(Kind.BLOB, BASE), ref_delta(blob_id(BASE), append_delta(b"?", b"x"))]),
            id="a delta of another base",
        ),
        pytest.param(
            make_pack([whole(Kind.BLOB, BASE), ref_delta(blob_id(BASE), b"\x13\x05\x00")]),
            id="a delta of reserved commands",
        ),
        pytest.param(
            make_pack(
                [
                    ref_delta(blob_id(BASE + b"x"), append_delta(BASE + b"x", b"y")),
                    ref_delta(blob_id(BASE + b"xy"), append_delta(BASE, b"x")),
                ]
            ),
            id="deltas in a circle",
        ),
    ],
)
async def test_what_is_no_pack_is_refused(
    engine: PackEngine, empty: BareRepository, pack: bytes
) -> None:
    await refuse(engine, empty, pack)
    empty.close()


async def test_bytes_behind_the_end_are_refused(engine: PackEngine, empty: BareRepository) -> None:
    """Also where the pack ends just as a buffer of 4,096 bytes does."""
    packs = [EMPTY_PACK, make_pack([whole(Kind.BLOB, BASE)])]
    noise = hashlib.shake_128(b"noise").digest(4096)
    sizes = {
        len(pack): pack
        for pack in (make_pack([whole(Kind.BLOB, noise[:n])]) for n in range(3900, 4096))
    }
    packs.append(sizes[4096])
    for pack in packs:
        for behind in (b"\0", b"PACK", pack):
            await refuse(engine, empty, pack + behind)
    empty.close()


async def test_progress_is_told_now_and_then(
    engine: PackEngine, empty: BareRepository, atlas: Atlas, judge: Judge
) -> None:
    oids = judge.reachable(atlas.all("main"))
    told: list[tuple[int, int]] = []
    with empty.quarantine() as quarantine:
        quarantine.received.write_bytes(pack_of(atlas.scratch, oids))
        await engine.index_pack(quarantine, progress=lambda *counts: told.append(counts))
    assert 1 <= len(told) <= 250
    assert all(0 <= done <= total == len(oids) for done, total in told)
    empty.close()


async def test_nothing_stays_open_after_good_and_bad_packs(
    engine: PackEngine, empty: BareRepository, small_pack: bytes
) -> None:
    await refuse(engine, empty, small_pack[:-1])
    await settle()
    files, processes = len(open_files()), children()
    for _ in range(4):
        await refuse(engine, empty, small_pack[:-1])
        async with indexed(engine, empty, small_pack):
            pass
    await settle()
    assert len(open_files()) <= files
    assert children() <= processes
    empty.close()


async def test_history_with_people_without_addresses_is_taken(
    engine: PackEngine, empty: BareRepository, tmp_path: Path
) -> None:
    """Forges have such commits; what git takes, and fsck complains about, is not ours to refuse."""
    upstream = Scratch(tmp_path / "upstream/mirror.git")
    (commit,) = upstream.commits(Change({"a": b"a\n"}))
    tree = upstream.oid(f"{commit.decode()}^{{tree}}")
    odd = upstream.hash_object(
        "commit", b"tree %b\nauthor A 1 +0000\ncommitter C <> 5 +0000\n\nm\n" % tree
    )
    await receive(engine, empty, pack_of(upstream, [odd, commit, tree, blob_id(b"a\n")]))
    node = empty.graph.node(odd)
    assert node is not None
    assert node.tree == tree
    empty.close()
