"""Finished packs by their key: small ones in memory, all of them as files, bounded in bytes.

<directory>/<2 digits>/<key>   a framed pack and a trailer
<directory>/tmp/               packs being written; cleared at the start

The file system is the index: several processes share one directory, each with its own memory. A
file appears under its name when it is complete, and is never changed. Nothing is flushed to disk by
force, so that a power cut may leave garbage: the trailer has a length and a checksum, which are
looked at when a process first takes a file up. What was used least recently goes first; the time of
the last use is the file's mtime, which is put forward at most once in `TOUCH_SECONDS`.
"""

import math
import mmap
import os
import struct
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NewType

import structlog

from mirror.errors import LocalError
from mirror.repository.integrity import Damage, Kind, OnRead, in_slices
from mirror.repository.packing.spool import PackSpool
from mirror.space import Room

PackKey = NewType("PackKey", str)
"""The name of a pack: hex digits that stand for a repository and a request."""

ENTRY_MEMORY_BYTES_MAX: Final = 256 * 1024
"""Packs up to here are kept in memory, longer ones are mapped."""

MAPPED_MAX: Final = 128
"""Mapped files at once: each costs a mapping, and a descriptor before Python 3.13."""

TOUCH_SECONDS: Final = 60.0
RECHECK_SECONDS: Final = 600.0
"""A mapped pack that is in use is read anew, and compared with its checksum, so often at most."""

SWEEP_TO: Final = 0.9
"""A sweep goes on until so much of the limit is in use, so that it does not come at every pack."""

SWEEP_AFTER: Final = 1 / 16
"""A sweep comes when so much of the limit was written since the last."""

COMPLAINT_SECONDS: Final = 60.0

LEFT_BEHIND_SECONDS: Final = 2 * 3600.0
"""Nothing is written to for so long and still wanted."""

_TRAILER: Final = struct.Struct(">8sQQL")
_MAGIC: Final = b"GMPACK01"
_CRC_STEP_BYTES: Final = 1 << 20

logger = structlog.stdlib.get_logger()


@dataclass(slots=True, eq=False)
class StoredPack:
    """A finished pack.

    Attributes:
        framed: It, as readers get it.
        pack_bytes: Its length before it was framed.
        path: Its file, whose time is put forward when it is used; it may be gone.
        crc: The checksum of what is mapped.
        checked_at: When it was last found right, where it is mapped.
        is_damaged: Whether it was found wrong since it was mapped.
    """

    framed: bytes | memoryview
    pack_bytes: int
    path: Path
    touched_at: float
    crc: int = 0
    checked_at: float = 0.0
    is_damaged: bool = False


