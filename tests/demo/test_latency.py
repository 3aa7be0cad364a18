"""The slow line: what it adds, and that it changes nothing else.

Times are only ever checked from below: a busy machine may take as long as it likes.
"""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from mirror.demo import latency
from mirror.demo.forge import HttpBackend
from mirror.demo.latency import CHUNK_BYTES, CHUNKS_UNDER_WAY_MAX, LatencyProxy, Line
from tests.git_client import GitClient, Upstream

RTT_SECONDS = 0.06
CLOCK_SECONDS = 0.003  # uvloop's clock stands still within an iteration and counts milliseconds

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def _greeting(ended: asyncio.Event) -> Serve:
    """Serve a greeting, wait for the client's end, and tell of it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await _to_the_end(reader)
        writer.close()
        ended.set()

    return serve


@asynccontextmanager
async def _line(serve: Serve, rtt_seconds: float = 0.0) -> AsyncIterator[LatencyProxy]:
    """Give a proxy in front of a server that runs `serve` for each connection."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with LatencyProxy("127.0.0.1", port, rtt_seconds) as proxy:
            yield proxy
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def _connection(proxy: LatencyProxy) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back, and end when the client does."""
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    writer.close()


async def _round_trip_seconds(connection: Connection) -> float:
    reader, writer = connection
    loop = asyncio.get_running_loop()
    begun_at = loop.time()
    writer.write(b"ping")
    assert await reader.readexactly(4) == b"ping"
    return loop.time() - begun_at


async def test_a_connection_costs_a_round_trip_and_each_exchange_another() -> None:
    async with _line(_echo, RTT_SECONDS) as proxy, _connection(proxy) as connection:
        assert await _round_trip_seconds(connection) >= 2 * RTT_SECONDS - CLOCK_SECONDS
        assert await _round_trip_seconds(connection) >= RTT_SECONDS - CLOCK_SECONDS


async def test_the_round_trip_can_be_changed_while_connections_are_open() -> None:
    async with _line(_echo) as proxy, _connection(proxy) as connection:
        await _round_trip_seconds(connection)
        proxy.rtt_seconds = RTT_SECONDS
        assert await _round_trip_seconds(connection) >= RTT_SECONDS - CLOCK_SECONDS


async def test_bytes_come_through_whole_and_in_order_both_ways_at_once() -> None:
    sent = random.Random(5).randbytes(6 << 20)  # more than fits on the line
    async with _line(_echo, 0.004) as proxy, _connection(proxy) as (reader, writer):
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == sent


async def test_chunks_that_got_a_shorter_round_trip_do_not_overtake() -> None:
    async with _line(_echo, RTT_SECONDS) as proxy, _connection(proxy) as (reader, writer):
        writer.write(b"first")
        proxy.rtt_seconds = 0.0
        writer.write(b" second")
        assert await reader.readexactly(12) == b"first second"


async def test_chunks_travel_together_and_a_full_line_holds_the_sender_up() -> None:
    proxy = LatencyProxy("127.0.0.1", 9, RTT_SECONDS)
    line: Line = asyncio.Queue(CHUNKS_UNDER_WAY_MAX)
    reader = asyncio.StreamReader()
    for _ in range(CHUNKS_UNDER_WAY_MAX + 2):
        reader.feed_data(bytes(CHUNK_BYTES))
    reader.feed_eof()
    sending = asyncio.create_task(proxy._send(reader, line, 0.0))
    await asyncio.sleep(0)  # one step of the task: it stops where it can't go on
    assert line.full()
    assert not sending.done()
    chunks = [(await line.get())[1] for _ in range(CHUNKS_UNDER_WAY_MAX + 3)]
    assert [len(chunk) for chunk in chunks] == [CHUNK_BYTES] * (CHUNKS_UNDER_WAY_MAX + 2) + [0]
    await sending


async def test_a_client_that_has_said_all_still_hears_the_answer() -> None:
    async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"heard " + await reader.read())
        writer.close()

    async with (
        _line(answer_at_the_end, RTT_SECONDS) as proxy,
        _connection(proxy) as (reader, writer),
    ):
        writer.write(b"all")
        writer.write_eof()
        assert await reader.read() == b"heard all"


async def test_a_server_that_has_said_all_still_hears_the_client() -> None:
    heard = asyncio.get_running_loop().create_future()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.write_eof()
        heard.set_result(await reader.read())
        writer.close()

    async with _line(greet) as proxy, _connection(proxy) as (reader, writer):
        assert await reader.read() == b"hello"
        writer.write(b"goodbye")
        writer.write_eof()
        assert await heard == b"goodbye"


async def test_a_server_that_breaks_off_ends_the_client_too() -> None:
    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        writer.transport.abort()

    async with _line(break_off) as proxy, _connection(proxy) as (reader, writer):
        writer.write(b"ping")
        assert await _to_the_end(reader) == b""


async def test_a_client_that_breaks_off_ends_the_server_too() -> None:
    ended = asyncio.Event()
    async with _line(_greeting(ended)) as proxy, _connection(proxy) as (reader, writer):
        assert await reader.readexactly(5) == b"hello"
        writer.transport.abort()
        await ended.wait()


async def test_a_target_that_is_not_there_ends_the_connection() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but it does not listen
        async with (
            LatencyProxy("127.0.0.1", taken.getsockname()[1], 0.0) as proxy,
            _connection(proxy) as (reader, _),
        ):
            assert await _to_the_end(reader) == b""
            assert proxy.connections == 1


async def test_close_drops_open_connections_and_what_is_under_way() -> None:
    ended = asyncio.Event()
    async with _line(_greeting(ended)) as proxy, _connection(proxy) as (reader, writer):
        assert await reader.readexactly(5) == b"hello"
        proxy.rtt_seconds = 3600
        writer.write(b"on its way for half an hour")
        await proxy.close()
        assert await _to_the_end(reader) == b""
        await ended.wait()
        with pytest.raises(OSError, match="refused"):
            await asyncio.open_connection("127.0.0.1", proxy.port)


async def test_git_clones_through_it_on_one_connection(
    forge: HttpBackend, upstream: Upstream, git_client: GitClient
) -> None:
    async with LatencyProxy("127.0.0.1", forge.port, 0.01) as proxy:
        clone = await git_client.clone(f"{proxy.url}/{upstream.name}.git")
        assert await git_client.rev_parse(clone, "HEAD") == upstream.oid()
        assert forge.operations == ["info/refs", "ls-refs", "fetch"]
        assert proxy.connections == 1


async def _to_the_end(reader: asyncio.StreamReader) -> bytes:
    """Read until the connection ends, well or not."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""


async def test_what_is_under_way_to_somebody_who_has_left_breaks_off_as_any_connection() -> None:
    near: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda _, writer: near.set_result(writer), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, client = await asyncio.open_connection("127.0.0.1", port)
        writer = await near
        client.transport.abort()
        writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        line: Line = asyncio.Queue()
        line.put_nowait((0.0, b"late"))
        with pytest.raises(ConnectionError):
            await latency._arrive(line, writer)
