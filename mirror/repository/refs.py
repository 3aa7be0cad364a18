"""The refs of a bare mirror on disk: two files of them, and HEAD, which is one of them.

Refs live in `packed-refs` alone, which is replaced as a whole, so that a reader of the directory
(git itself included) sees either all of a push or none of it.

Tips that a force-push or a deletion took away are kept under `refs/git-mirror/kept/<until>/<id>`
(seconds since the epoch), in the same file and thus the same atomic step.

`git-mirror-refs` is a second copy of the refs, written in the same step and before `packed-refs`,
so that it never is older than what was published: it is read where `packed-refs` is damaged.

How the files are written is `refs_file`'s.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mirror.durable import fsync_directory, write_durably
from mirror.errors import Damaged, LocalError, ProtocolError
from mirror.repository.integrity import Damage, Kind
from mirror.repository.objects import Identity, identity
from mirror.repository.refs_file import (
    encode_refs,
    head_content,
    parse_head,
    parse_refs,
    upstream_mark,
)
from mirror.wire.names import ObjectId, Ref, RefName
from mirror.wire.ref_table import Chunk, RefTable, packed_lines, parse_packed_lines

KEPT_PREFIX: Final = b"refs/git-mirror/kept/"
"""Ours alone: never taken from an upstream, never advertised."""

_REFS: Final = "packed-refs"
_COPY: Final = "git-mirror-refs"


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


class RefFiles:
    """The files with the refs of one repository. They have one writer."""

    def __init__(self, path: Path, upstream_url: str) -> None:
        self.path = path
        self.upstream_url = upstream_url
        self._packed_refs: tuple[Identity | None, StoredRefs] | None = None
        self._kept_table: tuple[Mapping[ObjectId, int], RefTable] = ({}, RefTable())

    def begin(self) -> None:
        """Write them for a repository that has a HEAD, and no refs yet.

        Raises:
            OSError: They can't be written.
        """
        head = (self.path / "HEAD").read_bytes()
        refs = encode_refs(b"", upstream=self.upstream_url, head=head)
        for name in (_COPY, _REFS):
            (self.path / name).write_bytes(refs)

    def read(self) -> StoredRefs:
        """Read all refs from disk; where they are damaged, from their copy.

        Raises:
            Damaged: Both are not what was written.
            LocalError: They can't be read.
        """
        now = _identity(self.path / _REFS)
        if self._packed_refs is None or self._packed_refs[0] != now:
            try:
                self._packed_refs = (now, self._read_file(_REFS))
            except LocalError:
                try:
                    self._packed_refs = (now, self._read_file(_COPY))
                except LocalError:
                    self._packed_refs = None
                if self._packed_refs is None:
                    raise
        return self._packed_refs[1]

    def _read_file(self, name: str) -> StoredRefs:
        """Read one of the files of refs.

        Raises:
            Damaged: It is not what was written.
            LocalError: It can't be read.
        """
        try:
            return self._parse_refs((self.path / name).read_bytes())
        except OSError as error:
            raise LocalError(f"the refs of {self.path} can't be read: {error}") from error
        except (ValueError, ProtocolError) as error:
            raise Damaged(f"the refs of {self.path} are damaged: {error}") from error

    def write(self, stored: StoredRefs) -> None:
        """Replace all refs, durably and in one step; HEAD, which names one of them, follows.

        Raises:
            LocalError: They could not be written; those on disk are as before.
        """
        refs = RefTable.of(stored.refs.values())
        lines = (packed_lines(chunk.lines) for chunk in self._with_kept(refs, stored.kept))
        head = head_content(stored.head_target, stored.head)
        content = encode_refs(b"".join(lines), upstream=self.upstream_url, head=head)
        # The copy first: whatever a crash leaves of this, it is not older than what is served. Both
        # names are durable before anything is published.
        contents = {_COPY: content, _REFS: content}
        try:
            if not (self.path / "HEAD").exists() or (self.path / "HEAD").read_bytes() != head:
                contents["HEAD"] = head
            # All that a full disk can spoil comes before the first of them is replaced.
            for name, content in contents.items():
                write_durably(self.path / f"{name}.tmp", content)
            for name in contents:
                (self.path / f"{name}.tmp").rename(self.path / name)
                if name != _COPY:
                    fsync_directory(self.path)
            written = StoredRefs(refs, *parse_head(head), dict(stored.kept))
            self._packed_refs = (identity(self.path / _REFS), written)
        except OSError as error:
            for name in contents:  # a full disk needs the room
                with suppress(OSError):
                    (self.path / f"{name}.tmp").unlink(missing_ok=True)
            raise LocalError(f"can't write the refs of {self.path}: {error.strerror}") from error

    def _with_kept(self, refs: RefTable, kept: Mapping[ObjectId, int]) -> tuple[Chunk, ...]:
        """Return all lines in order; of thousands of kept tips only those that changed are new."""
        known, table = self._kept_table
        changes: dict[RefName, Ref | None] = {
            _kept_name(oid, until): None for oid, until in known.items() if kept.get(oid) != until
        }
        for oid, until in kept.items():
            if known.get(oid) != until:
                name = _kept_name(oid, until)
                changes[name] = Ref(name, oid)
        table = table.replace(changes)
        self._kept_table = (dict(kept), table)
        if not refs.chunks or refs.chunks[0].first > KEPT_PREFIX:
            return (*table.chunks, *refs.chunks)
        return refs.replace({ref.name: ref for ref in table.values()}).chunks

    def _parse_refs(self, content: bytes) -> StoredRefs:
        """Return what a file of refs says.

        Raises:
            ValueError: It is damaged, or of another upstream.
            ProtocolError: It names what can't be a ref.
            OSError: It has no checksum, and the file HEAD can't be read.
        """
        file = parse_refs(content)
        if file.upstream not in (None, upstream_mark(self.upstream_url)):
            raise ValueError("they are of another upstream")
        head = file.head if file.head is not None else (self.path / "HEAD").read_bytes()
        table = RefTable(parse_packed_lines(file.lines))
        ours = [ref for lines in table.lines_with(KEPT_PREFIX) for ref in Chunk(lines).refs()]
        kept = {ref.oid: int(ref.name.removeprefix(KEPT_PREFIX).partition(b"/")[0]) for ref in ours}
        refs = table.replace(dict.fromkeys(ref.name for ref in ours))
        return StoredRefs(refs, *parse_head(head), kept)

    def write_known(self) -> None:
        """Write the refs that were read or written last, in the place of damaged ones.

        Raises:
            Damaged: None were.
            LocalError: They could not be written.
        """
        if self._packed_refs is None:
            raise Damaged(f"the refs of {self.path} are damaged")
        self.write(self._packed_refs[1])

    def check(self) -> list[Damage]:
        """Read the files and return what is damaged. Blocking; from any thread."""
        found: list[Damage] = []
        try:
            # Not what is in memory, and not by way of it: that may be right.
            parsed = self._parse_refs((self.path / _REFS).read_bytes())
            head = head_content(parsed.head_target, parsed.head)
            if (self.path / "HEAD").read_bytes() != head:
                found.append(Damage(Kind.HEAD, self.path / "HEAD", "it is not what was written"))
        except (OSError, ValueError, ProtocolError) as error:
            found.append(Damage(Kind.REFS, self.path / _REFS, str(error)))
        try:
            parse_refs((self.path / _COPY).read_bytes())
        except FileNotFoundError:
            pass  # made at the next start, or the next change
        except (OSError, ValueError) as error:
            found.append(Damage(Kind.REFS, self.path / _COPY, str(error)))
        return found

    def to_mend(self) -> tuple[dict[str, bytes], list[Damage]]:
        """Return what to write to mend them, by the names of the files, and what is damaged.

        A copy of the refs that is not there, or is of before a crash, is written, and no damage.

        Raises:
            Damaged: The refs are, and their copy.
            LocalError: They can't be read.
            OSError: Nor can their copy.
        """
        stored = self.read()
        head = head_content(stored.head_target, stored.head)
        anew: dict[str, bytes] = {}
        found: list[Damage] = []
        try:
            self._read_file(_REFS)
        except LocalError as error:
            anew[_REFS] = (self.path / _COPY).read_bytes()
            found.append(Damage(Kind.REFS, self.path / _REFS, str(error)))
        else:
            if (refs := (self.path / _REFS).read_bytes()) != _content(self.path / _COPY):
                anew[_COPY] = refs
        if _content(self.path / "HEAD") != head:
            anew["HEAD"] = head
            found.append(Damage(Kind.HEAD, self.path / "HEAD", "it is not what the refs say"))
        return anew, found


def _kept_name(oid: ObjectId, until: int) -> RefName:
    return RefName(b"%b%d/%b" % (KEPT_PREFIX, until, oid))


def _identity(path: Path) -> Identity | None:
    try:
        return identity(path)
    except OSError:
        return None


def _content(path: Path) -> bytes | None:
    """Return what is in a file; `None` where it can't be read."""
    try:
        return path.read_bytes()
    except OSError:
        return None
