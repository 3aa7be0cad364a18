"""The common frontier: what two histories share, named by as few commits as will do.

Readers that stand at the same commit say so in many ways: with 16 haves or 256, with branches that
have nothing to do with what they want, in any order. The pack they need depends on one thing only:
the newest commits that are ancestors of both what they want and what they have. Equal frontiers
make equal packs, and so equal cache keys.

The walk is that of git's merge bases (paint_down_to_common): newest first, painting what the wants
and the haves reach, until nothing is left that only the wants reach. Commits that claim to be older
than their parents may leave a frontier that names more than it had to; it is never wrong. Blocking
work on commits: callers run it in a thread.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mirror.repository.graph import CommitGraph
from mirror.wire.names import ObjectId

COMMITS_WALKED_MAX: Final = 10_000
"""A reader further behind than that is rare, and not one of many at the same place."""

_FAR_AWAY: Final = 1 << 64
"""Seconds since the epoch that no commit can claim."""

_WANTED: Final = 1
_HAD: Final = 2
_COMMON: Final = _WANTED | _HAD
_BELOW: Final = 4
"""Reached from a commit that is common: common too, but not the newest."""


@dataclass(frozen=True, slots=True)
class Frontier:
    """What the wants and the haves have in common.

    Attributes:
        commits: The newest commits that both reach, sorted.
        new: The commits that only the wants reach.
    """

    commits: tuple[ObjectId, ...]
    new: frozenset[ObjectId]


def find_frontier(
    graph: CommitGraph,
    wants: Iterable[ObjectId],
    haves: Iterable[ObjectId],
    *,
    commits_max: int = COMMITS_WALKED_MAX,
) -> Frontier | None:
    """Find the common frontier.

    Args:
        graph: The repository's commits.
        wants: Commits, or tags of commits.
        haves: The same; all that they reach is had, so none may be shallow.
        commits_max: How many commits are looked at before it is given up.

    Returns:
        The frontier, or `None` when it was given up, or when a want is no commit.

    Raises:
        LocalError: A commit is not here, or damaged.
    """
    walk = _Walk(graph)
    for want in wants:
        if not walk.paint(graph.peel(want), _WANTED):
            return None
    for have in haves:
        walk.paint(graph.peel(have), _HAD)  # a have that is no commit says nothing of history
    return walk.run(commits_max)


class _Walk:
    """The state of one walk."""

    def __init__(self, graph: CommitGraph) -> None:
        self._graph = graph
        self._paint: dict[ObjectId, int] = {}
        self._queue: list[tuple[int, ObjectId]] = []
        self._wanted: set[ObjectId] = set()  # of the queue, what only the wants reach
        self._oldest_wanted = _FAR_AWAY  # the time of the oldest that ever was in there

    def paint(self, oid: ObjectId, colour: int) -> bool:
        """Add `colour` to a commit and look at it (again); `False` when it is no commit."""
        node = self._graph.node(oid)
        if node is None:
            return False
        before = self._paint.get(oid, 0)
        after = before | colour
        if after != before:
            self._paint[oid] = after
            heapq.heappush(self._queue, (-node.time, oid))
            if after == _WANTED:
                self._wanted.add(oid)
                self._oldest_wanted = min(node.time, self._oldest_wanted)
            else:
                self._wanted.discard(oid)
        return True

    def run(self, commits_max: int) -> Frontier | None:
        for _ in range(commits_max):
            if not self._wanted and not self._may_meet_wanted():
                break
            self._pass_on(heapq.heappop(self._queue)[1])
        if self._wanted:
            return None
        self._drop_ancestors(commits_max)
        new = frozenset(oid for oid, colour in self._paint.items() if colour == _WANTED)
        return Frontier(tuple(sorted(self._candidates())), new)

    def _may_meet_wanted(self) -> bool:
        """Tell whether what is to be walked next is not older than all that was wanted.

        Commits of the same second come in any order: the haves may still lead there.
        """
        return bool(self._queue) and -self._queue[0][0] >= self._oldest_wanted

    def _candidates(self) -> list[ObjectId]:
        return [oid for oid, colour in self._paint.items() if colour == _COMMON]

    def _pass_on(self, oid: ObjectId) -> None:
        """Paint a commit's parents with what it has itself."""
        self._wanted.discard(oid)
        colour = self._paint[oid]
        if colour & _COMMON == _COMMON:
            colour |= _BELOW
        node = self._graph.node(oid)
        for parent in node.parents if node is not None else ():
            self.paint(parent, colour)

    def _drop_ancestors(self, commits_max: int) -> None:
        """Go on from what is common as far down as another common commit may lie below it."""
        times = [node.time for oid in self._candidates() if (node := self._graph.node(oid))]
        if len(times) < 2:
            return
        oldest = min(times)
        for _ in range(commits_max):
            if not self._queue or -self._queue[0][0] < oldest:
                return
            oid = heapq.heappop(self._queue)[1]
            if self._paint[oid] & _COMMON == _COMMON:
                self._pass_on(oid)
