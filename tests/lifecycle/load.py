"""Readers that count what goes wrong: on raw connections, so that nothing is tried again unseen."""

import asyncio
import os
import re
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mirror.wire.pktline import DELIM_PKT, FLUSH_PKT, encode

POLL_V0: Final = "GET /{name}/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\n\r\n"
_LS_REFS: Final = encode(b"command=ls-refs\n") + DELIM_PKT + encode(b"ref-prefix refs/") + FLUSH_PKT
POLL_V2: Final = (
    "POST /{name}/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\n"
    "Content-Type: application/x-git-upload-pack-request\r\n"
    f"Content-Length: {len(_LS_REFS)}\r\n\r\n{_LS_REFS.decode()}"
)
ANSWER_SECONDS_MAX: Final = 60.0
"""A test fails after that instead of hanging; nothing is to take so long."""

BIG: Final = {f"big/{number}": os.urandom(1 << 20) for number in range(8)}
"""Files that make a clone longer than what is on its way unread."""

UNHURRIED: Final = "drain_timeout: 90s"
"""For `server`: on a busy machine as well, what is under way is finished in that time."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]
"""Opens a connection to the service."""


def by_port(port: int, tls: ssl.SSLContext | None = None) -> Connect:
    return lambda: asyncio.open_connection("127.0.0.1", port, ssl=tls)


def by_path(path: Path) -> Connect:
    return lambda: asyncio.open_unix_connection(path)


def slowly(port: int) -> Connect:
    """Connect with so small a buffer that little of an answer is on its way unread."""

    async def connect() -> Streams:
        small = socket.socket()
        try:
            small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            small.setblocking(False)
            await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", port))
            return await asyncio.open_connection(sock=small, limit=64 * 1024)
        except BaseException:
            small.close()
            raise

    return connect


@dataclass
class Seen:
    """What readers saw.

    Attributes:
        tips: The tips of main, oldest first.
        answers: How many there were, by protocol and kind of connection.
        failures: What went wrong.
        seconds: How long each answer took, its connection included.
    """

    tips: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    latest: int = 0

    def fail(self, what: str) -> None:
        """Take note of what went wrong instead of an answer."""
        self.failures.append(what)
        self.answered.set()  # who waits for an answer is to judge this one

    def take(self, kind: str, body: bytes, asked_at_latest: int) -> None:
        """Take note of an answer to a poll that was sent when `asked_at_latest` had been seen."""
        self.answers[kind] += 1
        self.answered.set()
        found = re.search(rb"([0-9a-f]{40}) refs/heads/main\b", body)
        if found is None or found[1].decode() not in self.tips:
            self.failures.append(f"{kind}: not the refs: {body[:200]!r}")
            return
        position = self.tips.index(found[1].decode())
        if position < asked_at_latest:
            self.failures.append(f"{kind}: went back from {asked_at_latest} to {position}")
        self.latest = max(self.latest, position)


async def poll(
    seen: Seen, connect: Connect, name: str, *, version: int, kept: bool, pause_seconds: float
) -> None:
    """Poll until it is over, on one connection as long as that is offered, or on new ones."""
    request = (POLL_V2 if version == 2 else POLL_V0).format(name=name).encode()
    kind = f"v{version} {'kept' if kept else 'new'}"
    streams: Streams | None = None
    try:
        while not seen.is_over.is_set():
            began_at, latest = time.monotonic(), seen.latest
            where = "kept" if streams else "new"
            stays = False
            try:
                async with asyncio.timeout(ANSWER_SECONDS_MAX):
                    streams = streams or await connect()
                    streams[1].write(request)
                    body, stays = await answer(streams[0])
            except (OSError, EOFError, ValueError) as error:
                seen.fail(f"{kind} on a {where} connection: {type(error).__name__} {error}")
            else:
                seen.take(kind, body, latest)
                seen.seconds.append(time.monotonic() - began_at)
            if streams is not None and not (kept and stays):
                streams[1].close()
                streams = None
            await asyncio.sleep(pause_seconds)  # the pace of the load, not a wait for anything
    finally:
        if streams is not None:
            streams[1].transport.abort()


@asynccontextmanager
async def asking(connect: Connect, request: str) -> AsyncIterator[asyncio.StreamReader]:
    """Send a request on a connection of its own; provides what the answer is read from."""
    reader, writer = await connect()
    try:
        writer.write(request.encode())
        yield reader
    finally:
        writer.transport.abort()


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """Return an answer's body, and whether its connection stays.

    Raises:
        EOFError: It broke off.
        ValueError: It is no success.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200 "):
        raise ValueError(f"status {head.splitlines()[0]!r}")
    length = re.search(rb"content-length: (\d+)", head)
    if length is not None:
        body = await reader.readexactly(int(length[1]))
    else:
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    return body, b"connection: close" not in head


class SlowClone:
    """A clone that has begun to take its pack, and waits with the rest."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def begin(cls, connect: Connect, name: str, tip: str) -> "SlowClone":
        """Ask for everything behind `tip`, and take the beginning of the answer."""
        clone = cls(*await connect())
        try:
            await clone._begin(name, tip)
        except BaseException:
            clone.close()
            raise
        return clone

    async def _begin(self, name: str, tip: str) -> None:
        body = b"".join(
            [
                *(encode(b"command=fetch\n"), DELIM_PKT, encode(b"no-progress\n")),
                *(encode(b"want %b\n" % tip.encode()), encode(b"done\n"), FLUSH_PKT),
            ]
        )
        self._writer.write(
            f"POST /{name}/git-upload-pack HTTP/1.1\r\nHost: x\r\nGit-Protocol: version=2\r\n"
            "Content-Type: application/x-git-upload-pack-request\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            head = await self._reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 "), head
            await self._reader.readuntil(b"packfile\n")

    async def finish(self) -> int:
        """Take the rest; returns its bytes, once it has ended as a whole answer does."""
        taken, end = 0, b""
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            while data := await self._reader.read(1 << 20):
                taken += len(data)
                end = (end + data)[-64:]
        assert FLUSH_PKT in end, (taken, end)
        return taken

    def close(self) -> None:
        """Give up what has not come yet."""
        self._writer.transport.abort()
