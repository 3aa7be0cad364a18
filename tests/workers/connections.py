"""Connections to a port that several processes share, each known by who accepted it.

The kernel says who: a connection's inode is in /proc/net/tcp, and each process lists its own.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.git_client import Upstream
from tests.mirror_service import (
    WAIT_SECONDS_MAX,
    Answered,
    MirrorService,
    github_headers,
    github_push,
)

BUFFER_BYTES: Final = 64 * 1024
"""A test that stops reading soon stops the worker that writes."""


@dataclass
class Connection:
    """One keep-alive connection to one worker."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answered:
        """Ask over this connection, and no other."""
        return await self.request("GET", path, headers=headers)

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answered:
        self.send(method, path, body=body, headers=headers)
        return await self.answer()

    def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a request without waiting for its answer."""
        lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def answer(self) -> Answered:
        """Read an answer to its end."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")
            pairs = (line.split(": ", 1) for line in lines if line)
            headers = {name.title(): value for name, value in pairs}
            if "Content-Length" in headers:
                body = await self.reader.readexactly(int(headers["Content-Length"]))
            else:
                body = await self.reader.readuntil(b"\r\n0\r\n\r\n")
        return Answered(int(first.split()[1]), headers, body)

    def accepted_by(self, pids: Iterable[int]) -> int | None:
        """Return which of `pids` has the other end."""
        port = self.writer.get_extra_info("sockname")[1]
        # Not line by line: on a busy machine there are tens of thousands of finished connections.
        found = re.search(
            rf"^ *\d+: \S+ \S+:{port:04X} 01 (?:\S+ +){{5}}(\d+) ",
            Path("/proc/net/tcp").read_text(),
            re.MULTILINE,
        )
        inode = found[1] if found is not None else None
        for pid in pids:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(FileNotFoundError):
                    if str(link.readlink()) == f"socket:[{inode}]":
                        return pid
        return None

    async def close(self) -> None:
        self.writer.transport.abort()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


async def connect(url: str) -> Connection:
    """Open a connection; some worker answers on it."""
    found = re.fullmatch(r"http://(.+):(\d+)", url)
    assert found is not None
    end = socket.socket()
    end.setblocking(False)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    try:
        await asyncio.get_running_loop().sock_connect(end, (found[1], int(found[2])))
    except BaseException:
        end.close()
        raise
    connection = Connection(*await asyncio.open_connection(sock=end))
    try:
        assert (await connection.get("/healthz")).status == 200
    except BaseException:
        await connection.close()
        raise
    return connection


@asynccontextmanager
async def one_to_each(url: str, pids: Iterable[int]) -> AsyncIterator[dict[int, Connection]]:
    """Give a connection to each of the processes `pids`."""
    wanted = set(pids)
    found: dict[int, Connection] = {}
    async with AsyncExitStack() as stack:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while wanted - found.keys():
                connection = await connect(url)
                stack.push_async_callback(connection.close)
                pid = connection.accepted_by(wanted)
                if pid is not None:
                    found[pid] = connection
        yield found


def delivery(
    mirror: MirrorService, upstream: Upstream, number: str = ""
) -> tuple[bytes, dict[str, str]]:
    """Return the webhook of a push that left main as the upstream has it now."""
    url = mirror.forge.repository_url(upstream.name)
    body = github_push(url, "refs/heads/main", "0" * 40, upstream.oid())
    return body, github_headers(body, delivery=number)


async def deliver(worker: Connection, body: bytes, headers: dict[str, str]) -> str:
    """Deliver a webhook to one worker; returns what came of it."""
    answer = await worker.request("POST", "/webhooks/github", body=body, headers=headers)
    assert answer.status == 202, answer
    return str(answer.json["outcome"])
