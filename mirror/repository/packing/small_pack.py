"""A small pack, taken in within this process: what git's index-pack does, without the child.

After a push comes a pack of a few objects. Reading it here takes a millisecond or two, starting git
takes five. It is for small packs alone: all is held in memory, and nothing above the limits below,
for Python's work in a thread delays the event loop.

It never judges: a pack that is damaged, odd or too big is `NotSmall`, and whoever else indexes
packs says what is wrong with it. Specification: gitformat-pack(5).
"""

import hashlib
import io
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dulwich.object_format import SHA1
from dulwich.pack import (
    OFS_DELTA,
    REF_DELTA,
    apply_delta,
    pack_object_header,
    unpack_object_at,
    write_pack_index_v2,
)

from mirror.errors import LocalError
from mirror.repository.objects import PACK_DAMAGE
from mirror.repository.packing.pack_sizes import read_size
from mirror.wire.names import ZERO_ID, ObjectId

PACK_BYTES_MAX: Final = 256 * 1024
OBJECTS_MAX: Final = 200
"""Measured: 15 to 20 microseconds each, with the check that follows; 200 are about 4 ms."""

CONTENT_BYTES_MAX: Final = 4 << 20
"""Of all objects together, once inflated: a few bytes can inflate to gigabytes."""

_HEADER_BYTES: Final = 12
_CHECKSUM_BYTES: Final = 20
_INFLATED_AT_ONCE_BYTES: Final = 4096  # what lies behind an object's end is copied, up to this
_TYPE_NAMES: Final = {1: b"commit", 2: b"tree", 3: b"blob", 4: b"tag"}
_LEVEL: Final = 1  # zlib: bases that complete a thin pack are read rarely

Stored = tuple[int, bytes]
"""The number of an object's type, and its content."""


LookUp = Callable[[ObjectId], Stored | None]


class NotSmall(Exception):
    """This is not for here: too big, or not what it should be."""


@dataclass(slots=True)
class SmallPack:
    """What a pack holds.

    Attributes:
        objects: All its objects.
        bases: Objects outside the pack against which it has deltas.
    """

    objects: dict[ObjectId, Stored] = field(default_factory=dict)
    bases: dict[ObjectId, Stored] = field(default_factory=dict)


@dataclass(slots=True)
class _Entry:
    """One object of the pack; `stored` is there once its delta was resolved."""

    offset: int
    crc32: int
    kind: int
    base: int | ObjectId | None
    data: bytes
    stored: Stored | None = None
    oid: ObjectId = ZERO_ID


def index_small_pack(received: Path, directory: Path, look_up: LookUp) -> SmallPack:
    """Index a pack and write it, completed, with its index. Both files are durable.

    Args:
        received: The pack as it came.
        directory: Where the two files go.
        look_up: Finds an object that the pack may be against.

    Raises:
        NotSmall: It is not one that can be taken in here; nothing was written.
        OSError: The files can't be written.
    """
    if received.stat().st_size > PACK_BYTES_MAX:
        raise NotSmall
    raw = received.read_bytes()
    try:
        entries = _parse(raw)
        pack = _resolve(entries, look_up)
    except (*PACK_DAMAGE, LocalError) as error:
        raise NotSmall from error
    _write(directory, raw, entries, pack)
    return pack


def _parse(raw: bytes) -> list[_Entry]:
    if len(raw) < _HEADER_BYTES + _CHECKSUM_BYTES or raw[:8] != b"PACK\0\0\0\2":
        raise NotSmall
    count = int.from_bytes(raw[8:_HEADER_BYTES])
    objects_end = len(raw) - _CHECKSUM_BYTES
    if count > OBJECTS_MAX or _sha1(raw[:objects_end]) != raw[objects_end:]:
        raise NotSmall
    entries = []
    position, content_bytes = _HEADER_BYTES, 0
    for _ in range(count):
        if content_bytes + read_size(raw, position, bits=4)[0] > CONTENT_BYTES_MAX:
            raise NotSmall  # before there is room made for it
        unpacked, end = unpack_object_at(
            raw, position, hashlib.sha1, compute_crc32=False, zlib_bufsize=_INFLATED_AT_ONCE_BYTES
        )
        data = b"".join(unpacked.decomp_chunks)
        content_bytes += len(data)
        base: int | ObjectId | None = None
        if isinstance(unpacked.delta_base, int):
            base = position - unpacked.delta_base
        elif unpacked.delta_base is not None:
            base = _hex(unpacked.delta_base)
        crc32 = zlib.crc32(raw[position:end])
        entries.append(_Entry(position, crc32, unpacked.pack_type_num, base, data))
        position = end
    if position != objects_end:
        raise NotSmall
    return entries


