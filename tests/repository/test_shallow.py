"""Where shallow histories end: compared with what git's own server says to the same request."""

import os
import re
import subprocess
from collections.abc import Iterable

import pytest

from mirror.errors import ProtocolError
from mirror.repository.bare import BareRepository
from mirror.repository.shallow import ShallowUpdate, update_shallow
from mirror.wire.names import ObjectId
from mirror.wire.pktline import DELIM_PKT, FLUSH_PKT, encode_lines
from mirror.wire.requests import INFINITE_DEPTH, Deepen
from tests.git_client import FIRST_COMMIT_AT, environment
from tests.repository.histories import Atlas, Change, Scratch

WANTS = ["main", "crossed diverged", "nested-tag", "tree main", "unrelated-2", "root"]
BOUNDARIES = [
    "",
    "main",
    "equal",
    "left right",
    "cross-left root",
    "unrelated-2 deep",
    "diverged",
    "root",
]
DEEPENINGS = [
    *(Deepen(depth=depth) for depth in (1, 2, 3, 6, 100, INFINITE_DEPTH - 1, INFINITE_DEPTH)),
    *(Deepen(depth=depth, relative=True) for depth in (1, 2, 5, 100, INFINITE_DEPTH)),
    *(Deepen(since=FIRST_COMMIT_AT + 60 * minute) for minute in (-1, 1, 5, 11, 14, 18)),
    Deepen(exclude=(b"diverged",)),
    Deepen(exclude=(b"refs/tags/light",)),
    Deepen(exclude=(b"tags/tag", b"edited")),
    Deepen(since=FIRST_COMMIT_AT + 60 * 7, exclude=(b"refs/heads/edited",)),
]


def ask_git(
    scratch: Scratch,
    wants: Iterable[ObjectId],
    shallow: Iterable[ObjectId],
    deepen: Deepen,
) -> tuple[set[bytes], set[bytes]] | None:
    """Return what git's server has the reader cut, and no longer cut; `None` if it refuses."""
    lines = [b"want " + oid for oid in wants] + [b"shallow " + oid for oid in shallow]
    if deepen.depth is not None:
        lines.append(b"deepen %d" % deepen.depth)
    if deepen.relative:
        lines.append(b"deepen-relative")
    if deepen.since is not None:
        lines.append(b"deepen-since %d" % deepen.since)
    lines += [b"deepen-not " + name for name in deepen.exclude]
    body = encode_lines([b"command=fetch"]) + DELIM_PKT + encode_lines([*lines, b"done"])
    completed = subprocess.run(
        ["git", "upload-pack", "--stateless-rpc", os.fspath(scratch.path)],
        env=environment(scratch.path.parent) | {"GIT_PROTOCOL": "version=2"},
        input=body + FLUSH_PKT,
        capture_output=True,
        check=False,
        timeout=60,
    )
    if completed.returncode != 0:
        return None
    said = re.findall(
        rb"([a-z]*shallow) ([0-9a-f]{40})", completed.stdout.partition(b"packfile")[0]
    )
    shallow_now = {oid for word, oid in said if word == b"shallow"}
    return shallow_now, {oid for word, oid in said if word == b"unshallow"}


def ask_us(
    repository: BareRepository,
    wants: Iterable[ObjectId],
    shallow: Iterable[ObjectId],
    deepen: Deepen,
) -> ShallowUpdate | None:
    refs = repository.read_refs().refs
    excluded = []
    for name in deepen.exclude:
        full = next(
            ref
            for ref in refs.values()
            if ref.name in {rule % name for rule in (b"%b", b"refs/%b", b"refs/heads/%b")}
        )
        excluded.append(full.oid)
    try:
        return update_shallow(
            repository.graph,
            wants=wants,
            client_shallow=frozenset(shallow),
            deepen=deepen,
            excluded=excluded,
        )
    except ProtocolError:
        return None


def assert_same(
    scratch: Scratch,
    repository: BareRepository,
    wants: Iterable[ObjectId],
    shallow: Iterable[ObjectId],
    deepen: Deepen,
) -> None:
    theirs = ask_git(scratch, wants, shallow, deepen)
    update = ask_us(repository, wants, shallow, deepen)
    ours = None if update is None else (set(update.shallow), set(update.unshallow))
    assert ours == theirs, deepen


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("wants", WANTS)
def test_histories_end_where_gits_own_server_ends_them(
    repository: BareRepository, atlas: Atlas, wants: str, boundary: str
) -> None:
    for deepen in DEEPENINGS:
        assert_same(
            atlas.scratch,
            repository,
            atlas.all(*wants.split()),
            atlas.all(*boundary.split()),
            deepen,
        )


def test_clocks_that_are_wrong_change_nothing_about_depths(scratch: Scratch) -> None:
    commits = scratch.commits(
        Change(at=5_000),
        Change({}, [0], at=1_000),
        Change({}, [1], at=9_000),
        Change({}, [0], at=2_000),
        Change({}, [2, 3], at=100),
        Change({}, [4], at=3_000),
    )
    scratch.refs({"refs/heads/main": commits[-1], "refs/heads/side": commits[3]})
    repository = scratch.open()
    for depth in range(1, 7):
        for boundary in ((), (commits[4],), (commits[2], commits[3])):
            for relative in (False, True):
                deepen = Deepen(depth=depth, relative=relative)
                assert_same(scratch, repository, commits[-1:], boundary, deepen)
    for since in (50, 500, 2_500, 4_000):
        assert_same(scratch, repository, commits[-1:], (), Deepen(since=since))
    repository.close()


def test_a_reader_that_asks_for_no_depth_keeps_its_boundary(
    repository: BareRepository, atlas: Atlas
) -> None:
    boundary = frozenset(atlas.all("left", "right"))
    update = update_shallow(
        repository.graph, wants=atlas.all("main"), client_shallow=boundary, deepen=Deepen()
    )
    assert update == ShallowUpdate(boundary=boundary)


def test_nobody_can_be_given_no_history_at_all(repository: BareRepository, atlas: Atlas) -> None:
    with pytest.raises(ProtocolError, match="no commits selected"):
        update_shallow(
            repository.graph,
            wants=atlas.all("main"),
            client_shallow=frozenset(),
            deepen=Deepen(exclude=(b"main",)),
            excluded=atlas.all("main"),
        )


def test_the_parents_of_what_is_cut_no_longer_are_sent(
    repository: BareRepository, atlas: Atlas
) -> None:
    """The reader has the commit itself; what it lacks begins above."""
    update = update_shallow(
        repository.graph,
        wants=atlas.all("main"),
        client_shallow=frozenset(atlas.all("equal")),
        deepen=Deepen(depth=3),
    )
    assert update.unshallow == update.haves == atlas.all("equal")
    assert set(update.wants) == set(atlas.all("crossed", "root"))
    assert update.shallow == tuple(sorted(atlas.all("crossed", "root")))
    assert update.boundary == frozenset(atlas.all("equal", "crossed", "root"))
