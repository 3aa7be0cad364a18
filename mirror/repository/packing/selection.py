"""Which objects a pack must hold: what the wants reach and the haves do not.

Each commit to send is compared with its parents' trees, so that an increment costs what it changed,
not what the repository holds. An object that the reader has by another path may be sent again; one
that it lacks never stays out: parents come before their children, so that whatever lies in a
parent's tree is, at that moment, in the pack already or with the reader.

Filters leave out what git's own server leaves out (list-objects-filter.c). Blocking work on
objects: callers run it in a thread.
"""

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

from dulwich.objects import parse_tree

from mirror.errors import LocalError, PackError
from mirror.repository.graph import CommitGraph
from mirror.repository.objects import PACK_DAMAGE, TREE, ObjectSource
from mirror.repository.packing.engine import PackRequest
from mirror.wire.filters import ObjectFilter
from mirror.wire.names import ObjectId

_ID_BYTES: Final = 20

TREE_DEPTH_MAX: Final = 2048
"""Deeper directories are an attack on those who walk them; git's own limit (core.maxTreeDepth)."""

TREE_ENTRIES_KEPT_MAX: Final = 100_000
"""Of the trees read last, about 25 MB: the next commit is compared with them."""

HAD_TREES_MAX: Final = 4
"""Trees of the reader's with which a commit without parents to follow is compared."""


@dataclass(slots=True)
class Selection:
    """The objects to send.

    Attributes:
        oids: Each object once.
        bases: For an object that replaces another at the same path, that other: a good delta base,
            which is in the pack too or with the reader.
    """

    oids: dict[ObjectId, None] = field(default_factory=dict)
    bases: dict[ObjectId, ObjectId] = field(default_factory=dict)


def select_objects(
    source: ObjectSource,
    graph: CommitGraph,
    request: PackRequest,
    *,
    is_abandoned: Callable[[], bool] = lambda: False,
) -> Selection:
    """Select the objects for `request`.

    Args:
        source: Where the objects are.
        graph: The commits among them.
        request: What the pack is for.
        is_abandoned: Asked at each commit and tree; the work ends when it says so.

    Raises:
        Abandoned: The work was abandoned.
        LocalError: An object that should be there is not.
    """
    return _Selector(source, graph, request, is_abandoned).run()


class Abandoned(PackError):
    """Nobody waits for the work any longer, or it was more than expected."""


class _Kind(enum.Enum):
    """What an entry of a tree names."""

    TREE = enum.auto()
    BLOB = enum.auto()
    GITLINK = enum.auto()  # a commit of another repository


_KINDS: Final = {0o040000: _Kind.TREE, 0o160000: _Kind.GITLINK}


def _kind(mode: int) -> _Kind:
    return _KINDS.get(mode & 0o170000, _Kind.BLOB)


class _Tree:
    """A parsed tree. Damaged ones can have a name twice: nothing of `entries` may be lost."""

    def __init__(self, entries: list[tuple[bytes, int, bytes]]) -> None:
        self.entries = entries

    @cached_property
    def by_name(self) -> dict[bytes, tuple[bytes, int, bytes]]:
        return {entry[0]: entry for entry in self.entries}


class _Visit(NamedTuple):
    """A tree to be added: what lay at its path before, and how deep that is."""

    oid: ObjectId
    bases: list[ObjectId]
    depth: int


class _TreeReader:
    """Reads trees, and remembers the last ones."""

    def __init__(self, source: ObjectSource) -> None:
        self._source = source
        self._kept: dict[ObjectId, _Tree] = {}
        self._entries = 0

    def read(self, oid: ObjectId) -> _Tree:
        tree = self._kept.pop(oid, None)
        if tree is None:
            tree = self._parse(oid)
            self._entries += len(tree.entries)
        self._kept[oid] = tree  # the last used is last
        while self._entries > TREE_ENTRIES_KEPT_MAX and len(self._kept) > 1:
            oldest = self._kept.pop(next(iter(self._kept)))
            self._entries -= len(oldest.entries)
        return tree

    def _parse(self, oid: ObjectId) -> _Tree:
        kind, content = self._source.raw(oid)
        if kind != TREE:
            raise PackError(f"object {oid.decode()} should be a tree")
        try:
            return _Tree(list(parse_tree(content, _ID_BYTES)))
        except PACK_DAMAGE as error:
            raise LocalError(f"tree {oid.decode()} is damaged: {error}") from error


