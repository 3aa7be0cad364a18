"""Packs that are small on the line and enormous in memory: refused before there is room made."""

import resource
import zlib

import pytest

from mirror.errors import PackError
from mirror.repository.bare import BareRepository
from mirror.repository.packing import git_engine
from mirror.repository.packing.engine import OBJECT_BYTES_MAX, PackEngine
from mirror.repository.packing.pack_sizes import check_sizes, read_size
from tests.repository.histories import Scratch
from tests.repository.packs import Kind, blob_id, make_pack, ofs_delta, ref_delta, whole

BASE = b"x" * (1 << 16)
TAKEN_BYTES_MAX = 200 << 20


@pytest.fixture
def empty(scratch: Scratch) -> BareRepository:
    return scratch.open()


def number(value: int) -> bytes:
    """Write a delta's size."""
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def claiming(result: int, copies: int) -> bytes:
    """A delta on `BASE` that copies all of it so many times and claims a result of `result`."""
    return number(len(BASE)) + number(result) + b"\x80" * copies


def entry(kind: Kind, size: int, compressed: bytes) -> bytes:
    """An entry that claims a size."""
    first, rest = size & 15, size >> 4
    return (
        bytes([kind << 4 | first | (0x80 if rest else 0)])
        + (number(rest) if rest else b"")
        + (compressed)
    )


GIGABYTES = 3 << 30
BOMBS = {
    "an offset delta": [
        whole(Kind.BLOB, BASE),
        ofs_delta(len(whole(Kind.BLOB, BASE)), claiming(GIGABYTES, GIGABYTES >> 16)),
    ],
    "a delta by name": [
        whole(Kind.BLOB, BASE),
        ref_delta(blob_id(BASE), claiming(GIGABYTES, GIGABYTES >> 16)),
    ],
    "a lying delta": [whole(Kind.BLOB, BASE), ref_delta(blob_id(BASE), claiming(1 << 60, 1))],
    "a lying tree": [entry(Kind.TREE, 1 << 40, zlib.compress(BASE))],
    "a lying blob": [entry(Kind.COMMIT, OBJECT_BYTES_MAX + 1, zlib.compress(BASE))],
}


def peak_bytes() -> int:
    """Return the most that this process, or a child of it, has ever taken."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in both) * 1024


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_is_refused_at_the_price_of_a_small_pack(
    engine: PackEngine, empty: BareRepository, name: str
) -> None:
    before = peak_bytes()
    with empty.quarantine() as quarantine:
        quarantine.received.write_bytes(make_pack(BOMBS[name]))
        with pytest.raises(PackError):
            await engine.index_pack(quarantine)
    assert peak_bytes() - before < TAKEN_BYTES_MAX
    assert not list((empty.objects / "pack").iterdir())


async def test_a_count_of_objects_that_lies_makes_no_room(
    engine: PackEngine, empty: BareRepository
) -> None:
    before = peak_bytes()
    with empty.quarantine() as quarantine:
        quarantine.received.write_bytes(make_pack([whole(Kind.BLOB, BASE)], count=(1 << 32) - 1))
        with pytest.raises(PackError):
            await engine.index_pack(quarantine)
    assert peak_bytes() - before < TAKEN_BYTES_MAX


def test_git_s_room_grows_with_the_objects_that_can_be_there(empty: BareRepository) -> None:
    """A large pack needs a large table; a pack of a hundred bytes does not."""
    with empty.quarantine() as quarantine:
        quarantine.received.write_bytes(make_pack([], count=1_000_000))
        assert int(git_engine._bound(quarantine)["GIT_ALLOC_LIMIT"]) < OBJECT_BYTES_MAX + 1000
        with quarantine.received.open("ab") as file:
            file.truncate(100 << 20)
        limit = int(git_engine._bound(quarantine)["GIT_ALLOC_LIMIT"])
        assert limit == OBJECT_BYTES_MAX + 1_000_000 * git_engine.ENTRY_BYTES_MAX


def test_who_gave_up_waiting_ends_the_look(empty: BareRepository) -> None:
    with empty.quarantine() as quarantine:
        quarantine.received.write_bytes(make_pack([whole(Kind.BLOB, BASE)]))
        check_sizes(quarantine.received, object_bytes_max=len(BASE), is_abandoned=lambda: False)
        with pytest.raises(PackError, match="65536 bytes once it is inflated, more than 65535"):
            check_sizes(
                quarantine.received, object_bytes_max=len(BASE) - 1, is_abandoned=lambda: False
            )
        with pytest.raises(PackError, match="nobody waits"):
            check_sizes(quarantine.received, object_bytes_max=1 << 30, is_abandoned=lambda: True)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 1 << 20, 1 << 40])
def test_sizes_are_read_as_they_are_written(value: int) -> None:
    assert read_size(number(value) + b"rest", 0) == (value, len(number(value)))
    header = entry(Kind.BLOB, value, b"")
    assert read_size(header, 0, bits=4) == (value, len(header))
