"""A service with a fast lane, and a look at what its lane does."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from mirror.demo.forge import HttpBackend
from mirror.web.fast_lane import Connection
from mirror.web.repeating import Prepared
from tests.git_client import Upstream
from tests.mirror_service import MirrorService, mirroring
from tests.web.fast_lane.polls import Received

SENT_AHEAD_BYTES = 256 * 1024
"""A few of the long answers, and many times what a slow client has room for."""


@pytest.fixture(autouse=True)
def needs_a_fast_lane(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--no-fast-lane"):
        pytest.skip("is about the fast lane")


@pytest.fixture
async def mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> AsyncIterator[MirrorService]:
    """A service with a fast lane and some branches, so that its advertisement is compressed."""
    upstream.branches(
        dict.fromkeys((f"team-{number}/change" for number in range(40)), upstream.oid())
    )
    async with mirroring(forge, tmp_path / "mirror", names=[upstream.name]) as running:
        yield running


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> list[Prepared]:
    """The answers that the lane has given."""
    given: list[Prepared] = []
    repeat = Connection._repeat

    def note(self: Connection, prepared: Prepared, began_at: float) -> None:
        given.append(prepared)
        repeat(self, prepared, began_at)

    monkeypatch.setattr(Connection, "_repeat", note)
    return given


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> dict[type, Received]:
    """What was read by connections with a lane, and by aiohttp's own."""
    counts: dict[type, Received] = {}
    for kind in (Connection, web.RequestHandler):
        counts[kind] = Received()
        monkeypatch.setattr(kind, "data_received", counting(kind, counts[kind]))
    return counts


def counting(kind: type, received: Received) -> object:
    original = kind.data_received  # type: ignore[attr-defined]

    def data_received(self: asyncio.Protocol, data: bytes) -> None:
        original(self, data)
        received.add(len(data))

    return data_received


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once a connection holds more than its client takes, and does so until it takes some.

    Sockets have a buffer of one size. The kernel makes any other larger whenever it likes, so that
    a connection would go on though its client has taken nothing.
    """
    event = asyncio.Event()
    connection_made, pause_writing = Connection.connection_made, Connection.pause_writing

    def narrow(self: Connection, transport: asyncio.BaseTransport) -> None:
        accepted = transport.get_extra_info("socket")
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENT_AHEAD_BYTES)
        connection_made(self, transport)

    def note(self: Connection) -> None:
        pause_writing(self)
        event.set()

    monkeypatch.setattr(Connection, "connection_made", narrow)
    monkeypatch.setattr(Connection, "pause_writing", note)
    return event
