"""What our server answers to a fetch, up to the pack, compared with git's own server.

Where git is not followed: in single-ack mode it acknowledges again and again while the haves are
parents of what it acknowledged before; gitprotocol-pack(5) says once, and so do we.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import ClientError
from mirror.repository.fetching import plan_v0, plan_v2
from mirror.wire.names import HEAD, ObjectId, RefName
from mirror.wire.negotiation import negotiate_v0, negotiate_v2
from mirror.wire.pktline import Packet, Special
from mirror.wire.requests import (
    INFINITE_DEPTH,
    AckMode,
    Deepen,
    FetchRequest,
    SideBand,
    UploadPackRequest,
    parse_command,
    parse_upload_pack,
)
from tests.wire.bodies import command, fetch_groups, oid, upload_pack
from tests.wire.git_server import Answer, Both

UNKNOWN = [oid(number) for number in range(1, 5)]
"""Commits of the reader's own."""


def fetch_body(request: FetchRequest) -> bytes:
    return command(b"fetch", *(line for group in fetch_groups(request) for line in group))


def parsed_v2(body: bytes) -> FetchRequest:
    request = parse_command(body)
    assert isinstance(request, FetchRequest)
    return request


def parsed_v0(body: bytes) -> UploadPackRequest:
    request = parse_upload_pack(body)
    assert request is not None
    return request


def by_git_v0(both: Both, request: UploadPackRequest) -> Answer:
    """Ask git's server; a repeated single ACK is left out."""
    answer = both.git.fetch_v0(upload_pack(request))
    if request.acks is not AckMode.SINGLE:
        return answer
    acks = [line for line in answer.lines if isinstance(line, bytes) and line.startswith(b"ACK")]
    return replace(answer, lines=[line for line in answer.lines if line not in acks[1:]])


def sorted_shallow(lines: list[Packet]) -> list[Packet]:
    """Sort the shallow lines, whose order is free, and leave the others where they are."""
    found = [line for line in lines if isinstance(line, bytes) and b"shallow " in line]
    order = iter(sorted(found))
    return [next(order) if line in found else line for line in lines]


def assert_same(by_us: Answer, by_git: Answer) -> None:
    assert sorted_shallow(by_us.lines) == sorted_shallow(by_git.lines)
    assert by_us.pack == by_git.pack


# --- negotiation alone -------------------------------------------------------------------------


def ready_as_git_sees_it(
    both: Both, wants: Sequence[ObjectId]
) -> Callable[[tuple[ObjectId, ...]], bool]:
    """Ready when each want leads to a common commit or to a parent of one.

    git takes a commit that is common for a sign that its parents are, too, and does not look behind
    commits that are older than all common ones.
    """

    def ready(common: tuple[ObjectId, ...]) -> bool:
        commits = {oid for oid in common if oid in both.parents}
        known = commits | {parent for commit in commits for parent in both.parents[commit]}
        oldest = min((both.times[commit] for commit in commits), default=0)

        def leads_to_known(start: ObjectId) -> bool:
            behind = {start}
            todo = [start]
            while todo:
                parents = both.parents[todo.pop()]
                behind.update(parents)
                todo += (parent for parent in parents if both.times[parent] >= oldest)
            return bool(behind & known)

        return all(leads_to_known(both.tags.get(want, want)) for want in wants)

    return ready


@st.composite
def negotiations(draw: st.DrawFn) -> Callable[[Both], FetchRequest]:
    """One want or several tips, and any haves, by their places in a history to be looked up.

    (What git finds out about one want it remembers for the others, and that may depend on their
    order where one is an ancestor of another.)
    """
    wants = draw(st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True))
    haves = draw(st.lists(st.integers(0, 99), max_size=9, unique=True))
    done = draw(st.booleans())

    def request(both: Both) -> FetchRequest:
        known = [*both.parents, *both.tags]
        candidates = [*known, *UNKNOWN, *known[:3]]
        wanted = known if len(wants) == 1 else both.tips
        return FetchRequest(
            wants=tuple(dict.fromkeys(wanted[place % len(wanted)] for place in wants)),
            haves=tuple(dict.fromkeys(candidates[place % len(candidates)] for place in haves)),
            done=done,
        )

    return request