class PackStore:
    """The packs of one process, and the directory that it may share with others."""

    def __init__(
        self,
        directory: Path,
        *,
        bytes_max: int,
        memory_bytes_max: int,
        room: Room | None = None,
    ) -> None:
        """Open the store.

        Args:
            directory: Made if need be; several processes may use it.
            bytes_max: The most that the files may take; 0 to keep none.
            memory_bytes_max: The most that this process keeps in memory.
            room: What the files must leave free on the disk; `None` for nothing.
        """
        self._room = room
        self._complained_at = -math.inf
        self._directory = directory
        self._tmp = directory / "tmp"
        self._bytes_max = bytes_max
        self._memory_bytes_max = memory_bytes_max
        self._memory: OrderedDict[PackKey, StoredPack] = OrderedDict()
        self._memory_bytes = 0
        self._mapped: OrderedDict[PackKey, StoredPack] = OrderedDict()
        self._written_bytes = 0  # since the last sweep
        self._sweeping = threading.Lock()
        self._number = 0

    def change(self, *, bytes_max: int, memory_bytes_max: int) -> None:
        """Keep to other limits; what is over them goes as others come."""
        self._bytes_max = bytes_max
        self._memory_bytes_max = memory_bytes_max

    @property
    def entry_bytes_max(self) -> int:
        """A longer pack is not kept."""
        return self._bytes_max // 2

    def prepare(self) -> None:
        """Make the directory and clear what an earlier process left half done; blocking.

        For the first process only, before the others begin.

        Raises:
            LocalError: The directory can't be made.
        """
        try:
            self._tmp.mkdir(parents=True, exist_ok=True, mode=0o750)
            for left in self._tmp.iterdir():
                with suppress(OSError):  # on a disk that is read-only, it goes later
                    left.unlink(missing_ok=True)
        except OSError as error:
            raise LocalError(f"can't use {self._directory}: {error.strerror}") from error
        self.sweep()

    def new_spool(self) -> tuple[PackSpool, Path]:
        """Return an empty spool and where its file will be, if it gets one."""
        self._number += 1
        path = self._tmp / f"{os.getpid()}-{self._number}"
        return PackSpool(path, make_room=self.make_room, has_room=self.has_room), path

    def lock_file(self, key: PackKey) -> Path:
        """Return the file whose lock says that a process builds this pack."""
        return self._tmp / f"{key}.lock"

    # --- finding -------------------------------------------------------------------------------

    def has(self, key: PackKey) -> bool:
        """Tell whether `find` would find a pack; from any thread."""
        return key in self._memory or key in self._mapped

    def find(self, key: PackKey) -> StoredPack | None:
        """Return a pack that this process has at hand; no disk is touched."""
        for kept in (self._memory, self._mapped):
            pack = kept.get(key)
            if pack is not None:
                if pack.is_damaged:
                    kept.pop(key, None)
                    return None
                with suppress(KeyError):  # let go of by another thread at this very moment
                    kept.move_to_end(key)
                return pack
        return None

    def is_due(self, pack: StoredPack, now: float) -> bool:
        """Tell whether the time of a pack's last use should be put forward."""
        return now - pack.touched_at > TOUCH_SECONDS

    def touch(self, pack: StoredPack) -> None:
        """Put forward the time of a pack's last use; blocking.

        What is mapped is on the disk, and not right for ever: now and then it is checked anew.
        """
        pack.touched_at = now = time.time()
        with suppress(OSError):  # it was swept away; whoever has it keeps it
            os.utime(pack.path)
        if isinstance(pack.framed, memoryview) and now - pack.checked_at > RECHECK_SECONDS:
            if zlib.crc32(pack.framed) == pack.crc:
                pack.checked_at = now
            else:
                pack.is_damaged = True
                self._remove_damaged(pack.path)

    def _remove_damaged(self, path: Path) -> None:
        logger.warning("cached_pack_damaged", path=str(path))
        with suppress(OSError):  # a read-only disk keeps it
            path.unlink(missing_ok=True)

    def scrub(self, on_read: OnRead) -> Iterator[Damage]:
        """Read all files; yield those that are damaged, which are removed. Blocking."""
        for _, _, path in self._files():
            reason = _whats_wrong(path, on_read)
            if reason is not None:
                self._remove_damaged(path)
                yield Damage(Kind.CACHED_PACK, path, reason)

    def open(self, key: PackKey) -> StoredPack | None:
        """Open a pack's file, if there is one that is whole; blocking. Give it to `admit`."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                whole = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except (OSError, ValueError):  # an empty file can't be mapped
            return None
        view = memoryview(whole)
        pack_bytes = _checked(view)
        if pack_bytes is None:
            self._remove_damaged(path)
            return None
        whole.madvise(mmap.MADV_DONTNEED)  # the check has read it all; not all will be sent
        framed = view[: -_TRAILER.size]
        content = bytes(framed) if len(framed) <= ENTRY_MEMORY_BYTES_MAX else framed
        crc = _TRAILER.unpack(view[-_TRAILER.size :])[3]
        pack = StoredPack(content, pack_bytes, path, 0.0, crc, time.time())
        self.touch(pack)
        return pack

    def admit(self, key: PackKey, pack: StoredPack) -> None:
        """Keep a pack at hand."""
        if len(pack.framed) > ENTRY_MEMORY_BYTES_MAX:
            self._mapped[key] = pack
            while len(self._mapped) > MAPPED_MAX:
                self._mapped.popitem(last=False)
            return
        known = self._memory.pop(key, None)
        self._memory_bytes += len(pack.framed) - (len(known.framed) if known else 0)
        self._memory[key] = pack
        while self._memory_bytes > self._memory_bytes_max:
            _, dropped = self._memory.popitem(last=False)
            self._memory_bytes -= len(dropped.framed)

    # --- keeping -------------------------------------------------------------------------------

    def keep(
        self, key: PackKey, framed: bytes | None, spooled: Path, pack_bytes: int
    ) -> StoredPack | None:
        """Make a file of a finished pack; blocking. Give what it returns to `admit`.

        Args:
            key: Its name.
            framed: The pack, or `None` where all of it is in the spool's file.
            spooled: The spool's file, or where to write one.
            pack_bytes: The pack's length before it was framed.

        Returns:
            The pack as it is stored; without a file when the disk refuses it, `None` when it is not
            kept at all.
        """
        try:
            size = len(framed) if framed is not None else spooled.stat().st_size
            if size > self.entry_bytes_max or not self.has_room(len(framed or b"")):
                spooled.unlink(missing_ok=True)
                return self._unfiled(key, framed, pack_bytes)
            with spooled.open("ab" if framed is None else "wb") as file:
                crc = zlib.crc32(framed) if framed is not None else _crc_of(spooled)
                file.write(framed or b"")
                file.write(_TRAILER.pack(_MAGIC, size, pack_bytes, crc))
            path = self._path(key)
            path.parent.mkdir(exist_ok=True, mode=0o750)
            spooled.rename(path)
        except OSError as error:
            self._complain(error)
            with suppress(OSError):
                spooled.unlink(missing_ok=True)
            return self._unfiled(key, framed, pack_bytes)
        self._written_bytes += size
        if self._written_bytes > self._bytes_max * SWEEP_AFTER:
            self.sweep()
        if framed is not None and size <= ENTRY_MEMORY_BYTES_MAX:
            return StoredPack(framed, pack_bytes, path, time.time())
        return self.open(key)

    def _unfiled(self, key: PackKey, framed: bytes | None, pack_bytes: int) -> StoredPack | None:
        if framed is None or len(framed) > ENTRY_MEMORY_BYTES_MAX:
            return None
        return StoredPack(framed, pack_bytes, self._path(key), time.time())

    def sweep(self) -> None:
        """Remove what was used least recently until the files fit the limit; blocking."""
        self._sweep(self._bytes_max)

    def _complain(self, error: OSError) -> None:
        """Say that packs are not kept, now and then: it may be so for each of them."""
        now = time.monotonic()
        if now - self._complained_at >= COMPLAINT_SECONDS:
            self._complained_at = now
            logger.warning("pack_not_cached", error=error.strerror, directory=str(self._directory))

    def has_room(self, size: int) -> bool:
        """Tell whether so many bytes may be written, after other packs made room; blocking."""
        if self._room is None or not (lacking := self._room.lacking(size)):
            return True
        self.give(lacking)
        return not self._room.lacking(size)

    def give(self, size: int) -> int:
        """Remove packs of that many bytes, if there are so many; returns of how many; blocking."""
        before = self.bytes_on_disk()
        if before:
            self._sweep(max(0, int((before - size) / SWEEP_TO)))
        return before - self.bytes_on_disk()

    def let_go(self) -> None:
        """Let go of the files that another process removed; blocking.

        As long as one is mapped, the disk does not get its room back.
        """
        for pack in tuple(self._mapped.values()):
            if not pack.path.exists():
                self._let_go(pack.path)

    def _let_go(self, path: Path) -> None:
        self._mapped.pop(PackKey(path.name), None)

    def bytes_on_disk(self) -> int:
        """Return what the finished packs take; blocking."""
        return sum(size for _, size, _ in self._files())

    def make_room(self) -> bool:
        """Remove half of the files, as the disk is full; tells whether there were any; blocking."""
        return self._sweep(sum(size for _, size, _ in self._files()) // 2)

    def _sweep(self, bytes_max: int) -> bool:
        with self._sweeping:
            self._written_bytes = 0
            removed = 0
            try:
                self._clear_left_behind()
                found = sorted(self._files())
                total = sum(size for _, size, _ in found)
                left = bytes_max * SWEEP_TO if total > bytes_max else total
                for _, size, path in found:
                    if total <= left:
                        break
                    path.unlink(missing_ok=True)
                    self._let_go(path)
                    total -= size
                    removed += 1
            except OSError as error:
                logger.warning("sweep_failed", error=error.strerror, directory=str(self._directory))
                return removed > 0
        if removed:
            logger.info("packs_swept", removed=removed, left_bytes=total)
        return removed > 0

    def _clear_left_behind(self) -> None:
        """Remove what a process that was killed left half done; readers of such a file keep it."""
        before = time.time() - LEFT_BEHIND_SECONDS
        for file in self._tmp.iterdir():
            with suppress(FileNotFoundError):
                if file.stat().st_mtime < before:
                    file.unlink()

    def _files(self) -> list[tuple[float, int, Path]]:
        """Return each pack's time of last use, its size and its path."""
        found = []
        for path in self._directory.glob("[0-9a-f][0-9a-f]/*"):
            with suppress(FileNotFoundError):  # another process sweeps too
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found

    def _path(self, key: PackKey) -> Path:
        return self._directory / key[:2] / key


