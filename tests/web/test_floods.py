"""Clients that misbehave: what they take is bounded, and others are answered meanwhile.

`make flood` measures the same in earnest; here nothing depends on how fast this machine is.
"""

import asyncio
import contextlib
import gzip
import random
import re
import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from mirror.web import bodies, connections, protocol
from tests.git_client import Upstream
from tests.mirror_service import WAIT_SECONDS_MAX, MirrorService, mirroring
from tests.web.asking import command, raw_request

POLL = b"GET /acme/gitops-repo/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\n\r\n"
PLACES = 40
LITTLE = 12 * 1024
"""So little that whoever writes goes on, and more than a narrow socket holds."""


@asynccontextmanager
async def clients(mirror: MirrorService, count: int) -> AsyncIterator[list[socket.socket]]:
    """Open so many connections."""
    host, port = mirror.service.url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.setblocking(False)
            await loop.sock_connect(one, (host, int(port)))
            opened.append(one)
        yield opened


async def said_to(client: socket.socket) -> bytes:
    """Return all that a client gets until its connection ends."""
    loop = asyncio.get_running_loop()
    taken = b""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        with contextlib.suppress(ConnectionResetError):
            while piece := await loop.sock_recv(client, 65536):
                taken += piece
    return taken


async def ended(mirror: MirrorService, reason: str) -> float:
    found = await mirror.metric("git_mirror_connections_ended_total", reason=reason)
    assert found is not None
    return found


@pytest.fixture
async def narrow(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, fast_lane: bool
) -> AsyncIterator[MirrorService]:
    """A service with few places."""
    async with mirroring(
        forge,
        tmp_path / "narrow",
        names=[upstream.name],
        fast_lane=fast_lane,
        sections=f"limits: {{connections_max: {PLACES}}}",
    ) as running:
        yield running


async def test_of_many_idle_connections_the_oldest_make_room_and_polls_are_answered(
    narrow: MirrorService,
) -> None:
    async with clients(narrow, 300) as idle:
        assert (await narrow.info_refs()).status == 200
        assert await said_to(idle[0]) == b""
        assert await ended(narrow, "idle") >= 300 - PLACES
        open_now = await narrow.metric("git_mirror_connections")
        assert open_now is not None
        assert open_now <= PLACES


