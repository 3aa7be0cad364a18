import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.wire.advertise import (
    SERVICE_LINE,
    encode_ls_refs,
    encode_v0_advertisement,
    encode_v2_capabilities,
)
from mirror.wire.client import Listing, parse_info_refs, parse_ls_refs
from mirror.wire.names import ZERO_ID, ObjectId, Ref, RefName
from mirror.wire.pktline import FLUSH_PKT, Special, decode_all, encode, text
from mirror.wire.ref_table import RefTable
from mirror.wire.requests import LsRefsRequest
from tests.wire import strategies
from tests.wire.bodies import AGENT, oid

MAIN = RefName(b"refs/heads/main")
DEV = RefName(b"refs/heads/dev")
TAG = RefName(b"refs/tags/v1")
REFS = (Ref(DEV, oid(2)), Ref(MAIN, oid(1)), Ref(TAG, oid(3), peeled=oid(1)))
EVERYTHING = LsRefsRequest(peel=True, symrefs=True, unborn=True)


def payloads(body: bytes) -> list[bytes]:
    """Return the text lines of a body that ends in its only flush-pkt."""
    *lines, end = decode_all(body)
    assert end is Special.FLUSH
    return [text(line) for line in lines if isinstance(line, bytes)]


def advertised(
    refs: tuple[Ref, ...] = REFS,
    *,
    head: ObjectId | None = oid(1),  # noqa: B008 - a constant
    head_target: RefName | None = MAIN,
    version: int = 0,
) -> list[bytes]:
    body = encode_v0_advertisement(
        RefTable.of(refs), head=head, head_target=head_target, agent=AGENT, version=version
    ).plain()
    assert body.startswith(SERVICE_LINE)
    return payloads(body.removeprefix(SERVICE_LINE))


def listed(
    request: LsRefsRequest,
    *,
    head: ObjectId | None = oid(1),  # noqa: B008 - a constant
    head_target: RefName | None = MAIN,
) -> list[bytes]:
    return payloads(encode_ls_refs(RefTable.of(REFS), request, head=head, head_target=head_target))


# --- capabilities ------------------------------------------------------------------------------


def test_the_service_line_has_a_flush_of_its_own() -> None:
    assert SERVICE_LINE == b"001e# service=git-upload-pack\n0000"


def test_v2_announces_what_it_can_do_and_no_refs() -> None:
    body = encode_v2_capabilities(AGENT)
    assert body.startswith(SERVICE_LINE)
    assert payloads(body.removeprefix(SERVICE_LINE)) == [
        b"version 2",
        b"agent=git-mirror/test",
        b"ls-refs=unborn",
        b"fetch=shallow wait-for-done filter sideband-all",
        b"server-option",
        b"object-format=sha1",
        b"object-info=size",
    ]


def test_bundles_are_announced_where_there_are_some() -> None:
    plain, with_bundles = (encode_v2_capabilities(AGENT, has_bundles=has) for has in (False, True))
    assert with_bundles == plain.removesuffix(FLUSH_PKT) + encode(b"bundle-uri\n") + FLUSH_PKT


def test_v0_capabilities_stand_behind_a_nul_on_the_first_line_only() -> None:
    first, *others = advertised()
    name, _, capabilities = first.partition(b"\0")
    assert name == oid(1) + b" HEAD"
    assert not any(b"\0" in line for line in others)
    assert b"symref=HEAD:refs/heads/main" in capabilities.split(b" ")


def test_no_v0_capability_is_empty_for_go_git_breaks_on_those() -> None:
    capabilities = advertised()[0].partition(b"\0")[2].split(b" ")
    assert all(capabilities)
    assert not [word for word in capabilities if word.endswith(b"=")]
    names = [word.partition(b"=")[0] for word in capabilities]
    assert len(set(names)) == len(names)


# --- v0 and v1 ---------------------------------------------------------------------------------


def test_v0_lists_head_first_and_tags_with_what_they_peel_to() -> None:
    assert [line.partition(b"\0")[0] for line in advertised()] == [
        oid(1) + b" HEAD",
        oid(2) + b" refs/heads/dev",
        oid(1) + b" refs/heads/main",
        oid(3) + b" refs/tags/v1",
        oid(1) + b" refs/tags/v1^{}",
    ]


def test_v1_differs_from_v0_by_its_first_line() -> None:
    version, *others = advertised(version=1)
    assert version == b"version 1"
    assert others == advertised(version=0)


def test_an_unborn_head_is_not_announced_in_v0() -> None:
    first = advertised(head=None)[0]
    assert first.startswith(oid(2) + b" refs/heads/dev\0")
    assert b"symref=" not in first


def test_a_detached_head_has_no_symref() -> None:
    first = advertised(head_target=None)[0]
    assert first.startswith(oid(1) + b" HEAD\0")
    assert b"symref=" not in first


