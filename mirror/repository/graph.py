"""The commit graph of one repository, read as far as somebody walks it, and kept.

Commits never change, so what was read once stays true. What git has indexed comes from its
commit-graph file, the newer commits from their objects. Bounded: past `COMMITS_CACHED_MAX` the
cache starts afresh. Walks are blocking work on objects: callers run them in a thread.
"""

import heapq
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from mirror.errors import LocalError
from mirror.repository.commit_graph_file import CommitGraphFile
from mirror.repository.objects import COMMIT, TAG, ObjectSource
from mirror.wire.names import ObjectId

COMMITS_CACHED_MAX: Final = 100_000
"""About 40 MB at the very worst. From the commit-graph file a cache is filled in half a second."""

GENERATION_UNKNOWN: Final = 1 << 62
"""Of a commit that is not in the file: above all that are."""

# As lenient as git: old history has committers without an address or a date, and tags without a
# tagger. What comes after these lines is not looked at.
_COMMIT: Final = re.compile(
    rb"tree ([0-9a-f]{40})\n"
    rb"((?:parent [0-9a-f]{40}\n)*)"
    rb"(?:author .*\n)?"
    rb"(?:committer .*> *([0-9]{1,19})(?![0-9]))?"
)
_TAG: Final = re.compile(rb"object ([0-9a-f]{40})\n")
_PARENT_BYTES: Final = len(b"parent \n") + 40

logger = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class CommitNode:
    """What the walks need of a commit; `time` in seconds since the epoch.

    `generation` is larger than that of each parent, as far as both are known.
    """

    tree: ObjectId
    parents: tuple[ObjectId, ...]
    time: int
    generation: int = GENERATION_UNKNOWN


