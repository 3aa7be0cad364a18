"""The common frontier is what git calls the merge bases, however the reader names what it has."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mirror.repository.bare import BareRepository
from mirror.repository.frontier import Frontier, find_frontier
from tests.repository.histories import Atlas, Change, Scratch
from tests.repository.test_graph import COMMITS, Drawn, histories, name


def test_the_frontier_is_the_merge_bases_that_git_finds(
    repository: BareRepository, atlas: Atlas
) -> None:
    for one, other in itertools.product(COMMITS, COMMITS):
        arguments = ["merge-base", "--all", atlas[one].decode(), atlas[other].decode()]
        expected = []
        if atlas.scratch.succeeds(*arguments):
            expected = sorted(atlas.scratch.git(*arguments).split())
        found = find_frontier(repository.graph, [atlas[one]], [atlas[other]])
        assert found is not None
        assert list(found.commits) == expected, (one, other)


def test_it_is_the_same_whatever_else_a_reader_says_it_has(
    repository: BareRepository, atlas: Atlas
) -> None:
    graph, wants = repository.graph, atlas.all("main")
    plain = find_frontier(graph, wants, atlas.all("left"))
    assert plain is not None
    assert plain.commits == atlas.all("left")
    for more in (["root"], ["unrelated-2"], ["root", "tree", "blob"]):
        assert find_frontier(graph, wants, atlas.all("left", *more)[::-1]) == plain


def test_tags_stand_for_their_commits_and_other_objects_for_nothing(
    repository: BareRepository, atlas: Atlas
) -> None:
    graph = repository.graph
    assert find_frontier(graph, atlas.all("nested-tag"), atlas.all("nested-tag")) is not None
    assert find_frontier(graph, atlas.all("tree"), atlas.all("main")) is None
    nothing = find_frontier(graph, atlas.all("root"), atlas.all("tree", "blob-tag"))
    assert nothing == Frontier((), frozenset(atlas.all("root")))


def test_commits_of_the_same_second_have_the_frontier_that_their_order_gives(
    scratch: Scratch,
) -> None:
    """Which of them is looked at first depends on their ids: all are tried."""
    for number in range(4):
        made = scratch.commits(
            *(Change({"a": b"%d %d" % (number, one)}, [one - 1][:one], 7) for one in range(4))
        )
        repository = scratch.open()
        for place, want in enumerate(made):
            found = find_frontier(repository.graph, [want], [made[-1]])
            assert found == Frontier((want,), frozenset()), (number, place)
        repository.close()


def test_a_walk_that_is_too_long_is_given_up(repository: BareRepository, atlas: Atlas) -> None:
    graph = repository.graph
    assert find_frontier(graph, atlas.all("main"), atlas.all("root"), commits_max=1) is None
    assert find_frontier(graph, atlas.all("main"), atlas.all("main"), commits_max=1) is not None


@given(history=histories(), data=st.data())
def test_any_history_has_the_frontier_that_sets_have(history: Drawn, data: st.DataObject) -> None:
    """With clocks that lag it may say more than it had to, and find less; it is never wrong."""
    reached = history.reached
    places = st.integers(0, len(reached) - 1)
    wants = data.draw(st.lists(places, min_size=1, max_size=4))
    haves = data.draw(st.lists(places, max_size=4))

    found = find_frontier(history.graph, [name(n + 1) for n in wants], [name(n + 1) for n in haves])
    assert found is not None
    wanted = set[int]().union(*(reached[want] for want in wants))
    had = set[int]().union(*(reached[have] for have in haves))
    common = wanted & had
    newest = {one for one in common if not any(one in reached[o] - {o} for o in common)}
    commits = {int(oid, 16) - 1 for oid in found.commits}
    new = {int(oid, 16) - 1 for oid in found.new}
    assert commits <= common
    assert new >= wanted - had
    if not history.is_skewed:
        assert commits == newest
        assert new == wanted - had
