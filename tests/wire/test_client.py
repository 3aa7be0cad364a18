import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import ProtocolError
from mirror.wire.advertise import encode_ls_refs, encode_v0_advertisement, encode_v2_capabilities
from mirror.wire.client import (
    Listing,
    UpstreamFeatures,
    encode_fetch,
    encode_ls_refs_command,
    parse_info_refs,
    parse_ls_refs,
)
from mirror.wire.names import ZERO_ID, ObjectId, Ref, RefName
from mirror.wire.pktline import Packet, Special, decode_all
from mirror.wire.ref_table import RefTable
from mirror.wire.requests import (
    AckMode,
    FetchRequest,
    LsRefsRequest,
    SideBand,
    UploadPackRequest,
    parse_command,
    parse_upload_pack,
)
from tests.wire import strategies
from tests.wire.bodies import AGENT, join, lines, oid
from tests.wire.strategies import (
    GARBAGE_EXAMPLES,
    almost_packets,
    edited_packets,
    refuses_only_with_protocol_error,
)
from tests.wire.work import assert_linear, calls_made

ONE, TWO, THREE = oid(1), oid(2), oid(3)
MAIN = RefName(b"refs/heads/main")
DEV = RefName(b"refs/heads/dev")
SERVICE: list[Packet] = [b"# service=git-upload-pack\n", Special.FLUSH]
V2 = UpstreamFeatures(2, {b"ls-refs": b"unborn", b"fetch": b"shallow", b"agent": b"git/2.47"})
V0 = UpstreamFeatures(0, {b"multi_ack_detailed": b"", b"side-band-64k": b""})


def info_refs(*payloads: bytes) -> UpstreamFeatures:
    return parse_info_refs([*SERVICE, *lines(*payloads), Special.FLUSH])


def listing(*payloads: bytes) -> Listing:
    found = info_refs(*payloads).listing
    assert found is not None
    return found


# --- the first answer --------------------------------------------------------------------------


def test_v2_capabilities_are_read_as_keys_and_values() -> None:
    features = info_refs(b"version 2", b"agent=git/2.47", b"ls-refs=unborn", b"fetch=a b=c", b"x")
    assert features == UpstreamFeatures(
        2, {b"agent": b"git/2.47", b"ls-refs": b"unborn", b"fetch": b"a b=c", b"x": b""}
    )
    assert features.object_format == b"sha1"


def test_the_object_format_is_told() -> None:
    features = info_refs(b"version 2", b"ls-refs", b"fetch", b"object-format=sha256")
    assert features.object_format == b"sha256"


@pytest.mark.parametrize("missing", [b"ls-refs", b"fetch"])
def test_a_v2_upstream_that_lacks_a_command_is_refused(missing: bytes) -> None:
    rest = {b"ls-refs", b"fetch"} - {missing}
    with pytest.raises(ProtocolError, match=f"protocol v2 without {missing.decode()}"):
        info_refs(b"version 2", *rest)


@pytest.mark.parametrize(
    "start",
    [SERVICE, SERVICE[:1], [], [b"# service=git-upload-pack", Special.FLUSH]],
    ids=["service line", "service line without flush", "no service line", "without newline"],
)
def test_the_service_line_may_be_missing(start: list[Packet]) -> None:
    packets = [*start, *lines(b"version 2", b"ls-refs", b"fetch"), Special.FLUSH]
    assert parse_info_refs(packets).version == 2


@pytest.mark.parametrize(("start", "version"), [([], 0), ([b"version 1"], 1)])
def test_a_v0_or_v1_advertisement_holds_the_refs(start: list[bytes], version: int) -> None:
    features = info_refs(
        *start,
        ONE + b" HEAD\0ofs-delta symref=HEAD:refs/heads/main agent=git/1.8 ",
        TWO + b" refs/heads/dev",
        ONE + b" refs/heads/main",
        THREE + b" refs/tags/v1",
        ONE + b" refs/tags/v1^{}",
    )
    assert features.version == version
    assert features.capabilities[b"ofs-delta"] == b""
    assert features.capabilities[b"agent"] == b"git/1.8"
    assert features.listing == Listing(
        (Ref(DEV, TWO), Ref(MAIN, ONE), Ref(RefName(b"refs/tags/v1"), THREE, ONE)), ONE, MAIN
    )


