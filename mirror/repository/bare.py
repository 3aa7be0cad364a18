"""One bare mirror on disk: an ordinary Git repository, opened with dulwich.

Refs live in `packed-refs` alone, which is replaced as a whole, so that a reader of the directory
(git itself included) sees either all of a push or none of it. Objects live in packs alone; new ones
are received in a quarantine below `objects/`, as git does it, and join the others only when all
that they reach is there. Each step is durable before the next: objects, then refs, then HEAD.

Tips that a force-push or a deletion took away are kept under `refs/git-mirror/kept/<until>/<id>`
(seconds since the epoch), in the same file and thus the same atomic step.
"""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from dulwich.config import ConfigFile, StackedConfig
from dulwich.object_store import DiskObjectStore
from dulwich.refs import read_packed_refs_with_peeled
from dulwich.repo import Repo

from mirror.errors import LocalError
from mirror.repository.graph import CommitGraph
from mirror.repository.objects import ObjectSource
from mirror.wire.names import ObjectId, Ref, RefName

KEPT_PREFIX: Final = b"refs/git-mirror/kept/"
"""Ours alone: never taken from an upstream, never advertised."""

_PACKED_REFS_HEADER: Final = b"# pack-refs with: peeled fully-peeled sorted \n"
_QUARANTINE_PREFIX: Final = "tmp_objdir-incoming-"  # git's own name for it: its gc knows it


@dataclass(frozen=True, slots=True)
class StoredRefs:
    """What the refs on disk say.

    Attributes:
        refs: The mirrored refs, by name.
        head_target: The branch that HEAD names; `None` when HEAD is detached.
        head: The id of a detached HEAD; `None` otherwise.
        kept: Old tips and until when (seconds since the epoch) they are kept.
    """

    refs: Mapping[RefName, Ref]
    head_target: RefName | None
    head: ObjectId | None = None
    kept: Mapping[ObjectId, int] = field(default_factory=dict)


class Quarantine:
    """A place where a pack is received and checked before its objects count as the repository's."""

    def __init__(self, repository: "BareRepository", objects: Path) -> None:
        self.repository = repository
        self.objects = objects
        self.received = objects / "received.pack"
        """Where to write the pack as it comes from the upstream."""

    def migrate(self) -> None:
        """Move the indexed packs into the repository, durably.

        An index goes last: it makes its pack visible.
        """
        target = self.repository.objects / "pack"
        order = {".idx": 1}
        files = sorted(
            (self.objects / "pack").iterdir(), key=lambda file: order.get(file.suffix, 0)
        )
        for file in files:
            if file.name.startswith("pack-") and file.suffix in (".pack", ".rev", ".idx"):
                file.rename(target / file.name)
        fsync_directory(target)


