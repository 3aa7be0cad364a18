"""A proxy in front of a real forge that spoils the answers it passes on.

Every answer is taken whole from git's own http-backend, and then written to the mirror by the
`Fault` of the moment, byte by byte as that wants it. Each request has a connection of its own, so
that nothing is left of a fault when it ends.
"""

import asyncio
import contextlib
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import aiohttp

from mirror.demo.forge import HttpBackend

HEAD_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What the forge answered, and to what: `info/refs`, `ls-refs` or `fetch`."""

    operation: str
    status: int
    content_type: str
    body: bytes

    def head(self, *more: str, length: int | None = None) -> bytes:
        """Return the status line and the headers."""
        size = len(self.body) if length is None else length
        lines = [f"HTTP/1.1 {self.status} OK", f"Content-Type: {self.content_type}", *more]
        if size >= 0:
            lines.append(f"Content-Length: {size}")
        return "\r\n".join([*lines, "Connection: close", "", ""]).encode()

    def pack_at(self) -> int:
        """Return where the pack begins in the answer to a fetch."""
        return self.body.index(b"PACK")


@dataclass(slots=True)
class Line:
    """The connection to the mirror: what is sent is counted."""

    writer: asyncio.StreamWriter
    released: asyncio.Event
    sent: int = 0

    async def send(self, data: bytes) -> None:
        """Send as fast as the mirror takes it.

        Raises:
            ConnectionError: The mirror has hung up.
        """
        if self.writer.is_closing():
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()
        self.sent += len(data)
        await asyncio.sleep(0)

    async def is_over(self, seconds: float) -> bool:
        """Be slow; tells whether the proxy ended meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                return await self.released.wait()
        except TimeoutError:
            return False

    async def stall(self) -> None:
        """Say nothing more until the proxy ends, or the mirror hangs up."""
        closed = asyncio.create_task(self.writer.wait_closed())
        released = asyncio.create_task(self.released.wait())
        await asyncio.wait((closed, released), return_when=asyncio.FIRST_COMPLETED)
        closed.cancel()
        released.cancel()


Play = Callable[[Answer, Line], Awaitable[None]]


async def faithfully(answer: Answer, line: Line) -> None:
    """Pass an answer on as it is."""
    await line.send(answer.head() + answer.body)


@dataclass(slots=True)
class FaultProxy:
    """The running proxy.

    Attributes:
        play: What becomes of answers; may be changed at any time.
        only: To which operations that happens.
        most_sent: The bytes of the longest answer so far.
        asked: The operations so far.
    """

    forge: HttpBackend
    url: str = ""
    play: Play = faithfully
    only: frozenset[str] = frozenset()
    most_sent: int = 0
    asked: list[str] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    _lines: dict["asyncio.Task[None]", Line] = field(default_factory=dict)

    def repository_url(self, name: str) -> str:
        return f"{self.url}/{name}.git"

    @property
    def as_forge(self) -> HttpBackend:
        """The proxy, for whoever wants a forge to know its URLs only."""
        return cast("HttpBackend", self)

    def begin(self, play: Play, *only: str) -> None:
        """Spoil answers from now on: those to the operations `only`, or all."""
        self.play, self.only = play, frozenset(only)
        self.most_sent = 0

    def end(self) -> None:
        """Be faithful again."""
        self.begin(faithfully)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        line = self._lines[task] = Line(writer, self.released)
        try:
            # A mirror that hung up is what most faults end with.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._answer(reader, line)
        finally:
            self.most_sent = max(self.most_sent, line.sent)
            del self._lines[task]
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, line: Line) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rest = head.split("\r\n")
        method, path, _ = first.split(" ")
        headers = dict(one.split(": ", 1) for one in rest if one)
        length = int(headers.get("Content-Length", 0))
        body = await reader.readexactly(length)
        answer = await self._ask(method, path, headers, body)
        self.asked.append(answer.operation)
        is_spoilt = not self.only or answer.operation in self.only
        await (self.play if is_spoilt else faithfully)(answer, line)

    async def _ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        passed = {"Git-Protocol", "Content-Type", "Content-Encoding"}
        plain = gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body
        operation = "ls-refs" if b"command=ls-refs" in plain else "fetch"
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method,
                f"{self.forge.url}{path}",
                data=body or None,
                headers={name: value for name, value in headers.items() if name in passed},
            ) as response,
        ):
            content = await response.read()
            kind = response.headers.get("Content-Type", "text/plain")
        return Answer("info/refs" if method == "GET" else operation, response.status, kind, content)

    async def close(self) -> None:
        self.released.set()
        lines = dict(self._lines)
        for line in lines.values():
            line.writer.close()
        await asyncio.gather(*lines, return_exceptions=True)


@asynccontextmanager
async def fault_proxy(
    forge: HttpBackend, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[FaultProxy]:
    """Run a proxy in front of `forge` on the loopback interface."""
    proxy = FaultProxy(forge)
    server = await asyncio.start_server(proxy.connected, host, 0, ssl=tls, limit=HEAD_BYTES_MAX)
    port = server.sockets[0].getsockname()[1]
    proxy.url = f"{'https' if tls else 'http'}://{host}:{port}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()
