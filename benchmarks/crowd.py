"""A crowd of clients: each request on a new connection, so many in flight, every answer kept.

Answers are taken apart after the last one has come: nothing but reading happens on the clock.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import uvloop

from benchmarks.http_client import Request, WrongAnswer

ANSWER_SECONDS_MAX: Final = 60.0


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer, and how long it took from the connect to the last byte, in milliseconds."""

    request: Request
    raw: bytes
    milliseconds: float

    def body(self) -> bytes:
        """Return the body of a 200.

        Raises:
            WrongAnswer: It is something else.
        """
        head, found, body = self.raw.partition(b"\r\n\r\n")
        if not found or head[9:12] != b"200":
            raise WrongAnswer(f"{self.request.path}: {self.raw[:200]!r}")
        if b"transfer-encoding: chunked" not in head.lower():
            return body
        parts, at = [], 0
        while True:
            end = body.index(b"\r\n", at)
            size = int(body[at:end].split(b";")[0], 16)
            if not size:
                return b"".join(parts)
            parts.append(body[end + 2 : end + 2 + size])
            at = end + 4 + size


class _Reader(asyncio.Protocol):
    def __init__(self, request: bytes, ended: "asyncio.Future[bytes]") -> None:
        self._request = request
        self._ended = ended
        self._parts: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(b"".join(self._parts))


def stampede(port: int, requests: Sequence[Request], *, in_flight: int) -> list[Answered]:
    """Ask all of them, `in_flight` at any time, each on a new connection."""
    return uvloop.run(_stampede(port, requests, in_flight))


async def _stampede(port: int, requests: Sequence[Request], in_flight: int) -> list[Answered]:
    loop = asyncio.get_running_loop()
    answers: list[Answered] = []
    waiting = iter([(request, request.encode(port, is_last=True)) for request in requests])

    async def client() -> None:
        for request, encoded in waiting:
            ended: asyncio.Future[bytes] = loop.create_future()
            began_at = time.perf_counter()
            transport, _ = await loop.create_connection(
                lambda encoded=encoded, ended=ended: _Reader(encoded, ended), "127.0.0.1", port
            )
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                raw = await ended
            answers.append(Answered(request, raw, (time.perf_counter() - began_at) * 1000))
            transport.close()

    async with asyncio.TaskGroup() as clients:
        for _ in range(in_flight):
            clients.create_task(client())
    return answers