class BareRepository:
    """A bare repository on disk. Objects may be read from any thread; refs have one writer."""

    def __init__(self, path: Path, store: DiskObjectStore, upstream_url: str) -> None:
        self.path = path
        self.objects = path / "objects"
        self.upstream_url = upstream_url
        self.source = ObjectSource(store)
        self.graph = CommitGraph(self.source)
        self._store = store

    @classmethod
    def create(cls, path: Path, *, upstream_url: str) -> Self:
        """Make a new, empty repository at `path`, whose parents are made too.

        Raises:
            LocalError: The directory can't be made.
        """
        try:
            path.mkdir(parents=True, mode=0o750)
            with Repo.init_bare(path, default_branch=b"main", config=StackedConfig([])) as repo:
                config = repo.get_config()
                config.set((b"core",), b"logAllRefUpdates", b"false")
                config.set((b"gc",), b"auto", b"0")
                config.set((b"remote", b"origin"), b"url", upstream_url.encode())
                config.set((b"remote", b"origin"), b"fetch", b"+refs/*:refs/*")
                config.set((b"remote", b"origin"), b"mirror", b"true")
                config.write_to_path()
            (path / "packed-refs").write_bytes(_PACKED_REFS_HEADER)
        except OSError as error:
            raise LocalError(f"can't create the repository {path}: {error.strerror}") from error
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the repository at `path` and clear away what a crash may have left.

        Raises:
            LocalError: It is not a repository that can be read.
        """
        try:
            config = ConfigFile.from_path(str(path / "config"))
            url = config.get((b"remote", b"origin"), b"url").decode()
        except (OSError, KeyError, ValueError) as error:
            raise LocalError(f"{path} is not a mirror: {error}") from error
        for leftover in (path / "objects").glob(_QUARANTINE_PREFIX + "*"):
            shutil.rmtree(leftover, ignore_errors=True)
        for leftover in (*path.glob("*.tmp"), *path.glob("*.lock")):
            leftover.unlink(missing_ok=True)
        store = DiskObjectStore(path / "objects", fsync_object_files=True)
        return cls(path, store, url)

    def close(self) -> None:
        """Release the mapped packs."""
        self._store.close()

    # --- refs ----------------------------------------------------------------------------------

    def read_refs(self) -> StoredRefs:
        """Read all refs from disk.

        Raises:
            LocalError: They can't be read or are damaged.
        """
        try:
            head = (self.path / "HEAD").read_bytes().strip()
            with (self.path / "packed-refs").open("rb") as file:
                stored = [
                    Ref(RefName(name), ObjectId(oid), ObjectId(peeled) if peeled else None)
                    for oid, name, peeled in read_packed_refs_with_peeled(file)
                ]
        except (OSError, ValueError) as error:
            raise LocalError(f"the refs of {self.path} can't be read: {error}") from error
        kept = {}
        refs = {}
        for ref in stored:
            if ref.name.startswith(KEPT_PREFIX):
                kept[ref.oid] = int(ref.name.split(b"/")[3])
            else:
                refs[ref.name] = ref
        if head.startswith(b"ref: "):
            return StoredRefs(refs, RefName(head.removeprefix(b"ref: ")), None, kept)
        return StoredRefs(refs, None, ObjectId(head), kept)

    def write_refs(self, stored: StoredRefs) -> None:
        """Replace all refs, durably and in one step; HEAD, which names one of them, follows.

        Raises:
            LocalError: They could not be written; those on disk are as before.
        """
        kept = (
            Ref(RefName(b"%b%d/%b" % (KEPT_PREFIX, until, oid)), oid)
            for oid, until in stored.kept.items()
        )
        refs = sorted((*stored.refs.values(), *kept), key=lambda ref: ref.name)
        lines = [_PACKED_REFS_HEADER]
        for ref in refs:
            lines.append(b"%b %b\n" % (ref.oid, ref.name))
            if ref.peeled is not None:
                lines.append(b"^%b\n" % ref.peeled)
        if stored.head_target is not None:
            head = b"ref: %b\n" % stored.head_target
        else:
            head = (stored.head or b"ref: refs/heads/main") + b"\n"
        try:
            _replace(self.path / "packed-refs", b"".join(lines))
            if (self.path / "HEAD").read_bytes() != head:
                _replace(self.path / "HEAD", head)
        except OSError as error:
            raise LocalError(f"can't write the refs of {self.path}: {error.strerror}") from error

    # --- objects -------------------------------------------------------------------------------

    @contextmanager
    def quarantine(self) -> Iterator[Quarantine]:
        """Make a quarantine; what is still in it at the end is removed.

        Raises:
            LocalError: It can't be made.
        """
        objects = self.objects / (_QUARANTINE_PREFIX + secrets.token_hex(6))
        try:
            try:
                (objects / "pack").mkdir(parents=True)
                (objects / "info").mkdir()
                (objects / "info" / "alternates").write_bytes(os.fsencode(self.objects) + b"\n")
            except OSError as error:
                message = f"can't receive objects in {self.objects}: {error.strerror}"
                raise LocalError(message) from error
            yield Quarantine(self, objects)
        finally:
            shutil.rmtree(objects, ignore_errors=True)

    def pack_files(self) -> list[Path]:
        """Return the packs on disk."""
        with suppress(FileNotFoundError):
            return sorted((self.objects / "pack").glob("pack-*.pack"))
        return []

    def bytes_on_disk(self) -> int:
        """Return the size of the packs and their indexes."""
        total = 0
        for file in (self.objects / "pack").iterdir():
            with suppress(FileNotFoundError):  # a repack may end meanwhile
                total += file.stat().st_size
        return total

    def make_durable(self) -> None:
        """Flush every file and directory of a repository that was made from scratch."""
        for directory, _, files in os.walk(self.path):
            for name in files:
                _fsync(Path(directory, name))
            fsync_directory(Path(directory))


def _replace(path: Path, content: bytes) -> None:
    """Replace a file so that after a crash either the old or the new content is there, whole."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    fsync_directory(path.parent)


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def fsync_directory(path: Path) -> None:
    """Make what was created, renamed or removed in a directory durable."""
    """Make what was created, renamed or removed in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
