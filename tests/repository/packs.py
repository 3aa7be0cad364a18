"""Packs, read and made byte by byte: gitformat-pack(5), with nothing of the code under test."""

import enum
import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mirror.wire.names import ObjectId


class Kind(enum.IntEnum):
    COMMIT = 1
    TREE = 2
    BLOB = 3
    TAG = 4
    OFS_DELTA = 6
    REF_DELTA = 7


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a pack; `base` is an offset or an id, `data` what was deflated."""

    offset: int
    kind: Kind
    base: int | ObjectId | None
    data: bytes


def entries(pack: bytes) -> list[Entry]:
    """Parse a pack; what can't be right fails."""
    assert pack[:8] == b"PACK\0\0\0\2"
    assert hashlib.sha1(pack[:-20], usedforsecurity=False).digest() == pack[-20:]
    found = []
    position = 12
    for _ in range(int.from_bytes(pack[8:12])):
        offset = position
        byte = pack[position]
        position += 1
        kind = Kind(byte >> 4 & 7)
        size, shift = byte & 15, 4
        while byte & 0x80:
            byte = pack[position]
            position += 1
            size |= (byte & 0x7F) << shift
            shift += 7
        base: int | ObjectId | None = None
        if kind is Kind.OFS_DELTA:
            distance, position = _distance(pack, position)
            base = offset - distance
        elif kind is Kind.REF_DELTA:
            base = ObjectId(pack[position : position + 20].hex().encode())
            position += 20
        inflate = zlib.decompressobj()
        data = inflate.decompress(pack[position:])
        assert len(data) == size
        position = len(pack) - len(inflate.unused_data)
        found.append(Entry(offset, kind, base, data))
    assert position == len(pack) - 20
    return found


Whole = tuple[Kind, bytes]
"""An object: its type and its content."""


def unpacked(pack: bytes, look_up: Callable[[ObjectId], Whole | None]) -> dict[ObjectId, Whole]:
    """Return the objects of a pack; `look_up` knows those that a thin one may build on.

    What index-pack would refuse fails: an object that is there twice, or a base that is nowhere.
    """
    found: dict[ObjectId, Whole] = {}
    by_offset: dict[int, Whole] = {}
    waiting = entries(pack)
    while waiting:
        still = []
        for entry in waiting:
            base = None
            if isinstance(entry.base, int):
                base = by_offset.get(entry.base)
            elif entry.base is not None:
                base = found.get(entry.base) or look_up(entry.base)
            if entry.base is not None and base is None:
                still.append(entry)
                continue
            whole = (entry.kind, entry.data) if base is None else _applied(base, entry.data)
            oid = object_id(*whole)
            assert oid not in found, f"{oid.decode()} was sent twice"
            found[oid] = by_offset[entry.offset] = whole
        assert len(still) < len(waiting), f"bases are missing: {[entry.base for entry in still]}"
        waiting = still
    return found


def object_id(kind: Kind, content: bytes) -> ObjectId:
    """Return the id of an object."""
    header = b"%b %d\0" % (kind.name.lower().encode(), len(content))
    return ObjectId(hashlib.sha1(header + content, usedforsecurity=False).hexdigest().encode())


def _applied(base: Whole, delta: bytes) -> Whole:
    """Apply a delta: gitformat-pack(5), "Deltified representation"."""
    kind, content = base
    base_size, position = _number(delta, 0)
    size, position = _number(delta, position)
    assert base_size == len(content)
    result = bytearray()
    while position < len(delta):
        op = delta[position]
        position += 1
        if not op & 0x80:
            assert op, "a delta has an instruction that is reserved"
            result += delta[position : position + op]
            position += op
            continue
        numbers = bytearray(7)
        for bit in range(7):
            if op >> bit & 1:
                numbers[bit] = delta[position]
                position += 1
        start = int.from_bytes(numbers[:4], "little")
        length = int.from_bytes(numbers[4:], "little") or 0x10000
        result += content[start : start + length]
    assert len(result) == size
    return kind, bytes(result)


def _number(data: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return number, position


def _distance(pack: bytes, position: int) -> tuple[int, int]:
    byte = pack[position]
    distance = byte & 0x7F
    while byte & 0x80:
        position += 1
        byte = pack[position]
        distance = (distance + 1 << 7) | (byte & 0x7F)
    return distance, position + 1


def make_pack(objects: Sequence[bytes], *, count: int | None = None) -> bytes:
    """Put encoded objects together."""
    number = len(objects) if count is None else count
    body = b"PACK\0\0\0\2" + number.to_bytes(4) + b"".join(objects)
    return body + hashlib.sha1(body, usedforsecurity=False).digest()


def whole(kind: Kind, content: bytes) -> bytes:
    """Encode an object."""
    return _header(kind, len(content)) + zlib.compress(content)


def ref_delta(base: ObjectId, delta: bytes) -> bytes:
    """Encode a delta against an object named by its id."""
    return _header(Kind.REF_DELTA, len(delta)) + bytes.fromhex(base.decode()) + zlib.compress(delta)


def ofs_delta(distance: int, delta: bytes) -> bytes:
    """Encode a delta against what lies that many bytes before."""
    encoded = [distance & 0x7F]
    while distance := distance >> 7:
        distance -= 1
        encoded.append(distance & 0x7F | 0x80)
    header = _header(Kind.OFS_DELTA, len(delta))
    return header + bytes(reversed(encoded)) + zlib.compress(delta)


def append_delta(base: bytes, more: bytes) -> bytes:
    """Return the delta that puts up to 127 bytes behind the base."""
    assert 0 < len(base) < 0x10000
    assert 0 < len(more) < 0x80
    copy = bytes([0x80 | 0x10 | 0x20]) + len(base).to_bytes(2, "little")
    return _size(len(base)) + _size(len(base) + len(more)) + copy + bytes([len(more)]) + more


def blob_id(content: bytes) -> ObjectId:
    """Return the id of a blob."""
    return object_id(Kind.BLOB, content)


def _header(kind: Kind, size: int) -> bytes:
    first = kind << 4 | size & 15
    rest = _size(size >> 4) if size >> 4 else b""
    return bytes([first | 0x80 if rest else first]) + rest


def _size(size: int) -> bytes:
    encoded = bytearray()
    while size >= 0x80:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(encoded) + bytes([size])
