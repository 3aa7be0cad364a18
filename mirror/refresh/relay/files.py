"""Which files a change of a ref touches: the difference of the trees at its two ends.

A list that lacks a file makes Argo CD take old manifests for new ones, so there is either the whole
list or none: none where the new commit does not descend from the old one, where a commit or tree is
not here, and where there is more to look at than the limits allow. Blocking; the callers' answers
are shared, for several receivers ask for the same change.
"""

import asyncio
from typing import Final

from dulwich.errors import ObjectFormatException
from dulwich.objects import parse_tree

from mirror.errors import LocalError
from mirror.refresh.relay.backlog import Change
from mirror.refresh.relay.events import Files, Told
from mirror.repository.bare import BareRepository
from mirror.repository.objects import EMPTY_TREE, ObjectSource
from mirror.repository.threads import to_its_end
from mirror.wire.names import ObjectId

FILES_MAX: Final = 1000
PATHS_BYTES_MAX: Final = 256 * 1024
"""Receivers refuse bodies of a few MiB, and past so many files next to all is touched anyway."""

TREES_MAX: Final = 2000
"""Directories read: at most about 50 ms of a thread."""

ANCESTORS_LOOKED_AT_MAX: Final = 5000
"""To tell a fast-forward from a force-push, as when refs are replaced."""

KEPT_MAX: Final = 32
"""Answers kept for the receivers that ask next; with `PATHS_BYTES_MAX` 8 MiB at the very worst."""

_ID_BYTES: Final = 20
_TREE_MODE: Final = 0o40000

Entry = tuple[int, ObjectId]


class TooMuch(Exception):
    """There is more to look at than the limits allow."""


class Ranges:
    """What changes touch, for all receivers."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, bytes, bytes], asyncio.Task[Told]] = {}
        self._one = asyncio.Lock()

    async def told(self, name: str, repository: BareRepository, change: Change) -> Told:
        """Return a change of a repository with what is known of it."""
        if change.before is None or change.after is None:
            return Told(change)
        key = (name, change.before, change.after)
        task = self._kept.get(key)
        if task is None:
            self._make_room()
            task = self._kept[key] = asyncio.create_task(self._look(repository, change))
        try:
            found = await asyncio.shield(task)
        except Exception:
            self._kept.pop(key, None)  # not to be given to the next
            raise
        return Told(change, found.is_forced, found.files)

    def _make_room(self) -> None:
        done = [key for key, task in self._kept.items() if task.done()]
        for key in done[: max(0, len(self._kept) - KEPT_MAX + 1)]:
            del self._kept[key]

    async def _look(self, repository: BareRepository, change: Change) -> Told:
        async with self._one:  # readers come first: one thread at most
            return await to_its_end(asyncio.to_thread(look, repository, change))

    async def close(self) -> None:
        """Wait for the thread."""
        for task in self._kept.values():
            task.cancel()
        await asyncio.gather(*self._kept.values(), return_exceptions=True)


def look(repository: BareRepository, change: Change) -> Told:
    """Return what a change of a ref touches; blocking."""
    graph = repository.graph
    if change.before is None or change.after is None:
        return Told(change)
    try:
        before, after = graph.peel(change.before), graph.peel(change.after)
        old, new = graph.node(before), graph.node(after)
        if old is None or new is None:
            return Told(change)
        if not graph.is_ancestor(before, after, commits_max=ANCESTORS_LOOKED_AT_MAX):
            return Told(change, is_forced=True)
        return Told(change, files=_Difference(repository.source).of(old.tree, new.tree))
    except (LocalError, TooMuch):
        return Told(change)


class _Difference:
    """The difference of two trees; the state of one walk."""

    def __init__(self, source: ObjectSource) -> None:
        self._source = source
        self._added: list[str] = []
        self._modified: list[str] = []
        self._removed: list[str] = []
        self._trees = 0
        self._paths_bytes = 0

    def of(self, old: ObjectId, new: ObjectId) -> Files:
        """Return the files that differ.

        Raises:
            TooMuch: They are too many, or one has a name that JSON can't carry.
            LocalError: A tree is not here, or damaged.
        """
        pending = [(b"", old, new)]
        while pending:
            path, old, new = pending.pop()
            if old == new:
                continue
            before, after = self._read(old), self._read(new)
            for name in before.keys() | after.keys():
                was, now = before.get(name), after.get(name)
                if was == now:
                    continue
                place = path + name
                old_tree, new_tree = _tree_of(was), _tree_of(now)
                if old_tree != EMPTY_TREE or new_tree != EMPTY_TREE:
                    pending.append((place + b"/", old_tree, new_tree))
                self._add(place, is_file_before=_is_file(was), is_file_after=_is_file(now))
        return Files(
            tuple(sorted(self._added)), tuple(sorted(self._modified)), tuple(sorted(self._removed))
        )

    def _add(self, path: bytes, *, is_file_before: bool, is_file_after: bool) -> None:
        if not is_file_before and not is_file_after:
            return
        self._paths_bytes += len(path)
        count = len(self._added) + len(self._modified) + len(self._removed)
        if count >= FILES_MAX or self._paths_bytes > PATHS_BYTES_MAX:
            raise TooMuch
        try:
            text = path.decode("utf-8")
        except UnicodeDecodeError:
            raise TooMuch from None
        if is_file_before and is_file_after:
            self._modified.append(text)
        elif is_file_after:
            self._added.append(text)
        else:
            self._removed.append(text)

    def _read(self, tree: ObjectId) -> dict[bytes, Entry]:
        if tree == EMPTY_TREE:
            return {}
        self._trees += 1
        if self._trees > TREES_MAX:
            raise TooMuch
        content = self._source.raw(tree)[1]
        try:
            return {
                name: (mode, ObjectId(bytes(oid)))
                for name, mode, oid in parse_tree(content, _ID_BYTES)
            }
        except (ObjectFormatException, ValueError) as error:
            raise LocalError(f"tree {tree.decode()} is damaged: {error}") from error


def _tree_of(entry: Entry | None) -> ObjectId:
    return entry[1] if entry is not None and entry[0] == _TREE_MODE else EMPTY_TREE


def _is_file(entry: Entry | None) -> bool:
    return entry is not None and entry[0] != _TREE_MODE
