"""Walks over history: the answers are git's own."""

import itertools
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import LocalError
from mirror.repository.bare import BareRepository
from mirror.repository.graph import CommitGraph
from mirror.repository.objects import COMMIT, TAG, ObjectSource
from mirror.wire.names import ObjectId
from mirror.wire.pktline import DELIM_PKT, FLUSH_PKT, encode_lines
from tests.git_client import environment
from tests.repository.histories import Atlas, Change, Scratch
from tests.wire.work import calls_made

COMMITS = [
    "main",
    "crossed",
    "cross-left",
    "left",
    "right",
    "empty",
    "root",
    "diverged",
    "unrelated",
]


class Fake(ObjectSource):
    """Objects that no repository could hold."""

    def __init__(self, objects: dict[ObjectId, tuple[int, bytes]]) -> None:
        self._objects = objects
        self.reads = 0

    def raw(self, oid: ObjectId) -> tuple[int, bytes]:
        self.reads += 1
        if oid not in self._objects:
            raise LocalError(f"object {oid.decode()} is missing")
        return self._objects[oid]


def name(number: int) -> ObjectId:
    return ObjectId(b"%040x" % number)


def commit(*parents: int, at: int = 0) -> tuple[int, bytes]:
    lines = [b"tree " + name(0), *(b"parent " + name(parent) for parent in parents)]
    return COMMIT, b"\n".join([*lines, b"committer C <c@d> %d +0000" % at, b"", b"m"])


def tag(target: int) -> tuple[int, bytes]:
    return TAG, b"object %b\ntype commit\ntag v\n\nm\n" % name(target)


def test_ancestors_are_those_that_git_finds(repository: BareRepository, atlas: Atlas) -> None:
    graph = repository.graph
    for one, other in itertools.product(COMMITS, COMMITS):
        expected = atlas.scratch.succeeds(
            "merge-base", "--is-ancestor", atlas[one].decode(), atlas[other].decode()
        )
        found = graph.is_ancestor(atlas[one], atlas[other], commits_max=1000)
        assert found == expected, (one, other)


def is_ready(scratch: Scratch, wants: Iterable[ObjectId], haves: Iterable[ObjectId]) -> bool:
    """Tell whether git's own server would ask for no more haves."""
    lines = [b"want " + oid for oid in wants] + [b"have " + oid for oid in haves]
    completed = subprocess.run(
        ["git", "upload-pack", "--stateless-rpc", os.fspath(scratch.path)],
        env=environment(scratch.path.parent) | {"GIT_PROTOCOL": "version=2"},
        input=encode_lines([b"command=fetch"]) + DELIM_PKT + encode_lines(lines) + FLUSH_PKT,
        capture_output=True,
        check=True,
        timeout=60,
    )
    return b"ready" in completed.stdout.partition(b"packfile")[0]


def test_negotiation_ends_where_gits_own_server_ends_it(
    repository: BareRepository, atlas: Atlas
) -> None:
    reach = repository.graph.all_reach
    for one, other in itertools.product(COMMITS, COMMITS):
        wants, haves = atlas.all(one), atlas.all(other)
        assert reach(wants, haves) == is_ready(atlas.scratch, wants, haves), (one, other)
    for asked in ("main diverged|left", "main unrelated|equal", "main diverged|left diverged"):
        wants, haves = (atlas.all(*names.split()) for names in asked.split("|"))
        assert reach(wants, haves) == is_ready(atlas.scratch, wants, haves), asked


def test_every_start_has_to_reach_a_goal_but_not_every_goal(
    repository: BareRepository, atlas: Atlas
) -> None:
    reach = repository.graph.all_reach
    assert reach(atlas.all("main", "diverged"), atlas.all("root"))
    assert reach(atlas.all("main", "diverged"), atlas.all("left", "diverged"))
    assert reach(atlas.all("main", "unrelated-2"), atlas.all("equal", "unrelated"))
    assert not reach(atlas.all("main", "unrelated-2"), atlas.all("equal"))
    assert reach(atlas.all("main", "right"), atlas.all("left"))
    assert not reach(atlas.all("main", "diverged"), atlas.all("left"))
    assert not reach(atlas.all("main"), [])
    assert reach(atlas.all("nested-tag", "main"), atlas.all("edited"))
    assert not reach(atlas.all("nested-tag", "main"), atlas.all("old-tag"))


