"""From a request to a plan: what is refused, and that equal questions become equal plans.

What is said before the pack is compared with git's own server in tests/wire.
"""

from dataclasses import replace

import pytest

from mirror.errors import ProtocolError
from mirror.repository.bare import BareRepository
from mirror.repository.fetching import FetchPlan, UnknownRef, first_missing, plan_v0, plan_v2
from mirror.repository.snapshot import RefSnapshot
from mirror.wire.filters import ObjectFilter
from mirror.wire.names import HEAD, ObjectId, RefName
from mirror.wire.requests import (
    AckMode,
    Deepen,
    FetchRequest,
    SideBand,
    UploadPackRequest,
)
from tests.repository.histories import Atlas

NOWHERE = ObjectId(b"1" * 40)


@pytest.fixture
def snapshot(repository: BareRepository) -> RefSnapshot:
    refs = repository.read_refs()
    return RefSnapshot(1, refs.refs.values(), head_target=refs.head_target, agent=b"test")


@pytest.fixture
def fetch(atlas: Atlas) -> FetchRequest:
    """What a clone of main asks for."""
    return FetchRequest(wants=atlas.all("main"), done=True)


def plans(
    repository: BareRepository, snapshot: RefSnapshot, fetch: FetchRequest
) -> tuple[FetchPlan, FetchPlan]:
    """Plan for v0 and for v2."""
    v0 = UploadPackRequest(fetch, acks=AckMode.DETAILED, side_band=SideBand.LARGE)
    return plan_v0(repository, snapshot, v0), plan_v2(repository, snapshot, fetch)


def test_the_first_of_what_is_not_here_is_told(repository: BareRepository, atlas: Atlas) -> None:
    known = atlas.all("main", "blob", "tag")
    assert first_missing(repository, known) is None
    asked = iter([*known, NOWHERE, *known])
    assert first_missing(repository, asked) == NOWHERE
    assert tuple(asked) == known  # nobody looked further


@pytest.mark.parametrize(
    "name", [b"refs/heads/nowhere", b"refs/heads/mai", b"refs/git-mirror/kept/1/x"]
)
def test_a_ref_that_is_not_there_can_not_be_wanted(
    repository: BareRepository, snapshot: RefSnapshot, name: bytes
) -> None:
    with pytest.raises(UnknownRef, match="unknown ref"):
        plan_v2(repository, snapshot, FetchRequest(want_refs=(RefName(name),), done=True))


def test_refs_may_be_wanted_by_their_names(
    repository: BareRepository, snapshot: RefSnapshot, atlas: Atlas
) -> None:
    names = (RefName(b"refs/heads/main"), HEAD, RefName(b"refs/tags/tag"))
    asked = FetchRequest(wants=atlas.all("main"), want_refs=names, done=True)
    plan = plan_v2(repository, snapshot, asked)
    assert plan.pack is not None
    assert plan.pack.wants == tuple(sorted(atlas.all("main", "tag")))
    for name, oid in zip(names, atlas.all("main", "main", "tag"), strict=True):
        assert b"%b %b" % (oid, name) in plan.head


@pytest.mark.parametrize("name", [b"nowhere", b"", b"refs/heads/", b"1" * 40])
def test_history_can_not_be_cut_at_a_ref_that_is_not_there(
    repository: BareRepository, snapshot: RefSnapshot, fetch: FetchRequest, name: bytes
) -> None:
    with pytest.raises(UnknownRef, match="deepen-not"):
        plans(repository, snapshot, replace(fetch, deepen=Deepen(exclude=(name,))))


def test_a_history_of_nothing_is_refused(
    repository: BareRepository, snapshot: RefSnapshot, fetch: FetchRequest
) -> None:
    with pytest.raises(ProtocolError, match="no commits selected"):
        plans(repository, snapshot, replace(fetch, deepen=Deepen(since=2_000_000_000)))


@pytest.mark.parametrize("name", ["tree", "blob", "tag"])
def test_only_commits_can_be_shallow(
    repository: BareRepository,
    snapshot: RefSnapshot,
    fetch: FetchRequest,
    atlas: Atlas,
    name: str,
) -> None:
    with pytest.raises(ProtocolError, match="invalid shallow object"):
        plans(repository, snapshot, replace(fetch, shallow=frozenset(atlas.all(name))))