async def test_a_connection_in_use_is_not_ended_for_idle_ones(narrow: MirrorService) -> None:
    loop = asyncio.get_running_loop()
    async with clients(narrow, 1) as (used,):
        for _ in range(8):
            await loop.sock_sendall(used, POLL)
            answer = b""
            while not answer.endswith(b"0000"):
                answer += await loop.sock_recv(used, 65536)
            assert answer.startswith(b"HTTP/1.1 200")
            async with clients(narrow, PLACES // 2):
                pass


async def test_where_all_places_are_in_use_a_client_is_told_so(narrow: MirrorService) -> None:
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        hearing = []
        for number in range(3 * PLACES):
            (one,) = await stack.enter_async_context(clients(narrow, 1))
            begun = raw_request(command("ls-refs", f"ref-prefix {number}"), version=2)[:-4]
            with contextlib.suppress(ConnectionError):
                await loop.sock_sendall(one, begun)
            hearing.append(asyncio.create_task(said_to(one)))
        refused = b""
        for first in asyncio.as_completed(hearing):
            if refused := await first:
                break
        for task in hearing:
            task.cancel()
        await asyncio.gather(*hearing, return_exceptions=True)
    head, _, text = refused.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503")
    assert b"Content-Length: %d" % len(text) in head


@pytest.fixture
async def hasty(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    fast_lane: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[MirrorService]:
    """A service without patience."""
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(connections, "HEAD_SECONDS_MAX", 0.05)
    monkeypatch.setattr(connections, "CLOSING_SECONDS_MAX", 0.05)
    monkeypatch.setattr("mirror.serving.KEEPALIVE_SECONDS", 1.0)
    names = [upstream.name]
    async with mirroring(
        forge,
        tmp_path / "hasty",
        names=names,
        fast_lane=fast_lane,
        server=f"unix_socket: {tmp_path / 'http.sock'}",
    ) as running:
        yield running


async def test_a_head_that_comes_byte_by_byte_ends_its_connection(
    hasty: MirrorService,
) -> None:
    async with clients(hasty, 1) as (slow,):
        await asyncio.get_running_loop().sock_sendall(slow, b"GET / HTTP/1.1\r\nX: ")
        answer = await said_to(slow)
    head, _, text = answer[answer.index(b"HTTP/1.1 408") :].partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(text) in head
    assert await ended(hasty, "slow_head") == 1


async def test_a_client_that_leaves_a_little_untaken_does_not_keep_its_connection(
    hasty: MirrorService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = connections.Watched.connection_made

    def narrowed(connection: connections.Watched, transport: asyncio.Transport) -> None:
        # Else the kernel takes what the client leaves, and nobody waits for that.
        one = transport.get_extra_info("socket")
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        made(connection, transport)

    monkeypatch.setattr(connections.Watched, "connection_made", narrowed)
    monkeypatch.setattr(connections, "CLIENT_SILENCE_SECONDS_MAX", 0.5)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as leaving, select.epoll() as end:
        leaving.setblocking(False)
        await loop.sock_connect(leaving, str(tmp_path / "http.sock"))
        await loop.sock_sendall(leaving, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await loop.sock_recv(leaving, 1024)
        head, _, body = answer.partition(b"\r\n\r\n")
        left = int(re.findall(rb"Content-Length: (\d+)", head)[0]) - len(body)
        while left > LITTLE:
            piece = await loop.sock_recv(leaving, min(1024, left - LITTLE))
            if not piece:
                break  # on a very slow machine that was too slow already
            left -= len(piece)
        end.register(leaving, 0)  # nothing but the end, whatever there is to be read
        assert await asyncio.to_thread(end.poll, WAIT_SECONDS_MAX)
    # Whoever asks for the figures has time again.
    monkeypatch.setattr(connections, "CLIENT_SILENCE_SECONDS_MAX", WAIT_SECONDS_MAX)
    # With uvloop a writer is paused until the last byte is taken, so it is the pause that ends.
    assert await ended(hasty, "stalled") + await ended(hasty, "not_closed") == 1


async def test_a_body_that_comes_byte_by_byte_is_not_waited_for(
    mirror: MirrorService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "BODY_START_SECONDS", 0.05)
    async with clients(mirror, 1) as (slow,):
        request = raw_request(command("ls-refs"), version=2)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(slow, request[:-4])
        answer = b""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            # Its end is not waited for: aiohttp listens for ten seconds more.
            while b"the request body took more than 0 seconds" not in answer:
                piece = await loop.sock_recv(slow, 65536)
                assert piece, answer
                answer += piece
    assert answer.startswith(b"HTTP/1.1 400")


async def test_a_long_body_without_room_is_refused_and_short_ones_are_answered(
    mirror: MirrorService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "WAIT_SECONDS_MAX", 0.01)
    long = bytes(bodies.LONG_BYTES + 2)  # the last byte is what the others keep back
    head = raw_request(long, version=2)[: -len(long)]
    async with clients(mirror, bodies.LONGEST_MAX) as others:
        for one in others:
            await asyncio.get_running_loop().sock_sendall(one, head + long[:-1])
        answer = await mirror.upload_pack(long, version=2)
        while answer.status != 503:  # until the others are read so far
            answer = await mirror.upload_pack(long, version=2)
        assert answer.headers["Retry-After"] == "5"
        assert (await mirror.upload_pack(command("ls-refs"), version=2)).status == 200
    while (await mirror.upload_pack(long, version=2)).status == 503:
        await mirror.get("/healthz")


async def test_a_bomb_is_given_up_at_the_limit(mirror: MirrorService) -> None:
    bomb = gzip.compress(bytes((64 << 20) + 1))
    answer = await mirror.upload_pack(bomb, headers={"Content-Encoding": "gzip"})
    assert answer.status == 413


@pytest.mark.parametrize("seed", range(3))
async def test_garbage_gets_an_answer_or_an_end_and_harms_nobody(
    mirror: MirrorService, seed: int
) -> None:
    chance = random.Random(seed)
    starts = (b"", b"GET ", POLL[:40], raw_request(b"x" * 40)[:-40])
    async with clients(mirror, 40) as garbled:
        for one in garbled:
            with contextlib.suppress(ConnectionError):
                noise = chance.choice(starts) + chance.randbytes(chance.randrange(9000))
                await asyncio.get_running_loop().sock_sendall(one, noise)
        assert (await mirror.info_refs()).status == 200
