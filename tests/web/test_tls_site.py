"""TLS for many at once: nobody's handshake keeps others waiting, and the silent make room."""

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from mirror.web.connections import Crowd
from mirror.web.tls_site import TURNS_BETWEEN
from tests.certificates import Authority
from tests.git_client import Upstream
from tests.mirror_service import WAIT_SECONDS_MAX, MirrorService, mirroring
from tests.web.fast_lane.polls import INFO_REFS, get

PLACES = 40
LAST_POLL = get(INFO_REFS, "Connection: close")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path)


@pytest.fixture
async def encrypted(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, authority: Authority
) -> AsyncIterator[MirrorService]:
    """A service that speaks TLS, and has few places."""
    served = authority.issue(tmp_path)
    async with mirroring(
        forge,
        tmp_path / "m",
        names=[upstream.name],
        server=f"tls: {{certificate_file: {served}, key_file: {served}}}",
        sections=f"limits: {{connections_max: {PLACES}}}",
        tls=authority.file,
    ) as running:
        yield running


def address_of(mirror: MirrorService) -> tuple[str, int]:
    host, port = mirror.service.url.removeprefix("https://").split(":")
    return host, int(port)


async def poll(mirror: MirrorService, authority: Authority) -> bytes:
    context = ssl.create_default_context(cafile=str(authority.file))
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        reader, writer = await asyncio.open_connection(*address_of(mirror), ssl=context)
        try:
            writer.write(LAST_POLL)
            return await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                await writer.wait_closed()


async def test_of_many_that_never_shake_hands_the_oldest_make_room(
    encrypted: MirrorService, authority: Authority
) -> None:
    silent = [await asyncio.open_connection(*address_of(encrypted)) for _ in range(3 * PLACES)]
    try:
        assert b" 200 OK" in await poll(encrypted, authority)
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            assert await silent[0][0].read() == b""
        found = await encrypted.metric("git_mirror_connections_ended_total", reason="idle")
        assert found is not None
        assert found >= 2 * PLACES
    finally:
        for _, writer in silent:
            writer.close()


async def test_of_handshakes_that_begin_at_once_each_has_turns_of_its_own(
    encrypted: MirrorService, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, begun = 0, list[int]()
    looks_after = Crowd.looks_after

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def note(crowd: Crowd, handshake: object) -> None:
        begun.append(turn)
        looks_after(crowd, handshake)  # type: ignore[arg-type]

    monkeypatch.setattr(Crowd, "looks_after", note)
    ticking = asyncio.create_task(count_turns())
    try:
        answers = await asyncio.gather(*(poll(encrypted, authority) for _ in range(20)))
    finally:
        ticking.cancel()
    assert all(b" 200 OK" in answer for answer in answers)
    assert len(begun) == 20
    between = [after - before for before, after in itertools.pairwise(begun)]
    assert min(between) >= TURNS_BETWEEN


async def test_who_goes_before_or_within_the_handshake_leaves_nothing(
    encrypted: MirrorService, authority: Authority
) -> None:
    for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"):
        _, writer = await asyncio.open_connection(*address_of(encrypted))
        writer.write(said)
        await writer.drain()
        writer.transport.abort()
    for _ in range(PLACES):  # each would find no place if those before had kept theirs
        assert b" 200 OK" in await poll(encrypted, authority)
