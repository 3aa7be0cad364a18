"""Polls get in between: what connections bring at once is not begun at once."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from mirror.web.connections import HEAD_PIECE_BYTES
from mirror.web.front import Traffic
from mirror.web.turns import STEPS_PER_TURN, Turns
from tests.mirror_service import WAIT_SECONDS_MAX, MirrorService
from tests.web.fast_lane.polls import INFO_REFS, LAST, get

BEGUN_PER_TURN_MAX = 2 * STEPS_PER_TURN
"""What aiohttp was given in one turn it may begin in the next, with what was given then."""


@pytest.fixture
async def begun(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Counter[int]]:
    """How many requests were begun in each turn of the event loop."""
    turn = 0
    counted: Counter[int] = Counter()
    began = Traffic.began

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def note(traffic: Traffic, request: object) -> None:
        counted[turn] += 1
        began(traffic, request)  # type: ignore[arg-type]

    monkeypatch.setattr(Traffic, "began", note)
    ticking = asyncio.create_task(count_turns())
    yield counted
    ticking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ticking


async def told(mirror: MirrorService, requests: list[bytes]) -> list[int]:
    """Send each over a connection of its own, all at once; returns how many 200s each brought."""
    host, port = mirror.service.url.removeprefix("http://").split(":")
    opened = [await asyncio.open_connection(host, int(port)) for _ in requests]
    try:
        for (_, writer), request in zip(opened, requests, strict=True):
            writer.write(request)
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            said = await asyncio.gather(*(reader.read() for reader, _ in opened))
    finally:
        for _, writer in opened:
            writer.close()
    return [one.count(b"HTTP/1.1 200 OK") for one in said]


def poll(number: int) -> bytes:
    return get(INFO_REFS, f"X-Number: {number}")


async def test_requests_that_come_at_once_are_begun_in_many_turns(
    mirror: MirrorService, begun: Counter[int]
) -> None:
    fresh = [get(INFO_REFS, f"X-Number: {n}", "Connection: close") for n in range(60)]
    assert await told(mirror, fresh) == [1] * 60
    assert begun.total() == 60
    assert max(begun.values()) <= BEGUN_PER_TURN_MAX


async def test_pipelines_are_answered_whole_a_few_requests_a_turn(
    mirror: MirrorService, begun: Counter[int]
) -> None:
    pipeline = b"".join(map(poll, range(50))) + LAST
    assert await told(mirror, [pipeline] * 30) == [51] * 30
    assert max(begun.values()) <= BEGUN_PER_TURN_MAX


async def test_a_long_pipeline_is_held_back_until_it_is_its_turn(
    mirror: MirrorService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirror.web.turns.STEPS_PER_TURN", 1)
    pipeline = b"".join(map(poll, range(400))) + LAST
    assert await told(mirror, [pipeline] * 4) == [401] * 4


async def test_a_long_head_is_taken_in_pieces(
    mirror: MirrorService, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = list[int]()
    data_received = web.RequestHandler.data_received

    def note(handler: web.RequestHandler, data: bytes) -> None:
        taken.append(len(data))
        data_received(handler, data)

    monkeypatch.setattr(web.RequestHandler, "data_received", note)
    host, port = mirror.service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(b"GET / HTTP/1.1\r\n" + b"X-Y: 1\r\n" * 20_000 + b"\r\n")
        assert b" 400 " in await reader.readline()
    finally:
        writer.transport.abort()
    assert len(taken) > 1
    assert max(taken) <= HEAD_PIECE_BYTES


async def test_what_comes_first_does_not_keep_the_later_waiting() -> None:
    turns, order = Turns(), list[str]()
    while turns.take():
        pass

    async def be_later() -> None:
        await turns.later()
        order.append("later")

    waiting = [asyncio.create_task(be_later()) for _ in range(3)]
    await asyncio.sleep(0)
    for _ in range(3 * STEPS_PER_TURN):
        turns.wait(lambda: order.append("first"))
    await asyncio.gather(*waiting)
    for _ in range(3 * STEPS_PER_TURN):
        await asyncio.sleep(0)
    assert Counter(order) == {"first": 3 * STEPS_PER_TURN, "later": 3}
    assert order.index("later") <= STEPS_PER_TURN
    assert order[-1] == "first"


async def test_one_that_is_cancelled_while_it_waits_costs_nobody_a_turn() -> None:
    turns = Turns()
    while turns.take():
        pass
    gone = [asyncio.create_task(turns.later()) for _ in range(9)]
    await asyncio.sleep(0)
    for task in gone:
        task.cancel()
    await asyncio.wait_for(turns.later(), WAIT_SECONDS_MAX)
    assert len(turns) == 0
    await asyncio.wait(gone)
