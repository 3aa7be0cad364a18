"""Reading the answer to a fetch, as it arrives."""

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import ProtocolError
from mirror.wire.answers import Band, encode_band, encode_end
from mirror.wire.client import FetchAnswerDecoder, UpstreamFeatures
from mirror.wire.pktline import Special
from mirror.wire.requests import SideBand
from tests.wire import strategies
from tests.wire.bodies import join, lines, oid
from tests.wire.strategies import (
    GARBAGE_EXAMPLES,
    almost_packets,
    cut,
    cuts,
    refuses_only_with_protocol_error,
)
from tests.wire.work import assert_linear, calls_made

ONE, TWO = oid(1), oid(2)
V2 = UpstreamFeatures(2)
V0 = UpstreamFeatures(0, {b"multi_ack_detailed": b"", b"side-band-64k": b""})
V0_SMALL = UpstreamFeatures(0, {b"side-band": b""})
V0_RAW = UpstreamFeatures(0, {b"multi_ack_detailed": b""})
PACK = b"PACK\x00\x00\x00\x02" + bytes(range(256)) * 10


def read(features: UpstreamFeatures, *slices: bytes) -> bytes:
    """Feed the slices, say that it is over, and return the pack."""
    decoder = FetchAnswerDecoder(features)
    pack = b"".join(piece for data in slices for piece in decoder.feed(data))
    decoder.finish()
    return pack


def banded(data: bytes = PACK, side_band: SideBand = SideBand.LARGE) -> bytes:
    return encode_band(Band.PACK, data, side_band) + encode_end(side_band)


ANSWERS = [
    pytest.param(V2, join(lines(b"packfile")) + banded(), id="v2"),
    pytest.param(
        V2,
        join([*lines(b"acknowledgments", b"ACK " + ONE, b"ready"), Special.DELIM])
        + join(lines(b"packfile"))
        + banded(),
        id="v2 with acknowledgments",
    ),
    pytest.param(V0, join(lines(b"NAK")) + banded(), id="v0"),
    pytest.param(
        V0,
        join(
            lines(
                b"ACK " + ONE + b" common",
                b"ACK " + TWO + b" ready",
                b"ACK " + TWO + b" continue",
                b"ACK " + ONE,
            )
        )
        + banded(),
        id="v0 with acknowledgments",
    ),
    pytest.param(
        V0_SMALL, join(lines(b"ACK " + ONE)) + banded(side_band=SideBand.SMALL), id="v0 side-band"
    ),
    pytest.param(V0_RAW, join(lines(b"NAK")) + PACK, id="v0 without side-band"),
    pytest.param(
        V0_RAW,
        join(lines(b"ACK " + ONE + b" common", b"ACK " + ONE)) + PACK,
        id="v0 without side-band, with acknowledgments",
    ),
]


@pytest.mark.parametrize(("features", "answer"), ANSWERS)
def test_the_pack_is_found_however_the_answer_is_framed(
    features: UpstreamFeatures, answer: bytes
) -> None:
    assert read(features, answer) == PACK


@pytest.mark.parametrize(("features", "answer"), ANSWERS)
def test_byte_by_byte_the_pack_is_the_same(features: UpstreamFeatures, answer: bytes) -> None:
    assert read(features, *(answer[at : at + 1] for at in range(len(answer)))) == PACK


@pytest.mark.parametrize(("features", "answer"), ANSWERS)
@given(places=cuts)
def test_any_slicing_gives_the_same_pack(
    features: UpstreamFeatures, answer: bytes, places: list[int]
) -> None:
    assert read(features, *cut(answer, places)) == PACK


@given(st.lists(st.binary(max_size=50), max_size=8), cuts)
def test_pack_bytes_come_out_as_our_own_server_framed_them(
    pieces: list[bytes], places: list[int]
) -> None:
    bands = (encode_band(Band.PACK, piece, SideBand.SMALL) for piece in pieces)
    answer = join(lines(b"packfile")) + b"".join(bands) + encode_end(SideBand.SMALL)
    assert read(V2, *cut(answer, places)) == b"".join(pieces)


# --- cut off -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "answer"),
    [(features, answer) for features, answer in (p.values for p in ANSWERS) if features != V0_RAW],
)
@given(missing=st.integers(1, 4000))
def test_an_answer_that_is_cut_off_anywhere_is_noticed(
    features: UpstreamFeatures, answer: bytes, missing: int
) -> None:
    with pytest.raises(ProtocolError, match="cut off before the end of the pack"):
        read(features, answer[: max(0, len(answer) - missing)])


@pytest.mark.parametrize("answer", [b"", b"0008", join([b"ACK " + ONE + b" common\n"])])
def test_a_raw_answer_that_is_cut_off_before_its_pack_is_noticed(answer: bytes) -> None:
    with pytest.raises(ProtocolError, match="cut off"):
        read(V0_RAW, answer)


