"""git's index of commits says what the commits say; where it can't be used, they are read."""

import hashlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mirror.repository.bare import BareRepository
from mirror.repository.commit_graph_file import MAPPED_BYTES_MIN, CommitGraphFile
from mirror.repository.graph import GENERATION_UNKNOWN, CommitGraph
from mirror.repository.objects import ObjectSource
from mirror.wire.names import ObjectId
from tests.repository.histories import Atlas, Change, Scratch
from tests.repository.test_graph import COMMITS


def write_index(scratch: Scratch) -> Path:
    scratch.git("commit-graph", "write", "--reachable", "--no-progress")
    return scratch.path / "objects" / "info" / "commit-graph"


class Counted(ObjectSource):
    """Counts the objects that are read."""

    reads = 0

    def raw(self, oid: ObjectId) -> tuple[int, bytes]:
        self.reads += 1
        return super().raw(oid)


@pytest.fixture(scope="module")
def indexed(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareRepository]:
    """The atlas with an index."""
    path = tmp_path_factory.mktemp("indexed") / "atlas.git"
    shutil.copytree(atlas.scratch.path, path)
    write_index(Scratch(path))
    opened = BareRepository.open(path)
    yield opened
    opened.close()


def history(scratch: Scratch, count: int) -> list[ObjectId]:
    """Make a line of commits, and at its end one with four parents."""
    line = scratch.commits(*(Change({}, [number - 1] if number else []) for number in range(count)))
    top = scratch.commit({}, line[-1], line[0], line[1], line[2])
    scratch.refs({"refs/heads/main": top})
    return [*line, top]


@pytest.mark.parametrize("count", [5, 2000])
def test_each_commit_is_indexed_as_it_is(scratch: Scratch, count: int) -> None:
    oids = history(scratch, count)
    path = write_index(scratch)
    assert (path.stat().st_size >= MAPPED_BYTES_MIN) is (count == 2000), "read whole, and mapped"
    objects = CommitGraph(ObjectSource(scratch.path / "objects"))
    source = Counted(scratch.path / "objects")
    index = CommitGraph(source, index=path)
    for oid in oids:
        found, expected = index.node(oid), objects.node(oid)
        assert found is not None
        assert expected is not None
        assert found.parents == expected.parents
        assert (found.tree, found.time) == (expected.tree, expected.time)
        parents = [node for node in map(index.node, found.parents) if node is not None]
        assert found.generation == 1 + max((node.generation for node in parents), default=0)
        assert expected.generation == GENERATION_UNKNOWN
    assert source.reads == 0


def test_walks_over_the_index_end_where_walks_over_objects_end(
    indexed: BareRepository, repository: BareRepository, atlas: Atlas
) -> None:
    for one, other in itertools.product(COMMITS, COMMITS):
        pair = [atlas[one]], [atlas[other]]
        assert indexed.graph.all_reach(*pair) == repository.graph.all_reach(*pair), (one, other)
        expected = atlas.scratch.succeeds(
            "merge-base", "--is-ancestor", atlas[one].decode(), atlas[other].decode()
        )
        found = indexed.graph.is_ancestor(atlas[one], atlas[other], commits_max=1000)
        assert found == expected, (one, other)


def test_what_can_not_be_an_ancestor_is_known_without_a_walk(scratch: Scratch) -> None:
    oids = history(scratch, 500)
    side = scratch.commit({}, oids[0], at=1_000_000_000)  # as old as it gets
    scratch.refs({"refs/heads/main": oids[-1], "refs/heads/side": side})
    graph = CommitGraph(ObjectSource(scratch.path / "objects"), index=write_index(scratch))
    assert not graph.is_ancestor(oids[400], oids[401 - 2], commits_max=1000)
    assert not graph.all_reach([oids[300]], [oids[400]])
    assert len(graph._nodes) < 10


def test_commits_that_came_after_the_index_are_read_and_then_found_in_the_next_one(
    scratch: Scratch,
) -> None:
    oids = history(scratch, 20)
    path = scratch.path / "objects" / "info" / "commit-graph"
    graph = CommitGraph(ObjectSource(scratch.path / "objects"), index=path)
    assert graph.is_ancestor(oids[0], oids[-1], commits_max=100), "there is none yet"
    write_index(scratch)
    source = Counted(scratch.path / "objects")
    graph = CommitGraph(source, index=path)
    assert graph.is_ancestor(oids[0], oids[-1], commits_max=100)
    assert source.reads == 0
    new = scratch.commit({}, oids[-1])
    newer = scratch.commit({}, new)
    scratch.refs({"refs/heads/main": newer})
    assert graph.is_ancestor(oids[0], new, commits_max=100)
    assert source.reads == 1
    write_index(scratch)
    assert graph.node(newer) is not None
    assert source.reads == 1


def test_each_damaged_byte_is_noticed(scratch: Scratch) -> None:
    history(scratch, 5)
    path = write_index(scratch)
    good = path.read_bytes()
    path.unlink()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(ValueError, match="commit-graph"):
            CommitGraphFile(path)
    for size in (0, 4, 8, 100, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(ValueError, match="commit-graph"):
            CommitGraphFile(path)


def test_an_index_that_contradicts_itself_is_not_believed(scratch: Scratch) -> None:
    """With a checksum that is right: somebody's program wrote it so."""
    oids = history(scratch, 5)
    path = write_index(scratch)
    good = path.read_bytes()
    path.unlink()
    refused = 0
    for place, wrong in itertools.product(range(8, len(good) - 20), (b"\x7f", b"\xff")):
        bad = good[:place] + wrong + good[place + 1 : -20]
        path.write_bytes(bad + hashlib.sha1(bad, usedforsecurity=False).digest())
        try:
            file = CommitGraphFile(path)
            for oid in oids:
                file.get(bytes.fromhex(oid.decode()))
        except ValueError:
            refused += 1
    assert refused > 0


def test_a_damaged_index_is_told_of_once_and_then_done_without(scratch: Scratch) -> None:
    oids = history(scratch, 5)
    path = write_index(scratch)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    graph = CommitGraph(ObjectSource(scratch.path / "objects"), index=path)
    with capture_logs() as logs:
        assert graph.is_ancestor(oids[0], oids[-1], commits_max=100)
    assert [entry["event"] for entry in logs] == ["commit_graph_not_used"]
    path.unlink()
    path.write_bytes(content)
    fresh = scratch.commit({}, oids[-1])
    source = Counted(scratch.path / "objects")
    graph._source = source
    graph._nodes.clear()
    assert graph.is_ancestor(oids[0], fresh, commits_max=100), "a new one is believed again"
    assert source.reads == 1
