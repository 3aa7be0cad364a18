"""Polls as bytes, and ways to send them so that a test knows what a server has read when."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.git_client import Upstream
from tests.mirror_service import WAIT_SECONDS_MAX, MirrorService
from tests.web.asking import command, connected, raw_request

INFO_REFS = "/acme/gitops-repo/info/refs?service=git-upload-pack"


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: x", *headers, "", ""]
    return "\r\n".join(lines).encode()


POLLS = {
    "capabilities": get(INFO_REFS, "Git-Protocol: version=2"),
    "v0": get(INFO_REFS),
    "v1": get(INFO_REFS, "Git-Protocol: version=1"),
    "v0 as gzip": get(INFO_REFS, "Accept-Encoding: gzip"),
    "ls-refs": raw_request(command("ls-refs", "peel", "symrefs"), version=2),
    "ls-refs of one": raw_request(command("ls-refs", "ref-prefix refs/heads/main"), version=2),
    "HTTP/1.0": get(INFO_REFS, version="1.0"),
    "HTTP/1.0, kept alive": get(INFO_REFS, "Connection: keep-alive", version="1.0"),
    "to be closed": get(INFO_REFS, "Connection: close"),
}
LAST = get("/healthz", "Connection: close")
"""Ends a connection, so that all answers can be read to the end."""


def drawn(streams: st.SearchStrategy[list[bytes]]) -> list[list[bytes]]:
    """Return as many streams, each in its pieces, as the profile asks for."""
    examples: list[list[bytes]] = []

    @settings(suppress_health_check=list(HealthCheck))
    @given(streams)
    def draw(pieces: list[bytes]) -> None:
        examples.append(pieces)

    draw()
    return examples


class Received:
    """Counts what a server has read, so that a client can send one piece per read."""

    def __init__(self) -> None:
        self.count = 0
        self._more = asyncio.Event()

    def add(self, count: int) -> None:
        self.count += count
        self._more.set()

    async def until(self, count: int) -> None:
        while self.count < count:
            self._more.clear()
            await self._more.wait()


def alike(answers: bytes) -> bytes:
    """Return answers without what differs each time."""
    answers = re.sub(rb"\r\nDate: [^\r]{29}\r\n", b"\r\nDate: -\r\n", answers)
    return re.sub(rb"\r\nX-Request-Id: [0-9a-f]{16}\r\n", b"\r\nX-Request-Id: -\r\n", answers)


async def exchange(mirror: MirrorService, *requests: bytes) -> bytes:
    """Send requests over one connection, all at once, and read it to its end."""
    async with connected(mirror, b"".join(requests)) as (reader, _):
        return await asyncio.wait_for(reader.read(), WAIT_SECONDS_MAX)


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """Read one answer that has a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"\r\nContent-Length: ([0-9]+)\r\n", head)
    assert found, head
    return head + await reader.readexactly(int(found[1]))


async def ask_twice(mirror: MirrorService, request: bytes) -> tuple[bytes, bytes]:
    """Send a request over two connections, one after the other."""
    answers = []
    for _ in range(2):
        async with connected(mirror, request) as (reader, _):
            answers.append(await read_answer(reader))
    return answers[0], answers[1]


def make_long(upstream: Upstream) -> None:
    """Give an upstream so many refs that a few advertisements fill what a connection buffers."""
    filling = "x" * 200
    upstream.branches(
        dict.fromkeys((f"{number:03d}/{filling}" for number in range(400)), upstream.oid())
    )


@asynccontextmanager
async def slow_client(mirror: MirrorService) -> AsyncIterator[socket.socket]:
    """Connect a client that reads nothing by itself, and has little room."""
    host, port = mirror.service.url.removeprefix("http://").split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
        yield client


async def read_to_end(client: socket.socket) -> bytes:
    answers = bytearray()
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while piece := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
            answers += piece
    return bytes(answers)


async def poll_until_paused(
    client: socket.socket, received: Received, paused: asyncio.Event
) -> int:
    """Poll without reading until the server is stuck; returns the number of polls."""
    polls = 0
    while not paused.is_set():
        expected = received.count + len(POLLS["v0"])
        await asyncio.get_running_loop().sock_sendall(client, POLLS["v0"])
        await received.until(expected)
        polls += 1
    return polls