def _resolve(entries: list[_Entry], look_up: LookUp) -> SmallPack:
    """Work out what the deltas stand for, whatever their order."""
    pack = SmallPack()
    by_offset = {entry.offset: entry for entry in entries}
    content_bytes = 0

    def base_of(entry: _Entry) -> Stored | None:
        if isinstance(entry.base, int):
            return by_offset[entry.base].stored
        base = entry.base or ZERO_ID
        return pack.objects.get(base) or pack.bases.get(base)

    waiting = entries
    while waiting:
        still: list[_Entry] = []
        for entry in waiting:
            if entry.kind in _TYPE_NAMES:
                entry.stored = (entry.kind, entry.data)
            elif entry.kind not in {OFS_DELTA, REF_DELTA}:
                raise NotSmall
            elif (base := base_of(entry)) is not None:
                content_bytes += _delta_sizes(entry.data)[1]
                if content_bytes > CONTENT_BYTES_MAX:
                    raise NotSmall
                entry.stored = (base[0], b"".join(apply_delta(base[1], entry.data)))
            else:
                still.append(entry)
                continue
            entry.oid = _object_id(*entry.stored)
            if entry.oid in pack.objects:
                raise NotSmall  # twice the same object
            pack.objects[entry.oid] = entry.stored
        if len(still) == len(waiting):
            _find_bases(still, pack, look_up)
        waiting = still
    return pack


def _find_bases(waiting: list[_Entry], pack: SmallPack, look_up: LookUp) -> None:
    """Find what the pack is against; at least one of those is needed now."""
    before = len(pack.bases)
    for entry in waiting:
        if isinstance(entry.base, bytes) and entry.base not in pack.bases:
            if _delta_sizes(entry.data)[0] > CONTENT_BYTES_MAX:
                raise NotSmall
            found = look_up(entry.base)
            if found is not None:
                pack.bases[entry.base] = found
    if len(pack.bases) == before:
        raise NotSmall  # nobody has it, or the deltas close a circle


def _delta_sizes(delta: bytes) -> tuple[int, int]:
    """Return the sizes of a delta's base and of its result: its first two numbers."""
    base, position = read_size(delta, 0)
    return base, read_size(delta, position)[0]


def _write(directory: Path, raw: bytes, entries: list[_Entry], pack: SmallPack) -> None:
    """Write the pack, with the bases that it lacks behind the rest, and its index."""
    lines = [(_binary(entry.oid), entry.offset, entry.crc32) for entry in entries]
    content = raw
    bases = {oid: base for oid, base in pack.bases.items() if oid not in pack.objects}
    if bases:
        body = bytearray(raw[:-_CHECKSUM_BYTES])
        body[8:_HEADER_BYTES] = (len(entries) + len(bases)).to_bytes(4)
        for oid, (kind, data) in bases.items():
            header = pack_object_header(kind, None, len(data), object_format=SHA1)
            encoded = bytes(header) + zlib.compress(data, _LEVEL)
            lines.append((_binary(oid), len(body), zlib.crc32(encoded)))
            body += encoded
        content = bytes(body) + _sha1(body)
    checksum = content[-_CHECKSUM_BYTES:]
    index = io.BytesIO()
    write_pack_index_v2(index, sorted(lines), checksum)
    path = directory / f"pack-{checksum.hex()}.pack"
    _write_durably(path, content)
    _write_durably(path.with_suffix(".idx"), index.getvalue())


def _write_durably(path: Path, content: bytes) -> None:
    """Write a file that nobody is to change; its directory is made durable when it is moved."""
    with open(path, "xb", opener=_open_read_only) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _open_read_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o444)


def _object_id(kind: int, content: bytes) -> ObjectId:
    return _hex(_sha1(b"%b %d\0%b" % (_TYPE_NAMES[kind], len(content), content)))


def _hex(binary: bytes) -> ObjectId:
    return ObjectId(binary.hex().encode())


def _binary(oid: ObjectId) -> bytes:
    return bytes.fromhex(oid.decode())


def _sha1(data: bytes | bytearray) -> bytes:
    return hashlib.sha1(data, usedforsecurity=False).digest()