@given(negotiations(), st.sampled_from(AckMode), st.booleans(), st.sampled_from(SideBand))
def test_whatever_the_haves_a_v0_round_is_answered_as_git_does(
    both: Both,
    fetch: Callable[[Both], FetchRequest],
    acks: AckMode,
    no_done: bool,
    side_band: SideBand,
) -> None:
    asked = UploadPackRequest(fetch(both), acks=acks, no_done=no_done, side_band=side_band)
    request = parsed_v0(upload_pack(asked))
    contains = both.mirror.source.contains
    outcome = negotiate_v0(request, contains, ready_as_git_sees_it(both, request.fetch.wants))
    by_us = replace(Answer.of(outcome.lines), pack=outcome.send_pack)
    assert_same(by_us, by_git_v0(both, request))


@given(negotiations(), st.booleans())
def test_whatever_the_haves_a_v2_round_is_answered_as_git_does(
    both: Both, fetch: Callable[[Both], FetchRequest], wait_for_done: bool
) -> None:
    body = fetch_body(replace(fetch(both), wait_for_done=wait_for_done))
    request = parsed_v2(body)
    contains = both.mirror.source.contains
    outcome = negotiate_v2(request, contains, ready_as_git_sees_it(both, request.wants))
    by_us = replace(Answer.of(outcome.lines), pack=outcome.send_pack)
    by_git = both.git.fetch_v2(body)
    if by_git.pack:
        assert by_git.lines.pop() == b"packfile"
    assert_same(by_us, by_git)


@pytest.mark.parametrize("wait_for_done", [False, True])
def test_a_v2_request_without_a_want_is_answered_as_git_does(
    both: Both, wait_for_done: bool
) -> None:
    haves = (both.snapshot.by_name[RefName(b"refs/heads/main")].oid, UNKNOWN[0])
    body = fetch_body(FetchRequest(haves=haves, wait_for_done=wait_for_done))
    assert_same(
        Answer.planned(plan_v2(both.mirror, both.snapshot, parsed_v2(body))),
        both.git.fetch_v2(body),
    )


# --- whole plans -------------------------------------------------------------------------------


@st.composite
def readers(draw: st.DrawFn) -> Callable[[Both], FetchRequest]:
    """A reader that has whole histories and, before or after them, commits of its own."""
    wants = draw(st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True))
    starts = draw(st.lists(st.integers(0, 99), max_size=2))
    own_before, own_after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    done = draw(st.booleans())

    def request(both: Both) -> FetchRequest:
        commits = list(both.parents)
        candidates = [*commits, *both.tags]
        histories = both.reachable({commits[place % len(commits)] for place in starts})
        newest_first = (commit for commit in reversed(commits) if commit in histories)
        haves = (*UNKNOWN[:own_before], *newest_first, *UNKNOWN[2 : 2 + own_after])
        return FetchRequest(
            wants=tuple(dict.fromkeys(candidates[place % len(candidates)] for place in wants)),
            haves=haves,
            done=done,
            thin_pack=True,
            ofs_delta=True,
        )

    return request


@given(readers(), st.sampled_from(AckMode), st.booleans(), st.sampled_from(SideBand))
def test_a_v0_reader_is_answered_as_by_git(
    both: Both,
    fetch: Callable[[Both], FetchRequest],
    acks: AckMode,
    no_done: bool,
    side_band: SideBand,
) -> None:
    asked = UploadPackRequest(fetch(both), acks=acks, no_done=no_done, side_band=side_band)
    request = parsed_v0(upload_pack(asked))
    plan = plan_v0(both.mirror, both.snapshot, request)
    assert plan.side_band is side_band
    assert_same(Answer.planned(plan), by_git_v0(both, request))


@given(readers(), st.booleans())
def test_a_v2_reader_is_answered_as_by_git(
    both: Both, fetch: Callable[[Both], FetchRequest], wait_for_done: bool
) -> None:
    body = fetch_body(replace(fetch(both), wait_for_done=wait_for_done))
    plan = plan_v2(both.mirror, both.snapshot, parsed_v2(body))
    assert_same(Answer.planned(plan), both.git.fetch_v2(body))


# --- shallow -----------------------------------------------------------------------------------


@st.composite
def shallow_readers(draw: st.DrawFn) -> Callable[[Both], FetchRequest]:
    """A reader with a boundary of its own, or none, that may ask for more history or less."""
    wants = draw(st.lists(st.integers(0, 99), min_size=1, max_size=2, unique=True))
    boundary = draw(st.lists(st.integers(0, 99), max_size=3))
    knows_more = draw(st.booleans())
    deepen = draw(
        st.just(Deepen())
        | st.builds(
            Deepen, depth=st.integers(1, 6) | st.just(INFINITE_DEPTH), relative=st.booleans()
        )
    )

    def request(both: Both) -> FetchRequest:
        commits = list(both.parents)
        tips = [both.tips[place % len(both.tips)] for place in wants]
        shallow = {commits[place % len(commits)] for place in boundary}
        return FetchRequest(
            wants=tuple(both.tips if deepen.depth == INFINITE_DEPTH else dict.fromkeys(tips)),
            shallow=frozenset({*shallow, UNKNOWN[0]} if knows_more and deepen else shallow),
            deepen=deepen,
            done=True,
        )

    return request


