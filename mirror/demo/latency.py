"""A slow line on one machine: a TCP proxy that adds a round trip and nothing else.

Owns one listening socket and the connections through it. Every chunk arrives half a round trip
after it was sent, in order; chunks follow one another at once, so throughput is bounded by
`CHUNKS_UNDER_WAY_MAX` per round trip, not by one chunk. A connection's first bytes wait one round
trip more: that is the TCP handshake, which a client on this machine would get for nothing. A TLS
handshake (one or two round trips more) is not modelled, which favours the direct path.
"""

import asyncio
import math
import time
from typing import Final, Self, TypeAlias

CHUNK_BYTES: Final = 64 * 1024

CHUNKS_UNDER_WAY_MAX: Final = 64
"""In each direction: 4 MiB, the receive window of a well-tuned host. More, and the sender waits."""

TIMER_SECONDS: Final = 0.001
"""uvloop rounds timers to whole milliseconds: ours are rounded up, so that nothing is early."""

Line: TypeAlias = asyncio.Queue[tuple[float, bytes]]
"""Chunks under way and when they are due, in order."""


class LatencyProxy:
    """Passes connections on to `target_host`:`target_port`, `rtt_seconds` away.

    Attributes:
        rtt_seconds: The round trip that is added; a change holds for whatever is sent from then on.
        connections: How many connections were opened through it.
    """

    def __init__(self, target_host: str, target_port: int, rtt_seconds: float) -> None:
        self.rtt_seconds = rtt_seconds
        self.connections = 0
        self._target = (target_host, target_port)
        self._host = "127.0.0.1"
        self._port = 0
        self._server: asyncio.Server | None = None
        self._carrying: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """The near end's address, without a slash at its end."""
        return f"http://{self._host}:{self._port}"

    @property
    def port(self) -> int:
        """The near end's port, once started."""
        return self._port

    async def start(self) -> None:
        """Begin to listen; after `close`, at the same port again."""
        self._server = await asyncio.start_server(self._accept, self._host, self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is None:
            return
        self._server.close()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._connect(reader, writer))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)
        task.add_done_callback(lambda _: writer.transport.abort())  # it may end before it begins

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened_at = time.monotonic() + self.rtt_seconds
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            writers.append(far_writer)
            async with asyncio.TaskGroup() as carriers:
                for source, sink in ((reader, far_writer), (far_reader, writer)):
                    line: Line = asyncio.Queue(CHUNKS_UNDER_WAY_MAX)
                    carriers.create_task(self._send(source, line, opened_at))
                    carriers.create_task(_arrive(line, sink))
            for each in writers:
                each.close()
                await each.wait_closed()
        except* OSError:
            pass  # either end broke off: both do
        finally:
            for each in writers:
                each.transport.abort()

    async def _send(self, reader: asyncio.StreamReader, line: Line, opened_at: float) -> None:
        """Put chunks on the line; the end of the stream is the empty one."""
        chunk = b"start"
        while chunk:
            chunk = await reader.read(CHUNK_BYTES)
            sent_at = max(time.monotonic(), opened_at)
            await line.put((sent_at + self.rtt_seconds / 2, chunk))


async def _arrive(line: Line, writer: asyncio.StreamWriter) -> None:
    """Take chunks off the line when they are due, until the end of the stream."""
    while True:
        due, chunk = await line.get()
        early = due - time.monotonic()
        if early > 0:
            await asyncio.sleep(math.ceil(early / TIMER_SECONDS) * TIMER_SECONDS)
        if writer.is_closing():  # uvloop has no OSError for that
            raise ConnectionResetError("who it is for has left")
        if not chunk:
            writer.write_eof()
            return
        writer.write(chunk)
        await writer.drain()
