"""Packs, read and made byte by byte: gitformat-pack(5), with nothing of the code under test."""

import enum
import hashlib
import zlib
from collections.abc import Sequence
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
    """One object of a pack; `base` is an offset or an id."""

    offset: int
    kind: Kind
    base: int | ObjectId | None


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
        assert len(inflate.decompress(pack[position:])) == size
        position = len(pack) - len(inflate.unused_data)
        found.append(Entry(offset, kind, base))
    assert position == len(pack) - 20
    return found


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
    return ObjectId(
        hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False)
        .hexdigest()
        .encode()
    )


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
