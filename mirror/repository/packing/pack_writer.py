"""Writes a pack stream (gitformat-pack(5)) from objects that lie in packs already.

What is stored compressed goes out as it is; a delta is reused when its base was written before.
Other objects are compressed lightly, or, for a thin pack, as a delta against what they replace.
"""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dulwich.object_format import SHA1
from dulwich.objects import ObjectID as DulwichId
from dulwich.objects import hex_to_sha
from dulwich.pack import (
    OFS_DELTA,
    REF_DELTA,
    Pack,
    UnpackedObject,
    create_delta,
    pack_object_header,
)

from mirror.repository.objects import ObjectSource
from mirror.repository.packing.selection import Selection
from mirror.wire.names import ObjectId

CHUNK_BYTES: Final = 128 * 1024
DELTA_BYTES_MIN: Final = 64
"""Below that a delta saves nothing."""

DELTA_BYTES_MAX: Final = 1 << 20
"""Above that looking for a delta takes longer than sending."""

_LEVEL: Final = 1  # zlib: twice the speed of the default for a tenth more bytes


@dataclass(frozen=True, slots=True)
class Form:
    """Which forms of deltas the reader understands."""

    thin: bool
    ofs_delta: bool


def write_pack(source: ObjectSource, selection: Selection, form: Form) -> Iterator[bytes]:
    """Yield the pack in chunks of about `CHUNK_BYTES`. Blocking work: run it in a thread.

    Raises:
        LocalError: An object is missing.
    """
    writer = _Writer(source, selection, form)
    digest = hashlib.sha1(usedforsecurity=False)
    chunk = bytearray()
    for piece in writer.pieces():
        digest.update(piece)
        chunk += piece
        if len(chunk) >= CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk) + digest.digest()


class _Writer:
    """The state of one pack: where each object went."""

    def __init__(self, source: ObjectSource, selection: Selection, form: Form) -> None:
        self._source = source
        self._selection = selection
        self._form = form
        self._packs = source.packs()
        self._numbers = {id(pack): number for number, pack in enumerate(self._packs)}
        self._at: dict[tuple[int, int], ObjectId] = {}  # by pack and offset, as far as written
        self._written: dict[ObjectId, int] = {}  # offsets in the new pack
        self._offset = 0

    def pieces(self) -> Iterator[bytes]:
        yield self._count(b"PACK" + (2).to_bytes(4) + len(self._selection.oids).to_bytes(4))
        for oid, pack, offset in self._in_pack_order():
            for piece in self._object(oid, pack, offset):
                yield self._count(piece)

    def _count(self, piece: bytes) -> bytes:
        self._offset += len(piece)
        return piece

    def _in_pack_order(self) -> Iterator[tuple[ObjectId, Pack | None, int]]:
        """Sort by place: in a pack, bases mostly come before their deltas; reads are sequential."""
        for number, offset, oid in sorted(map(self._place, self._selection.oids)):
            self._at[number, offset] = oid
            yield oid, self._packs[number] if number < len(self._packs) else None, offset

    def _place(self, oid: ObjectId) -> tuple[int, int, ObjectId]:
        raw = hex_to_sha(DulwichId(oid))
        for number, pack in enumerate(self._packs):
            try:
                return number, pack.index.object_offset(raw), oid
            except KeyError:
                continue
        return len(self._packs), 0, oid

    def _object(self, oid: ObjectId, pack: Pack | None, offset: int) -> Iterator[bytes]:
        start = self._offset
        stored = pack.data.get_unpacked_object_at(offset, include_comp=True) if pack else None
        pieces = None
        if stored is not None and pack is not None:
            pieces = self._reused(pack, stored, offset, start)
        yield from pieces or self._made(oid, start)
        self._written[oid] = start

    def _reused(
        self, pack: Pack, stored: UnpackedObject, offset: int, start: int
    ) -> list[bytes] | None:
        """Return the stored form of an object if the reader can use it."""
        if stored.comp_chunks is None or stored.decomp_len is None:
            return None
        base: ObjectId | None = None
        if stored.pack_type_num == OFS_DELTA and isinstance(stored.delta_base, int):
            place = (self._numbers[id(pack)], offset - stored.delta_base)
            base = self._at.get(place)
        elif stored.pack_type_num == REF_DELTA and isinstance(stored.delta_base, bytes):
            base = ObjectId(stored.delta_base.hex().encode())
        if stored.pack_type_num in (OFS_DELTA, REF_DELTA):
            if base is None or base not in self._written:
                return None
            return [*self._delta_header(base, stored.decomp_len, start), *stored.comp_chunks]
        return [_header(stored.pack_type_num, None, stored.decomp_len), *stored.comp_chunks]

    def _made(self, oid: ObjectId, start: int) -> Iterator[bytes]:
        kind, content = self._source.raw(oid)
        base = self._selection.bases.get(oid)
        if (
            base is not None
            and self._usable(base)
            and DELTA_BYTES_MIN <= len(content) <= DELTA_BYTES_MAX
        ):
            base_kind, base_content = self._source.raw(base)
            if base_kind == kind and len(base_content) <= DELTA_BYTES_MAX:
                delta = b"".join(create_delta(base_content, content))
                if len(delta) < len(content) // 2:
                    yield from self._delta_header(base, len(delta), start)
                    yield zlib.compress(delta, _LEVEL)
                    return
        yield _header(kind, None, len(content))
        yield zlib.compress(content, _LEVEL)

    def _usable(self, base: ObjectId) -> bool:
        """Tell whether a delta may build on `base`: never on one that is still to be written.

        That could close a circle, as when a change and its revert are sent together.
        """
        if base in self._written:
            return True
        return self._form.thin and base not in self._selection.oids

    def _delta_header(self, base: ObjectId, size: int, start: int) -> Iterator[bytes]:
        if self._form.ofs_delta and base in self._written:
            yield _header(OFS_DELTA, start - self._written[base], size)
        else:
            yield _header(REF_DELTA, hex_to_sha(DulwichId(base)), size)


def _header(kind: int, base: int | bytes | None, size: int) -> bytes:
    return bytes(pack_object_header(kind, base, size, object_format=SHA1))
