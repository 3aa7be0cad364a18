from dataclasses import replace

import pytest
from hypothesis import given, settings

from mirror.errors import ProtocolError, RequestRefused
from mirror.wire.filters import ObjectFilter
from mirror.wire.pktline import DELIM_PKT, FLUSH_PKT
from mirror.wire.requests import (
    INFINITE_DEPTH,
    AckMode,
    Deepen,
    FetchRequest,
    SideBand,
    UploadPackRequest,
    parse_upload_pack,
)
from tests.wire import strategies
from tests.wire.bodies import join, lines, oid, upload_pack
from tests.wire.strategies import GARBAGE_EXAMPLES, refuses_only_with_protocol_error
from tests.wire.work import assert_linear, calls_made

ONE, TWO, THREE = oid(1), oid(2), oid(3)


def parsed(*wants: bytes, then: bytes = b"") -> UploadPackRequest:
    """Parse a body of these lines, a flush-pkt, and what comes then."""
    request = parse_upload_pack(join(lines(*wants)) + FLUSH_PKT + then)
    assert request is not None
    return request


@pytest.mark.parametrize("body", [b"", b"0000", b"00000000", b"00000009done\n"])
def test_a_request_without_a_want_asks_for_nothing(body: bytes) -> None:
    assert parse_upload_pack(body) is None


def test_the_wants_are_read_in_their_order_each_once() -> None:
    request = parsed(b"want " + TWO, b"want " + ONE, b"want " + TWO)
    assert request == UploadPackRequest(FetchRequest(wants=(TWO, ONE)), wants_only=True)


@pytest.mark.parametrize(
    ("capabilities", "changes"),
    [
        (b"", {}),
        (b"multi_ack", {"acks": AckMode.MULTI}),
        (b"multi_ack multi_ack_detailed", {"acks": AckMode.DETAILED}),
        (b"side-band", {"side_band": SideBand.SMALL}),
        (b"side-band side-band-64k", {"side_band": SideBand.LARGE}),
        (b"no-done", {"no_done": True}),
        (b"no-progress agent=git/2.39 allow-tip-sha1-in-want unheard-of=1", {}),
    ],
)
def test_capabilities_decide_how_the_answer_is_framed(
    capabilities: bytes, changes: dict[str, object]
) -> None:
    plain = UploadPackRequest(FetchRequest(wants=(ONE,)), wants_only=True)
    expected = replace(plain, **changes)  # type: ignore[arg-type]
    assert parsed(b"want %b %b" % (ONE, capabilities)) == expected


def test_capabilities_decide_what_the_pack_may_hold() -> None:
    request = parsed(b"want %b thin-pack ofs-delta include-tag" % ONE)
    expected = FetchRequest(wants=(ONE,), thin_pack=True, ofs_delta=True, include_tag=True)
    assert request.fetch == expected


@pytest.mark.parametrize("separator", [b" ", b"  ", b"\t", b""])
def test_capabilities_follow_an_id_however_they_are_set_off(separator: bytes) -> None:
    request = parsed(b"want %b%bno-done ofs-delta" % (ONE, separator))
    assert request.no_done
    assert request.fetch.ofs_delta


def test_a_line_ends_at_a_nul_as_for_git_s_server() -> None:
    request = parsed(b"want %b\0no-done" % ONE, then=join(lines(b"have %b\0x" % TWO, b"done\0")))
    assert request == UploadPackRequest(FetchRequest(wants=(ONE,), haves=(TWO,), done=True))


def test_the_way_that_was_asked_for_last_is_taken() -> None:
    first, last = b"multi_ack_detailed side-band-64k", b"multi_ack side-band"
    request = parsed(b"want %b %b" % (ONE, first), b"want %b %b" % (TWO, last))
    assert (request.acks, request.side_band) == (AckMode.MULTI, SideBand.SMALL)


def test_capabilities_count_on_whichever_want_they_stand() -> None:
    assert parsed(b"want " + ONE, b"want %b no-done" % TWO).no_done


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ([b"shallow " + TWO, b"shallow " + THREE], {"shallow": frozenset({TWO, THREE})}),
        ([b"deepen 1"], {"deepen": Deepen(depth=1)}),
        ([b"deepen 2147483647"], {"deepen": Deepen(depth=INFINITE_DEPTH)}),
        (
            [b"deepen-since 5", b"deepen-not v1"],
            {"deepen": Deepen(since=5, exclude=(b"v1",))},
        ),
    ],
)
def test_shallow_arguments_stand_among_the_wants(
    extra: list[bytes], expected: dict[str, object]
) -> None:
    fetch = FetchRequest(wants=(ONE,))
    expected_fetch = replace(fetch, **expected)  # type: ignore[arg-type]
    assert parsed(b"want " + ONE, *extra).fetch == expected_fetch
    assert parsed(*extra, b"want " + ONE).fetch == expected_fetch


