"""Clients that leave in the middle: nothing of them stays, and nobody else notices."""

import asyncio
import hashlib
import logging
import socket
from collections import Counter
from pathlib import Path

import pytest

from mirror.repository.packing.git_engine import GitEngine
from tests.git_client import Upstream
from tests.mirror_service import WAIT_SECONDS_MAX, MirrorService
from tests.web.asking import command, fetch_v2, raw_request, read_answer

NOISE = hashlib.shake_256(b"noise").digest(3 << 20)
"""More than a connection buffers: who reads nothing is in the middle of a pack."""


def open_files() -> list[str]:
    """Return what this process has open: sockets, pipes and spools; not the packs it keeps."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return [one for one in found if "/packs/" not in one or "/packs/tmp/" in one]


def open_kinds() -> Counter[str]:
    return Counter(one.partition(":")[0] for one in open_files())


class Watched:
    """What a service has in hand, and whether it has let go of all that came since."""

    def __init__(self, mirror: MirrorService) -> None:
        self._mirror = mirror
        self._before = self._now()

    def _now(self) -> tuple[Counter[str], int]:
        return open_kinds(), len(asyncio.all_tasks())

    def _left(self) -> str:
        tmp = self._mirror.service.settings.data_dir / "packs" / "tmp"
        spools = [file.name for file in tmp.iterdir() if not file.name.endswith(".lock")]
        maintainer = self._mirror.service.maintainer
        assert maintainer is not None
        assert isinstance(maintainer._engine, GitEngine)
        children = maintainer._engine._spawner._running
        kinds, tasks = self._now()
        # Less there may be: what was under way before, for a push, has ended meanwhile.
        if spools or children or kinds - self._before[0] or tasks > self._before[1]:
            return f"{spools} {children} {kinds} {tasks} {self._before}"
        return ""

    async def all_let_go(self) -> None:
        left = ""
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                while left := self._left():
                    await self._mirror.get("/healthz")
        except TimeoutError:
            pytest.fail(f"still there: {left}")


async def leave_after(mirror: MirrorService, request: bytes, received_bytes: int) -> None:
    """Send a request, read so much of the answer and break the connection off."""
    host, port = mirror.service.url.removeprefix("http://").split(":")
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, (host, int(port)))
        await loop.sock_sendall(client, request)
        while received_bytes > 0:
            received_bytes -= len(await loop.sock_recv(client, received_bytes))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@pytest.fixture
async def large(mirror: MirrorService, upstream: Upstream) -> str:
    """A commit that is a few megabytes."""
    upstream.commit(files={"noise.bin": NOISE})
    await mirror.announce(upstream)
    await mirror.caught_up(upstream)
    return upstream.oid()


async def test_of_clients_that_leave_within_their_request_nothing_stays(
    mirror: MirrorService, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [
        raw_request(fetch_v2(upstream.oid()), version=2),
        raw_request(command("ls-refs"), version=2),
        raw_request(command("ls-refs"), version=2).replace(b"0014", b"Expect: 100-continue\r\n"),
        b"GET /acme/gitops-repo/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    await mirror.info_refs()
    watched = Watched(mirror)
    for request in requests:
        for kept in (0, 1, 30, len(request) // 2, len(request) - 5, len(request) - 1):
            await leave_after(mirror, request[:kept], 0)
    await watched.all_let_go()
    assert (await mirror.info_refs()).status == 200
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


async def test_of_clients_that_leave_within_a_pack_nothing_stays_and_others_get_theirs(
    mirror: MirrorService, large: str, caplog: pytest.LogCaptureFixture
) -> None:
    await mirror.info_refs()
    watched = Watched(mirror)
    for number, received_bytes in enumerate((0, 1, 500, 100_000, 1_000_000)):
        # Each time another pack: it is still being made when they leave.
        body = fetch_v2(large, more=[f"filter blob:limit={9000 + number}k"])
        request = raw_request(body, version=2)
        leavers = (leave_after(mirror, request, received_bytes) for _ in range(3))
        answer, _ = await asyncio.gather(
            mirror.upload_pack(body, version=2), asyncio.gather(*leavers)
        )
        packs = [read_answer(answer.body).pack]
        packs.append(read_answer((await mirror.upload_pack(body, version=2)).body).pack)
        for pack in packs:
            assert hashlib.sha1(pack[:-20], usedforsecurity=False).digest() == pack[-20:]
            assert len(pack) > len(NOISE)
    await watched.all_let_go()
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


async def test_a_pack_that_nobody_waits_for_any_more_is_not_spooled_for_ever(
    mirror: MirrorService, large: str
) -> None:
    await mirror.info_refs()
    watched = Watched(mirror)
    request = raw_request(fetch_v2(large, more=["thin-pack"]), version=2)
    await asyncio.gather(*(leave_after(mirror, request, 200) for _ in range(8)))
    await watched.all_let_go()
