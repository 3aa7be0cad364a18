"""An upstream's answer to ls-refs, read in short steps, and only where it says something new.

Where the answer holds the lines of a chunk that we have, byte for byte, the chunk is taken and
nothing is parsed: of 100,000 refs with one changed, 256 are looked at. What `parse_ls_refs` accepts
is accepted here too, and comes to the same.
"""

from collections.abc import Generator
from dataclasses import replace
from itertools import pairwise
from typing import Final

from mirror.errors import ProtocolError
from mirror.wire.client import Listing, parse_ls_refs
from mirror.wire.names import Ref
from mirror.wire.pktline import Packet, PacketDecoder, Special, decode_all
from mirror.wire.ref_table import Chunk, RefTable, encode_chunks

STEP_LINES: Final = 256
"""About a millisecond of parsing."""

STEP_CHUNKS: Final = 64
"""About as long, to compare them."""

FEED_BYTES: Final = 16 * 1024


class _Disorder(Exception):
    """The refs are not in the order of their names."""


def read_ls_refs(body: bytes, known: RefTable) -> Generator[None, None, Listing]:
    """Read the answer to ls-refs; yields between steps of about a millisecond.

    Args:
        body: The whole answer.
        known: What was listed before, or any other table.

    Returns:
        The listing; `refs` is the view of a table, which shares chunks with `known`.

    Raises:
        ProtocolError: Malformed, or an ``ERR``.
    """
    try:
        return (yield from _read(body, known))
    except _Disorder:  # git sorts them, others need not
        listing = parse_ls_refs(decode_all(body))
        refs = {ref.name: ref for ref in listing.refs}
        return replace(listing, refs=RefTable.of(refs.values()).values())


def _read(body: bytes, known: RefTable) -> Generator[None, None, Listing]:
    chunks: list[Chunk] = []
    told = Listing((), None, None)
    answer = _Lines(body)
    # HEAD first; then up to where each chunk's neighbour begins; then the rest.
    parts = (None, *known.chunks, None)
    ends = (b"refs/", *(chunk.first for chunk in known.chunks[1:]), None, None)
    for number, (chunk, end) in enumerate(zip(parts, ends, strict=False)):
        if chunk is not None and answer.goes_on_with(chunk.lines):
            chunks.append(chunk)
            if number % STEP_CHUNKS == 0:
                yield
            continue
        while lines := answer.take(end):
            part = parse_ls_refs([*lines, Special.FLUSH])
            if part.head is not None or part.head_target is not None:
                told = part
            chunks += _in_order(list(part.refs))
            yield
    answer.end()
    if any(one.last >= other.first for one, other in pairwise(chunks)):
        raise _Disorder
    return replace(told, refs=RefTable(chunks).values())


def _in_order(refs: list[Ref]) -> list[Chunk]:
    try:
        return list(encode_chunks(refs))
    except ValueError:
        raise _Disorder from None


class _Lines:
    """The packets of a body, from a position that can be moved on."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.position = 0

    def goes_on_with(self, lines: bytes) -> bool:
        """Pass over `lines` if they come next; tells whether they did."""
        if not self._body.startswith(lines, self.position):
            return False
        self.position += len(lines)
        return True

    def take(self, end: bytes | None) -> list[bytes]:
        """Take the lines before the ref name `end`, or before what is no line; a step of them.

        Raises:
            ProtocolError: The body ends before that.
        """
        decoder = PacketDecoder()
        fed = self.position
        taken: list[bytes] = []
        while len(taken) < STEP_LINES:
            packet = decoder.next_packet()
            while packet is None:
                if fed >= len(self._body):
                    rest = decoder.remainder()
                    if rest:
                        raise ProtocolError(f"the body ends within a pkt-line: {rest[:16]!r}")
                    parse_ls_refs([*taken, Special.FLUSH])  # an ERR says more than its end does
                    raise ProtocolError("the upstream's answer was cut off before its flush-pkt")
                decoder.feed(self._body[fed : fed + FEED_BYTES])
                fed += FEED_BYTES
                packet = decoder.next_packet()
            if isinstance(packet, Special) or (end is not None and _name_in(packet) >= end):
                break
            taken.append(packet)
            self.position += len(packet) + 4
        return taken

    def end(self) -> None:
        """Check that the answer ends here.

        Raises:
            ProtocolError: It does not.
        """
        rest: list[Packet] = decode_all(self._body[self.position :])
        parse_ls_refs(rest)


def _name_in(line: bytes) -> bytes:
    """Return the name in a line, as far as it has one; an ``ERR`` comes before all names."""
    return line[41:] if not line.startswith(b"ERR ") else b""
