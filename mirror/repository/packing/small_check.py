"""Is all there that the new tips reach? Answered for a small pack, in memory, in a millisecond.

As git's own check does it, the new commits are walked down to what is known to be whole, and of
their trees only what their parents' trees do not have. What is met that did not come, and that no
parent has at the same path, must lie in the repository, with all that it reaches.

On the way it is found out whether the pack, as it came, is all that a reader lacks who has what is
known; then the upstream's own bytes can be passed on.

It never judges: where an object is missing or odd, or the walk gets long, it is `NotSmall`, and a
check that has more time decides. Blocking work on objects: callers run it in a thread.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Final

from dulwich.objects import parse_tree

from mirror.errors import LocalError
from mirror.repository.bare import BareRepository
from mirror.repository.objects import COMMIT, PACK_DAMAGE, TAG, TREE
from mirror.repository.packing.small_pack import NotSmall, SmallPack, Stored
from mirror.wire.names import ObjectId

READS_MAX: Final = 400
"""Objects read from the repository: 10 to 20 microseconds each."""

TREE_BYTES_MAX: Final = 512 * 1024
"""Of trees parsed: about 15,000 entries, 3 ms."""

KNOWN_LOOKED_BEHIND_MAX: Final = 16
"""Of the known tips: the likeliest, which come first."""

ANCESTORS_LOOKED_AT_MAX: Final = 300
"""How far behind a known tip the fork of a merged branch is looked for."""

_ID_BYTES: Final = 20
_KIND: Final = 0o170000  # the bits of a mode that tell what an entry names
_GITLINK: Final = 0o160000
_TREE: Final = 0o040000
_COMMIT: Final = re.compile(rb"tree ([0-9a-f]{40})\n((?:parent [0-9a-f]{40}\n)*)")
_TAG: Final = re.compile(rb"object ([0-9a-f]{40})\n")
_PARENT_BYTES: Final = len(b"parent \n") + 40

_TreeEntry = tuple[bytes, int, ObjectId]
"""Name, mode, and the object's id."""


def is_increment(
    packs: Sequence[SmallPack],
    repository: BareRepository,
    tips: Iterable[ObjectId],
    *,
    known: Sequence[ObjectId],
    onto: ObjectId | None,
) -> bool:
    """Check that all that `tips` reach is there.

    Args:
        packs: What was received.
        repository: What was there before.
        tips: The new tips.
        known: Tips that were there before, with all that they reach; the likeliest first.
        onto: One of these.

    Returns:
        Whether what was received is all that a reader lacks who has what `onto` reaches, bases of
        deltas included. `False` may mean that this can't be told.

    Raises:
        NotSmall: Something is missing or odd, or this takes too long.
    """
    try:
        return _Walk(packs, repository, known, onto).run(tips)
    except (*PACK_DAMAGE, LocalError) as error:
        raise NotSmall from error


@dataclass(slots=True)
class _Base:
    """A tree that is whole, or is found so in this walk.

    Attributes:
        oid: Its id.
        is_had: Whether `onto` reaches it.
    """

    oid: ObjectId
    is_had: bool


@dataclass(slots=True)
class _Visit:
    """A tree to be walked, and the trees at the same path in the parents."""

    oid: ObjectId
    bases: list[_Base] = field(default_factory=list)