def test_a_filter_follows_a_want_that_says_so() -> None:
    request = parsed(b"want %b filter" % ONE, b"filter blob:none", b"want " + TWO)
    assert request.fetch.filter == ObjectFilter(blob_limit_bytes=0)
    with pytest.raises(RequestRefused, match="filtering capability not negotiated"):
        parsed(b"filter blob:none", b"want %b filter" % ONE)


def test_a_relative_depth_is_asked_for_by_a_capability() -> None:
    request = parsed(b"want %b deepen-relative" % ONE, b"deepen 2")
    assert request.fetch.deepen == Deepen(depth=2, relative=True)


# --- haves -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "haves", "done"),
    [
        (b"0000", (), False),
        (join(lines(b"done")), (), True),
        (join([b"done"]), (), True),
        (join(lines(b"have " + TWO)) + FLUSH_PKT, (TWO,), False),
        # git's own server acknowledges a have as often as it comes.
        (
            join(lines(b"have " + TWO, b"have " + ONE, b"have " + TWO, b"done")),
            (TWO, ONE, TWO),
            True,
        ),
        (join(lines(b"have " + TWO)) + DELIM_PKT, (TWO,), False),
        # A flush-pkt ends a stateless round: git's own server reads no further.
        (join(lines(b"have " + TWO)) + FLUSH_PKT + join(lines(b"done")), (TWO,), False),
        (join(lines(b"done", b"have " + TWO)), (), True),
    ],
)
def test_the_haves_end_at_the_first_flush_or_done(
    then: bytes, haves: tuple[bytes, ...], done: bool
) -> None:
    request = parsed(b"want " + ONE, then=then)
    assert (request.fetch.haves, request.fetch.done, request.wants_only) == (haves, done, False)


# --- what is refused ---------------------------------------------------------------------------

WANT = join(lines(b"want " + ONE))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (join(lines(b"want")), "expected to get object ID, not 'want'"),
        (join(lines(b"want  " + ONE)), "expected to get object ID"),
        (join(lines(b"have " + ONE)), "expected to get object ID"),
        (join(lines(b"command=fetch")), "expected to get object ID, not 'command=fetch'"),
        (join(lines(b"deepen 0")), "Invalid deepen: deepen 0"),
        (join(lines(b"shallow ")), "invalid shallow line: shallow "),
        (WANT, "ends before its flush-pkt"),
        (WANT + FLUSH_PKT + WANT, "expected SHA1 list"),
        (WANT + FLUSH_PKT + join(lines(b"have x")), "expected SHA1 object, got 'x'"),
        (WANT + FLUSH_PKT + join(lines(b"have " + TWO)), "ends before its flush-pkt"),
        (WANT + FLUSH_PKT + join(lines(b"done"))[:-1], "ends within a pkt-line"),
        (
            join(lines(b"want " + ONE, b"deepen 1", b"deepen-since 1")) + FLUSH_PKT,
            "cannot be used together",
        ),
    ],
)
def test_what_is_no_fetch_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        parse_upload_pack(body)


# --- properties --------------------------------------------------------------------------------


@given(strategies.upload_pack_requests())
def test_a_fetch_that_is_written_reads_as_the_same(request: UploadPackRequest) -> None:
    assert parse_upload_pack(upload_pack(request)) == request
    assert parse_upload_pack(upload_pack(request, others=[b"agent=a/1", b"x"])) == request


@settings(max_examples=GARBAGE_EXAMPLES)
@given(strategies.garbage)
def test_garbage_is_a_fetch_or_refused(body: bytes) -> None:
    refuses_only_with_protocol_error(lambda: parse_upload_pack(body))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"want %040x\n", b""),
        (b"want %040x no-done\n", b""),
        (b"shallow %040x\n", b""),
        (b"deepen-not r%d\n", b""),
        (b"", b"have %040x\n"),
    ],
)
def test_many_lines_cost_in_proportion(before: bytes, after: bytes) -> None:
    def calls(count: int) -> int:
        body = WANT + (join(before % number for number in range(count)) if before else b"")
        body += FLUSH_PKT
        body += (join(after % number for number in range(count)) if after else b"") + FLUSH_PKT
        return calls_made(lambda: parse_upload_pack(body))

    assert_linear(calls, size=500)
