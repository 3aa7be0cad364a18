"""Where a shallow history ends: which commits a reader is told to cut at, or to cut no longer.

The rules are those of git's own server (gitprotocol-pack(5), "shallow" and "deepen"):

* A depth counts commits from the wants, the wants being the first; the commits at that depth are
  the boundary. With `deepen-relative` it counts from the reader's own boundary. An infinite depth
  unshallows all that the reader has, not only what its wants reach.
* A date or an excluded ref selects commits; those with a parent that was not selected are the
  boundary.
* A commit of the reader's old boundary that now lies inside is unshallowed: its parents are sent,
  while the traversal still stops there, for the reader has what lies above.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from mirror.errors import ProtocolError
from mirror.repository.graph import CommitGraph
from mirror.wire.names import ObjectId
from mirror.wire.requests import INFINITE_DEPTH, Deepen


@dataclass(frozen=True, slots=True)
class ShallowUpdate:
    """What to tell a shallow reader, and what that means for the pack.

    Attributes:
        shallow: Commits that become shallow.
        unshallow: Commits that are no longer.
        boundary: Commits whose parents the traversal must not follow.
        wants: More commits to send: the parents of what is unshallowed.
        haves: More commits that the reader has: what is unshallowed.
    """

    shallow: tuple[ObjectId, ...] = ()
    unshallow: tuple[ObjectId, ...] = ()
    boundary: frozenset[ObjectId] = frozenset()
    wants: tuple[ObjectId, ...] = ()
    haves: tuple[ObjectId, ...] = ()


def update_shallow(
    graph: CommitGraph,
    *,
    wants: Iterable[ObjectId],
    client_shallow: frozenset[ObjectId],
    deepen: Deepen,
    excluded: Iterable[ObjectId] = (),
) -> ShallowUpdate:
    """Work out the new boundary.

    Args:
        graph: The repository's commits.
        wants: What the reader asked for.
        client_shallow: The reader's boundary; only commits that are here.
        deepen: What it asked for.
        excluded: What the refs in `deepen.exclude` point to.

    Raises:
        ProtocolError: No commit is selected.
    """
    if not deepen:
        return ShallowUpdate(boundary=client_shallow)
    heads = [peeled for peeled in map(graph.peel, wants) if graph.node(peeled)]
    inside, edge = client_shallow, frozenset[ObjectId]()
    if deepen.depth is None:
        inside, edge = _by_selection(graph, heads, deepen.since, excluded)
    elif deepen.depth < INFINITE_DEPTH:
        starts = client_shallow if deepen.relative else heads
        inside, edge = _by_depth(graph, starts, deepen.depth + deepen.relative)
    unshallow = tuple(sorted(client_shallow & inside))
    parents = {p for oid in unshallow if (node := graph.node(oid)) for p in node.parents}
    return ShallowUpdate(
        shallow=tuple(sorted(edge - client_shallow)),
        unshallow=unshallow,
        boundary=client_shallow | edge,
        wants=tuple(sorted(parents)),
        haves=unshallow,
    )


def _by_depth(
    graph: CommitGraph, starts: Iterable[ObjectId], depth: int
) -> tuple[frozenset[ObjectId], frozenset[ObjectId]]:
    """Return the commits nearer than `depth` and those exactly at it; a start is at 1."""
    inside: set[ObjectId] = set()
    level = set(starts)
    for _ in range(1, depth):
        if not level:
            break
        inside |= level
        level = {
            parent
            for oid in level
            if (node := graph.node(oid))
            for parent in node.parents
            if parent not in inside
        }
    return frozenset(inside), frozenset(level)


def _by_selection(
    graph: CommitGraph, heads: list[ObjectId], since: int | None, excluded: Iterable[ObjectId]
) -> tuple[frozenset[ObjectId], frozenset[ObjectId]]:
    """Return the selected commits that are no boundary, and the boundary."""

    def parents(oid: ObjectId) -> tuple[ObjectId, ...]:
        node = graph.node(oid)
        return node.parents if node is not None else ()

    left_out = set(graph.by_date(map(graph.peel, excluded), parents))

    def selected(oid: ObjectId) -> bool:
        node = graph.node(oid)
        return oid not in left_out and (since is None or (node is not None and node.time >= since))

    def selected_parents(oid: ObjectId) -> tuple[ObjectId, ...]:
        return tuple(parent for parent in parents(oid) if selected(parent))

    chosen = frozenset(graph.by_date(filter(selected, heads), selected_parents))
    if not chosen:
        raise ProtocolError("no commits selected for shallow requests")
    edge = frozenset(oid for oid in chosen if any(parent not in chosen for parent in parents(oid)))
    return chosen - edge, edge
