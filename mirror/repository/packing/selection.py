"""Which objects a pack must hold: what the wants reach and the haves do not.

Each commit to send is compared with its parents' trees, so that an increment costs what it changed,
not what the repository holds. An object that the reader has by another path may be sent again; one
that it lacks never stays out. Blocking work on objects: callers run it in a thread.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from dulwich.objects import Tree

from mirror.errors import PackError
from mirror.repository.graph import CommitGraph
from mirror.repository.objects import ObjectSource
from mirror.repository.packing.engine import PackRequest
from mirror.wire.filters import ObjectFilter
from mirror.wire.names import ObjectId

_GITLINK: Final = 0o160000
_DIRECTORY: Final = 0o040000
_KIND: Final = 0o170000

TREE_DEPTH_MAX: Final = 800
"""Deeper directories are an attack on those who walk them."""

Entries = dict[bytes, ObjectId]


@dataclass(slots=True)
class Selection:
    """The objects to send, in an order in which they can be written.

    Attributes:
        oids: Each object once.
        bases: For an object that replaces another at the same path, that other: a good delta base.
    """

    oids: dict[ObjectId, None] = field(default_factory=dict)
    bases: dict[ObjectId, ObjectId] = field(default_factory=dict)


def select_objects(source: ObjectSource, graph: CommitGraph, request: PackRequest) -> Selection:
    """Select the objects for `request`.

    Raises:
        PackError: An object that should be there is not.
    """
    return _Selector(source, graph, request).run()


class _Selector:
    """The state of one selection."""

    def __init__(self, source: ObjectSource, graph: CommitGraph, request: PackRequest) -> None:
        self._source = source
        self._graph = graph
        self._request = request
        self._filter = request.filter or ObjectFilter()
        self._selection = Selection()
        self._depths: dict[ObjectId, int] = {}  # trees walked, and how near to the root
        self._types = self._filter.object_types

    def run(self) -> Selection:
        request = self._request
        commits: list[ObjectId] = []
        others: list[ObjectId] = []
        for want in request.wants:
            *tags, target = self._graph.tag_chain(want)
            self._selection.oids.update(dict.fromkeys(tags))
            (commits if self._graph.node(target) else others).append(target)
        had = self._had_commits(commits)
        new = [
            oid
            for oid in self._graph.by_date(commits, lambda oid: self._parents(oid, had))
            if oid not in had
        ]
        explicit = set(request.wants)
        for oid in new:
            if self._wants_type(b"commit") or oid in explicit:
                self._selection.oids[oid] = None
        for oid in reversed(new):  # parents first: what they hold need not be compared again
            self._add_commit_tree(oid)
        for oid in others:
            self._add_explicit(oid)
        self._add_tags()
        return self._selection

    def _parents(self, oid: ObjectId, had: set[ObjectId]) -> tuple[ObjectId, ...]:
        node = self._graph.node(oid)
        if node is None or oid in had or oid in self._request.shallow:
            return ()
        return node.parents

    def _had_commits(self, wanted: Iterable[ObjectId]) -> set[ObjectId]:
        """Return the reader's commits, as far as the walk from `wanted` can meet them.

        Both sides are walked together, newest first, until only the reader's commits are left to
        walk: then no wanted commit can lie below.
        """
        graph = self._graph
        shallow = self._request.shallow
        had = {peeled for have in self._request.haves if graph.node(peeled := graph.peel(have))}
        if not had:
            return had
        wanting = {oid for oid in wanted if oid not in had}

        def parents(oid: ObjectId) -> tuple[ObjectId, ...]:
            node = graph.node(oid)
            above = node.parents if node is not None and oid not in shallow else ()
            if oid in had:
                had.update(above)
                wanting.difference_update(above)
            else:
                wanting.update(parent for parent in above if parent not in had)
            wanting.discard(oid)
            return above

        for _ in graph.by_date([*wanting, *had], parents):
            if not wanting:
                break
        return had

    def _add_commit_tree(self, oid: ObjectId) -> None:
        node = self._graph.node(oid)
        if node is None or not self._wants_trees():
            return
        above = node.parents if oid not in self._request.shallow else ()
        known = [self._graph.node(parent) for parent in above]
        bases = [
            self._entries(parent.tree) for parent in known if parent and parent.tree != node.tree
        ]
        if any(parent and parent.tree == node.tree for parent in known):
            return
        hint = next((parent.tree for parent in known if parent), None)
        self._add_tree(node.tree, bases, hint, depth=0)

    def _wants_trees(self) -> bool:
        """Tell whether trees have to be walked at all."""
        if self._filter.tree_depth == 0:
            return False
        return self._types is None or bool(self._types & {b"tree", b"blob"})

    def _wants_type(self, name: bytes) -> bool:
        return self._types is None or name in self._types

    def _add_tree(
        self, oid: ObjectId, bases: list[Entries], hint: ObjectId | None, *, depth: int
    ) -> None:
        """Add a tree and what of it is in none of `bases`, the trees at the same path before."""
        limit = self._filter.tree_depth
        if limit is not None and depth >= limit:
            return
        walked = self._depths.get(oid)
        if walked is not None and (limit is None or walked <= depth):
            return
        if depth > TREE_DEPTH_MAX:
            raise PackError(f"tree {oid.decode()} lies more than {TREE_DEPTH_MAX} directories deep")
        self._depths[oid] = depth
        if self._wants_type(b"tree"):
            self._add(oid, hint)
        for name, (kind, entry) in self._tree(oid).items():
            if kind == _GITLINK or any(base.get(name) == entry for base in bases):
                continue
            before = next((old for base in bases if (old := base.get(name))), None)
            if kind == _DIRECTORY:
                below = [
                    self._entries(old)
                    for base in bases
                    if (old := base.get(name)) and self._source.is_tree(old)
                ]
                self._add_tree(entry, below, before, depth=depth + 1)
            elif limit is None or depth + 1 < limit:
                self._add_blob(entry, before)

    def _add_blob(self, oid: ObjectId, hint: ObjectId | None) -> None:
        if oid in self._selection.oids or not self._wants_type(b"blob"):
            return
        limit = self._filter.blob_limit_bytes
        if limit == 0 or (limit is not None and self._source.size(oid) >= limit):
            return
        self._add(oid, hint)

    def _add(self, oid: ObjectId, hint: ObjectId | None) -> None:
        if oid in self._selection.oids:
            return
        self._selection.oids[oid] = None
        if hint is not None and hint != oid:
            self._selection.bases[oid] = hint

    def _add_explicit(self, oid: ObjectId) -> None:
        """Add a tree or blob that was asked for by its id: no filter keeps that one out."""
        self._selection.oids[oid] = None
        if self._source.is_tree(oid):
            saved, self._types = self._types, None
            self._add_tree(oid, [], None, depth=0)
            self._types = saved

    def _add_tags(self) -> None:
        for ref in self._request.tags:
            if ref.peeled in self._selection.oids and self._wants_type(b"tag"):
                for oid in self._graph.tag_chain(ref.oid):
                    self._selection.oids.setdefault(oid)

    def _tree(self, oid: ObjectId) -> dict[bytes, tuple[int, ObjectId]]:
        tree = self._source.parsed(oid)
        if not isinstance(tree, Tree):
            raise PackError(f"object {oid.decode()} should be a tree")
        return {entry.path: (entry.mode & _KIND, ObjectId(entry.sha)) for entry in tree.iteritems()}

    def _entries(self, oid: ObjectId) -> Entries:
        return {name: entry for name, (_, entry) in self._tree(oid).items()}