class _Walk:
    """The state of one check."""

    def __init__(
        self,
        packs: Sequence[SmallPack],
        repository: BareRepository,
        known: Sequence[ObjectId],
        onto: ObjectId | None,
    ) -> None:
        self._repository = repository
        self._packs = packs
        self._likely = known[:KNOWN_LOOKED_BEHIND_MAX]
        self._known = frozenset(known)
        self._onto = onto
        self._reads = 0
        self._tree_bytes = 0
        self._parsed: dict[ObjectId, list[_TreeEntry]] = {}
        self._walked: set[ObjectId] = set()
        self._had: set[ObjectId] = set()  # objects that `onto` reaches, as far as they were met
        self._unproven: set[tuple[ObjectId, bool]] = set()  # and whether it is a tree
        self._is_exact = onto is not None

    def run(self, tips: Iterable[ObjectId]) -> bool:
        commits, others = self._new_commits(tips)
        for tree, parents in commits:
            self._walk_tree(_Visit(tree, parents))
        for oid, is_tree in others:
            if is_tree:
                self._walk_tree(_Visit(oid))
            elif self._received(oid) is None:
                self._unproven.add((oid, False))
        self._prove()
        bases = {oid for pack in self._packs for oid in pack.bases}
        return self._is_exact and len(self._packs) == 1 and bases <= self._had

    # --- commits -------------------------------------------------------------------------------

    def _new_commits(
        self, tips: Iterable[ObjectId]
    ) -> tuple[list[tuple[ObjectId, list[_Base]]], list[tuple[ObjectId, bool]]]:
        """Walk from the tips to what is known.

        Returns the tree of each new commit with those of its parents, and what else tags name.
        """
        todo = list(tips)
        parents_of: dict[ObjectId, list[ObjectId]] = {}
        trees: dict[ObjectId, _Base] = {}
        others: list[tuple[ObjectId, bool]] = []
        seen = set(todo)
        while todo:
            oid = todo.pop()
            kind, content = self._read_new(oid)
            links: list[ObjectId] = []
            if kind == TAG and (tag := _TAG.match(content)):
                links = [ObjectId(tag[1])]
            elif kind == COMMIT and (commit := _COMMIT.match(content)):
                tree = ObjectId(commit[1])
                is_new = self._received(oid) is not None
                is_had = not is_new and (oid == self._onto or oid in self._recently_had)
                trees[oid] = _Base(tree, is_had)
                if is_had:
                    self._had.update((oid, tree))
                elif is_new or not self._is_known(oid):
                    links = _parents(commit[2])
                    parents_of[oid] = links
            elif kind in {TAG, COMMIT}:
                raise NotSmall
            else:
                others.append((oid, kind == TREE))
            todo += (link for link in links if link not in seen)
            seen.update(links)
        if any(parent not in trees for parents in parents_of.values() for parent in parents):
            raise NotSmall  # a parent that is no commit
        commits = [
            (trees[oid].oid, [trees[parent] for parent in parents])
            for oid, parents in parents_of.items()
        ]
        return commits, others

    def _is_known(self, oid: ObjectId) -> bool:
        """Tell whether a commit that did not come is known to be whole."""
        self._is_exact = False  # a reader of `onto` may lack it
        return oid in self._known or oid in self._recently_known

    @cached_property
    def _recently_had(self) -> frozenset[ObjectId]:
        return self._recent([self._onto] if self._onto is not None else [])

    @cached_property
    def _recently_known(self) -> frozenset[ObjectId]:
        return self._recent(map(self._repository.graph.peel, self._likely))

    def _recent(self, tips: Iterable[ObjectId]) -> frozenset[ObjectId]:
        """Return the newest commits that these reach: merged branches forked off there."""
        graph = self._repository.graph

        def parents(oid: ObjectId) -> tuple[ObjectId, ...]:
            node = graph.node(oid)
            return node.parents if node is not None else ()

        return frozenset(islice(graph.by_date(tips, parents), ANCESTORS_LOOKED_AT_MAX))

    # --- trees ---------------------------------------------------------------------------------

    def _walk_tree(self, first: _Visit) -> None:
        todo = [first]
        while todo:
            visit = todo.pop()
            if visit.oid in self._walked or any(visit.oid == base.oid for base in visit.bases):
                continue
            if self._received(visit.oid) is None:
                self._unproven.add((visit.oid, True))
                continue
            self._walked.add(visit.oid)
            entries = self._entries(visit.oid)
            bases = [
                (base, {entry[0]: entry for entry in self._entries(base.oid)})
                for base in visit.bases
            ]
            for base, by_name in bases:
                if base.is_had:
                    self._had.update(entry[2] for entry in by_name.values())
            for name, mode, oid in entries:
                olds = [(base, old) for base, names in bases if (old := names.get(name))]
                kind = mode & _KIND
                alike = [_Base(old[2], base.is_had) for base, old in olds if old[1] & _KIND == kind]
                if kind == _GITLINK or any(base.oid == oid for base in alike):
                    continue
                received = self._received(oid)
                if received is None:
                    self._unproven.add((oid, kind == _TREE))
                elif (received[0] == TREE) != (kind == _TREE):
                    raise NotSmall
                elif kind == _TREE:
                    todo.append(_Visit(oid, alike))

    def _prove(self) -> None:
        """Look for what did not come and that no parent has at the same path.

        Often it was moved within a directory; else it has to lie in the repository, and a tree with
        all that is in it. It may be that nothing known reaches it: good enough for us, as it is for
        git, but perhaps not with the reader.
        """
        todo = [pair for pair in self._unproven if pair[0] not in self._had]
        while todo:
            oid, is_tree = todo.pop()
            if oid in self._walked or oid in self._had:
                continue
            self._walked.add(oid)
            self._is_exact = False
            if self._received(oid) is None:
                self._count_read()
                if not self._repository.source.contains(oid):
                    raise NotSmall
            if is_tree:
                todo += (
                    (entry, mode & _KIND == _TREE)
                    for _, mode, entry in self._entries(oid)
                    if mode & _KIND != _GITLINK
                )

    # --- objects -------------------------------------------------------------------------------

    def _received(self, oid: ObjectId) -> Stored | None:
        return next((found for pack in self._packs if (found := pack.objects.get(oid))), None)

    def _read_new(self, oid: ObjectId) -> Stored:
        return self._received(oid) or self._read_old(oid)

    def _read_old(self, oid: ObjectId) -> Stored:
        self._count_read()
        return self._repository.source.raw(oid)

    def _count_read(self) -> None:
        self._reads += 1
        if self._reads > READS_MAX:
            raise NotSmall

    def _entries(self, oid: ObjectId) -> list[_TreeEntry]:
        entries = self._parsed.get(oid)
        if entries is None:
            kind, content = self._read_new(oid)
            self._tree_bytes += len(content)
            if kind != TREE or self._tree_bytes > TREE_BYTES_MAX:
                raise NotSmall
            entries = self._parsed[oid] = [
                (name, mode, ObjectId(target))
                for name, mode, target in parse_tree(content, _ID_BYTES)
            ]
        return entries


def _parents(lines: bytes) -> list[ObjectId]:
    return [
        ObjectId(lines[start + 7 : start + 47]) for start in range(0, len(lines), _PARENT_BYTES)
    ]
