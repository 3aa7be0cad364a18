"""Objects by their id, whichever pack they lie in. Safe from any thread, while packs come and go.

dulwich reads packs; which packs there are is kept here. Its own object store closes a pack that a
repack has removed even while another thread reads it; here a pack stays open, mapped into memory,
until the last who uses it lets go. Loose objects are not looked for: a mirror has none.
"""

import os
import struct
import threading
import weakref
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import IO, Final

from dulwich.errors import ApplyDeltaError, ChecksumMismatch, ObjectFormatException
from dulwich.object_format import SHA1
from dulwich.objects import ObjectID as DulwichId
from dulwich.objects import hex_to_sha
from dulwich.pack import (
    Pack,
    PackData,
    UnpackedObject,
    UnresolvedDeltas,
    load_pack_index_file,
)

from mirror.errors import LocalError
from mirror.wire.names import ObjectId

EMPTY_TREE: Final = ObjectId(b"4b825dc642cb6eb9a060e54bf8d69288fbee4904")
"""Always here, as for git: not every upstream sends it."""

COMMIT: Final = 1
TREE: Final = 2
TAG: Final = 4

DELTA_CACHE_BYTES_MAX: Final = 16 << 20
"""For each pack, of objects made from deltas; dulwich's own default is 96 MiB."""

DELTA_CACHE_BYTES_MIN: Final = 1 << 20
"""Of a small pack. In between it is as large as the pack: many small ones are not to need much."""

MAPPED_BYTES_MIN: Final = 16 * 1024
"""Most packs of a refresh are smaller: read into memory, they cost no descriptor and no mapping."""

SCANS_MAX: Final = 10
"""A repack may take away a pack that was listed a moment ago; so many in a row are no accident."""

PACK_DAMAGE: Final = (
    ApplyDeltaError,
    AssertionError,  # dulwich's word for a pack that ends early
    ChecksumMismatch,
    EOFError,
    IndexError,
    KeyError,
    ObjectFormatException,
    OverflowError,  # a size beyond all measure
    TypeError,  # the end of the pack in the middle of a number
    UnresolvedDeltas,
    ValueError,
    struct.error,
    zlib.error,
)
"""What dulwich raises over bytes that are no pack."""


class PackGone(Exception):
    """A pack that was listed a moment ago is not there any longer."""


class OpenPack:
    """A pack, mapped into memory: readable to the end, even if its files are removed meanwhile.

    It is closed when nobody refers to it any longer. Until then it has a descriptor for each of its
    two files, which the mapping holds; a small file has none and is in memory.
    """

    def __init__(self, path: Path) -> None:
        """Open both files.

        Args:
            path: The `.pack` file; the index lies beside it.

        Raises:
            PackGone: One of the two is not there.
        """
        self.path = path
        with ExitStack() as stack:
            try:
                data = stack.enter_context(_opened(path))
                index = stack.enter_context(_opened(path.with_suffix(".idx")))
                size = path.stat().st_size
            except FileNotFoundError as error:
                raise PackGone from error
            self._index = load_pack_index_file(os.fspath(path), index, SHA1)
            stack.callback(self._index.close)
            cached = min(DELTA_CACHE_BYTES_MAX, max(DELTA_CACHE_BYTES_MIN, size))
            self._data = PackData(path, SHA1, data, delta_base_cache_limit=cached)
            stack.callback(self._data.close)
            if len(self._index) != len(self._data) or (
                self._index.get_pack_checksum() != self._data.get_stored_checksum()
            ):
                raise ValueError("the index is of another pack")
            self._pack = Pack.from_objects(self._data, self._index)
            stack.pop_all()  # all is well: to be closed later, but for the two files
            data.close()
            index.close()
        weakref.finalize(self, self._pack.close)

    def __len__(self) -> int:
        return len(self._index)

    def offset(self, sha: bytes) -> int | None:
        """Return where an object begins; `None` when it is not in this pack."""
        try:
            return self._index.object_offset(DulwichId(sha))
        except KeyError:
            return None

    def raw(self, sha: bytes) -> tuple[int, bytes]:
        """Return the number of an object's type and its content."""
        return self._pack.get_raw(DulwichId(sha))

    def stored_at(self, offset: int) -> UnpackedObject:
        """Return an object as it is stored: whole or as a delta, and compressed."""
        return self._data.get_unpacked_object_at(offset, include_comp=True)

    def ids(self) -> Iterator[ObjectId]:
        """Yield the id of each object."""
        return map(ObjectId, self._index)