@pytest.mark.parametrize("more", [b"0008NAK\n", b"000dpackfile\n", b"0000"])
def test_an_answer_that_goes_on_after_the_pack_is_refused(more: bytes) -> None:
    for features, start in ((V2, b"packfile"), (V0, b"NAK")):
        with pytest.raises(ProtocolError, match="goes on after the end of the pack"):
            read(features, join(lines(start)) + banded() + more)


def test_half_a_packet_after_the_pack_is_refused() -> None:
    with pytest.raises(ProtocolError, match="cut off"):
        read(V2, join(lines(b"packfile")) + banded() + b"00")


# --- errors and progress -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "answer", "message"),
    [
        (V2, join([b"ERR upload-pack: not our ref x\n"]), "reports: upload-pack: not our ref x"),
        (V0, join([b"ERR too many requests"]), "reports: too many requests"),
        (V2, join([*lines(b"packfile"), b"\x03fatal:\n disk full\n"]), "reports: fatal: disk full"),
        (V0, join([*lines(b"NAK"), b"\x03\xff"]), r"reports: \\xff"),
        (V2, join(lines(b"shallow-info", b"shallow " + ONE)), "unshallow it to mirror it"),
        (V0, join(lines(b"shallow " + ONE)), "unshallow it to mirror it"),
        (V2, join([*lines(b"packfile"), b"\x04"]), "side-band 4, which does not exist"),
        (V2, join([*lines(b"packfile"), b""]), "expected a side-band packet"),
        (V2, join([*lines(b"packfile"), Special.DELIM]), "expected a side-band packet"),
        (V0, join(lines(b"NACK")), "expected ACK or NAK from the upstream, got b'NACK'"),
        (V0, b"<!doctype html>", "pkt-line length"),
    ],
)
def test_errors_of_the_upstream_are_passed_on(
    features: UpstreamFeatures, answer: bytes, message: str
) -> None:
    with pytest.raises(ProtocolError, match=message):
        read(features, answer)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ([b"Counting objects: 1\rCounting objects: 2\r"], b"Counting objects: 2"),
        ([b"Counting objects: 9, done.\n"], b"Counting objects: 9, done."),
        ([b"one\n", b"two\n"], b"two"),
        ([b"\r\n"], b""),
        ([b"x" * 900], b"x" * 200),
    ],
)
def test_the_latest_progress_message_is_kept(sent: list[bytes], shown: bytes) -> None:
    decoder = FetchAnswerDecoder(V2)
    assert decoder.progress == b""
    start = join(lines(b"packfile"))
    bands = b"".join(encode_band(Band.PROGRESS, message, SideBand.SMALL) for message in sent)
    assert list(decoder.feed(start + bands)) == []
    assert decoder.progress == shown


def test_a_flush_before_the_acknowledgments_is_passed_over() -> None:
    assert read(V0, b"0000" + join(lines(b"NAK")) + banded()) == PACK


# --- garbage and work --------------------------------------------------------------------------


def _read_all(decoder: FetchAnswerDecoder, data: bytes) -> None:
    for _ in decoder.feed(data):
        pass


@settings(max_examples=GARBAGE_EXAMPLES)
@given(
    st.sampled_from([V2, V0, V0_SMALL, V0_RAW]),
    st.binary(max_size=100)
    | almost_packets.map(join)
    | almost_packets.map(lambda packets: join([*lines(b"packfile"), *packets]))
    | almost_packets.map(lambda packets: join([*lines(b"NAK"), *packets]))
    | strategies.edited(st.sampled_from([param.values[1] for param in ANSWERS])),
    cuts,
)
def test_garbage_is_read_or_refused(
    features: UpstreamFeatures, answer: bytes, places: list[int]
) -> None:
    decoder = FetchAnswerDecoder(features)
    for data in cut(answer, places):
        refuses_only_with_protocol_error(partial(_read_all, decoder, data))
    refuses_only_with_protocol_error(decoder.finish)


@pytest.mark.parametrize("features", [V2, V0_RAW])
@pytest.mark.parametrize("slice_bytes", [1, 10, 1 << 20])
def test_a_large_pack_costs_in_proportion(features: UpstreamFeatures, slice_bytes: int) -> None:
    def calls(count: int) -> int:
        if features is V2:
            answer = join(lines(b"packfile")) + b"0007\x01ab" * count + b"0000"
        else:
            answer = join(lines(b"NAK")) + b"0007\x01ab" * count
        slices = [answer[at : at + slice_bytes] for at in range(0, len(answer), slice_bytes)]
        return calls_made(lambda: read(features, *slices)) + count

    assert_linear(calls, size=300)