def test_a_boundary_of_commits_that_we_do_not_know_is_no_business_of_ours(
    repository: BareRepository, snapshot: RefSnapshot, fetch: FetchRequest, atlas: Atlas
) -> None:
    boundary = frozenset({NOWHERE, atlas["left"]})
    for plan in plans(repository, snapshot, replace(fetch, shallow=boundary)):
        assert plan.pack is not None
        assert plan.pack.shallow == {atlas["left"]}


def test_equal_questions_make_equal_plans(
    repository: BareRepository, snapshot: RefSnapshot, atlas: Atlas
) -> None:
    """In whatever order, however often, and with whatever else that we do not know."""
    wants, haves = atlas.all("main", "diverged", "tag"), atlas.all("root", "left")
    asked = FetchRequest(wants=wants, haves=haves, done=True, include_tag=True)
    again = replace(asked, wants=wants[::-1], haves=(NOWHERE, *haves[::-1]))
    first = plans(repository, snapshot, asked)
    second = plans(repository, snapshot, again)
    packs = [plan.pack for plan in (*first, *second)]
    assert packs[0] is not None
    assert packs == [packs[0]] * 4
    assert {hash(pack) for pack in packs} == {hash(packs[0])}
    assert replace(packs[0], thin=True) != packs[0]
    assert hash(replace(packs[0], thin=True)) != hash(packs[0])


def test_annotated_tags_come_along_only_where_they_are_asked_for(
    repository: BareRepository, snapshot: RefSnapshot, fetch: FetchRequest
) -> None:
    for plan in plans(repository, snapshot, fetch):
        assert plan.pack is not None
        assert plan.pack.tags == ()
    for plan in plans(repository, snapshot, replace(fetch, include_tag=True)):
        assert plan.pack is not None
        assert set(plan.pack.tags) == set(snapshot.tags())


@pytest.mark.parametrize(
    ("wanted", "thin"),
    [
        (None, True),
        (ObjectFilter(blob_limit_bytes=0), True),
        (ObjectFilter(blob_limit_bytes=100), False),
        (ObjectFilter(tree_depth=1), False),
        (ObjectFilter(blob_limit_bytes=0, tree_depth=3), False),
    ],
)
def test_deltas_build_on_what_a_reader_with_a_filter_surely_has(
    repository: BareRepository,
    snapshot: RefSnapshot,
    fetch: FetchRequest,
    wanted: ObjectFilter | None,
    thin: bool,
) -> None:
    for plan in plans(repository, snapshot, replace(fetch, filter=wanted, thin_pack=True)):
        assert plan.pack is not None
        assert plan.pack.thin == thin


def test_a_round_that_settles_nothing_has_no_pack(
    repository: BareRepository, snapshot: RefSnapshot, atlas: Atlas
) -> None:
    asked = FetchRequest(wants=atlas.all("main"), haves=(NOWHERE,))
    for plan in plans(repository, snapshot, asked):
        assert plan.pack is None
        assert b"NAK" in plan.head


def test_who_only_asks_where_history_would_end_is_told_no_more(
    repository: BareRepository, snapshot: RefSnapshot, fetch: FetchRequest, atlas: Atlas
) -> None:
    asked = replace(fetch, deepen=Deepen(depth=1), done=False)
    plan = plan_v0(repository, snapshot, UploadPackRequest(asked, wants_only=True))
    assert plan == FetchPlan(b"0034shallow %b0000" % atlas["main"], None, SideBand.NONE)


def test_what_is_unshallowed_is_wanted_from_its_parents_on(
    repository: BareRepository, snapshot: RefSnapshot, fetch: FetchRequest, atlas: Atlas
) -> None:
    asked = replace(fetch, shallow=frozenset(atlas.all("equal")), deepen=Deepen(depth=3))
    for plan in plans(repository, snapshot, asked):
        assert plan.pack is not None
        assert set(plan.pack.wants) == set(atlas.all("main", "crossed", "root"))
        assert plan.pack.haves == atlas.all("equal")
        assert plan.pack.shallow == set(atlas.all("equal", "crossed", "root"))