class CommitGraph:
    """Parents, trees and times of a repository's commits."""

    def __init__(self, source: ObjectSource, *, index: Path | None = None) -> None:
        """Take the objects of `source`.

        Args:
            source: Where commits are that the index lacks.
            index: git's commit-graph file. It may be absent, come later, or be replaced.
        """
        self._source = source
        self._nodes: dict[ObjectId, CommitNode] = {}
        self._index_path = index
        self._index: CommitGraphFile | None = None
        self._index_identity: tuple[int, int, int] | None = None

    def forget(self) -> None:
        """Forget all that was read: what it was read from turned out to be damaged."""
        self._index = self._index_identity = None
        self._nodes = {}

    def node(self, oid: ObjectId) -> CommitNode | None:
        """Return the commit `oid`, or `None` when that is not a commit.

        Raises:
            LocalError: The object is not here, or damaged.
        """
        known = self._nodes.get(oid)
        if known is not None:
            return known
        node = self._indexed(oid)
        if node is None:
            kind, content = self._source.raw(oid)
            if kind != COMMIT:
                return None
            node = _parse_commit(oid, content)
        if len(self._nodes) >= COMMITS_CACHED_MAX:
            self._nodes = {}
        self._nodes[oid] = node
        return node

    def _indexed(self, oid: ObjectId) -> CommitNode | None:
        """Look the commit up in git's index, in a newer one if there is."""
        try:
            sha = bytes.fromhex(oid.decode())
            found = self._index.get(sha) if self._index is not None else None
            if found is None and self._has_new_index() and self._index is not None:
                found = self._index.get(sha)
        except ValueError as error:
            self._index = None  # until it is replaced
            logger.warning("commit_graph_not_used", path=str(self._index_path), error=str(error))
            return None
        if found is None:
            return None
        parents = tuple(ObjectId(parent.hex().encode()) for parent in found.parents)
        tree = ObjectId(found.tree.hex().encode())
        generation = found.generation or GENERATION_UNKNOWN  # 0: written before there were any
        return CommitNode(tree, parents, found.time, generation)

    def _has_new_index(self) -> bool:
        """Open the index if another file is in its place now.

        Raises:
            ValueError: It is damaged.
        """
        if self._index_path is None:
            return False
        try:
            stat = self._index_path.stat()
            identity = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if identity == self._index_identity:
                return False
            self._index_identity = identity
            self._index = CommitGraphFile(self._index_path)
        except OSError:
            return False
        return True

    def peel(self, oid: ObjectId) -> ObjectId:
        """Follow tags to what they finally point to; anything else is returned as it is.

        Raises:
            LocalError: An object on the way is not here.
        """
        return self.tag_chain(oid)[-1]

    def tag_chain(self, oid: ObjectId) -> list[ObjectId]:
        """Return `oid` and, while these are tags, what each points to; the last is not a tag.

        Raises:
            LocalError: An object on the way is not here, or damaged.
        """
        chain = {oid: None}
        while oid not in self._nodes:
            kind, content = self._source.raw(oid)
            if kind != TAG:
                break
            tag = _TAG.match(content)
            if tag is None:
                raise LocalError(f"object {oid.decode()} is damaged: it is no tag")
            oid = ObjectId(tag[1])
            if oid in chain:
                raise LocalError(f"tag {oid.decode()} points to itself")
            chain[oid] = None
        return list(chain)

    def all_reach(self, starts: Iterable[ObjectId], goals: Iterable[ObjectId]) -> bool:
        """Tell whether each of `starts` is or descends from one of `goals`.

        Starts that are no commits are passed over: history says nothing of them. As for git's own
        server, where there are no others any goal will do, the parents of a goal are as good as the
        goal, for who has a commit has them too, a tag among the goals does not stand for its
        commit, and commits older than the oldest goal are not looked behind.
        """
        goals = list(goals)
        commits = [start for start in map(self.peel, starts) if self.node(start)]
        nodes = {goal: node for goal in goals if (node := self.node(goal))}
        if not nodes or not commits:
            return bool(goals) and not commits
        oldest = min(node.time for node in nodes.values())
        reaching = {*nodes, *(parent for node in nodes.values() for parent in node.parents)}
        lowest = min(self._lowest(node) for node in nodes.values())
        dead_ends: set[ObjectId] = set()
        return all(self._reaches(start, reaching, dead_ends, oldest, lowest) for start in commits)

    def _reaches(
        self,
        start: ObjectId,
        reaching: set[ObjectId],
        dead_ends: set[ObjectId],
        oldest: int,
        lowest: int,
    ) -> bool:
        """Walk depth first. What is found out stays in `reaching` and `dead_ends` for the next."""
        if start in reaching:
            return True
        path = [(start, iter(self._parents(start)))]
        seen = {start}
        while path:
            oid, parents = path[-1]
            for parent in parents:
                if parent in reaching:
                    reaching.update(step for step, _ in path)
                    return True
                if parent not in seen and parent not in dead_ends:
                    seen.add(parent)
                    path.append((parent, iter(self._parents_since(parent, oldest, lowest))))
                    break
            else:
                dead_ends.add(oid)
                path.pop()
        return False

    def _parents_since(self, oid: ObjectId, oldest: int, lowest: int) -> tuple[ObjectId, ...]:
        node = self.node(oid)
        if node is None or node.time < oldest or node.generation <= lowest:
            return ()
        return node.parents

    def _lowest(self, goal: CommitNode) -> int:
        """Return the lowest generation of a goal and its parents: who is as low reaches none."""
        if goal.generation == GENERATION_UNKNOWN:
            return 0  # its parents need not be indexed either
        parents = filter(None, map(self.node, goal.parents))
        return min((parent.generation for parent in parents), default=goal.generation)

    def is_ancestor(self, ancestor: ObjectId, descendant: ObjectId, *, commits_max: int) -> bool:
        """Tell whether `ancestor` is reachable from `descendant`, looking at `commits_max` at most.

        `False` may mean that the limit was reached first, or that a commit between the two claims
        to be older than `ancestor`.
        """
        goal = self.node(ancestor)
        if goal is None:
            return False

        lowest = goal.generation if goal.generation != GENERATION_UNKNOWN else 0

        def parents(oid: ObjectId) -> tuple[ObjectId, ...]:
            node = self.node(oid)
            return node.parents if node is not None and node.generation > lowest else ()

        for number, oid in enumerate(self.by_date([descendant], parents)):
            if oid == ancestor:
                return True
            node = self.node(oid)
            if number >= commits_max or (node is not None and node.time < goal.time):
                return False
        return False

    def _parents(self, oid: ObjectId) -> tuple[ObjectId, ...]:
        node = self.node(oid)
        return node.parents if node is not None else ()

    def by_date(
        self,
        starts: Iterable[ObjectId],
        parents: Callable[[ObjectId], tuple[ObjectId, ...]],
    ) -> Iterator[ObjectId]:
        """Walk commits from `starts`, newest first, each once; `parents` says where to go on."""
        queue: list[tuple[int, ObjectId]] = []
        seen: set[ObjectId] = set()

        def push(oid: ObjectId) -> None:
            if oid not in seen and (node := self.node(oid)) is not None:
                seen.add(oid)
                heapq.heappush(queue, (-node.time, oid))

        for start in starts:
            push(start)
        while queue:
            _, oid = heapq.heappop(queue)
            yield oid
            for parent in parents(oid):
                push(parent)


def _parse_commit(oid: ObjectId, content: bytes) -> CommitNode:
    commit = _COMMIT.match(content)
    if commit is None:
        raise LocalError(f"object {oid.decode()} is damaged: it is no commit")
    tree, lines, time = commit.groups()
    parents = tuple(
        ObjectId(lines[start + 7 : start + 47]) for start in range(0, len(lines), _PARENT_BYTES)
    )
    return CommitNode(ObjectId(tree), parents, int(time or 0))