class _HadWalk:
    """Walks both sides together, newest first, to find which commits the reader has.

    It ends when only the reader's commits are left to walk, and these are older than all that was
    wanted: then no wanted commit can lie below. Commits of the same second come in any order.
    """

    def __init__(
        self,
        graph: CommitGraph,
        followed: Callable[[ObjectId], tuple[ObjectId, ...]],
        had: set[ObjectId],
        wanted: Iterable[ObjectId],
    ) -> None:
        self._graph = graph
        self._followed = followed
        self._had = had
        self._wanting = {oid for oid in wanted if oid not in had}
        self._walked: set[ObjectId] = set()
        self._oldest = min(map(self._time, self._wanting), default=0)

    def run(self) -> set[ObjectId]:
        if not self._had or not self._wanting:
            return self._had
        for oid in self._graph.by_date([*self._wanting, *self._had], self._parents):
            if not self._wanting and self._time(oid) < self._oldest:
                break
        return self._had

    def _time(self, oid: ObjectId) -> int:
        node = self._graph.node(oid)
        return node.time if node is not None else 0

    def _parents(self, oid: ObjectId) -> tuple[ObjectId, ...]:
        above = self._followed(oid)
        self._walked.add(oid)
        self._wanting.discard(oid)
        if oid in self._had:
            self._have(above)
        else:
            new = {one for one in above if one not in self._had and one not in self._walked}
            self._wanting |= new
            self._oldest = min([self._oldest, *map(self._time, new)])
        return above

    def _have(self, oids: Iterable[ObjectId]) -> None:
        """Note what the reader has, also below what was walked as wanted before that was known."""
        todo = [*oids]
        while todo:
            oid = todo.pop()
            if oid in self._had:
                continue
            self._had.add(oid)
            self._wanting.discard(oid)
            if oid in self._walked:
                todo += self._followed(oid)