def _checked(view: memoryview) -> int | None:
    """Return the length of the pack in a file, or `None` when the file is not as it was written."""
    if len(view) < _TRAILER.size:
        return None
    magic, size, pack_bytes, crc = _TRAILER.unpack(view[-_TRAILER.size :])
    framed = view[: -_TRAILER.size]
    if magic != _MAGIC or size != len(framed) or zlib.crc32(framed) != crc:
        return None
    return int(pack_bytes)


def _whats_wrong(path: Path, on_read: OnRead) -> str | None:
    """Return what is wrong with a file; `None` for nothing, or when it is gone."""
    crc = 0
    try:
        with path.open("rb", buffering=0) as file:
            left = os.fstat(file.fileno()).st_size - _TRAILER.size
            if left < 0:
                return "it is cut off"
            size, trailer = left, b""
            for piece in in_slices(file):
                content = piece[:left]
                crc = zlib.crc32(content, crc)
                left -= len(content)
                trailer += piece[len(content) :]
                on_read(len(piece))
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"it can't be read: {error.strerror}"
    if len(trailer) != _TRAILER.size:
        return "it is cut off"
    magic, length, _, expected = _TRAILER.unpack(trailer)
    is_right = (magic, length, expected) == (_MAGIC, size, crc)
    return None if is_right else "its checksum is not right"


def _crc_of(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(_CRC_STEP_BYTES):
            crc = zlib.crc32(piece, crc)
    return crc
