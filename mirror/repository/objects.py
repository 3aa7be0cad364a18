"""Objects by their id, whichever pack they lie in. Safe from any thread, while packs come and go.

dulwich reads packs; which packs there are is kept here. Its own object store closes a pack that a
repack has removed even while another thread reads it; here a pack stays open, mapped into memory,
until the last who uses it lets go. Loose objects are not looked for: a mirror has none.

Disks lie. An object counts only once its content hashes to its id, and what goes out as it is
stored, only once its checksum is the index's; an index, only once its own checksum is right.
"""

import hashlib
import os
import struct
import threading
import weakref
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from traceback import clear_frames
from types import TracebackType
from typing import IO, Final

from dulwich.errors import ApplyDeltaError, ChecksumMismatch, ObjectFormatException
from dulwich.object_format import SHA1
from dulwich.objects import ObjectID as DulwichId
from dulwich.objects import hex_to_sha
from dulwich.pack import (
    Pack,
    PackData,
    PackIndex2,
    UnpackedObject,
    UnresolvedDeltas,
    bisect_find_sha,
    load_pack_index_file,
    unpack_object_at,
)

from mirror.errors import Damaged, LocalError
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


_TYPE_NAMES: Final = {1: b"commit", 2: b"tree", 3: b"blob", 4: b"tag"}


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
                self.identity = identity(path)
            except FileNotFoundError as error:
                raise PackGone from error
            size = self.identity[2]
            self._index = load_pack_index_file(os.fspath(path), index, SHA1)
            stack.callback(self._index.close)
            stack.push(_let_go)
            self._index.check()  # a hash over the whole, a millisecond for each megabyte
            cached = min(DELTA_CACHE_BYTES_MAX, max(DELTA_CACHE_BYTES_MIN, size))
            self._data = PackData(path, SHA1, data, delta_base_cache_limit=cached)
            stack.callback(self._data.close)
            stack.push(_let_go)
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
        """Return the number of an object's type and its content, which is checked by its id.

        Raises:
            ChecksumMismatch: It is damaged; so may be any of `PACK_DAMAGE`.
        """
        kind, content = self._pack.get_raw(DulwichId(sha))
        digest = hashlib.sha1(b"%b %d\0" % (_TYPE_NAMES[kind], len(content)), usedforsecurity=False)
        digest.update(content)
        if digest.digest() != sha:
            raise ChecksumMismatch(sha.hex(), digest.hexdigest())
        return kind, content

    def stored(self, sha: bytes, offset: int) -> UnpackedObject:
        """Return an object as it is stored: whole or as a delta, and compressed.

        Checked by the index's CRC, as git does where it copies objects: a delta can be checked by
        its id only once all of its bases are read.

        Raises:
            ChecksumMismatch: It is damaged; so may be any of `PACK_DAMAGE`.
        """
        stored, _ = unpack_object_at(
            self._data._buffer(),  # noqa: SLF001 - dulwich's own way to the CRC hides it
            offset,
            hashlib.sha1,
            compute_crc32=True,
            include_comp=True,
        )
        crc32 = self._crc32(sha)
        if crc32 is None:
            self.raw(sha)
        elif crc32 != stored.crc32:
            raise ChecksumMismatch(f"{crc32:08x}", f"{stored.crc32:08x}")
        return stored

    def _crc32(self, sha: bytes) -> int | None:
        """Return what the index says; `None` where it is of the first version, and says nothing."""
        index = self._index
        if not isinstance(index, PackIndex2):
            return None
        position = bisect_find_sha(0, len(index) - 1, sha, index._unpack_name)  # noqa: SLF001
        if position is None:
            raise KeyError(sha)
        return index._unpack_crc32_checksum(position)  # noqa: SLF001

    def ids(self) -> Iterator[ObjectId]:
        """Yield the id of each object."""
        return map(ObjectId, self._index)


def _let_go(_: object, __: object, traceback: TracebackType | None) -> None:
    """Clear what an error still refers to: a mapping can't be closed while somebody looks at it."""
    if traceback is not None:
        clear_frames(traceback)


Identity = tuple[int, int, int]
"""Inode, time of the last change in nanoseconds, and size."""


def identity(path: Path) -> Identity:
    """Return what tells a file from any other that was or will be in its place."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _opened(path: Path) -> IO[bytes]:
    """Open a file that dulwich is to map, or to read if it is small."""
    file = path.open("rb")
    if os.fstat(file.fileno()).st_size >= MAPPED_BYTES_MIN:
        return file
    with file:
        return BytesIO(file.read())


class ObjectSource:
    """The objects of one object directory, and of another one behind it."""

    def __init__(
        self, objects: Path, *, behind: "ObjectSource | None" = None, passes_over: bool = False
    ) -> None:
        """Open the packs.

        Args:
            objects: The object directory.
            behind: Where to look for what is not in it.
            passes_over: Whether packs that can't be opened are passed over, and named in `damaged`:
                what lies in the others can be read.

        Raises:
            Damaged: A pack is, and is not passed over.
            LocalError: The packs can't be listed.
        """
        self._directory = objects / "pack"
        self._behind = behind
        self._passes_over = passes_over
        self.damaged: dict[str, str] = {}
        """What is wrong, by the name of each pack that was passed over."""
        self._scanning = threading.Lock()
        self._packs: tuple[OpenPack, ...] = ()
        self._changed_at = -1
        self.rescan()

    def rescan(self) -> None:
        """Take note of the packs that came and went.

        Raises:
            LocalError: The packs can't be listed, or one is damaged and not passed over.
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
        known = {(pack.path.name, pack.identity): pack for pack in self._packs}
        found: list[tuple[int, OpenPack]] = []
        damaged: dict[str, str] = {}
        for index in sorted(self._directory.glob("pack-*.idx")):
            path = index.with_suffix(".pack")
            try:
                # Another file of the same name takes its place when a damaged pack is healed.
                pack = known.get((path.name, identity(path))) or OpenPack(path)
                found.append((pack.identity[1], pack))
            except FileNotFoundError:  # an index alone is no pack, for git neither
                continue
            except PACK_DAMAGE as error:
                if not self._passes_over:
                    raise Damaged(f"{path.name} is damaged: {error}") from error
                damaged[path.name] = f"it can't be opened: {type(error).__name__} {error}"
        self.damaged = damaged
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
            LocalError: It is not here, or damaged (`Damaged`).
        """
        sha = hex_to_sha(DulwichId(oid))
        pack = self._pack_with(sha)
        if pack is None:
            if oid == EMPTY_TREE:
                return TREE, b""
            message = f"object {oid.decode()} is missing"
            # In a quarantine that is the upstream's fault.
            raise Damaged(message) if self._behind is None else LocalError(message)
        try:
            return pack.raw(sha)
        except PACK_DAMAGE as error:
            # Without the frames: they look into the mapping, which could not be closed.
            error = error.with_traceback(None)
            raise Damaged(
                f"object {oid.decode()} is damaged in {pack.path.name}: {error}"
            ) from error

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
