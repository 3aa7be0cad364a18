"""A few streams of a fixed seed, against a service of this process: `make fuzz-http` has more.

What was found and mended is in `found/`, and is sent each time.
"""

import asyncio
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final

import pytest
from structlog.testing import capture_logs

from mirror.config import load
from mirror.service import Service
from tests.httpfuzz.answers import WrongAnswer, read_answers
from tests.httpfuzz.estate import AT, PULLED, Estate, set_up
from tests.httpfuzz.sending import Sender, Tally, good_polls, kept_stream
from tests.httpfuzz.streams import LAST, End, Stream, Streams
from tests.mirror_service import WAIT_SECONDS_MAX, hosted_by

FOUND: Final = Path(__file__).parent / "found"
SEED: Final = 6
STREAMS: Final = 250
AT_ONCE: Final = 8


def streams(estate: Estate) -> Iterator[Stream]:
    made = Streams(SEED, estate.known)
    fixed = (made[number] for number in range(STREAMS))
    found = map(kept_stream, sorted(FOUND.glob("*.json")))
    # Silent ones take minutes, which only the long run has.
    return (one for one in chain(found, fixed) if one.end is not End.SILENT)


async def until_all_is_mirrored(service: Service) -> None:
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        for one in service.registry:
            while one.mirror.snapshot is None:
                await one.mirror.changed.wait(WAIT_SECONDS_MAX)


async def until_nothing_is_under_way(service: Service, before: set[asyncio.Task[object]]) -> None:
    """Wait until no request is answered and no connection is open but our own."""
    host, port = service.url.removeprefix("http://").split(":")
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while left := {one for one in asyncio.all_tasks() - before if is_passing(one)}:
            await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        open_now = b""
        while open_now != b"\ngit_mirror_connections 1.0\n":
            reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            found = re.search(rb"\ngit_mirror_connections .*\n", await reader.read())
            assert found is not None
            open_now = found[0]
            writer.transport.abort()


def is_passing(task: asyncio.Task[object]) -> bool:
    """Tell whether a task is to end soon: all but this one and what holds a connection open.

    The forge runs in this process too, and connections to it are kept for the next refresh.
    """
    kind = getattr(task.get_coro(), "__qualname__", "")
    return task is not asyncio.current_task() and kind != "RequestHandler.start"


async def test_whatever_a_connection_brings_it_is_answered_or_closed_and_others_are_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with set_up(tmp_path, listen="127.0.0.1:0", has_bundles=False) as estate:
        with capture_logs() as logged:
            async with Service(load(estate.file)) as service:
                await until_all_is_mirrored(service)
                host, port = service.url.removeprefix("http://").split(":")
                polls = await good_polls(host, int(port), estate.known)
                sender = Sender(host, int(port), estate.known, polls)
                # Pools grow, files are opened for the first time.
                await sender.send_all([Stream("warm-up", (LAST,), End.READ, knows_token=False)])
                assert hosted_by(service, f"{AT}/{PULLED}").mirror.snapshot is not None
                tasks = asyncio.all_tasks()
                sender.tally = Tally()
                await sender.send_all(streams(estate), at_once=AT_ONCE)
                await until_nothing_is_under_way(service, tasks)
    tally = sender.tally
    assert not tally.findings, [f"{one.stream.name}: {one.wrong}" for one in tally.findings]
    assert tally.polls == tally.streams > STREAMS * 0.9
    # It is no fuzzing where most is refused at the first look.
    assert tally.statuses[200] > STREAMS / 10
    assert len(tally.statuses) >= 8
    assert not [one for one in logged if one["log_level"] in ("error", "critical")]
    # aiohttp's own words for what is no HTTP: `mirror.logs` turns them into a line.
    errors = [one for one in caplog.records if one.levelname == "ERROR" and one.exc_info]
    assert {type(one.exc_info[1]).__module__ for one in errors if one.exc_info} <= {
        "aiohttp.http_exceptions"
    }


@pytest.mark.parametrize(
    "wrong",
    [
        b"HTTP/1.1 500 Internal Server Error\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Injected: yes\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: a\x00b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc",
    ],
    ids=repr,
)
def test_a_wrong_answer_is_found(wrong: bytes) -> None:
    with pytest.raises(WrongAnswer):
        for answer in read_answers(wrong):
            assert answer.content is not None


def test_answers_are_read_one_after_the_other() -> None:
    data = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"  # to a HEAD
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nabc"
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab"
    )
    found = [(one.status, one.body, one.is_whole) for one in read_answers(data)]
    assert found == [
        (100, b"", True),
        (200, b"abcde", True),
        (200, b"", True),
        (404, b"abc", True),
        (200, b"ab", False),
    ]
