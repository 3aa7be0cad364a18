"""An upstream that says whatever a test wants: for what git's own server never would."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from aiohttp import web

from mirror.wire.pktline import FLUSH_PKT, encode, encode_lines

ADVERTISEMENT_TYPE = "application/x-git-upload-pack-advertisement"
RESULT_TYPE = "application/x-git-upload-pack-result"

OID = b"1" * 40
MAIN = OID + b" refs/heads/main"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Seen:
    """A request that arrived; its path is as it was sent, without the query."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Scripted:
    """The running server.

    Attributes:
        answer: What to do with each request; may be changed at any time.
        requests: All that came, the oldest first.
        released: Set when the server stops: an answer that stalls waits for it.
    """

    answer: Answer
    requests: list[Seen] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    @property
    def repository_url(self) -> str:
        return f"{self.url}/acme/gitops-repo.git"

    @property
    def asked(self) -> list[str]:
        """Method and last part of the path of each request."""
        return [f"{seen.method} {seen.path.rpartition('/')[2]}" for seen in self.requests]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        seen = Seen(request.method, path, dict(request.headers), await request.read())
        self.requests.append(seen)
        return await self.answer(request)


@asynccontextmanager
async def scripted(answer: Answer, *, port: int = 0) -> AsyncIterator[Scripted]:
    """Serve `answer` on the loopback interface."""
    server = Scripted(answer)
    app = web.Application(client_max_size=64 << 20)
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        server.released.set()
        await runner.cleanup()


def advertisement(body: bytes) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": ADVERTISEMENT_TYPE})


def result(body: bytes) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": RESULT_TYPE})


def v2_capabilities(*more: bytes) -> bytes:
    lines = [b"version 2", b"agent=scripted", b"ls-refs=unborn", b"fetch=shallow", *more]
    return encode_lines(lines) + FLUSH_PKT


def v2_listing(*lines: bytes) -> bytes:
    return encode_lines(lines) + FLUSH_PKT


def v0_listing(lines: Iterable[bytes], capabilities: bytes = b"") -> bytes:
    """What `info/refs` says in v0, with `capabilities` behind the first line."""
    first, *others = lines
    return (
        encode(b"# service=git-upload-pack\n")
        + FLUSH_PKT
        + encode(first + b"\0" + capabilities + b"\n")
        + encode_lines(others)
        + FLUSH_PKT
    )


def v2_pack(pack: bytes) -> bytes:
    """The answer to a v2 fetch."""
    return encode_lines([b"packfile"]) + in_bands(pack) + FLUSH_PKT


def in_bands(pack: bytes) -> bytes:
    """A pack in side-band packets of a few sizes."""
    cuts = [0, 1, 5, 1000, *range(60_000, len(pack), 60_000), len(pack)]
    pieces = [pack[start:end] for start, end in pairwise(cuts)]
    return b"".join(encode(b"\1" + piece) for piece in pieces if piece)


def a_v2_server(listing: bytes | None = None, fetched: bytes = b"") -> Answer:
    """Answer as a healthy v2 upstream with one branch does."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return advertisement(v2_capabilities())
        if b"command=ls-refs" in await request.read():
            return result(v2_listing(MAIN) if listing is None else listing)
        return result(fetched)

    return answer


def always(
    status: int, text: str = "", *, headers: dict[str, str] | None = None, kind: str = "text/plain"
) -> Answer:
    """Answer every request alike."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text, headers=headers, content_type=kind)

    return answer


@asynccontextmanager
async def raw_server(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """Serve something that is hardly HTTP; returns the repository's URL."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/acme/gitops-repo.git"
