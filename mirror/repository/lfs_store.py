"""LFS objects on disk, for all repositories, and which repository may hand out which.

objects/<2 digits>/<2 digits>/<oid>      an object: whole, verified, never changed
tmp/<oid>-<size>[-<n>]                   one on its way, followed by readers; cleared at the start
grants/<name>.git/<upstream>/<2>/<oid>   a symbolic link whose text is the object's size

A grant says that the upstream of a repository has offered the object to us, with the credentials of
that repository: who reads another repository can't get it by knowing its id. A link is made and
read whole, in one call. Its own time is when the upstream last said so; it is bound to the
upstream's URL, and of no use to another one.

What was used least recently goes first; the time of the last use is the file's mtime, put forward
at most once in `TOUCH_SECONDS`. Only one process downloads and removes; others read. While one
takes over from another, both do; what each writes is its own. All methods block.
"""

import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import structlog

from mirror.durable import fsync_directory, make_directories
from mirror.errors import LocalError, UpstreamUnavailable
from mirror.repository.integrity import Damage, Kind, OnRead, in_slices
from mirror.space import Room
from mirror.wire.lfs import Pointer

TOUCH_SECONDS: Final = 60.0
_READ_BYTES: Final = 1 << 20
SWEEP_TO: Final = 0.9
"""A sweep goes on until so much of the limit is in use: it is not to come at every object."""

GRANT_SECONDS: Final = 24 * 3600.0
"""How long a grant is believed before the upstream is asked again, when it can be. Whoever removes
an object there waits no longer for its end here."""

PARTS_MAX: Final = 4
"""Processes that may download the same object: each upgrade leaves one to its last readers."""

logger = structlog.stdlib.get_logger()


class StoreFull(LocalError):
    """The object has no room: on the disk, or within the configured limit."""

    status = 507
    label = "lfs_store_full"