@pytest.mark.parametrize("version", [0, 1])
def test_an_empty_repository_announces_its_capabilities_alone(version: int) -> None:
    *_, last = advertised((), head=None, version=version)
    assert last.startswith(ZERO_ID + b" capabilities^{}\0multi_ack ")


# --- ls-refs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (
            LsRefsRequest(),
            [b"%b HEAD" % oid(1), *(b"%b %b" % (ref.oid, ref.name) for ref in REFS)],
        ),
        (
            EVERYTHING,
            [
                b"%b HEAD symref-target:refs/heads/main" % oid(1),
                b"%b refs/heads/dev" % oid(2),
                b"%b refs/heads/main" % oid(1),
                b"%b refs/tags/v1 peeled:%b" % (oid(3), oid(1)),
            ],
        ),
    ],
)
def test_ls_refs_tells_what_it_is_asked_for(request_: LsRefsRequest, expected: list[bytes]) -> None:
    assert listed(request_) == expected


@pytest.mark.parametrize(
    ("prefixes", "shown"),
    [
        ((), True),
        ((b"",), True),
        ((b"HEAD",), True),
        ((b"HE", b"refs/"), True),
        ((b"refs/",), False),
        ((b"HEAD2",), False),
    ],
)
def test_head_is_listed_when_a_prefix_matches_it(prefixes: tuple[bytes, ...], shown: bool) -> None:
    lines = listed(LsRefsRequest(ref_prefixes=prefixes))
    assert any(line.endswith(b" HEAD") for line in lines) is shown


@pytest.mark.parametrize(
    ("request_", "shown"),
    [
        (EVERYTHING, True),
        (LsRefsRequest(unborn=True), False),  # git, too, needs both: the target is all there is
        (LsRefsRequest(symrefs=True), False),
        (LsRefsRequest(unborn=True, symrefs=True, ref_prefixes=(b"refs/",)), False),
    ],
)
def test_an_unborn_head_is_told_to_those_who_understand_it(
    request_: LsRefsRequest, shown: bool
) -> None:
    unborn = b"unborn HEAD symref-target:refs/heads/main"
    assert (unborn in listed(request_, head=None)) is shown
    assert not any(b"HEAD" in line for line in listed(request_, head=None) if line != unborn)


def test_a_head_that_is_neither_here_nor_named_is_left_out() -> None:
    assert not any(b"HEAD" in line for line in listed(EVERYTHING, head=None, head_target=None))


def test_a_detached_head_has_no_symref_target() -> None:
    assert listed(EVERYTHING, head_target=None)[0] == b"%b HEAD" % oid(1)


# --- our own client reads what our own server says ---------------------------------------------


@given(
    strategies.refs(), strategies.oids, st.none() | strategies.ref_names, st.sampled_from([0, 1])
)
def test_our_client_reads_the_refs_that_our_v0_server_announced(
    refs: tuple[Ref, ...], head: ObjectId, head_target: RefName | None, version: int
) -> None:
    body = encode_v0_advertisement(
        RefTable.of(refs), head=head, head_target=head_target, agent=AGENT, version=version
    ).plain()
    features = parse_info_refs(decode_all(body))
    assert features.version == version
    assert features.capabilities[b"agent"] == AGENT
    assert features.object_format == b"sha1"
    assert features.listing is not None
    assert (features.listing.refs, features.listing.head) == (refs, head)
    same_tip = {ref.name for ref in refs if ref.oid == head}
    assert features.listing.head_target == head_target or features.listing.head_target in same_tip


@given(strategies.refs(), st.none() | strategies.oids, st.none() | strategies.ref_names)
def test_our_client_reads_the_refs_that_our_v2_server_lists(
    refs: tuple[Ref, ...], head: ObjectId | None, head_target: RefName | None
) -> None:
    body = encode_ls_refs(RefTable.of(refs), EVERYTHING, head=head, head_target=head_target)
    assert parse_ls_refs(decode_all(body)) == Listing(refs, head, head_target)


@given(strategies.refs())
def test_without_peel_our_client_learns_names_and_ids(refs: tuple[Ref, ...]) -> None:
    body = encode_ls_refs(RefTable.of(refs), LsRefsRequest(), head=oid(1), head_target=MAIN)
    bare = tuple(Ref(ref.name, ref.oid) for ref in refs)
    assert parse_ls_refs(decode_all(body)) == Listing(bare, oid(1), None)


def test_our_client_understands_our_v2_capabilities() -> None:
    features = parse_info_refs(decode_all(encode_v2_capabilities(AGENT)))
    assert features.version == 2
    assert features.listing is None
    assert features.capabilities[b"ls-refs"] == b"unborn"
    assert features.object_format == b"sha1"


def test_an_empty_repository_reads_as_one_without_refs() -> None:
    body = encode_v0_advertisement(RefTable(), head=None, head_target=MAIN, agent=AGENT).plain()
    assert parse_info_refs(decode_all(body)).listing == Listing((), None, None)
