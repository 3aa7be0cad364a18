"""What stands between a mirror and its upstream: a front that speaks TLS, and an HTTP proxy."""

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def tls_front(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """Speak TLS in front of a port of this machine; provides the port of the front."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _joined(reader, writer, port)

    async with _listening(relay, context) as own:
        yield own


@dataclass(slots=True)
class ForwardProxy:
    """An HTTP proxy that wants to know who asks.

    Attributes:
        account: `user:password`.
        places: By the `host:port` that clients name, the port of this machine that it leads to.
        seen: The heads of all requests, as they came.
        port: Where it listens.
    """

    account: str = "mirror:pr0xy-p4ss"
    places: dict[str, int] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def asked(self) -> list[str]:
        """Method and target of each request."""
        return [" ".join(head.split(" ", 2)[:2]) for head in self.seen]

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one request, and close."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.seen.append(head)
        line, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
        method, target, _ = line.split(" ")
        expected = base64.b64encode(self.account.encode()).decode()
        if f"Proxy-Authorization: Basic {expected}" not in fields:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        if method == "CONNECT":
            place, before = target, b""
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            place, _, path = target.removeprefix("http://").partition("/")
            kept = [one for one in fields if not one.startswith(("Proxy-", "Connection:"))]
            before = "\r\n".join(
                [f"{method} /{path} HTTP/1.1", *kept, "Connection: close", "", ""]
            ).encode()
        port = self.places.get(place) or int(place.rpartition(":")[2])
        await _joined(reader, writer, port, before)


@asynccontextmanager
async def forward_proxy(**places: int) -> AsyncIterator[ForwardProxy]:
    """Run a proxy."""
    proxy = ForwardProxy(places=places)
    async with _listening(proxy.handle) as proxy.port:
        yield proxy


@asynccontextmanager
async def _listening(handler: Handler, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await handler(reader, writer)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(handle(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _joined(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, before: bytes = b""
) -> None:
    """Join a connection with one to a port of this machine, until both have ended."""
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
    far_writer.write(before)
    try:
        await asyncio.gather(_copied(reader, far_writer), _copied(far_reader, writer))
    finally:
        far_writer.close()


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(64 * 1024):
            writer.write(data)
            await writer.drain()
    writer.close()
