"""Writes a pack stream (gitformat-pack(5)) from objects that lie in packs already.

What is stored compressed goes out as it is; a delta is reused when the reader has its base, or gets
it before. Other objects are compressed lightly, or, where that is shorter, sent as a delta against
what they replace.
"""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from dulwich.object_format import SHA1
from dulwich.objects import ObjectID as DulwichId
from dulwich.objects import hex_to_sha
from dulwich.pack import OFS_DELTA, REF_DELTA, UnpackedObject, create_delta, pack_object_header

from mirror.errors import Damaged, LocalError
from mirror.repository.objects import PACK_DAMAGE, ObjectSource
from mirror.repository.packing.selection import Selection
from mirror.wire.names import ObjectId

CHUNK_BYTES: Final = 128 * 1024
DELTA_BYTES_MIN: Final = 64
"""Below that a delta saves nothing."""

DELTA_BYTES_MAX: Final = 1 << 20
"""Above that looking for a delta takes longer than sending."""

CHAIN_MAX: Final = 50
"""Deltas on deltas, as many as git makes: each one more is work for whoever reads the object."""

_LEVEL: Final = 1  # zlib: twice the speed of the default for a tenth more bytes


@dataclass(frozen=True, slots=True)
class Form:
    """Which forms of deltas the reader understands."""

    thin: bool
    ofs_delta: bool


class _Place(NamedTuple):
    """Where an object lies; sorted, bases mostly come before their deltas."""

    pack: int
    offset: int
    oid: ObjectId


def write_pack(source: ObjectSource, selection: Selection, form: Form) -> Iterator[bytes]:
    """Yield the pack in chunks of about `CHUNK_BYTES`. Blocking work: run it in a thread.

    Raises:
        LocalError: An object is missing or damaged.
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
        # Held to the end, whatever a repack removes. The oldest first: what is changed comes before
        # what it was changed to, and can be its delta's base.
        self._packs = source.packs()[::-1]
        self._at: dict[tuple[int, int], ObjectId] = {}  # by pack and offset, as far as written
        self._written: dict[ObjectId, int] = {}  # offsets in the new pack
        self._chains: dict[ObjectId, int] = {}  # how many deltas an object is made of
        self._offset = 0

    def pieces(self) -> Iterator[bytes]:
        yield self._count(b"PACK" + (2).to_bytes(4) + len(self._selection.oids).to_bytes(4))
        for place in sorted(map(self._place, self._selection.oids)):
            start = self._offset
            for piece in self._object(place):
                yield self._count(piece)
            self._written[place.oid] = start
            self._at[place.pack, place.offset] = place.oid

    def _count(self, piece: bytes) -> bytes:
        self._offset += len(piece)
        return piece

    def _place(self, oid: ObjectId) -> _Place:
        sha = hex_to_sha(DulwichId(oid))
        for number, pack in enumerate(self._packs):
            if (offset := pack.offset(sha)) is not None:
                return _Place(number, offset, oid)
        return _Place(len(self._packs), 0, oid)  # in a pack that came this very moment

    def _object(self, place: _Place) -> Iterator[bytes]:
        if place.pack == len(self._packs):
            return self._made(place.oid)
        pack = self._packs[place.pack]
        try:
            stored = pack.stored(hex_to_sha(DulwichId(place.oid)), place.offset)
        except PACK_DAMAGE as error:
            error = error.with_traceback(None)  # as in `ObjectSource.raw`
            raise Damaged(
                f"object {place.oid.decode()} is damaged in {pack.path.name}: {error}"
            ) from error
        if stored.pack_type_num not in (OFS_DELTA, REF_DELTA):
            return self._reused(_header(stored.pack_type_num, None, _size(stored)), stored)
        base = self._stored_base(place, stored)
        if base is not None and self._is_usable(base, place.oid):
            return self._reused(self._delta_header(place.oid, base, _size(stored)), stored)
        return self._made(place.oid)

    def _stored_base(self, place: _Place, stored: UnpackedObject) -> ObjectId | None:
        """Return what an object is stored as a delta against, where that can be told."""
        if isinstance(stored.delta_base, int):
            return self._at.get((place.pack, place.offset - stored.delta_base))
        if isinstance(stored.delta_base, bytes):
            return ObjectId(stored.delta_base.hex().encode())
        return None

    def _reused(self, header: bytes, stored: UnpackedObject) -> Iterator[bytes]:
        yield header
        yield from stored.comp_chunks or ()

    def _made(self, oid: ObjectId) -> Iterator[bytes]:
        kind, content = self._source.raw(oid)
        base = self._selection.bases.get(oid)
        if (
            base is not None
            and DELTA_BYTES_MIN <= len(content) <= DELTA_BYTES_MAX
            and self._is_usable(base, oid)
        ):
            base_kind, base_content = self._source.raw(base)
            if base_kind == kind and len(base_content) <= DELTA_BYTES_MAX:
                delta = b"".join(create_delta(base_content, content))
                if len(delta) < len(content) // 2:
                    yield self._delta_header(oid, base, len(delta))
                    yield zlib.compress(delta, _LEVEL)
                    return
        yield _header(kind, None, len(content))
        yield zlib.compress(content, _LEVEL)

    def _is_usable(self, base: ObjectId, oid: ObjectId) -> bool:
        """Tell whether `oid` may be sent as a delta against `base`.

        Never against what is still to be written: that could close a circle, as when a change and
        its revert are sent together. And against what is not sent only where the selection says
        that the reader has it.
        """
        if base in self._written:
            return self._chains.get(base, 0) < CHAIN_MAX
        is_sent = base in self._selection.oids
        return self._form.thin and not is_sent and self._selection.bases.get(oid) == base

    def _delta_header(self, oid: ObjectId, base: ObjectId, size: int) -> bytes:
        self._chains[oid] = self._chains.get(base, 0) + 1
        if self._form.ofs_delta and base in self._written:
            return _header(OFS_DELTA, self._offset - self._written[base], size)
        return _header(REF_DELTA, hex_to_sha(DulwichId(base)), size)


def _size(stored: UnpackedObject) -> int:
    """Return the length of what is stored, once inflated: of the delta, where it is one."""
    if stored.decomp_len is None:
        raise LocalError("an object without a size")
    return stored.decomp_len


def _header(kind: int, base: int | bytes | None, size: int) -> bytes:
    return bytes(pack_object_header(kind, base, size, object_format=SHA1))
