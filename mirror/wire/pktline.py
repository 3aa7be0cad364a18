"""pkt-lines: framing of everything that goes over the wire (gitprotocol-common(5)).

A pkt-line is four hex digits of length (themselves included) and the payload; ``0000`` (flush-pkt),
``0001`` (delim-pkt) and ``0002`` (response-end-pkt) carry none.

The decoder accepts any slicing of its input and has three outcomes: a packet, "need more"
(`None`), or `ProtocolError`. It never holds more than one packet beyond what it was fed.
"""

import enum
import re
from collections.abc import Iterable, Iterator
from typing import Final

from mirror.errors import ProtocolError

PACKET_BYTES_MAX: Final = 65520
"""LARGE_PACKET_MAX of the specification: length prefix and payload together."""

PAYLOAD_BYTES_MAX: Final = PACKET_BYTES_MAX - 4

FLUSH_PKT: Final = b"0000"
DELIM_PKT: Final = b"0001"
RESPONSE_END_PKT: Final = b"0002"

_LENGTH: Final = re.compile(rb"[0-9a-fA-F]{4}")  # int() alone would accept "-001" and "0x1f"


class Special(enum.Enum):
    """The packets without a payload."""

    FLUSH = 0
    DELIM = 1
    RESPONSE_END = 2


Packet = bytes | Special


def encode(payload: bytes) -> bytes:
    """Frame `payload` as one pkt-line.

    Raises:
        ValueError: It is longer than `PAYLOAD_BYTES_MAX`.
    """
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"a pkt-line holds at most {PAYLOAD_BYTES_MAX} bytes, not {len(payload)}")
    return b"%04x%b" % (len(payload) + 4, payload)


def encode_lines(lines: Iterable[bytes]) -> bytes:
    """Frame each of `lines`, with the newline that text lines end in, and join them."""
    return b"".join(b"%04x%b\n" % (len(line) + 5, line) for line in lines)


def text(payload: bytes) -> bytes:
    """Return a text payload without its optional newline ("receivers MUST NOT require it")."""
    return payload.removesuffix(b"\n")


def packet_at(data: bytes | bytearray, start: int) -> tuple[Packet, int] | None:
    """Return the packet that begins at `start`, and where the next one does.

    `None` when `data` ends before the packet does.

    Raises:
        ProtocolError: The length is not four hex digits, is 3, or is over the limit.
    """
    prefix = bytes(data[start : start + 4])
    if len(prefix) < 4:
        return None
    if not _LENGTH.fullmatch(prefix):
        raise ProtocolError(f"expected a pkt-line length of four hex digits, got {prefix!r}")
    length = int(prefix, 16)
    if length < 3:
        return Special(length), start + 4
    if length == 3 or length > PACKET_BYTES_MAX:
        raise ProtocolError(f"{length} is not a valid pkt-line length")
    if len(data) - start < length:
        return None
    return bytes(data[start + 4 : start + length]), start + length


class PacketDecoder:
    """Incremental decoder: `feed` bytes, take packets with `next_packet` or by iterating."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0

    def feed(self, data: bytes) -> None:
        """Add `data`, however it was sliced."""
        if self._position:
            del self._buffer[: self._position]
            self._position = 0
        self._buffer += data

    def next_packet(self) -> Packet | None:
        """Return the next packet, or `None` when more bytes are needed.

        Raises:
            ProtocolError: The length is not four hex digits, is 3, or is over the limit.
        """
        found = packet_at(self._buffer, self._position)
        if found is None:
            return None
        packet, self._position = found
        return packet

    def __iter__(self) -> Iterator[Packet]:
        while (packet := self.next_packet()) is not None:
            yield packet

    def remainder(self) -> bytes:
        """Return and forget what was fed but not decoded: raw bytes after the last packet."""
        rest = bytes(self._buffer[self._position :])
        self._buffer.clear()
        self._position = 0
        return rest


def decode_all(data: bytes) -> list[Packet]:
    """Decode a whole body.

    Raises:
        ProtocolError: It is malformed or ends within a packet.
    """
    decoder = PacketDecoder()
    decoder.feed(data)
    packets = list(decoder)
    if rest := decoder.remainder():
        raise ProtocolError(f"the body ends within a pkt-line: {rest[:16]!r}")
    return packets
