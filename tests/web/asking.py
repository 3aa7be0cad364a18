"""Requests as Git clients put them on the wire, and answers taken apart."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mirror.wire.pktline import DELIM_PKT, FLUSH_PKT, Special, decode_all, encode_lines, text
from tests.mirror_service import UPLOAD_PACK_HEADERS, MirrorService, git_protocol

FLUX_CAPABILITIES = (
    "multi_ack_detailed side-band-64k ofs-delta agent=go-git/5.x shallow no-progress"
)
"""What source-controller's go-git sends."""


def command(name: str, *arguments: str) -> bytes:
    """Encode a v2 command as git sends it."""
    head = encode_lines([f"command={name}".encode(), b"agent=git/2.39.5", b"object-format=sha1"])
    return head + DELIM_PKT + encode_lines([line.encode() for line in arguments]) + FLUSH_PKT


def fetch_v2(*wants: str, more: Sequence[str] = ()) -> bytes:
    """Encode a v2 fetch of everything that `wants` reach, unless `more` says otherwise."""
    wanted = [f"want {oid}" for oid in wants]
    return command("fetch", "no-progress", "ofs-delta", *wanted, *more, "done")


def fetch_v0(*wants: str, capabilities: str = FLUX_CAPABILITIES, more: Sequence[str] = ()) -> bytes:
    """Encode a v0 fetch without haves."""
    first, *others = wants
    lines = [f"want {first} {capabilities}".rstrip(), *(f"want {oid}" for oid in others), *more]
    return encode_lines([line.encode() for line in lines]) + FLUSH_PKT + encode_lines([b"done"])


@dataclass(frozen=True)
class FetchAnswer:
    """The parts of a fetch's answer.

    Attributes:
        lines: What came before the pack, section headings included.
        pack: The pack.
        keepalives: How many empty packets came in between.
        error: What came on side-band 3.
    """

    lines: list[str]
    pack: bytes
    keepalives: int
    error: str


def read_answer(body: bytes) -> FetchAnswer:
    """Take apart an answer with side-bands."""
    lines = []
    bands: dict[int, bytes] = {1: b"", 2: b"", 3: b""}
    keepalives = 0
    for packet in decode_all(body):
        if isinstance(packet, Special):
            continue
        if packet[:1] in b"\1\2\3":
            keepalives += len(packet) == 1
            bands[packet[0]] += packet[1:]
        else:
            lines.append(text(packet).decode())
    return FetchAnswer(lines, bands[1], keepalives, bands[3].decode())


def read_lines(body: bytes) -> list[str]:
    """Return the lines of an answer without a pack."""
    return [text(one).decode() for one in decode_all(body) if not isinstance(one, Special)]


@asynccontextmanager
async def connected(
    mirror: MirrorService, request: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Send a request over a connection of its own, which is broken off at the end."""
    host, port = mirror.service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    """Read an answer to its end, whether its length was told or it comes in chunks."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"\r\nContent-Length: ([0-9]+)\r\n", head)
    if length is None:
        return head + await reader.readuntil(b"\r\n0\r\n\r\n")
    return head + await reader.readexactly(int(length[1]))


def raw_request(body: bytes, *, version: int = 0) -> bytes:
    """Return a POST to git-upload-pack as it goes over the wire."""
    headers = {"Host": "x", **UPLOAD_PACK_HEADERS, **git_protocol(version)}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST /acme/gitops-repo/git-upload-pack HTTP/1.1\r\n{lines}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
