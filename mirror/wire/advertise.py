"""What a server says first: ref advertisements, capabilities, and answers to ls-refs.

v0 and v1: gitprotocol-pack(5), "Reference Discovery", under the service line of
gitprotocol-http(5). v2: gitprotocol-v2(5). Only what works is advertised.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from struct import pack
from typing import Final
from zlib import crc32

from mirror.wire.names import HEAD, ZERO_ID, ObjectId, RefName
from mirror.wire.pktline import FLUSH_PKT, encode, encode_lines
from mirror.wire.ref_table import DEFLATE_END, Chunk, RefTable, deflate, unpeeled_lines
from mirror.wire.requests import LsRefsRequest

SERVICE_LINE: Final = encode(b"# service=git-upload-pack\n") + FLUSH_PKT

_GZIP_START: Final = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""The header: no file name, and no time, so that the same refs give the same bytes."""

_V0_CAPABILITIES: Final = (
    b"multi_ack thin-pack side-band side-band-64k ofs-delta shallow deepen-since deepen-not"
    b" deepen-relative no-progress include-tag multi_ack_detailed no-done"
    b" allow-tip-sha1-in-want allow-reachable-sha1-in-want filter"
)


def encode_v2_capabilities(agent: bytes, *, has_bundles: bool = False) -> bytes:
    """Encode the v2 capability advertisement, service line included.

    Args:
        agent: Our agent string.
        has_bundles: Whether the repository offers bundles: clients that want them ask for the list.
    """
    lines = [
        b"version 2",
        b"agent=" + agent,
        b"ls-refs=unborn",
        # Not ref-in-want, though we answer it: a client that may name refs does so, and
        # fails when one of them is deleted between its ls-refs and its fetch.
        b"fetch=shallow wait-for-done filter sideband-all",
        b"server-option",
        b"object-format=sha1",
        b"object-info=size",
    ]
    if has_bundles:
        lines.append(b"bundle-uri")
    return SERVICE_LINE + encode_lines(lines) + FLUSH_PKT


def encode_waiting_line(number: int) -> bytes:
    """Encode a v2 capability that no client knows, so that each ignores it.

    Args:
        number: Makes its key another than those before: a client may not take the same one twice.
    """
    return encode(b"x-mirroring-%d=wait\n" % number)


@dataclass(frozen=True, slots=True)
class Advertisement:
    """A v0 or v1 advertisement in pieces.

    Attributes:
        start: What is its own: the service line and the line that tells the capabilities.
        chunks: Those whose lines follow.
    """

    start: bytes
    chunks: tuple[Chunk, ...]

    def plain(self) -> bytes:
        """Return it whole."""
        return b"".join((self.start, *(chunk.advertised for chunk in self.chunks), FLUSH_PKT))

    def chunks_to_deflate(self) -> int:
        """Return how many chunks `gzip` has to compress first, a millisecond each."""
        return sum(not chunk.is_deflated for chunk in self.chunks)

    def gzip(self, plain: bytes) -> bytes:
        """Return `plain`, which is the whole of it, as a gzip file of one member (RFC 1952)."""
        deflated = (chunk.deflated for chunk in self.chunks)
        pieces = (_GZIP_START, deflate(self.start), *deflated, deflate(FLUSH_PKT), DEFLATE_END)
        return b"".join((*pieces, pack("<II", crc32(plain), len(plain) & 0xFFFFFFFF)))


def encode_v0_advertisement(
    refs: RefTable,
    *,
    head: ObjectId | None,
    head_target: RefName | None,
    agent: bytes,
    version: int = 0,
) -> Advertisement:
    """Encode a v0 (or v1) advertisement, service line included.

    Args:
        refs: The refs, HEAD not among them.
        head: What HEAD resolves to; `None` when it is unborn.
        head_target: The branch that HEAD names. Only HEAD's symref is announced: two `symref=`
            capabilities make git 2.39's client loop for ever.
        agent: Our agent string.
        version: 1 adds the line that v1 has.
    """
    capabilities = _V0_CAPABILITIES
    if head is not None and head_target is not None:
        capabilities += b" symref=HEAD:" + head_target
    capabilities += b" object-format=sha1 agent=" + agent
    chunks, rest = refs.chunks, b""
    if head is not None:
        line = head + b" HEAD"
    elif chunks:
        # Without a HEAD the first ref's line is the one: its chunk is no longer as it was.
        line, rest = chunks[0].advertised[4:].split(b"\n", 1)
        chunks = chunks[1:]
    else:
        line = ZERO_ID + b" capabilities^{}"
    start = SERVICE_LINE + (encode(b"version 1\n") if version == 1 else b"")
    return Advertisement(start + encode_lines([line + b"\0" + capabilities]) + rest, chunks)


def encode_ls_refs(
    refs: RefTable,
    request: LsRefsRequest,
    *,
    head: ObjectId | None,
    head_target: RefName | None,
) -> bytes:
    """Encode the answer to ls-refs.

    Args:
        refs: The refs, HEAD not among them.
        request: What the client asked for.
        head: What HEAD resolves to; `None` when it is unborn.
        head_target: The branch that HEAD names.
    """
    first: list[bytes] = []
    if _matches(HEAD, request.ref_prefixes):
        symref = b" symref-target:" + head_target if head_target and request.symrefs else b""
        if head is not None:
            first.append(b"%b HEAD%b" % (head, symref))
        elif request.unborn and symref:
            first.append(b"unborn HEAD" + symref)
    lines = _lines_with(refs, request.ref_prefixes)
    if not request.peel:
        lines = map(unpeeled_lines, lines)
    return b"".join((encode_lines(first), *lines, FLUSH_PKT))


def _lines_with(refs: RefTable, prefixes: tuple[bytes, ...]) -> Iterator[bytes]:
    """Yield the lines of refs that begin with one of `prefixes`, in order, each once."""
    covered: bytes | None = None
    for prefix in sorted(prefixes or (b"",)):
        if covered is None or not prefix.startswith(covered):
            covered = prefix
            yield from refs.lines_with(prefix)


def _matches(name: bytes, prefixes: tuple[bytes, ...]) -> bool:
    return not prefixes or name.startswith(prefixes)
