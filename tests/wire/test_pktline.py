from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import ProtocolError
from mirror.wire.pktline import (
    PACKET_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    Packet,
    PacketDecoder,
    Special,
    decode_all,
    encode,
    encode_lines,
    text,
)
from tests.wire import strategies
from tests.wire.bodies import join
from tests.wire.strategies import GARBAGE_EXAMPLES, cut, cuts, refuses_only_with_protocol_error
from tests.wire.work import assert_linear

many_packets = st.lists(strategies.packets, max_size=12)


def decode_slices(slices: list[bytes]) -> tuple[list[Packet], bytes]:
    """Feed slice by slice; return the packets and what is left."""
    decoder = PacketDecoder()
    packets: list[Packet] = []
    for piece in slices:
        decoder.feed(piece)
        packets += decoder
    return packets, decoder.remainder()


@pytest.mark.parametrize(
    ("wire", "packet"),
    [
        (b"0006a\n", b"a\n"),
        (b"0005a", b"a"),
        (b"000bfoobar\n", b"foobar\n"),
        (b"0004", b""),
        (b"0000", Special.FLUSH),
        (b"0001", Special.DELIM),
        (b"0002", Special.RESPONSE_END),
        (b"000F" + b"eleven byte", b"eleven byte"),
        (b"fff0" + b"x" * PAYLOAD_BYTES_MAX, b"x" * PAYLOAD_BYTES_MAX),
    ],
)
def test_the_examples_of_the_specification_are_decoded(wire: bytes, packet: Packet) -> None:
    assert decode_all(wire) == [packet]


@pytest.mark.parametrize(
    "wire",
    [
        b"0003",
        b"fff1" + b"x" * 65517,
        b"ffff",
        b"-001",
        b"+004",
        b"0x1f",
        b" 004",
        b"4\n\n\n",
        b"PACK",
    ],
)
def test_what_is_no_length_is_refused(wire: bytes) -> None:
    with pytest.raises(ProtocolError, match="pkt-line length"):
        decode_all(wire)


def test_an_error_stays_an_error() -> None:
    decoder = PacketDecoder()
    decoder.feed(b"0005a" + b"zzzz")
    assert decoder.next_packet() == b"a"
    for more in (b"", b"0000"):
        decoder.feed(more)
        with pytest.raises(ProtocolError):
            decoder.next_packet()


@pytest.mark.parametrize(
    ("start", "rest"),
    [
        (b"", b"0000"),
        (b"000", b"0"),
        (b"0008", b"four"),
        (b"0008fou", b"r"),
        (b"ffef", b"x" * 65515),
    ],
)
def test_part_of_a_packet_needs_more(start: bytes, rest: bytes) -> None:
    decoder = PacketDecoder()
    decoder.feed(start)
    assert decoder.next_packet() is None
    decoder.feed(rest)
    assert decoder.next_packet() is not None


@pytest.mark.parametrize("wire", [b"0", b"0000000", b"0009four"])
def test_a_body_that_ends_within_a_packet_is_refused(wire: bytes) -> None:
    with pytest.raises(ProtocolError, match="the body ends within a pkt-line"):
        decode_all(wire)


def test_raw_bytes_after_the_last_packet_are_handed_over_once() -> None:
    decoder = PacketDecoder()
    decoder.feed(b"0008NAK\nPACK\x00\x00\x00\x02")
    assert decoder.next_packet() == b"NAK\n"
    assert decoder.remainder() == b"PACK\x00\x00\x00\x02"
    assert decoder.remainder() == b""
    decoder.feed(b"0000")
    assert list(decoder) == [Special.FLUSH]


def test_a_payload_that_no_packet_holds_is_our_own_mistake() -> None:
    assert len(encode(b"x" * PAYLOAD_BYTES_MAX)) == PACKET_BYTES_MAX
    with pytest.raises(ValueError, match="at most 65516 bytes, not 65517"):
        encode(b"x" * (PAYLOAD_BYTES_MAX + 1))


def test_text_lines_end_in_a_newline_that_readers_do_not_require() -> None:
    assert encode_lines([b"done", b""]) == b"0009done\n0005\n"
    assert text(b"done\n") == text(b"done") == b"done"
    assert text(b"done\n\n") == b"done\n"


@given(many_packets)
def test_packets_that_are_encoded_decode_as_the_same(packets: list[Packet]) -> None:
    assert decode_all(join(packets)) == packets


@given(many_packets, cuts)
def test_any_slicing_gives_the_same_packets(packets: list[Packet], places: list[int]) -> None:
    assert decode_slices(cut(join(packets), places)) == (packets, b"")


@given(st.lists(st.binary(max_size=9) | strategies.specials, max_size=8))
def test_byte_by_byte_gives_the_same_packets(packets: list[Packet]) -> None:
    body = join(packets)
    assert decode_slices([body[at : at + 1] for at in range(len(body))]) == (packets, b"")


@given(many_packets, st.sampled_from([b"0", b"00", b"000", b"0009", b"0009four"]), cuts)
def test_what_trails_the_last_packet_is_kept_for_later(
    packets: list[Packet], trail: bytes, places: list[int]
) -> None:
    assert decode_slices(cut(join(packets) + trail, places)) == (packets, trail)


@settings(max_examples=GARBAGE_EXAMPLES)
@given(strategies.garbage)
def test_garbage_is_decoded_or_refused(data: bytes) -> None:
    refuses_only_with_protocol_error(lambda: decode_all(data))


class CountingBuffer(bytearray):
    """Counts the bytes that it and its slices copy in, out and, at worst, to the front."""

    copied: ClassVar[int] = 0

    def __getitem__(self, key: slice) -> "CountingBuffer":  # type: ignore[override] # slices only
        piece = CountingBuffer(super().__getitem__(key))
        CountingBuffer.copied += len(piece)
        return piece

    def __delitem__(self, key: slice) -> None:  # type: ignore[override] # slices only
        super().__delitem__(key)
        CountingBuffer.copied += len(self)

    def __iadd__(self, data: bytes) -> "CountingBuffer":  # type: ignore[override,misc]
        super().__iadd__(data)
        CountingBuffer.copied += len(data)
        return self


def counted_decoder() -> PacketDecoder:
    decoder = PacketDecoder()
    decoder._buffer = CountingBuffer()
    CountingBuffer.copied = 0
    return decoder


@pytest.mark.parametrize(
    ("payload_bytes", "slice_bytes"),
    [(0, 1 << 20), (1, 1 << 20), (1, 1), (60_000, 7), (60_000, 1 << 20), (60_000, 65_536)],
)
def test_each_byte_is_copied_a_bounded_number_of_times(
    payload_bytes: int, slice_bytes: int
) -> None:
    packets = max(4, 20_000 // (payload_bytes + 1))
    body = encode(b"x" * payload_bytes) * packets
    decoder = counted_decoder()
    found = 0
    for start in range(0, len(body), slice_bytes):
        decoder.feed(body[start : start + slice_bytes])
        found += len(list(decoder))
    assert found == packets
    feeds = len(body) // slice_bytes + 1
    assert CountingBuffer.copied <= 4 * len(body) + 8 * feeds


def test_a_body_of_many_packets_costs_in_proportion() -> None:
    def copied(count: int) -> int:
        decoder = counted_decoder()
        decoder.feed(b"0006a\n" * count)
        assert len(list(decoder)) == count
        return CountingBuffer.copied

    assert_linear(copied, size=20_000)
