"""Bodies as real clients send them, byte for byte, and what is said before the pack.

git's were recorded from git 2.39.5; go-git's are written from its sources (5.x, as Flux uses it).
In the places of object ids stand <N> (a new tip), <O> (its parent) and <P> (the parent of that).
"""

from dataclasses import replace

import pytest

from mirror.repository.fetching import plan_v0, plan_v2
from mirror.wire.advertise import SERVICE_LINE
from mirror.wire.names import ObjectId, RefName
from mirror.wire.pktline import Packet, Special
from mirror.wire.requests import (
    AckMode,
    Deepen,
    FetchRequest,
    LsRefsRequest,
    SideBand,
    UploadPackRequest,
    parse_command,
    parse_upload_pack,
)
from tests.wire.bodies import oid
from tests.wire.git_server import Answer, Both

NEW, OLD, OLDER = oid(1), oid(2), oid(3)
"""What to fill in where it does not matter which commits these are."""


def fill(body: bytes, new: ObjectId = NEW, old: ObjectId = OLD, older: ObjectId = OLDER) -> bytes:
    """Put object ids into the places of a recorded body."""
    for place, name in ((b"<N>", new), (b"<O>", old), (b"<P>", older)):
        body = body.replace(place, name)
    return body


def newest(both: Both) -> tuple[ObjectId, ObjectId, ObjectId]:
    """Return the last three commits of main."""
    new = both.snapshot.by_name[RefName(b"refs/heads/main")].oid
    (old,) = both.parents[new]
    (older,) = both.parents[old]
    return new, old, older


# --- git, protocol v2 --------------------------------------------------------------------------

V2_LS_REFS = b"0014command=ls-refs\n0014agent=git/2.39.50016object-format=sha10001"
V2_FETCH = (
    b"0011command=fetch0014agent=git/2.39.50016object-format=sha10001000dthin-pack000fno-progress"
)


@pytest.mark.parametrize(
    ("arguments", "prefixes"),
    [
        pytest.param(
            b"0014ref-prefix HEAD\n001bref-prefix refs/heads/\n001aref-prefix refs/tags/\n",
            (b"HEAD", b"refs/heads/", b"refs/tags/"),
            id="clone",
        ),
        pytest.param(
            b"001bref-prefix refs/heads/\n001fref-prefix refs/heads/main\n"
            b"001aref-prefix refs/tags/\n",
            (b"refs/heads/", b"refs/heads/main", b"refs/tags/"),
            id="fetch --tags",
        ),
        pytest.param(b"", (), id="fetch <sha>"),
    ],
)
def test_git_s_ls_refs_are_understood(arguments: bytes, prefixes: tuple[bytes, ...]) -> None:
    body = V2_LS_REFS + b"0009peel\n000csymrefs\n000bunborn\n" + arguments + b"0000"
    expected = LsRefsRequest(peel=True, symrefs=True, unborn=True, ref_prefixes=prefixes)
    assert parse_command(body) == expected


CLONE_V2 = V2_FETCH + b"000dofs-delta0032want <N>\n0032want <N>\n0032want <P>\n0009done\n0000"
FETCH_V2 = V2_FETCH + b"000dofs-delta0032want <N>\n0032have <O>\n0000"
CLONE_DEPTH_1_V2 = (
    V2_FETCH + b"000finclude-tag000dofs-delta000cdeepen 10032want <N>\n0009done\n0000"
)
FETCH_DEPTH_1_V2 = V2_FETCH + (
    b"000finclude-tag000dofs-delta0034shallow <O>000cdeepen 10032want <N>\n0032have <O>\n0000"
)
PLAIN = FetchRequest(wants=(NEW,), thin_pack=True, ofs_delta=True)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(CLONE_V2, replace(PLAIN, wants=(NEW, OLDER), done=True), id="clone"),
        pytest.param(FETCH_V2, replace(PLAIN, haves=(OLD,)), id="fetch"),
        pytest.param(
            CLONE_DEPTH_1_V2,
            replace(PLAIN, include_tag=True, deepen=Deepen(depth=1), done=True),
            id="clone --depth=1",
        ),
        pytest.param(
            FETCH_DEPTH_1_V2,
            replace(
                PLAIN,
                include_tag=True,
                deepen=Deepen(depth=1),
                haves=(OLD,),
                shallow=frozenset({OLD}),
            ),
            id="fetch --depth=1",
        ),
    ],
)
def test_git_s_v2_fetches_are_understood(body: bytes, expected: FetchRequest) -> None:
    assert parse_command(fill(body)) == expected


def test_a_repeated_fetch_of_depth_1_is_answered_in_its_first_round(both: Both) -> None:
    new, old, older = newest(both)
    body = fill(FETCH_DEPTH_1_V2, new, old, older)
    request = parse_command(body)
    assert isinstance(request, FetchRequest)
    answer = Answer.planned(plan_v2(both.mirror, both.snapshot, request))
    assert answer == both.git.fetch_v2(body)
    assert answer == Answer(
        [
            b"acknowledgments",
            b"ACK " + old,
            b"ready",
            Special.DELIM,
            b"shallow-info",
            b"shallow " + new,
            Special.DELIM,
            b"packfile",
        ],
        pack=True,
    )


# --- git, protocol v0 --------------------------------------------------------------------------