class _Selector:
    """The state of one selection."""

    def __init__(
        self,
        source: ObjectSource,
        graph: CommitGraph,
        request: PackRequest,
        is_abandoned: Callable[[], bool],
    ) -> None:
        self._source = source
        self._graph = graph
        self._request = request
        self._is_abandoned = is_abandoned
        self._filter = request.filter or ObjectFilter()
        self._trees = _TreeReader(source)
        self._selection = Selection()
        self._depths: dict[ObjectId, int] = {}  # trees walked, and how near to the root

    def run(self) -> Selection:
        commits, others = self._split_wants()
        had = self._had_commits(commits)
        new = dict.fromkeys(
            oid
            for oid in self._graph.by_date(
                commits, lambda oid: () if oid in had else self._followed(oid)
            )
            if oid not in had
        )
        if self._is_wanted_type(b"commit"):
            self._selection.oids.update(new)
        else:
            self._selection.oids.update((oid, None) for oid in commits if oid in new)
        if self._walks_trees():
            for oid in self._parents_first(new):
                self._add_commit_tree(oid)
        for oid in others:
            self._add_explicit(oid)
        self._add_tags()
        return self._selection

    def _split_wants(self) -> tuple[list[ObjectId], list[ObjectId]]:
        """Select the tags among the wants; return the commits and what else they point to."""
        commits: list[ObjectId] = []
        others: list[ObjectId] = []
        for want in self._request.wants:
            *tags, target = self._graph.tag_chain(want)
            self._selection.oids.update(dict.fromkeys(tags))
            (commits if self._graph.node(target) else others).append(target)
        return commits, others

    # --- commits -------------------------------------------------------------------------------

    def _step(self) -> None:
        if self._is_abandoned():
            raise Abandoned("nobody waits for this pack any longer")

    def _followed(self, oid: ObjectId) -> tuple[ObjectId, ...]:
        """Return the parents that a reader will follow."""
        self._step()
        node = self._graph.node(oid)
        return node.parents if node is not None and oid not in self._request.shallow else ()

    def _had_commits(self, wanted: Iterable[ObjectId]) -> set[ObjectId]:
        """Return the reader's commits, as far as the walk from `wanted` can meet them."""
        graph = self._graph
        had = {peeled for have in self._request.haves if graph.node(peeled := graph.peel(have))}
        return _HadWalk(graph, self._followed, had, wanted).run()

    def _parents_first(self, new: dict[ObjectId, None]) -> Iterable[ObjectId]:
        """Sort commits so that each comes after those of its parents that are sent too.

        Dates won't do: a commit may claim to be older than its parents.
        """
        children = dict.fromkeys(new, 0)
        for oid in new:
            for parent in self._followed(oid):
                if parent in children:
                    children[parent] += 1
        ready = [oid for oid in new if not children[oid]]
        children_first = []
        while ready:
            oid = ready.pop()
            children_first.append(oid)
            for parent in self._followed(oid):
                if parent in children:
                    children[parent] -= 1
                    if not children[parent]:
                        ready.append(parent)
        return reversed(children_first)

    # --- trees and blobs -----------------------------------------------------------------------

    @cached_property
    def _had_trees(self) -> list[ObjectId]:
        """Some trees that the reader has, with all that is in them."""
        peeled = map(self._graph.peel, self._request.haves[:HAD_TREES_MAX])
        return [node.tree for oid in peeled if (node := self._graph.node(oid))]

    def _add_commit_tree(self, oid: ObjectId) -> None:
        node = self._graph.node(oid)
        if node is None:
            return
        parents = [known.tree for one in self._followed(oid) if (known := self._graph.node(one))]
        self._add_tree(node.tree, parents or self._had_trees, depth=0)

    def _walks_trees(self) -> bool:
        """Tell whether the trees of commits have to be walked at all."""
        types = self._filter.object_types
        return self._filter.tree_depth != 0 and (types is None or bool(types & {b"tree", b"blob"}))

    def _is_wanted_type(self, name: bytes) -> bool:
        types = self._filter.object_types
        return types is None or name in types

    def _add_tree(self, oid: ObjectId, bases: list[ObjectId], *, depth: int) -> None:
        """Add a tree that lies `depth` directories deep, unless it is one of `bases`.

        These are the trees at the same path that the reader has, or will have by this pack.
        """
        todo = [_Visit(oid, bases, depth)]
        while todo:
            visit = todo.pop()
            if visit.oid in visit.bases:
                continue
            if visit.depth > TREE_DEPTH_MAX:
                raise PackError(f"a tree lies more than {TREE_DEPTH_MAX} directories deep")
            if self._is_wanted_type(b"tree"):
                self._add(visit.oid, visit.bases)
            todo += self._add_entries(visit.oid, visit.bases, depth=visit.depth + 1)

    def _add_entries(self, oid: ObjectId, bases: list[ObjectId], *, depth: int) -> list[_Visit]:
        """Add the blobs of a tree that are in none of `bases`; return the trees to be added.

        Its entries are at `depth`.
        """
        limit = self._filter.tree_depth
        walked = self._depths.get(oid)
        if walked is not None and (limit is None or walked <= depth):
            return []
        self._depths[oid] = depth
        self._step()
        if limit is not None and depth >= limit:
            return []
        entries = self._trees.read(oid).entries
        before = [self._trees.read(base).by_name for base in bases]
        for base in before:
            entries = [entry for entry in entries if base.get(entry[0]) != entry]
        trees = []
        for name, mode, target in entries:
            kind = _kind(mode)
            if kind is _Kind.GITLINK:
                continue
            olds = (old for base in before if (old := base.get(name)) is not None)
            alike = [ObjectId(old[2]) for old in olds if _kind(old[1]) is kind]
            if kind is _Kind.TREE:
                trees.append(_Visit(ObjectId(target), alike, depth))
            else:
                self._add_blob(ObjectId(target), alike)
        return trees

    def _add_blob(self, oid: ObjectId, bases: list[ObjectId]) -> None:
        if oid in bases or oid in self._selection.oids or not self._is_wanted_type(b"blob"):
            return
        limit = self._filter.blob_limit_bytes
        if limit == 0 or (limit is not None and self._source.size(oid) >= limit):
            return
        self._add(oid, bases)

    def _add(self, oid: ObjectId, bases: list[ObjectId]) -> None:
        if oid in self._selection.oids:
            return
        self._selection.oids[oid] = None
        if bases:
            self._selection.bases[oid] = bases[0]

    # --- what is sent besides -------------------------------------------------------------------

    def _add_explicit(self, oid: ObjectId) -> None:
        """Add a tree or blob that was asked for by its id: no filter keeps that one out."""
        self._selection.oids[oid] = None
        if self._source.raw(oid)[0] == TREE:
            for tree in self._add_entries(oid, [], depth=0):
                self._add_tree(tree.oid, tree.bases, depth=tree.depth)

    def _add_tags(self) -> None:
        selected = self._selection.oids
        for ref in self._request.tags:
            if ref.peeled in selected and ref.oid not in selected:
                *tags, _ = self._graph.tag_chain(ref.oid)
                selected.update(dict.fromkeys(tags))