@pytest.mark.parametrize(
    "payloads",
    [[], [ZERO_ID + b" capabilities^{}\0ofs-delta"], [ZERO_ID + b" capabilities^{}"]],
)
def test_an_empty_upstream_has_no_refs(payloads: list[bytes]) -> None:
    assert listing(*payloads) == Listing((), None, None)


def test_a_shallow_upstream_is_recognised() -> None:
    found = listing(ONE + b" refs/heads/main\0", b"shallow " + TWO)
    assert found == Listing((Ref(MAIN, ONE),), None, None, shallow=True)


def test_objects_that_the_upstream_borrows_are_no_refs() -> None:
    assert listing(ONE + b" refs/heads/main\0", TWO + b" .have").refs == (Ref(MAIN, ONE),)


def test_symrefs_other_than_head_s_are_passed_over() -> None:
    first = ONE + b" HEAD\0symref=HEAD:refs/heads/main symref=refs/remotes/o/HEAD:refs/x"
    assert listing(first, ONE + b" refs/heads/dev", ONE + b" refs/heads/main").head_target == MAIN


@pytest.mark.parametrize(
    ("branches", "guess"),
    [
        ([b"refs/heads/dev", b"refs/heads/main", b"refs/heads/master"], MAIN),
        ([b"refs/heads/dev", b"refs/heads/master"], b"refs/heads/master"),
        ([b"refs/heads/b", b"refs/heads/a"], b"refs/heads/a"),
        ([b"refs/tags/v1"], None),
        ([], None),
    ],
)
def test_an_old_upstream_s_default_branch_is_guessed_from_its_tip(
    branches: list[bytes], guess: bytes | None
) -> None:
    refs = [ONE + b" " + name for name in branches]
    assert listing(ONE + b" HEAD\0", *refs, TWO + b" refs/heads/other").head_target == guess


@pytest.mark.parametrize(
    ("packets", "message"),
    [
        ([], "advertisement is empty"),
        (SERVICE, "advertisement is empty"),
        ([*SERVICE, b"ERR access denied\n", Special.FLUSH], "the upstream reports: access denied"),
        ([b"ERR \xff gone", Special.FLUSH], r"the upstream reports: \\xff gone"),
        ([*lines(b"version 2", b"ls-refs", b"ERR no"), Special.FLUSH], "the upstream reports: no"),
        ([*lines(b"version 2", b"ls-refs", b"fetch")], "cut off before its flush-pkt"),
        ([*lines(ONE + b" HEAD\0")], "cut off before its flush-pkt"),
        ([*lines(ONE + b" HEAD\0"), Special.DELIM, Special.FLUSH], "expected a line or a flush"),
        ([b"<html>\n", Special.FLUSH], "40 hex digits, got b'<html>'"),
        ([*lines(ONE + b" main\0"), Special.FLUSH], "announced b'main'"),
        ([*lines(ONE + b" refs/heads/a..b\0"), Special.FLUSH], "not a valid ref name"),
        ([*lines(ONE + b" refs/tags/.v^{}\0"), Special.FLUSH], "not a valid ref name"),
        ([*lines(b"x refs/heads/main\0"), Special.FLUSH], "40 hex digits"),
        ([*lines(ONE + b" capabilities^{}\0"), Special.FLUSH], "not a valid ref name"),
        (
            [*lines(ONE + b" HEAD\0symref=HEAD:HEAD"), Special.FLUSH],
            "HEAD names b'HEAD', which is not a branch",
        ),
    ],
)
def test_what_is_no_first_answer_is_refused(packets: list[Packet], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        parse_info_refs(packets)


# --- ls-refs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "unborn"),
    [(b"unborn", True), (b"x unborn y", True), (b"", False), (b"unborn2", False)],
)
def test_unborn_is_asked_for_where_it_is_offered(offered: bytes, unborn: bool) -> None:
    features = UpstreamFeatures(2, {b"ls-refs": offered, b"fetch": b""})
    body = encode_ls_refs_command(features, [b"HEAD", b"refs/heads/"], AGENT)
    assert parse_command(body) == LsRefsRequest(
        peel=True, symrefs=True, unborn=unborn, ref_prefixes=(b"HEAD", b"refs/heads/")
    )


