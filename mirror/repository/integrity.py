"""Whether the files of a repository are still what was written: their checksums, read from disk.

A pack, its index (.idx) and its reverse index (.rev), a multi-pack index with its bitmap, and a
commit-graph each end with the SHA-1 of all that is before (gitformat-pack(5)). What was whole when
it was received is whole as long as that holds, so this says all that git-fsck(1) would, reads each
byte once, and needs no git. The refs carry a checksum of our own: `mirror.repository.refs_file`.

Read only: it may look at a repository that another process works on. Files come and go meanwhile;
one that is gone is not damaged. Blocking work; SHA-1 and reading leave the interpreter to others.
"""

import errno
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from mirror.errors import Damaged
from mirror.repository.objects import Identity, identity

READ_BYTES: Final = 1 << 20

STEP_BYTES: Final = 64 << 10
"""What is read, and dropped from the page cache again, where it begins with what is not there."""

CHECKED_SECONDS: Final = 60.0
"""What was read whole and found right so lately counts as right, while the file is the same: it is
in the page cache still. So a busy repository is read once a minute at most."""

_CHECKSUM_BYTES: Final = 20

OnRead = Callable[[int], None]
"""Called with the bytes that were read, after each slice; it may sleep, or raise to end it all."""


class Kind(StrEnum):
    """What was found damaged: a label of the metrics."""

    PACK = "pack"
    INDEX = "index"
    AUXILIARY = "auxiliary"
    REFS = "refs"
    HEAD = "head"
    CONFIG = "config"
    OBJECTS = "objects"
    CACHED_PACK = "cached_pack"
    BUNDLE = "bundle"
    LFS_OBJECT = "lfs_object"
    TOKENS = "tokens"
    RELAYS = "relays"


_KINDS: Final = {
    ".pack": Kind.PACK,
    ".idx": Kind.INDEX,
    ".rev": Kind.AUXILIARY,
    ".bitmap": Kind.AUXILIARY,
    ".mtimes": Kind.AUXILIARY,
}
_GRAPH: Final = "commit-graph"
_MULTI_PACK_INDEX: Final = "multi-pack-index"


@dataclass(frozen=True, slots=True)
class Damage:
    """What is wrong with one file."""

    kind: Kind
    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def pass_over(_: int) -> None:
    """Be the `OnRead` of who does not want to know."""


def checksummed_files(objects: Path) -> Iterator[tuple[Kind, Path]]:
    """Yield the files of an object directory that carry their checksum, small ones first."""
    packs: list[Path] = []
    for file in sorted((objects / "pack").glob("*")):
        if file.name.startswith("pack-") and file.suffix in _KINDS:
            if file.suffix == ".pack":
                packs.append(file)
            else:
                yield _KINDS[file.suffix], file
        elif file.name.startswith(_MULTI_PACK_INDEX) and not file.name.endswith(".lock"):
            yield Kind.AUXILIARY, file
    info = objects / "info"
    graphs = (info / _GRAPH, *sorted((info / "commit-graphs").glob("graph-*.graph")))
    yield from ((Kind.AUXILIARY, graph) for graph in graphs if graph.exists())
    yield from ((Kind.PACK, pack) for pack in packs)


