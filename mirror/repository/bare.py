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
from dulwich.repo import Repo

from mirror.durable import fsync_directory
from mirror.errors import LocalError, ProtocolError
from mirror.repository.graph import CommitGraph
from mirror.repository.leftovers import QUARANTINE_PREFIX, clear_leftovers
from mirror.repository.objects import ObjectSource
from mirror.wire.names import ObjectId, Ref, RefName, object_id, ref_name
from mirror.wire.ref_table import Chunk, RefTable, packed_lines, parse_packed_lines

KEPT_PREFIX: Final = b"refs/git-mirror/kept/"
"""Ours alone: never taken from an upstream, never advertised."""

_PACKED_REFS_HEADER: Final = b"# pack-refs with: peeled fully-peeled sorted \n"
_CONFIRMED: Final = "git-mirror-confirmed"  # an empty file: its time is what counts

_Identity = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class StoredRefs:
    """What the refs on disk say.

    Attributes:
        refs: The mirrored refs, by name; what is read from disk is a `RefTable`.
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

    def source(self) -> ObjectSource:
        """Return what was received and indexed, with the repository's objects behind it.

        Raises:
            LocalError: A pack can't be read.
        """
        return ObjectSource(self.objects, behind=self.repository.source)

    def migrate(self) -> None:
        """Move the indexed packs into the repository, durably: all of them or none.

        An index goes last: it makes its pack visible. A pack that is there already stays as it is,
        for it may be read at this moment; dulwich names packs by the objects in them, not by their
        bytes.

        Raises:
            LocalError: They could not be moved.
        """
        target = self.repository.objects / "pack"
        moved: list[Path] = []
        try:
            for index in sorted((self.objects / "pack").glob("pack-*.idx")):
                if all(
                    (target / index.name).with_suffix(end).exists() for end in (".pack", ".idx")
                ):
                    continue
                for end in (".pack", ".rev", ".idx"):
                    file = index.with_suffix(end)
                    if file.exists():
                        file.rename(target / file.name)
                        moved.append(target / file.name)
            fsync_directory(target)
        except OSError as error:
            for file in reversed(moved):
                file.unlink(missing_ok=True)
            raise LocalError(f"can't add a pack to {target}: {error.strerror}") from error
        self.repository.source.rescan()


class BareRepository:
    """A bare repository on disk. Objects may be read from any thread; refs have one writer."""

    def __init__(self, path: Path, source: ObjectSource, upstream_url: str) -> None:
        self.path = path
        self.objects = path / "objects"
        self.upstream_url = upstream_url
        self.source = source
        self.graph = CommitGraph(source, index=self.objects / "info" / "commit-graph")
        self._packed_refs: tuple[_Identity, RefTable, Mapping[ObjectId, int]] | None = None
        self.confirmed_before = _modified_at(path / _CONFIRMED)
        """When the upstream had confirmed the refs, as far as was known when this was opened."""

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
        url = upstream_url_of(path)
        try:
            clear_leftovers(path)
        except OSError as error:
            raise LocalError(f"{path} can't be tidied up: {error}") from error
        return cls(path, ObjectSource(path / "objects"), url)

    @classmethod
    def open_beside(cls, path: Path) -> Self:
        """Open the repository at `path` to read it, while another process writes to it.

        What looks like a leftover may be that process's work of this moment, and stays.

        Raises:
            LocalError: It is not a repository that can be read.
        """
        return cls(path, ObjectSource(path / "objects"), upstream_url_of(path))

    def close(self) -> None:
        """Release the mapped packs."""
        self.source.close()

    # --- refs ----------------------------------------------------------------------------------

    def read_refs(self) -> StoredRefs:
        """Read all refs from disk.

        Raises:
            LocalError: They can't be read or are damaged.
        """
        try:
            head = (self.path / "HEAD").read_bytes().strip()
            refs, kept = self._read_packed_refs()
            if head.startswith(b"ref: "):
                return StoredRefs(refs, ref_name(head.removeprefix(b"ref: ").strip()), None, kept)
            return StoredRefs(refs, None, object_id(head), kept)
        except (OSError, ValueError, ProtocolError) as error:
            raise LocalError(f"the refs of {self.path} can't be read: {error}") from error

    def write_refs(self, stored: StoredRefs) -> None:
        """Replace all refs, durably and in one step; HEAD, which names one of them, follows.

        Raises:
            LocalError: They could not be written; those on disk are as before.
        """
        refs = RefTable.of(stored.refs.values())
        kept = (
            Ref(RefName(b"%b%d/%b" % (KEPT_PREFIX, until, oid)), oid)
            for oid, until in stored.kept.items()
        )
        table = refs.replace({ref.name: ref for ref in kept})
        lines = (packed_lines(chunk.lines) for chunk in table.chunks)
        if stored.head_target is not None:
            head = b"ref: %b\n" % stored.head_target
        else:
            head = (stored.head or b"ref: refs/heads/main") + b"\n"
        contents = {"packed-refs": b"".join((_PACKED_REFS_HEADER, *lines))}
        try:
            if (self.path / "HEAD").read_bytes() != head:
                contents["HEAD"] = head
            # All that a full disk can spoil comes before the first of them is replaced.
            for name, content in contents.items():
                _write_durably(self.path / f"{name}.tmp", content)
            for name in contents:
                (self.path / f"{name}.tmp").rename(self.path / name)
                fsync_directory(self.path)
            self._packed_refs = (_identity(self.path / "packed-refs"), refs, dict(stored.kept))
        except OSError as error:
            raise LocalError(f"can't write the refs of {self.path}: {error.strerror}") from error

    def note_confirmed(self, at: float) -> None:
        """Keep for the next start when the upstream confirmed the refs (seconds since the epoch).

        A hint for people: lost in a crash, and not written where the disk has no room.
        """
        with suppress(OSError):
            (self.path / _CONFIRMED).touch()
            os.utime(self.path / _CONFIRMED, (at, at))

    def _read_packed_refs(self) -> tuple[RefTable, Mapping[ObjectId, int]]:
        """Return the mirrored refs and the kept tips; of a file that is known, without reading."""
        path = self.path / "packed-refs"
        identity = _identity(path)
        if self._packed_refs is None or self._packed_refs[0] != identity:
            content = path.read_bytes()
            start = content.index(b"\n") + 1 if content.startswith(b"#") else 0
            table = RefTable(parse_packed_lines(content[start:]))
            ours = [ref for lines in table.lines_with(KEPT_PREFIX) for ref in Chunk(lines).refs()]
            kept = {
                ref.oid: int(ref.name.removeprefix(KEPT_PREFIX).partition(b"/")[0]) for ref in ours
            }
            refs = table.replace(dict.fromkeys(ref.name for ref in ours))
            self._packed_refs = (identity, refs, kept)
        return self._packed_refs[1:]

    # --- objects -------------------------------------------------------------------------------

    @contextmanager
    def quarantine(self) -> Iterator[Quarantine]:
        """Make a quarantine; what is still in it at the end is removed.

        Raises:
            LocalError: It can't be made.
        """
        objects = self.objects / (QUARANTINE_PREFIX + secrets.token_hex(6))
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


def _identity(path: Path) -> _Identity:
    """Return what tells a file from any other that was or will be in its place."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def upstream_url_of(path: Path) -> str:
    """Return what the repository at `path` mirrors.

    Raises:
        LocalError: It is not a mirror, or can't be read.
    """
    try:
        config = ConfigFile.from_path(str(path / "config"))
        return config.get((b"remote", b"origin"), b"url").decode()
    except (OSError, KeyError, ValueError) as error:
        raise LocalError(f"{path} is not a mirror: {error}") from error


def _modified_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