@dataclass(frozen=True, slots=True)
class Grant:
    """An upstream's word that a repository has an object; `confirmed_at` is since the epoch."""

    size: int
    confirmed_at: float

    def is_fresh(self, now: float) -> bool:
        """Tell whether the upstream need not be asked again."""
        return now - self.confirmed_at < GRANT_SECONDS


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of an object that a reader asks for."""

    grant: Grant | None
    is_stored: bool


class LfsStore:
    """The objects and the grants below one directory."""

    def __init__(self, directory: Path, *, bytes_max: int, room: Room | None = None) -> None:
        """Open the store.

        Args:
            directory: Where it is.
            bytes_max: The most that objects take, those on their way too.
            room: What they must leave free on the disk; `None` for nothing.
        """
        self._room = room
        self._directory = directory
        self._objects = directory / "objects"
        self._tmp = directory / "tmp"
        self._grants = directory / "grants"
        self.bytes_max = bytes_max
        self._stored_bytes = 0
        self._lock = threading.Lock()
        self._pruned_at = 0.0

    def prepare(self, *, clear: bool = True) -> None:
        """Make the directories, clear what was half done; for the process that downloads.

        Without `clear`, what is under way in a process that ends is left alone.

        Raises:
            LocalError: They can't be made.
        """
        try:
            if clear:
                shutil.rmtree(self._tmp, ignore_errors=True)
            for place in (self._objects, self._tmp, self._grants):
                place.mkdir(parents=True, exist_ok=True, mode=0o750)
        except OSError as error:
            raise LocalError(f"can't use {self._directory}: {error.strerror}") from error
        with self._lock:
            self._sweep(self.bytes_max)

    @property
    def stored_bytes(self) -> int:
        """What the objects take, as the process that downloads knows."""
        return self._stored_bytes

    # --- grants --------------------------------------------------------------------------------

    def scope(self, name: str, upstream: str) -> Path:
        """Return where the grants of a repository are: as long as it has this upstream."""
        return self._grants / f"{name}.git" / hashlib.sha256(upstream.encode()).hexdigest()[:16]

    def forget(self, name: str) -> None:
        """Forget the grants of a repository, whatever its upstream was; blocking."""
        shutil.rmtree(self._grants / f"{name}.git", ignore_errors=True)

    def granted(self, scope: Path, oid: str) -> Grant | None:
        """Return the grant of an object, if there is one."""
        path = scope / oid[:2] / oid
        try:
            return Grant(int(path.readlink().name), path.lstat().st_mtime)
        except (OSError, ValueError):
            return None

    def grant(self, scope: Path, pointer: Pointer) -> None:
        """Note that the upstream offers an object, now.

        Raises:
            LocalError: The disk does not take it.
        """
        path = scope / pointer.oid[:2] / pointer.oid
        known = self.granted(scope, pointer.oid)
        try:
            if known is not None and known.size == pointer.size:
                with suppress(OSError):  # it is believed already; the upstream is asked again
                    os.utime(path, follow_symlinks=False)
                return
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            path.unlink(missing_ok=True)
            path.symlink_to(str(pointer.size))
        except OSError as error:
            raise StoreFull(f"can't keep a grant below {scope}: {error.strerror}") from error

    def revoke(self, scope: Path, oid: str) -> None:
        """Forget a grant."""
        with suppress(OSError):
            (scope / oid[:2] / oid).unlink()

    # --- objects -------------------------------------------------------------------------------

    def look(self, scope: Path, pointers: tuple[Pointer, ...]) -> dict[Pointer, Found]:
        """Return what is known of objects."""
        return {one: Found(self.granted(scope, one.oid), self.is_stored(one)) for one in pointers}

    def is_stored(self, pointer: Pointer) -> bool:
        """Tell whether an object is here, whole."""
        try:
            return self._path(pointer.oid).stat().st_size == pointer.size
        except OSError:
            return False

    def open(self, pointer: Pointer) -> IO[bytes] | None:
        """Open an object for reading, which counts as a use of it."""
        path = self._path(pointer.oid)
        try:
            file = path.open("rb", buffering=0)
        except OSError:
            return None
        status = os.fstat(file.fileno())
        if status.st_size != pointer.size:  # cut by somebody else; the next download replaces it
            file.close()
            return None
        if time.time() - status.st_mtime > TOUCH_SECONDS:
            with suppress(OSError):
                os.utime(path)
        return file

    def open_part(self, pointer: Pointer) -> IO[bytes] | None:
        """Open what is there of an object on its way; of several, what grew last."""
        found: list[tuple[int, Path]] = []
        for path in self._parts(pointer):
            with suppress(OSError):
                found.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(found, reverse=True):
            with suppress(OSError):
                return path.open("rb", buffering=0)
        return None

    def new_part(self, pointer: Pointer) -> "Part":
        """Begin an object. One at a time for each id, in each process.

        Raises:
            LocalError: The disk does not take it.
        """
        return Part(self, pointer, self._parts(pointer), self._path(pointer.oid))

    def added(self, size: int) -> None:
        """Note that an object was published."""
        with self._lock:
            self._stored_bytes += size

    def remove_damaged(self, pointer: Pointer) -> None:
        """Remove an object that is not what its id says; the next who asks has it fetched anew."""
        logger.error("lfs_object_damaged", oid=pointer.oid)
        with suppress(OSError):
            self._path(pointer.oid).unlink()

    def scrub(self, on_read: OnRead) -> Iterator[Damage]:
        """Read all objects; yield those that are not what their ids say, which are removed."""
        for _, size, path in list(self._files()):
            digest = hashlib.sha256()
            try:
                with path.open("rb", buffering=0) as file:
                    for piece in in_slices(file):
                        digest.update(piece)
                        on_read(len(piece))
            except FileNotFoundError:
                continue
            except OSError as error:
                reason = f"it can't be read: {error.strerror}"
            else:
                if digest.hexdigest() == path.name:
                    continue
                reason = "it is not what its id says"
            self.remove_damaged(Pointer(path.name, size))
            self.added(-size)
            yield Damage(Kind.LFS_OBJECT, path, reason)

    # --- room ----------------------------------------------------------------------------------

    def make_room(self, reserved: int) -> int:
        """Remove objects until `reserved` bytes fit the limit beside the rest; returns how many.

        Raises:
            StoreFull: The disk has no room for them.
        """
        removed = 0
        with self._lock:
            if self._stored_bytes + reserved > self.bytes_max:
                removed = self._sweep(self.bytes_max - reserved)
            lacking = 0 if self._room is None else self._room.lacking(reserved)
            if lacking:
                removed += self._sweep_off(lacking)
        if lacking and self._room is not None and self._room.lacking(reserved):
            raise StoreFull(
                "the mirror's disk has no room for an LFS object beside what limits.disk_reserve"
                " keeps free; make room there"
            )
        return removed

    def give(self, size: int) -> int:
        """Remove objects of that many bytes, if there are so many; returns of how many."""
        with self._lock:
            before = self._stored_bytes
            self._sweep_off(size)
            return before - self._stored_bytes

    def _sweep_off(self, size: int) -> int:
        return self._sweep(max(0, int((self._stored_bytes - size) / SWEEP_TO)))

    def count_again(self) -> None:
        """Count what is there, where another process has added to it; bring it below the limit."""
        with self._lock:
            self._sweep(self.bytes_max)

    def make_half_empty(self) -> int:
        """Remove half of the objects, as the disk is full; returns how many."""
        with self._lock:
            return self._sweep(sum(size for _, size, _ in self._files()) // 2)

    def _sweep(self, bytes_max: int) -> int:
        removed = 0
        try:
            found = sorted(self._files())
            total = sum(size for _, size, _ in found)
            left = bytes_max * SWEEP_TO if total > bytes_max else total
            for _, size, path in found:
                if total <= left:
                    break
                path.unlink(missing_ok=True)
                total -= size
                removed += 1
            self._stored_bytes = total
            self._prune()
        except OSError as error:
            logger.warning("lfs_sweep_failed", error=error.strerror, path=str(self._directory))
        if removed:
            logger.info("lfs_swept", removed=removed, left_bytes=self._stored_bytes)
        return removed

    def _prune(self) -> None:
        """Remove the grants that nothing needs: older than a day, and of no object here."""
        now = time.time()
        if now - self._pruned_at < GRANT_SECONDS:
            return
        self._pruned_at = now
        for directory, _, names in os.walk(self._grants):  # a link to nowhere counts as a file
            for path in (Path(directory) / name for name in names):
                with suppress(OSError):
                    is_old = now - path.lstat().st_mtime > GRANT_SECONDS
                    if is_old and not self._path(path.name).exists():
                        path.unlink()

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield each object's time of last use, its size and its path."""
        for path in self._objects.glob("*/*/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                yield status.st_mtime, status.st_size, path

    def _parts(self, pointer: Pointer) -> list[Path]:
        """Return where it may be on its way: while one process takes over from another, twice."""
        name = f"{pointer.oid}-{pointer.size}"
        return [self._tmp / (f"{name}-{k}" if k else name) for k in range(PARTS_MAX)]

    def _path(self, oid: str) -> Path:
        return self._objects / oid[:2] / oid[2:4] / oid


class Part:
    """An object on its way to the disk: verified as it is written, seen by nobody who must not.

    Its file only ever grows. It gets its name when all of it is there, right, and flushed.
    """

    def __init__(
        self, store: LfsStore, pointer: Pointer, paths: Sequence[Path], target: Path
    ) -> None:
        """Begin one at the first of `paths` where there is none; the last is made free."""
        self._store = store
        self._pointer = pointer
        self._target = target
        self._hash = hashlib.sha256()
        self.size = 0
        self._path, self._file = _created(paths)

    def write(self, data: bytes) -> None:
        """Add bytes.

        Raises:
            LocalError: The disk does not take them.
            UpstreamUnavailable: They are more than there should be.
        """
        if self.size + len(data) > self._pointer.size:
            raise _wrong(self._pointer, f"has more than {self._pointer.size} bytes")
        left = memoryview(data)
        while left:
            try:
                written = self._file.write(left)
            except OSError as error:
                is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
                if not is_full or not self._store.make_half_empty():
                    raise _refused(self._path, error) from error
            else:
                self._hash.update(left[:written])
                self.size += written
                left = left[written:]

    def publish(self) -> None:
        """Give the object its name.

        Raises:
            LocalError: The disk refuses.
            UpstreamUnavailable: It is not the object that its id says.
        """
        if self.size != self._pointer.size:
            raise _wrong(self._pointer, f"has {self.size} bytes instead of {self._pointer.size}")
        if self._hash.hexdigest() != self._pointer.oid:
            raise _wrong(self._pointer, "has another SHA-256")
        try:
            os.fsync(self._file.fileno())
            make_directories(self._target.parent)
            self._path.rename(self._target)
            self._file.close()
            fsync_directory(self._target.parent)
        except OSError as error:
            raise _refused(self._path, error) from error
        self._store.added(self.size)

    def abandon(self) -> None:
        """Remove what there is; nothing happens to one that was published."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._path.unlink()


def _created(paths: Sequence[Path]) -> tuple[Path, IO[bytes]]:
    """Make a file at the first path where there is none.

    Raises:
        LocalError: The disk does not take it.
    """
    *most, last = paths
    try:
        for path in most:
            with suppress(FileExistsError):
                return path, path.open("xb", buffering=0)
        last.unlink(missing_ok=True)  # who reads what was there before keeps that
        return last, last.open("xb", buffering=0)
    except OSError as error:
        raise _refused(last, error) from error


def _wrong(pointer: Pointer, what: str) -> UpstreamUnavailable:
    return UpstreamUnavailable(
        f"what the upstream sent for {pointer.oid} {what}; it was thrown away, try again"
    )


def _refused(path: Path, error: OSError) -> LocalError:
    return StoreFull(f"can't keep an LFS object in {path.parent}: {error.strerror}")