def test_history_says_nothing_of_trees_and_blobs(repository: BareRepository, atlas: Atlas) -> None:
    reach = repository.graph.all_reach
    assert reach(atlas.all("tree", "blob-tag", "main"), atlas.all("root"))
    assert not reach(atlas.all("tree", "unrelated"), atlas.all("root"))
    assert not reach(atlas.all("main"), atlas.all("tree", "blob-tag"))
    assert not repository.graph.is_ancestor(atlas["tree"], atlas["main"], commits_max=10)
    assert not repository.graph.is_ancestor(atlas["root"], atlas["tree"], commits_max=10)


@dataclass(frozen=True)
class Drawn:
    """A history drawn at random.

    Attributes:
        graph: Its commits, the first named `name(1)`.
        above: The parents of each, counted from 0.
        reached: What each reaches, itself included.
        is_skewed: Whether a commit claims to be older than a parent.
    """

    graph: CommitGraph
    above: list[list[int]]
    reached: list[set[int]]
    is_skewed: bool


@st.composite
def histories(draw: st.DrawFn) -> Drawn:
    parents = draw(st.lists(st.sets(st.integers(1, 6), max_size=3), min_size=1, max_size=14))
    skews = draw(st.lists(st.integers(0, 3), min_size=14, max_size=14))
    above = [
        sorted({number - back for back in some if number - back >= 0})
        for number, some in enumerate(parents)
    ]
    times = [10 * number - 40 * (skews[number] == 3) for number in range(len(parents))]
    objects = {
        name(number + 1): commit(*(up + 1 for up in ups), at=max(0, times[number]))
        for number, ups in enumerate(above)
    }
    reached: list[set[int]] = []
    for number, ups in enumerate(above):
        reached.append({number}.union(*(reached[up] for up in ups)))
    is_skewed = any(times[number] < times[up] for number, ups in enumerate(above) for up in ups)
    return Drawn(CommitGraph(Fake(objects)), above, reached, is_skewed)


@given(history=histories(), data=st.data())
def test_any_history_is_walked_rightly(history: Drawn, data: st.DataObject) -> None:
    """Clocks may lag: then a walk may give up, but it never claims what is not so.

    Who has a commit has its parents too; but what is older than all goals is not looked behind.
    """
    graph, above, reached = history.graph, history.above, history.reached
    is_skewed = history.is_skewed
    places = st.integers(0, len(above) - 1)
    starts = data.draw(st.lists(places, min_size=1, max_size=4))
    goals = data.draw(st.lists(places, min_size=1, max_size=4))
    had = set(goals).union(*(above[goal] for goal in goals))
    expected = all(reached[start] & had for start in starts)
    found = graph.all_reach([name(n + 1) for n in starts], [name(n + 1) for n in goals])
    certain = not is_skewed and all(reached[start] & set(goals) for start in starts)
    assert certain <= found <= expected
    is_ancestor = graph.is_ancestor(name(goals[0] + 1), name(starts[0] + 1), commits_max=100)
    assert is_ancestor == (goals[0] in reached[starts[0]]) or (is_skewed and not is_ancestor)
    walked = list(graph.by_date([name(starts[0] + 1)], lambda oid: graph.node(oid).parents))  # type: ignore[union-attr]
    assert sorted(walked) == sorted(name(n + 1) for n in reached[starts[0]])


def test_commits_are_walked_newest_first_each_once(scratch: Scratch) -> None:
    commits = scratch.commits(
        Change(at=100), Change({}, [0], at=400), Change({}, [0], at=300), Change({}, [1, 2], at=500)
    )
    repository = scratch.open()
    graph = repository.graph

    def parents(oid: ObjectId) -> tuple[ObjectId, ...]:
        node = graph.node(oid)
        return node.parents if node else ()

    walked = list(graph.by_date([commits[3], commits[0], commits[3]], parents))
    assert walked == [commits[3], commits[1], commits[2], commits[0]]
    repository.close()


def test_a_limit_ends_the_search_for_an_ancestor() -> None:
    count = 50
    source = Fake({name(n): commit(*([n - 1] if n > 1 else []), at=n) for n in range(1, count)})
    graph = CommitGraph(source)
    assert graph.is_ancestor(name(1), name(count - 1), commits_max=count)
    source.reads = 0
    graph = CommitGraph(source)
    assert not graph.is_ancestor(name(1), name(count - 1), commits_max=10)
    assert source.reads < 15


def test_nothing_older_than_the_oldest_goal_is_looked_at() -> None:
    count = 200
    source = Fake({name(n): commit(*([n - 1] if n > 1 else []), at=n) for n in range(1, count)})
    source._objects[name(900)] = commit(at=190)
    graph = CommitGraph(source)
    assert not graph.all_reach([name(count - 1)], [name(900)])
    assert source.reads < 15


