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

KNOWN_PEELED_MAX: Final = 16
"""Of the known tips, those that are looked behind."""

ANCESTORS_LOOKED_AT_MAX: Final = 300
"""How far behind a known tip the fork of a merged branch is looked for."""

_ID_BYTES: Final = 20
_KIND: Final = 0o170000  # the bits of a mode that tell what an entry names
_GITLINK: Final = 0o160000
_TREE: Final = 0o040000
_COMMIT: Final = re.compile(rb"tree ([0-9a-f]{40})\n((?:parent [0-9a-f]{40}\n)*)")
_TAG: Final = re.compile(rb"object ([0-9a-f]{40})\n")
_PARENT_BYTES: Final = len(b"parent \n") + 40

_TreeEntry = tuple[bytes, int, bytes]


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
        sha: Its id.
        is_had: Whether `onto` reaches it.
    """

    sha: bytes
    is_had: bool


@dataclass(slots=True)
class _Visit:
    """A tree to be walked, and the trees at the same path in the parents."""

    sha: bytes
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
        self._newest_known = [repository.graph.peel(oid) for oid in known[:KNOWN_PEELED_MAX]]
        self._known = frozenset((*known, *self._newest_known))
        self._onto = onto
        self._reads = 0
        self._tree_bytes = 0
        self._parsed: dict[bytes, list[_TreeEntry]] = {}
        self._walked: set[bytes] = set()
        self._had: set[bytes] = set()  # objects that `onto` reaches, as far as they were met
        self._unproven: set[tuple[bytes, bool]] = set()  # and whether it is a tree
        self._is_exact = onto is not None

    def run(self, tips: Iterable[ObjectId]) -> bool:
        commits, others = self._new_commits(tips)
        for tree, parents in commits:
            self._walk_tree(_Visit(tree, parents))
        for sha, is_tree in others:
            if is_tree:
                self._walk_tree(_Visit(sha))
            elif self._received(sha) is None:
                self._unproven.add((sha, False))
        self._prove()
        bases = {sha for pack in self._packs for sha in pack.bases}
        return self._is_exact and len(self._packs) == 1 and bases <= self._had

    # --- commits -------------------------------------------------------------------------------

    def _new_commits(
        self, tips: Iterable[ObjectId]
    ) -> tuple[list[tuple[bytes, list[_Base]]], list[tuple[bytes, bool]]]:
        """Walk from the tips to what is known.

        Returns the tree of each new commit with those of its parents, and what else tags name.
        """
        todo = [bytes.fromhex(tip.decode()) for tip in tips]
        parents_of: dict[bytes, list[bytes]] = {}
        trees: dict[bytes, _Base] = {}
        others: list[tuple[bytes, bool]] = []
        seen = set(todo)
        while todo:
            sha = todo.pop()
            kind, content = self._read_new(sha)
            links: list[bytes] = []
            if kind == TAG and (tag := _TAG.match(content)):
                links = [bytes.fromhex(tag[1].decode())]
            elif kind == COMMIT and (commit := _COMMIT.match(content)):
                tree = bytes.fromhex(commit[1].decode())
                oid = ObjectId(sha.hex().encode())
                is_new = self._received(sha) is not None
                is_had = not is_new and (oid == self._onto or oid in self._recently_had)
                trees[sha] = _Base(tree, is_had)
                if is_had:
                    self._had.update((sha, tree))
                elif is_new or not self._is_known(oid):
                    links = _parents(commit[2])
                    parents_of[sha] = links
            elif kind in {TAG, COMMIT}:
                raise NotSmall
            else:
                others.append((sha, kind == TREE))
            todo += (link for link in links if link not in seen)
            seen.update(links)
        if any(parent not in trees for parents in parents_of.values() for parent in parents):
            raise NotSmall  # a parent that is no commit
        commits = [
            (trees[sha].sha, [trees[parent] for parent in parents])
            for sha, parents in parents_of.items()
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
        return self._recent(self._newest_known)

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
            if visit.sha in self._walked or any(visit.sha == base.sha for base in visit.bases):
                continue
            if self._received(visit.sha) is None:
                self._unproven.add((visit.sha, True))
                continue
            self._walked.add(visit.sha)
            entries = self._entries(visit.sha)
            bases = [
                (base, {entry[0]: entry for entry in self._entries(base.sha)})
                for base in visit.bases
            ]
            for base, by_name in bases:
                if base.is_had:
                    self._had.update(entry[2] for entry in by_name.values())
            for name, mode, sha in entries:
                olds = [(base, old) for base, names in bases if (old := names.get(name))]
                kind = mode & _KIND
                alike = [_Base(old[2], base.is_had) for base, old in olds if old[1] & _KIND == kind]
                if kind == _GITLINK or any(base.sha == sha for base in alike):
                    continue
                received = self._received(sha)
                if received is None:
                    self._unproven.add((sha, kind == _TREE))
                elif (received[0] == TREE) != (kind == _TREE):
                    raise NotSmall
                elif kind == _TREE:
                    todo.append(_Visit(sha, alike))

    def _prove(self) -> None:
        """Look for what did not come and that no parent has at the same path.

        Often it was moved within a directory; else it has to lie in the repository, and a tree with
        all that is in it. It may be that nothing known reaches it: good enough for us, as it is for
        git, but perhaps not with the reader.
        """
        todo = [pair for pair in self._unproven if pair[0] not in self._had]
        while todo:
            sha, is_tree = todo.pop()
            if sha in self._walked or sha in self._had:
                continue
            self._walked.add(sha)
            self._is_exact = False
            if self._received(sha) is None:
                self._count_read()
                if not self._repository.source.contains(ObjectId(sha.hex().encode())):
                    raise NotSmall
            if is_tree:
                todo += (
                    (entry, mode & _KIND == _TREE)
                    for _, mode, entry in self._entries(sha)
                    if mode & _KIND != _GITLINK
                )

    # --- objects -------------------------------------------------------------------------------

    def _received(self, sha: bytes) -> Stored | None:
        return next((found for pack in self._packs if (found := pack.objects.get(sha))), None)

    def _read_new(self, sha: bytes) -> Stored:
        return self._received(sha) or self._read_old(sha)

    def _read_old(self, sha: bytes) -> Stored:
        self._count_read()
        return self._repository.source.raw(ObjectId(sha.hex().encode()))

    def _count_read(self) -> None:
        self._reads += 1
        if self._reads > READS_MAX:
            raise NotSmall

    def _entries(self, sha: bytes) -> list[_TreeEntry]:
        entries = self._parsed.get(sha)
        if entries is None:
            kind, content = self._read_new(sha)
            self._tree_bytes += len(content)
            if kind != TREE or self._tree_bytes > TREE_BYTES_MAX:
                raise NotSmall
            entries = self._parsed[sha] = list(parse_tree(content, _ID_BYTES))
        return entries


def _parents(lines: bytes) -> list[bytes]:
    return [
        bytes.fromhex(lines[start + 7 : start + 47].decode())
        for start in range(0, len(lines), _PARENT_BYTES)
    ]
