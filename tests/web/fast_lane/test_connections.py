"""Slow clients, idle ones, and the end of the service."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from mirror.web import connections, fast_lane
from mirror.web.fast_lane import Connection
from mirror.web.repeating import Prepared
from tests.git_client import Upstream
from tests.mirror_service import WAIT_SECONDS_MAX, MirrorService, mirroring
from tests.web.asking import connected
from tests.web.fast_lane.polls import (
    LAST,
    POLLS,
    Received,
    alike,
    ask_twice,
    get,
    make_long,
    poll_until_paused,
    read_answer,
    read_to_end,
    slow_client,
)


async def test_a_client_that_does_not_read_gets_all_answers_once_it_does(
    mirror: MirrorService,
    upstream: Upstream,
    received: dict[type, Received],
    paused: asyncio.Event,
    repeated: list[Prepared],
) -> None:
    make_long(upstream)
    await mirror.announce(upstream)
    expected = alike((await ask_twice(mirror, POLLS["v0"]))[1])
    repeated.clear()
    async with slow_client(mirror) as client:
        polls = await poll_until_paused(client, received[Connection], paused)
        assert len(repeated) == polls
        more = POLLS["v0"] * 3 + LAST
        await asyncio.get_running_loop().sock_sendall(client, more)
        answers = alike(await read_to_end(client))
    assert answers.startswith(expected * (polls + 3) + b"HTTP/1.1 200 OK")
    assert len(repeated) == polls, "the others had to wait, which is aiohttp's part"


async def test_a_client_that_takes_nothing_for_too_long_is_cut_off(
    mirror: MirrorService,
    upstream: Upstream,
    received: dict[type, Received],
    paused: asyncio.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_long(upstream)
    await mirror.announce(upstream)
    expected = (await ask_twice(mirror, POLLS["v0"]))[1]
    monkeypatch.setattr(connections, "CLIENT_SILENCE_SECONDS_MAX", 0.01)
    lost = asyncio.Event()
    connection_lost = Connection.connection_lost

    def note(self: Connection, exc: BaseException | None) -> None:
        was_paused = self._is_write_paused
        connection_lost(self, exc)
        if was_paused:  # else it is one of those that asked before
            lost.set()

    monkeypatch.setattr(Connection, "connection_lost", note)
    async with slow_client(mirror) as client:
        polls = await poll_until_paused(client, received[Connection], paused)
        await asyncio.wait_for(lost.wait(), WAIT_SECONDS_MAX)
        taken = b""
        with contextlib.suppress(ConnectionResetError):
            taken = await read_to_end(client)
        assert len(taken) < polls * len(expected)


async def test_what_was_answered_goes_out_before_the_service_ends(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    received: dict[type, Received],
    paused: asyncio.Event,
) -> None:
    make_long(upstream)
    async with contextlib.AsyncExitStack() as stack:
        async with mirroring(forge, tmp_path, names=[upstream.name]) as mirror:
            expected = (await ask_twice(mirror, POLLS["v0"]))[1]
            client = await stack.enter_async_context(slow_client(mirror))
            polls = await poll_until_paused(client, received[Connection], paused)
            reading = asyncio.create_task(read_to_end(client))
        assert alike(await reading) == alike(expected) * polls


async def test_at_the_end_a_client_that_takes_nothing_is_not_waited_for(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    received: dict[type, Received],
    paused: asyncio.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fast_lane, "CLOSE_SECONDS_MAX", 0.01)
    make_long(upstream)
    async with contextlib.AsyncExitStack() as stack:
        async with mirroring(forge, tmp_path, names=[upstream.name]) as mirror:
            expected = (await ask_twice(mirror, POLLS["v0"]))[1]
            client = await stack.enter_async_context(slow_client(mirror))
            polls = await poll_until_paused(client, received[Connection], paused)
        taken = b""
        with contextlib.suppress(ConnectionResetError):
            taken = await read_to_end(client)
        assert len(taken) < polls * len(expected)


@pytest.mark.parametrize(
    "requests", [[], ["v0"], ["v0", "v0"], ["v0", "other"], ["v0", "other", "v0"]]
)
async def test_a_connection_that_is_idle_for_too_long_is_closed(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    requests: list[str],
) -> None:
    monkeypatch.setattr("mirror.serving.KEEPALIVE_SECONDS", 0.2)
    async with mirroring(forge, tmp_path, names=[upstream.name]) as mirror:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while not await is_closed_after(mirror, requests):
                pass  # it was idle for too long before that: the machine has other things to do


async def is_closed_after(mirror: MirrorService, requests: list[str]) -> bool:
    """Send requests one after the other and wait for the end; `False` where it came too early."""
    try:
        await ask_twice(mirror, POLLS["v0"])
        async with connected(mirror, b"") as (reader, writer):
            for kind in requests:
                writer.write(POLLS["v0"] if kind == "v0" else get("/healthz"))
                await read_answer(reader)
            assert await reader.read() == b""
    except (asyncio.IncompleteReadError, ConnectionError):
        return False
    return True


@pytest.mark.parametrize(
    "requests", [[], ["v0"], ["v0", "v0"], ["v0", "other"], ["v0", "other", "v0"]]
)
async def test_a_service_ends_with_connections_open(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, requests: list[str]
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with mirroring(forge, tmp_path, names=[upstream.name]) as mirror:
            await ask_twice(mirror, POLLS["v0"])
            reader, writer = await stack.enter_async_context(connected(mirror, b""))
            for kind in requests:
                writer.write(POLLS["v0"] if kind == "v0" else get("/healthz"))
                await read_answer(reader)
        assert await reader.read() == b""