def test_merges_of_merges_are_walked_in_linear_time() -> None:
    """Each commit has both commits of the level below as parents: 2**n paths."""

    def work(levels: int) -> int:
        objects = {name(2): commit(at=1), name(3): commit(at=1), name(9999): commit(at=1)}
        for level in range(2, levels):
            below = (2 * level - 2, 2 * level - 1)
            objects |= {name(2 * level + side): commit(*below, at=level) for side in (0, 1)}
        graph = CommitGraph(Fake(objects))
        return calls_made(lambda: graph.all_reach([name(2 * levels - 2)], [name(9999)]))

    assert work(300) <= 4 * work(100)


def test_what_was_read_once_is_not_read_again() -> None:
    source = Fake({name(1): commit(), name(2): commit(1)})
    graph = CommitGraph(source)
    for _ in range(3):
        assert graph.all_reach([name(2)], [name(1)])
    assert source.reads <= 4


def test_tags_are_peeled_however_deep_they_are_nested() -> None:
    depth = 300
    graph = CommitGraph(Fake({name(1): commit()} | {name(n): tag(n - 1) for n in range(2, depth)}))
    assert graph.peel(name(depth - 1)) == name(1)
    assert graph.tag_chain(name(4)) == [name(4), name(3), name(2), name(1)]
    assert graph.tag_chain(name(1)) == [name(1)]


def test_tags_that_run_in_a_circle_are_refused() -> None:
    graph = CommitGraph(Fake({name(1): tag(2), name(2): tag(3), name(3): tag(1)}))
    with pytest.raises(LocalError, match="points to itself"):
        graph.peel(name(1))


def test_commits_that_run_in_a_circle_are_walked_once() -> None:
    graph = CommitGraph(Fake({name(1): commit(2, at=5), name(2): commit(1, at=5)}))
    assert not graph.all_reach([name(1)], [name(2), name(1)][:0])
    assert graph.is_ancestor(name(2), name(1), commits_max=10)
    source = Fake({name(1): commit(2, at=5), name(2): commit(1, at=5), name(3): commit(at=5)})
    graph = CommitGraph(source)
    assert not graph.all_reach([name(1)], [name(3)])
    assert not graph.is_ancestor(name(3), name(1), commits_max=10)


def test_what_is_missing_is_an_error() -> None:
    graph = CommitGraph(Fake({name(1): commit(7), name(2): tag(8)}))
    for oid in (name(2), name(9)):
        with pytest.raises(LocalError):
            graph.peel(oid)
    with pytest.raises(LocalError):
        graph.all_reach([name(1)], [name(1), name(9)])


def test_a_commit_is_read_as_git_reads_it(repository: BareRepository, atlas: Atlas) -> None:
    for row in atlas.scratch.git("log", "--all", "--format=%H %T %ct %P").splitlines():
        oid, tree, time, *parents = row.split()
        node = repository.graph.node(ObjectId(oid))
        assert node is not None
        assert (node.tree, node.time, list(node.parents)) == (tree, int(time), parents)
    assert repository.graph.node(atlas["tree"]) is None
    assert repository.graph.node(atlas["tag"]) is None


@pytest.mark.parametrize(
    ("people", "time"),
    [
        (b"author A <a@b> 9 +0000\ncommitter C <c@d> 5 +0000\n", 5),
        (b"author A <a@b> 9 +0000\ncommitter C <c@d> 5\n", 5),
        (b"author A <a@b> 9 +0000\ncommitter C D <> 5 +0000\n", 5),
        (b"author A <a@b> 9 +0000\ncommitter C <c@d>5 +0000\n", 5),
        (b"author A <a@b> 9 +0000\ncommitter \xe5 <<c@d>> 5 +0000\n", 5),
        (b"author A <a@b> 9 +0000\ncommitter C 5 +0000\n", 0),
        (b"author A <a@b> 9 +0000\ncommitter C <c@d>\n", 0),
        (b"author A <a@b> 9 +0000\ncommitter C <c@d> -5 +0000\n", 0),
        (b"author A <a@b> 9 +0000\ncommitter C <c@d> %b +0000\n" % (b"9" * 30), 0),
        (b"author A <a@b> 9 +0000\n", 0),
        (b"", 0),
    ],
)
def test_a_commit_without_a_date_is_from_the_beginning_of_time(people: bytes, time: int) -> None:
    content = b"tree %b\nparent %b\n%b\ncommitter in the message <x@y> 77 +0000\n"
    graph = CommitGraph(Fake({name(1): (COMMIT, content % (name(2), name(3), people))}))
    node = graph.node(name(1))
    assert node is not None
    assert (node.tree, node.parents, node.time) == (name(2), (name(3),), time)