@given(shallow_readers(), st.booleans())
def test_a_shallow_v0_reader_is_told_the_boundary_that_git_tells(
    both: Both, fetch: Callable[[Both], FetchRequest], wants_only: bool
) -> None:
    asked = replace(fetch(both), done=not wants_only)
    body = upload_pack(UploadPackRequest(asked, wants_only=wants_only, acks=AckMode.DETAILED))
    plan = plan_v0(both.mirror, both.snapshot, parsed_v0(body))
    assert_same(Answer.planned(plan), both.git.fetch_v0(body))


@given(shallow_readers())
def test_a_shallow_v2_reader_is_told_the_boundary_that_git_tells(
    both: Both, fetch: Callable[[Both], FetchRequest]
) -> None:
    body = fetch_body(fetch(both))
    plan = plan_v2(both.mirror, both.snapshot, parsed_v2(body))
    assert_same(Answer.planned(plan), both.git.fetch_v2(body))


@pytest.mark.parametrize(
    "limits",
    [
        ["deepen-not v1"],
        ["deepen-not refs/tags/v1-thrice"],
        ["deepen-not release/1.0", "deepen-not pages"],
        ["deepen-not heads/side"],
        ["deepen-since 1750000300"],
        ["deepen-since 1"],
        ["deepen-since 1750000300", "deepen-not v1"],
    ],
)
def test_history_since_a_date_or_a_ref_ends_where_git_ends_it(
    both: Both, limits: list[str]
) -> None:
    want = both.snapshot.by_name[RefName(b"refs/heads/main")].oid
    arguments = [b"want " + want, *map(str.encode, limits)]
    body = command(b"fetch", *arguments, b"done")
    plan = plan_v2(both.mirror, both.snapshot, parsed_v2(body))
    assert_same(Answer.planned(plan), both.git.fetch_v2(body))


@pytest.mark.parametrize(
    "limit", [b"deepen-not main", b"deepen-since 2000000000", b"deepen-not nowhere"]
)
def test_a_limit_that_leaves_no_history_is_refused_as_by_git(both: Both, limit: bytes) -> None:
    want = both.snapshot.by_name[RefName(b"refs/heads/main")].oid
    body = command(b"fetch", b"want " + want, limit, b"done")
    assert both.git.refuses(body, version=2)
    with pytest.raises(ClientError):
        plan_v2(both.mirror, both.snapshot, parsed_v2(body))


# --- wanted refs -------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [(), (b"deepen 2",)])
def test_wanted_refs_are_git_s_in_the_order_of_the_specification(
    both: Both, limits: tuple[bytes, ...]
) -> None:
    arguments = (b"want-ref refs/heads/main", b"want-ref refs/tags/v1", b"want-ref HEAD")
    body = command(b"fetch", *arguments, *limits, b"done")
    by_git = both.git.fetch_v2(body)
    by_us = Answer.planned(plan_v2(both.mirror, both.snapshot, parsed_v2(body)))
    assert by_us.sections() == by_git.sections()
    assert by_us.pack
    shallow_info = [b"shallow-info"] if limits else []
    # git's server sends the first two the other way round, and then its own client fails.
    assert list(by_us.sections()) == [*shallow_info, b"wanted-refs", b"packfile"]
    assert by_us.lines.count(Special.DELIM) == len(shallow_info) + 1


def test_head_may_be_a_wanted_ref(both: Both) -> None:
    body = command(b"fetch", b"want-ref HEAD", b"done")
    answer = Answer.planned(plan_v2(both.mirror, both.snapshot, parsed_v2(body)))
    head = both.snapshot.find(HEAD)
    assert head is not None
    assert answer.sections()[b"wanted-refs"] == [head + b" HEAD"]


@pytest.mark.parametrize("name", [b"refs/heads/nowhere", b"main"])
def test_a_wanted_ref_that_is_not_there_is_refused_as_by_git(both: Both, name: bytes) -> None:
    body = command(b"fetch", b"want-ref " + name, b"done")
    assert both.git.refuses(body, version=2)
    with pytest.raises(ClientError, match="unknown ref"):
        plan_v2(both.mirror, both.snapshot, parsed_v2(body))
