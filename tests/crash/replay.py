"""What a power cut may leave on the disk, from the record of all calls.

Flushed bytes of a file stay; of what was written since, nothing, a part or all is there, or zeros
in its place. Names (what was made, renamed, removed) are one change each, a rename too. Which of
those survive that no flush has covered is one of two models:

* `Names.IN_ORDER`: all up to some moment, as on file systems with a journal (ext4, XFS, Btrfs),
  where any flush takes along all names changed before it.
* `Names.EACH`: any of them, each for itself, and only the flush of a directory makes its names
  durable: worse than any file system in common use.

Times, owners and modes are not followed.
"""

import enum
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.control import Call, Op


class Names(enum.StrEnum):
    """Which names survive that were not flushed."""

    IN_ORDER = "names in order"
    EACH = "each name for itself"


class Bytes(enum.StrEnum):
    """What becomes of bytes that were not flushed."""

    LOST = "bytes lost"
    TORN = "bytes torn"
    ZEROS = "zeros for bytes"
    ALL = "bytes there"


@dataclass(eq=False, slots=True)
class File:
    """A file; `changes` are offsets and bytes, or a new size, since it was last flushed."""

    durable: bytes = b""
    changes: list[tuple[int, bytes | None]] = field(default_factory=list)

    def after(self, fate: Bytes, chance: random.Random) -> bytes:
        """Return what is on the disk."""
        whole = _changed(self.durable, self.changes)
        if fate is Bytes.ALL or not self.changes:
            return whole
        if fate is Bytes.LOST:
            return self.durable
        if fate is Bytes.ZEROS:
            return self.durable[: len(whole)].ljust(len(whole), b"\0")
        kept = self.changes[: chance.randrange(len(self.changes)) + 1]
        at, data = kept[-1]
        if data is not None:
            kept[-1] = (at, data[: chance.randrange(len(data) + 1)])
        return _changed(self.durable, kept)

    def flush(self) -> None:
        self.durable, self.changes = _changed(self.durable, self.changes), []


@dataclass(eq=False, slots=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(eq=False, slots=True)
class Directory:
    """A directory as processes see it, and as far as its names are durable."""

    names: dict[str, "Node"] = field(default_factory=dict)
    durable: dict[str, "Node"] = field(default_factory=dict)


Node = File | Link | Directory
Change = list[tuple[Directory, str, Node | None]]


class Disk:
    """Takes calls in their order, and tells what a power cut now would leave."""

    def __init__(self, model: Names) -> None:
        self._model = model
        self._root = Directory()
        self._files: dict[int, File] = {}
        self._pending: list[Change] = []

    def load(self, root: Path) -> None:
        """Take what is on a real disk, all of it durable."""
        self._load(root, self._root)

    def _load(self, place: Path, into: Directory) -> None:
        for path in place.iterdir():
            node: Node
            if path.is_symlink():
                node = Link(str(path.readlink()))
            elif path.is_dir():
                node = Directory()
                self._load(path, node)
            else:
                node = self._files[path.stat().st_ino] = File(path.read_bytes())
            into.names[path.name] = into.durable[path.name] = node

    def take(self, calls: Iterable[Call]) -> None:
        """Do as they did."""
        for call in calls:
            self._take(call)

    def _take(self, call: Call) -> None:
        match call.op:
            case Op.CREATE:
                file = self._files[call.inode] = File()
                self._change(call.path, file)
            case Op.MKDIR:
                if call.path:  # the root is always there
                    self._change(call.path, Directory())
            case Op.SYMLINK:
                self._change(call.path, Link(call.to))
            case Op.WRITE:
                self._files[call.inode].changes.append((call.offset, call.data))
            case Op.TRUNCATE:
                self._files[call.inode].changes.append((call.offset, None))
            case Op.UNLINK | Op.RMDIR:
                self._change(call.path, None)
            case Op.LINK:
                self._change(call.to, self._find(call.path))
            case Op.RENAME:
                self._rename(call)
            case Op.FSYNC:
                self._flush(call)
            case Op.MAPPED | Op.UNKNOWN:
                pass

    def _parent(self, path: str) -> tuple[Directory, str]:
        *above, name = path.split("/")
        here = self._root
        for part in above:
            found = here.names[part]
            assert isinstance(found, Directory), path
            here = found
        return here, name

    def _find(self, path: str) -> Node | None:
        directory, name = self._parent(path)
        return directory.names.get(name)

    def _change(self, path: str, node: Node | None) -> None:
        self._do([(*self._parent(path), node)])

    def _rename(self, call: Call) -> None:
        node = self._find(call.path)
        assert node is not None, call
        self._do([(*self._parent(call.path), None), (*self._parent(call.to), node)])

    def _do(self, change: Change) -> None:
        for directory, name, node in change:
            _set(directory.names, name, node)
        self._pending.append(change)

    def _flush(self, call: Call) -> None:
        if not call.offset:
            self._files[call.inode].flush()
        if self._model is Names.IN_ORDER:
            self._commit(self._pending)
        elif call.offset:
            directory = self._find(call.path) if call.path else self._root
            touched = {
                (id(one), name)
                for change in self._pending
                for one, name, _ in change
                if one is directory
            }
            # A change brings those before it of the same names, in other directories as well.
            covered: list[Change] = []
            for change in reversed(self._pending):
                keys = {(id(one), name) for one, name, _ in change}
                if keys & touched:
                    touched |= keys
                    covered.insert(0, change)
            self._commit(covered)

    def _commit(self, changes: list[Change]) -> None:
        changes = list(changes)
        for change in changes:
            for directory, name, node in change:
                _set(directory.durable, name, node)
        self._pending = [one for one in self._pending if not any(one is c for c in changes)]

    def cut(self, place: Path, fate: Bytes, chance: random.Random) -> None:
        """Write what a power cut leaves into the directory `place`, made for it."""
        if self._model is Names.IN_ORDER:
            survivors = self._pending[: chance.randrange(len(self._pending) + 1)]
        else:
            survivors = [one for one in self._pending if chance.random() < 0.5]
        over: dict[int, dict[str, Node]] = {}
        for change in survivors:
            for directory, name, node in change:
                _set(over.setdefault(id(directory), dict(directory.durable)), name, node)
        place.mkdir(parents=True)
        self._write(self._root, place, over, fate, chance)

    def _write(
        self,
        directory: Directory,
        place: Path,
        over: dict[int, dict[str, Node]],
        fate: Bytes,
        chance: random.Random,
    ) -> None:
        for name, node in over.get(id(directory), directory.durable).items():
            path = place / name
            if isinstance(node, File):
                path.write_bytes(node.after(fate, chance))
            elif isinstance(node, Link):
                path.symlink_to(node.target)
            else:
                path.mkdir()
                self._write(node, path, over, fate, chance)


def _set(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _changed(content: bytes, changes: Iterable[tuple[int, bytes | None]]) -> bytes:
    result = bytearray(content)
    for at, data in changes:
        end = at if data is None else at + len(data)
        if len(result) < end:
            result.extend(bytes(end - len(result)))
        if data is None:
            del result[at:]
        else:
            result[at:end] = data
    return bytes(result)
