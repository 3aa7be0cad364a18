"""What a server answers to a fetch: sections, shallow lines, side-bands, errors.

The sections of a v2 answer come in the order of gitprotocol-v2(5): acknowledgments, shallow-info,
wanted-refs, packfile. (git's own server sends wanted-refs before shallow-info; its client then
fails.)
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from mirror.wire.names import ObjectId, RefName
from mirror.wire.pktline import (
    DELIM_PKT,
    FLUSH_PKT,
    Special,
    decode_all,
    encode,
    encode_lines,
)
from mirror.wire.requests import SideBand

ERROR_BYTES_MAX: Final = 900
"""An error fits into the smallest side-band's packet."""


class Band(enum.IntEnum):
    """The side-bands: gitprotocol-pack(5), "Packfile Data"."""

    PACK = 1
    PROGRESS = 2
    ERROR = 3


def encode_error(message: str) -> bytes:
    """Encode an ``ERR`` pkt-line, which stands in place of an answer."""
    return encode(b"ERR " + _one_line(message) + b"\n")


def encode_band(band: Band, data: bytes | memoryview, side_band: SideBand) -> bytes:
    """Frame `data` for one side-band, cut into as many packets as it takes.

    With `SideBand.NONE` pack bytes are returned as they are; the other bands have no place to go.
    """
    if side_band is SideBand.NONE:
        return bytes(data) if band is Band.PACK else b""
    room = side_band.value - 5
    parts: list[bytes | memoryview] = []
    for start in range(0, len(data), room):
        chunk = data[start : start + room]
        parts += (b"%04x" % (len(chunk) + 5), bytes((band,)), chunk)
    return b"".join(parts)


def encode_keepalive(side_band: SideBand) -> bytes:
    """An empty packet on the pack's band, so that nobody takes a long build for a dead line."""
    return b"" if side_band is SideBand.NONE else b"0005\x01"


def encode_band_error(message: str, side_band: SideBand) -> bytes:
    """Encode an error after the pack began: side-band 3, the last thing the client reads."""
    return encode_band(Band.ERROR, _one_line(message) + b"\n", side_band)


def encode_end(side_band: SideBand) -> bytes:
    """What follows the last byte of the pack."""
    return b"" if side_band is SideBand.NONE else FLUSH_PKT


def encode_shallow_lines(shallow: Iterable[ObjectId], unshallow: Iterable[ObjectId]) -> bytes:
    """Encode the lines of a shallow update; the caller ends the section.

    Without newlines, as git sends them: libgit2 can't read them otherwise.
    """
    lines = [b"shallow " + oid for oid in shallow]
    return b"".join(map(encode, lines + [b"unshallow " + oid for oid in unshallow]))


def encode_v2_sections(
    *,
    shallow_info: bytes | None,
    wanted_refs: Mapping[RefName, ObjectId],
) -> bytes:
    """Encode all sections between the acknowledgments and the pack, and the pack's heading."""
    sections = b""
    if shallow_info is not None:
        sections += encode_lines([b"shallow-info"]) + shallow_info + DELIM_PKT
    if wanted_refs:
        lines = [b"%b %b" % (oid, name) for name, oid in wanted_refs.items()]
        sections += encode_lines([b"wanted-refs", *lines]) + DELIM_PKT
    return sections + encode_lines([b"packfile"])


def encode_in_side_band(lines: bytes) -> bytes:
    """Frame what goes before the pack as ``sideband-all`` wants it: every line on band 1."""
    return b"".join(
        b"%04x" % packet.value
        if isinstance(packet, Special)
        else encode_band(Band.PACK, packet, SideBand.LARGE)
        for packet in decode_all(lines)
    )


def encode_object_info(sizes: Sequence[tuple[ObjectId, int | None]], *, with_size: bool) -> bytes:
    """Encode the answer to object-info; an object that isn't here is followed by a space alone."""
    lines = [b"size"] if with_size and sizes else []
    for oid, size in sizes:
        if size is None:
            lines.append(oid + b" ")
        else:
            lines.append(b"%b %d" % (oid, size) if with_size else oid)
    return encode_lines(lines) + FLUSH_PKT


def _one_line(message: str) -> bytes:
    return " ".join(message.split()).encode("utf-8", "backslashreplace")[:ERROR_BYTES_MAX]