@pytest.mark.parametrize(
    ("offered", "sent"),
    [
        ({}, []),
        ({b"agent": b"git/2"}, [b"agent=git-mirror/test"]),
        ({b"object-format": b"sha1"}, [b"object-format=sha1"]),
    ],
)
def test_only_capabilities_that_were_offered_are_sent(
    offered: dict[bytes, bytes], sent: list[bytes]
) -> None:
    packets = decode_all(encode_ls_refs_command(UpstreamFeatures(2, offered), [], AGENT))
    assert packets[: packets.index(Special.DELIM)] == [b"command=ls-refs", *sent]


def test_refs_are_read_with_what_they_peel_to_and_head_with_its_target() -> None:
    answer = lines(
        ONE + b" HEAD symref-target:refs/heads/main",
        ONE + b" refs/heads/main",
        THREE + b" refs/tags/v1 peeled:" + ONE,
        TWO + b" refs/remotes/o/HEAD symref-target:refs/remotes/o/main",
        TWO + b" refs/x unheard-of:1 more",
    )
    assert parse_ls_refs([*answer, Special.FLUSH]) == Listing(
        (
            Ref(MAIN, ONE),
            Ref(RefName(b"refs/tags/v1"), THREE, ONE),
            Ref(RefName(b"refs/remotes/o/HEAD"), TWO),
            Ref(RefName(b"refs/x"), TWO),
        ),
        ONE,
        MAIN,
    )


@pytest.mark.parametrize(
    ("line", "head", "head_target"),
    [
        (b"unborn HEAD symref-target:refs/heads/main", None, MAIN),
        (b"unborn HEAD", None, None),
        (ONE + b" HEAD", ONE, None),
        (ONE + b" HEAD symref-target:", ONE, None),
    ],
)
def test_head_may_be_unborn_or_detached(
    line: bytes, head: ObjectId | None, head_target: RefName | None
) -> None:
    assert parse_ls_refs([line, Special.FLUSH]) == Listing((), head, head_target)