def _opened(path: Path) -> IO[bytes]:
    """Open a file that dulwich is to map, or to read if it is small."""
    file = path.open("rb")
    if os.fstat(file.fileno()).st_size >= MAPPED_BYTES_MIN:
        return file
    with file:
        return BytesIO(file.read())


class ObjectSource:
    """The objects of one object directory, and of another one behind it."""

    def __init__(self, objects: Path, *, behind: "ObjectSource | None" = None) -> None:
        """Open the packs.

        Args:
            objects: The object directory.
            behind: Where to look for what is not in it.

        Raises:
            LocalError: A pack is damaged.
        """
        self._directory = objects / "pack"
        self._behind = behind
        self._scanning = threading.Lock()
        self._packs: tuple[OpenPack, ...] = ()
        self._changed_at = -1
        self.rescan()

    def rescan(self) -> None:
        """Take note of the packs that came and went.

        Raises:
            LocalError: The packs can't be listed, or one is damaged.
        """
        with self._scanning:
            for _ in range(SCANS_MAX):
                try:
                    # The time first: what changes while we look is then looked for again.
                    changed_at = self._directory.stat().st_mtime_ns
                    packs = self._scan()
                except PackGone:
                    continue
                except OSError as error:
                    message = f"the packs in {self._directory} can't be read: {error.strerror}"
                    raise LocalError(message) from error
                self._packs = packs
                self._changed_at = changed_at  # last: who sees it sees the packs too
                return
        raise LocalError(f"the packs in {self._directory} change faster than they can be read")

    def _scan(self) -> tuple[OpenPack, ...]:
        """Open what is new; the newest packs come first, for they are asked most."""
        known = {pack.path.name: pack for pack in self._packs}
        found: list[tuple[int, OpenPack]] = []
        for index in sorted(self._directory.glob("pack-*.idx")):
            path = index.with_suffix(".pack")
            try:
                made_at = path.stat().st_mtime_ns
                found.append((made_at, known.get(path.name) or OpenPack(path)))
            except FileNotFoundError:  # an index alone is no pack, for git neither
                continue
            except PACK_DAMAGE as error:
                raise LocalError(f"{path} is damaged: {error}") from error
        found.sort(key=lambda pair: pair[0], reverse=True)
        return tuple(pack for _, pack in found)

    def close(self) -> None:
        """Let go of the packs; who still reads one has it until it is done."""
        self._packs = ()

    def contains(self, oid: ObjectId) -> bool:
        """Tell whether the object is here."""
        return self._pack_with(hex_to_sha(DulwichId(oid))) is not None or oid == EMPTY_TREE

    def raw(self, oid: ObjectId) -> tuple[int, bytes]:
        """Return the number of the object's type and its content.

        Raises:
            LocalError: It is not here, or damaged.
        """
        sha = hex_to_sha(DulwichId(oid))
        pack = self._pack_with(sha)
        if pack is None:
            if oid == EMPTY_TREE:
                return TREE, b""
            raise LocalError(f"object {oid.decode()} is missing in {self._directory.parent}")
        try:
            return pack.raw(sha)
        except PACK_DAMAGE as error:
            raise LocalError(f"object {oid.decode()} is damaged in {pack.path}: {error}") from error

    def size(self, oid: ObjectId) -> int:
        """Return the object's size in bytes.

        Raises:
            LocalError: It is not here, or damaged.
        """
        return len(self.raw(oid)[1])

    def packs(self) -> tuple[OpenPack, ...]:
        """Return the packs of this directory; they stay open for as long as they are held."""
        return self._packs

    def _pack_with(self, sha: bytes) -> OpenPack | None:
        packs: tuple[OpenPack, ...] | None = None
        while packs is not self._packs:  # as often as another thread, or we, found new ones
            packs = self._packs
            for pack in packs:
                if pack.offset(sha) is not None:
                    return pack
            if self.is_outdated():
                self.rescan()
        return self._behind._pack_with(sha) if self._behind is not None else None  # noqa: SLF001

    def is_outdated(self) -> bool:
        """Tell whether packs came or went since they were last looked for."""
        try:
            return self._directory.stat().st_mtime_ns != self._changed_at
        except OSError:
            return False