def check_file(
    path: Path, on_read: OnRead = pass_over, *, leaves_cache: bool = False
) -> str | None:
    """Return what is wrong with a file that ends with its SHA-1; `None` for nothing, or gone.

    Args:
        path: The file.
        on_read: Told of what is read.
        leaves_cache: Whether the page cache is to be as it was before: see `in_slices`.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    try:
        with path.open("rb", buffering=0) as file:
            left = os.fstat(file.fileno()).st_size - _CHECKSUM_BYTES
            if left < 0:
                return "it is cut off"
            end = b""
            for piece in in_slices(file, leaves_cache=leaves_cache):
                content = piece[:left]
                digest.update(content)
                left -= len(content)
                end += piece[len(content) :]
                on_read(len(piece))
            if left > 0:
                return "it is cut off"
            if end != digest.digest():
                return "its checksum is not right"
    except FileNotFoundError:
        return None
    except OSError as error:  # a disk that can't read it: as good as damaged
        return f"it can't be read: {error.strerror}"
    return None


def in_slices(file: io.FileIO, *, leaves_cache: bool = True) -> Iterator[memoryview]:
    """Yield what is in a file, in slices that hold until the next one is asked for. Blocking.

    With `leaves_cache` what was not in the page cache is dropped from it again once it was read:
    who reads everything now and then must not push out what others read all the time, and is to see
    the disk itself the next time. What was there stays there. Which it is, the kernel says by
    reading at first only what needs no disk; and it is told not to read ahead, or else what comes
    next would seem to have been there.

    Raises:
        OSError: It can't be read.
    """
    descriptor, offset = file.fileno(), 0
    view = memoryview(bytearray(READ_BYTES))
    if leaves_cache:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    while True:
        filled = 0
        while filled < READ_BYTES:
            step = view[filled : filled + STEP_BYTES] if leaves_cache else view[filled:]
            count = _read(descriptor, step, offset + filled, leaves_cache=leaves_cache)
            if not count:
                break
            filled += count
        if not filled:
            return
        yield view[:filled]
        offset += filled


def _read(descriptor: int, view: memoryview, offset: int, *, leaves_cache: bool) -> int:
    """Fill `view` as far as the file goes; drop what was not in the page cache."""
    if not leaves_cache:
        return os.preadv(descriptor, [view], offset)
    count = 0
    try:
        count = os.preadv(descriptor, [view], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        pass  # it begins with what is not there
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        # A file system that does not tell: what is hot is to stay.
        return os.preadv(descriptor, [view], offset)
    while count < len(view) and (more := os.preadv(descriptor, [view[count:]], offset + count)):
        os.posix_fadvise(descriptor, offset + count, more, os.POSIX_FADV_DONTNEED)
        count += more
    return count


def check_pairs(objects: Path) -> Iterator[Damage]:
    """Yield the indexes that are of another pack than the one beside them."""
    for index in sorted((objects / "pack").glob("pack-*.idx")):
        pack = index.with_suffix(".pack")
        try:
            ends = [
                checksum(pack),
                _tail(index, 2 * _CHECKSUM_BYTES)[:_CHECKSUM_BYTES],
            ]
        except OSError:  # half of it is gone, as in the middle of a repack: it is no pack any more
            continue
        if ends[0] != ends[1]:
            yield Damage(Kind.INDEX, index, "it is of another pack")


def checksum(path: Path) -> bytes:
    """Return the checksum at the end of a file.

    Raises:
        OSError: It can't be read.
    """
    return _tail(path, _CHECKSUM_BYTES)


def _tail(path: Path, count: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - count))
        return file.read(count)


class Soundness:
    """Whether the object files of one repository are sound; from any thread.

    Attributes:
        damage: What was found wrong at the last look, by the file's name.
    """

    def __init__(
        self,
        objects: Path,
        *,
        leaves_cache: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Know nothing yet.

        Args:
            objects: The object directory.
            leaves_cache: Whether looking is to leave the page cache as it is.
            clock: Monotonic seconds.
        """
        self._objects = objects
        self._leaves_cache = leaves_cache
        self._clock = clock
        self._checking = threading.Lock()
        self._sound: dict[Path, tuple[Identity, float]] = {}
        self.damage: dict[str, Damage] = {}

    def check(self, on_read: OnRead = pass_over, *, since: float = CHECKED_SECONDS) -> list[Damage]:
        """Read what was not found right lately; returns all that is wrong. Blocking.

        Who comes while another one reads waits for that, and need not read it again.

        Args:
            on_read: Told of what is read.
            since: How old a finding may be, in seconds.
        """
        with self._checking:
            sound: dict[Path, tuple[Identity, float]] = {}
            damage: dict[str, Damage] = {}
            for kind, path in checksummed_files(self._objects):
                try:
                    now = identity(path)
                except OSError:
                    continue  # gone, as by a repack
                known = self._sound.get(path)
                if known is not None and known[0] == now and self._clock() - known[1] < since:
                    sound[path] = known
                    continue
                at = self._clock()
                reason = check_file(path, on_read, leaves_cache=self._leaves_cache)
                if reason is None:
                    sound[path] = (now, at)
                elif path.exists():
                    damage[path.name] = Damage(kind, path, reason)
            for one in check_pairs(self._objects):
                # Of a damaged pack, the index is not to blame.
                if one.path.with_suffix(".pack").name not in damage:
                    damage.setdefault(one.path.name, one)
            self._sound, self.damage = sound, damage
            return list(damage.values())

    def demand(self) -> None:
        """Check what was not lately; blocking.

        Raises:
            Damaged: Something is wrong.
        """
        found = self.check(since=CHECKED_SECONDS)
        if found:
            raise Damaged(f"the mirror is damaged, and is being mended: {found[0]}")