@pytest.mark.parametrize(
    ("packets", "message"),
    [
        ([], "cut off before its flush-pkt"),
        (lines(ONE + b" refs/heads/main"), "cut off before its flush-pkt"),
        ([b"ERR not found", Special.FLUSH], "the upstream reports: not found"),
        ([Special.RESPONSE_END], "expected a line or a flush-pkt"),
        ([b"", Special.FLUSH], "not a valid ref name"),
        ([b"unborn refs/heads/main", Special.FLUSH], "40 hex digits"),
        ([ONE + b" refs/heads/main peeled:x", Special.FLUSH], "40 hex digits"),
        ([ONE + b" HEAD symref-target:HEAD", Special.FLUSH], "which is not a branch"),
        ([b"x HEAD", Special.FLUSH], "40 hex digits"),
        ([*lines(ONE + b" refs/x", TWO + b" refs/x"), Special.FLUSH], "twice, and not the same"),
    ],
)
def test_what_is_no_listing_is_refused(packets: list[Packet], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        parse_ls_refs(packets)


def test_a_ref_that_is_announced_twice_in_the_same_words_is_one() -> None:
    line = ONE + b" refs/heads/main"
    assert parse_ls_refs([*lines(line, line), Special.FLUSH]) == parse_ls_refs(
        [*lines(line), Special.FLUSH]
    )


def test_an_upstream_s_message_is_cut_to_a_bearable_length() -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_ls_refs([b"ERR " + b"long " * 10_000])
    assert len(str(caught.value)) < 1100


# --- fetch: our own server reads what our own client asks --------------------------------------

some_oids = st.lists(strategies.oids, unique=True, max_size=5)
some_wants = st.lists(strategies.oids, unique=True, min_size=1, max_size=5)


@given(some_wants, some_oids)
def test_our_v2_server_reads_the_fetch_that_our_client_sends(
    wants: list[ObjectId], haves: list[ObjectId]
) -> None:
    features = parse_info_refs(decode_all(encode_v2_capabilities(AGENT)))
    body = encode_fetch(features, wants=wants, haves=haves, agent=AGENT)
    assert parse_command(body) == FetchRequest(
        wants=tuple(wants), haves=tuple(haves), done=True, thin_pack=True, ofs_delta=True
    )


@given(some_wants, some_oids)
def test_our_v0_server_reads_the_fetch_that_our_client_sends(
    wants: list[ObjectId], haves: list[ObjectId]
) -> None:
    advertisement = encode_v0_advertisement(
        RefTable(), head=None, head_target=None, agent=AGENT
    ).plain()
    features = parse_info_refs(decode_all(advertisement))
    body = encode_fetch(features, wants=wants, haves=haves, agent=AGENT)
    assert parse_upload_pack(body) == UploadPackRequest(
        FetchRequest(
            wants=tuple(wants), haves=tuple(haves), done=True, thin_pack=True, ofs_delta=True
        ),
        acks=AckMode.DETAILED,
        side_band=SideBand.LARGE,
    )


@pytest.mark.parametrize(
    ("offered", "first_line"),
    [
        ([], b"want %b \n" % ONE),
        ([b"side-band"], b"want %b side-band\n" % ONE),
        ([b"side-band", b"side-band-64k"], b"want %b side-band-64k\n" % ONE),
        ([b"multi_ack", b"no-done", b"ofs-delta"], b"want %b ofs-delta\n" % ONE),
        ([b"thin-pack", b"agent"], b"want %b thin-pack agent=git-mirror/test\n" % ONE),
    ],
)
def test_a_v0_upstream_is_asked_for_nothing_it_did_not_offer(
    offered: list[bytes], first_line: bytes
) -> None:
    features = UpstreamFeatures(0, dict.fromkeys(offered, b""))
    body = encode_fetch(features, wants=[ONE, TWO], haves=[THREE], agent=AGENT)
    assert decode_all(body) == [
        first_line,
        b"want %b\n" % TWO,
        Special.FLUSH,
        b"have %b\n" % THREE,
        b"done\n",
    ]


# --- properties --------------------------------------------------------------------------------

_advertisements = st.builds(
    lambda refs, version: decode_all(
        encode_v0_advertisement(
            RefTable.of(refs), head=ONE, head_target=MAIN, agent=AGENT, version=version
        ).plain()
    ),
    strategies.refs(),
    st.sampled_from([0, 1]),
)
_listings = st.builds(
    lambda refs: decode_all(
        encode_ls_refs(
            RefTable.of(refs),
            LsRefsRequest(peel=True, symrefs=True, unborn=True),
            head=ONE,
            head_target=MAIN,
        )
    ),
    strategies.refs(),
)
_capabilities = st.just(decode_all(encode_v2_capabilities(AGENT)))


@settings(max_examples=GARBAGE_EXAMPLES)
@given(
    almost_packets
    | almost_packets.map(lambda packets: [*SERVICE, *packets])
    | edited_packets(_advertisements)
    | edited_packets(_capabilities)
)
def test_garbage_is_a_first_answer_or_refused(packets: list[Packet]) -> None:
    refuses_only_with_protocol_error(lambda: parse_info_refs(packets))


@settings(max_examples=GARBAGE_EXAMPLES)
@given(almost_packets | edited_packets(_listings))
def test_garbage_is_a_listing_or_refused(packets: list[Packet]) -> None:
    refuses_only_with_protocol_error(lambda: parse_ls_refs(packets))


@settings(max_examples=GARBAGE_EXAMPLES)
@given(strategies.edited((_advertisements | _listings | _capabilities).map(join)))
def test_a_damaged_answer_is_read_or_refused(body: bytes) -> None:
    refuses_only_with_protocol_error(lambda: parse_info_refs(decode_all(body)))
    refuses_only_with_protocol_error(lambda: parse_ls_refs(decode_all(body)))


# --- work --------------------------------------------------------------------------------------


def test_many_refs_cost_in_proportion() -> None:
    def calls(count: int) -> int:
        packets: list[Packet] = [b"%040x refs/tags/%d\n" % (n, n) for n in range(count)]
        peeled: list[Packet] = [b"%040x refs/tags/%d^{}\n" % (n, n) for n in range(count)]
        return calls_made(lambda: parse_info_refs([*packets, *peeled, Special.FLUSH])) + calls_made(
            lambda: parse_ls_refs([*packets, Special.FLUSH])
        )

    assert_linear(calls, size=500)


def test_a_v0_listing_of_another_hash_says_which_before_its_ids_are_read() -> None:
    line = b"%064d refs/heads/main\0object-format=sha256\n" % 7
    features = parse_info_refs([b"# service=git-upload-pack\n", Special.FLUSH, line, Special.FLUSH])
    assert features.object_format == b"sha256"