V0_WANT = (
    b"00a4want <N> multi_ack_detailed no-done side-band-64k thin-pack no-progress ofs-delta"
    b" deepen-since deepen-not agent=git/2.39.5\n"
)
V0_WANT_AND_TAGS = (
    b"00b0want <N> multi_ack_detailed no-done side-band-64k thin-pack no-progress include-tag"
    b" ofs-delta deepen-since deepen-not agent=git/2.39.5\n"
)
PLAIN_V0 = UploadPackRequest(PLAIN, acks=AckMode.DETAILED, no_done=True, side_band=SideBand.LARGE)
DEPTH_1 = replace(PLAIN, include_tag=True, deepen=Deepen(depth=1))


@pytest.mark.parametrize(
    ("body", "fetch", "wants_only"),
    [
        pytest.param(
            V0_WANT + b"0032want <P>\n00000009done\n",
            replace(PLAIN, wants=(NEW, OLDER), done=True),
            False,
            id="clone",
        ),
        pytest.param(
            V0_WANT + b"00000032have <O>\n0032have <P>\n0009done\n",
            replace(PLAIN, haves=(OLD, OLDER), done=True),
            False,
            id="fetch",
        ),
        pytest.param(
            V0_WANT_AND_TAGS + b"000cdeepen 10000", DEPTH_1, True, id="clone --depth=1, first"
        ),
        pytest.param(
            V0_WANT_AND_TAGS + b"000cdeepen 100000009done\n",
            replace(DEPTH_1, done=True),
            False,
            id="clone --depth=1, second",
        ),
        pytest.param(
            V0_WANT_AND_TAGS + b"0034shallow <O>000cdeepen 100000032have <O>\n0009done\n",
            replace(DEPTH_1, shallow=frozenset({OLD}), haves=(OLD,), done=True),
            False,
            id="fetch --depth=1, second",
        ),
    ],
)
def test_git_s_v0_fetches_are_understood(
    body: bytes, fetch: FetchRequest, wants_only: bool
) -> None:
    expected = replace(PLAIN_V0, fetch=fetch, wants_only=wants_only)
    assert parse_upload_pack(fill(body)) == expected


def test_git_s_probe_asks_for_nothing_in_either_protocol() -> None:
    assert parse_upload_pack(b"0000") is None
    assert parse_command(b"0000") is None


# --- go-git v5 ---------------------------------------------------------------------------------

GO_GIT_CLONE = (
    b"0082want <N> multi_ack_detailed side-band-64k ofs-delta agent=go-git/5.x shallow"
    b" no-progress\n"
    b"000ddeepen 1\n00000009done\n"
)
GO_GIT_CLONE_WITHOUT_MULTI_ACK = (
    b"006fwant <N> side-band-64k ofs-delta agent=go-git/5.x shallow no-progress\n"
    b"000ddeepen 1\n00000009done\n"
)
GO_GIT_6_CLONE_WITHOUT_PROGRESS = b"004dwant <N> ofs-delta agent=go-git/6.x\n00000009done\n"


@pytest.mark.parametrize(
    ("body", "acks", "side_band", "lines"),
    [
        pytest.param(
            GO_GIT_CLONE,
            AckMode.DETAILED,
            SideBand.LARGE,
            [b"shallow <N>", Special.FLUSH, b"NAK"],
            id="Flux",
        ),
        pytest.param(
            GO_GIT_CLONE_WITHOUT_MULTI_ACK,
            AckMode.SINGLE,
            SideBand.LARGE,
            [b"shallow <N>", Special.FLUSH, b"NAK"],
            id="5.19",
        ),
        pytest.param(
            GO_GIT_6_CLONE_WITHOUT_PROGRESS, AckMode.SINGLE, SideBand.NONE, [b"NAK"], id="6"
        ),
    ],
)
def test_a_go_git_clone_is_one_post_with_the_pack_as_its_answer(
    both: Both, body: bytes, acks: AckMode, side_band: SideBand, lines: list[Packet]
) -> None:
    new, _, _ = newest(both)
    request = parse_upload_pack(fill(body, new))
    assert request is not None
    assert request.fetch.wants == (new,)
    assert request.fetch.done
    assert request.fetch.ofs_delta
    assert not request.fetch.thin_pack
    assert (request.acks, request.side_band, request.no_done) == (acks, side_band, False)
    answer = Answer.planned(plan_v0(both.mirror, both.snapshot, request))
    expected = [line if isinstance(line, Special) else fill(line, new) for line in lines]
    assert answer == Answer(expected, pack=True)
    assert answer == both.git.fetch_v0(fill(body, new))


def test_go_git_s_haves_are_acknowledged_once_and_the_pack_follows(both: Both) -> None:
    new, old, older = newest(both)
    start = b"0067want <N> side-band-64k ofs-delta agent=go-git/5.x no-progress\n0000"
    haves = b"0032have " + oid(9) + b"\n0032have <O>\n0032have <P>\n0009done\n"
    request = parse_upload_pack(fill(start + haves, new, old, older))
    assert request is not None
    answer = Answer.planned(plan_v0(both.mirror, both.snapshot, request))
    assert answer == Answer([b"ACK " + old], pack=True)


# --- traps -------------------------------------------------------------------------------------


def test_head_s_symref_is_the_only_one_announced(both: Both) -> None:
    advertisement = both.snapshot.advertisement(0).plain
    assert advertisement.startswith(SERVICE_LINE)
    assert advertisement.count(b"symref=") == 1
    assert advertisement.count(b" symref=HEAD:refs/heads/main ") == 1
