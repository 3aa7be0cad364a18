import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.wire.answers import (
    ERROR_BYTES_MAX,
    Band,
    encode_band,
    encode_band_error,
    encode_end,
    encode_error,
    encode_keepalive,
    encode_object_info,
    encode_shallow_lines,
    encode_v2_sections,
)
from mirror.wire.names import HEAD, RefName
from mirror.wire.pktline import Special, decode_all
from mirror.wire.requests import SideBand
from tests.wire.bodies import oid

FRAMED = [SideBand.SMALL, SideBand.LARGE]


# --- errors ------------------------------------------------------------------------------------


def test_an_error_is_one_line_behind_err() -> None:
    assert decode_all(encode_error("upload-pack: not our ref\n 1")) == [
        b"ERR upload-pack: not our ref 1\n"
    ]


@pytest.mark.parametrize("message", ["x" * 5000, "é" * 5000, "a \ud800 b", "\x00\x1b"])
@pytest.mark.parametrize("side_band", FRAMED)
def test_whatever_an_error_says_it_fits_into_one_packet(message: str, side_band: SideBand) -> None:
    (line,) = decode_all(encode_error(message))
    assert isinstance(line, bytes)
    assert len(line) <= len(b"ERR \n") + ERROR_BYTES_MAX
    (packet,) = decode_all(encode_band_error(message, side_band))
    assert isinstance(packet, bytes)
    assert packet[:1] == b"\x03"
    assert packet[1:] == line.removeprefix(b"ERR ")


def test_without_side_bands_an_error_has_no_place_to_go() -> None:
    assert encode_band_error("disk full", SideBand.NONE) == b""


# --- side-bands --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side_band", "room"), [(SideBand.SMALL, 995), (SideBand.LARGE, 65515)], ids=["1000", "64k"]
)
@pytest.mark.parametrize("band", Band)
def test_data_is_cut_into_the_largest_packets_of_its_side_band(
    side_band: SideBand, room: int, band: Band
) -> None:
    data = bytes(range(256)) * (2 * room // 256) + b"the rest"
    packets = decode_all(encode_band(band, data, side_band))
    assert all(isinstance(packet, bytes) and packet[0] == band for packet in packets)
    payloads = [packet[1:] for packet in packets if isinstance(packet, bytes)]
    assert b"".join(payloads) == data
    assert {len(payload) for payload in payloads[:-1]} == {room}


@given(st.binary(max_size=3000), st.sampled_from(FRAMED), st.booleans())
def test_framed_data_is_the_same_when_it_is_unframed(
    data: bytes, side_band: SideBand, as_view: bool
) -> None:
    framed = encode_band(Band.PACK, memoryview(data) if as_view else data, side_band)
    payloads = [packet[1:] for packet in decode_all(framed) if isinstance(packet, bytes)]
    assert b"".join(payloads) == data


def test_nothing_to_send_is_no_packet() -> None:
    assert encode_band(Band.PACK, b"", SideBand.LARGE) == b""


def test_without_side_bands_the_pack_goes_out_as_it_is_and_progress_not_at_all() -> None:
    assert encode_band(Band.PACK, memoryview(b"PACK..."), SideBand.NONE) == b"PACK..."
    assert encode_band(Band.PROGRESS, b"Counting objects", SideBand.NONE) == b""
    assert encode_keepalive(SideBand.NONE) == b""
    assert encode_end(SideBand.NONE) == b""


@pytest.mark.parametrize("side_band", FRAMED)
def test_a_keepalive_is_an_empty_packet_of_pack_bytes(side_band: SideBand) -> None:
    assert decode_all(encode_keepalive(side_band)) == [b"\x01"]


@pytest.mark.parametrize("side_band", FRAMED)
def test_side_bands_end_with_a_flush(side_band: SideBand) -> None:
    assert decode_all(encode_end(side_band)) == [Special.FLUSH]


# --- sections ----------------------------------------------------------------------------------


def test_shallow_lines_come_before_unshallow_lines() -> None:
    assert decode_all(encode_shallow_lines([oid(1), oid(2)], [oid(3)])) == [
        b"shallow " + oid(1),
        b"shallow " + oid(2),
        b"unshallow " + oid(3),
    ]
    assert encode_shallow_lines([], []) == b""


def test_a_pack_without_other_sections_has_its_heading_alone() -> None:
    assert decode_all(encode_v2_sections(shallow_info=None, wanted_refs={})) == [b"packfile\n"]


def test_sections_come_in_the_order_of_the_specification() -> None:
    sections = encode_v2_sections(
        shallow_info=encode_shallow_lines([oid(1)], []),
        wanted_refs={RefName(b"refs/heads/main"): oid(1), HEAD: oid(1)},
    )
    assert decode_all(sections) == [
        b"shallow-info\n",
        b"shallow " + oid(1),
        Special.DELIM,
        b"wanted-refs\n",
        oid(1) + b" refs/heads/main\n",
        oid(1) + b" HEAD\n",
        Special.DELIM,
        b"packfile\n",
    ]


def test_a_shallow_update_without_changes_is_still_announced() -> None:
    assert decode_all(encode_v2_sections(shallow_info=b"", wanted_refs={})) == [
        b"shallow-info\n",
        Special.DELIM,
        b"packfile\n",
    ]


@pytest.mark.parametrize(
    ("with_size", "expected"),
    [
        (True, [b"size\n", oid(1) + b" 42\n", oid(2) + b" \n", Special.FLUSH]),
        (False, [oid(1) + b"\n", oid(2) + b" \n", Special.FLUSH]),
    ],
)
def test_object_info_tells_sizes_and_marks_what_is_not_there(
    with_size: bool, expected: list[object]
) -> None:
    answer = encode_object_info([(oid(1), 42), (oid(2), None)], with_size=with_size)
    assert decode_all(answer) == expected
