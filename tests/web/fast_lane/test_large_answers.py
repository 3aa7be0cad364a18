"""A large answer goes to the socket as pages of a file; nobody can tell but by the time."""

import asyncio
import errno
import gc
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from mirror.web.file_sending import SENT_AS_FILE_BYTES_MIN, send_as_file
from mirror.web.repeating import Prepared
from tests.git_client import Upstream
from tests.mirror_service import MirrorService, mirroring
from tests.repository.packing.processes import open_files
from tests.web.asking import connected
from tests.web.fast_lane.polls import INFO_REFS, alike, ask_twice, get, read_answer

BRANCHES = 1200
POLL = get(INFO_REFS)


@pytest.fixture
async def mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> AsyncIterator[MirrorService]:
    upstream.branches(
        dict.fromkeys((f"team-{number}/change" for number in range(BRANCHES)), upstream.oid())
    )
    async with mirroring(forge, tmp_path / "mirror", names=[upstream.name]) as running:
        yield running


@pytest.fixture
def sent_as_files(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each large answer could be sent so."""
    outcomes: list[bool] = []

    def note(transport: asyncio.Transport, head: bytes, prepared: Prepared) -> bool:
        outcomes.append(send_as_file(transport, head, prepared))
        return outcomes[-1]

    monkeypatch.setattr("mirror.web.fast_lane.send_as_file", note)
    return outcomes


async def test_it_is_the_same_answer(mirror: MirrorService, sent_as_files: list[bool]) -> None:
    first, second = await ask_twice(mirror, POLL)
    assert len(first) > SENT_AS_FILE_BYTES_MIN
    assert alike(second) == alike(first)
    assert sent_as_files == [True]


async def test_answers_follow_one_another_on_a_connection_and_on_many(
    mirror: MirrorService, sent_as_files: list[bool]
) -> None:
    expected, _ = await ask_twice(mirror, POLL)

    async def reader() -> None:
        async with connected(mirror, b"") as (incoming, writer):
            for _ in range(5):
                writer.write(POLL)
                assert alike(await read_answer(incoming)) == alike(expected)

    await asyncio.gather(*(reader() for _ in range(20)))
    assert len(sent_as_files) == 101


async def test_a_reader_that_takes_little_at_a_time_gets_all_of_it(mirror: MirrorService) -> None:
    expected, _ = await ask_twice(mirror, POLL)
    host, port = mirror.service.url.removeprefix("http://").split(":")
    end = socket.socket()
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    end.setblocking(False)
    await asyncio.get_running_loop().sock_connect(end, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=end, limit=8192)
    try:
        for _ in range(2):
            writer.write(POLL)
            got = b""
            while len(got) < len(expected):
                got += await reader.read(5000)
            assert alike(got) == alike(expected)
    finally:
        writer.transport.abort()


async def test_readers_that_leave_in_the_middle_disturb_nobody(mirror: MirrorService) -> None:
    expected, _ = await ask_twice(mirror, POLL)
    for _ in range(20):
        async with connected(mirror, POLL) as (reader, _):
            await reader.readexactly(1)
    assert alike((await ask_twice(mirror, POLL))[1]) == alike(expected)


async def test_a_connection_that_is_to_be_closed_is_closed_after_the_last_byte(
    mirror: MirrorService,
) -> None:
    closing = get(INFO_REFS, "Connection: close")
    expected, _ = await ask_twice(mirror, closing)
    async with connected(mirror, closing) as (reader, _):
        assert alike(await reader.read()) == alike(expected)


async def test_the_files_go_with_their_answers(mirror: MirrorService, upstream: Upstream) -> None:
    def files() -> int:
        return sum("memfd:answer" in name for name in open_files())

    gc.collect()
    before = files()
    await ask_twice(mirror, POLL)
    assert files() == before + 1
    for _ in range(3):
        upstream.commit()
        await mirror.announce(upstream)
        await mirror.caught_up(upstream)
        await ask_twice(mirror, POLL)
    gc.collect()
    assert files() == before + 1


async def test_without_a_descriptor_left_it_is_sent_all_the_same(
    mirror: MirrorService, monkeypatch: pytest.MonkeyPatch, sent_as_files: list[bool]
) -> None:
    def none_left(_: str) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("os.memfd_create", none_left)
    first, second = await ask_twice(mirror, POLL)
    assert alike(second) == alike(first)
    assert sent_as_files == [False]
