"""In whatever pieces requests come: the answers are aiohttp's, and so is all that is in doubt."""

import asyncio
import contextlib
from pathlib import Path

from aiohttp import web
from hypothesis import strategies as st

from mirror.demo.forge import HttpBackend
from mirror.web.fast_lane import Connection
from mirror.web.repeating import Prepared
from tests.git_client import Upstream
from tests.mirror_service import WAIT_SECONDS_MAX, MirrorService, mirroring
from tests.web.asking import connected, raw_request
from tests.web.fast_lane.polls import (
    INFO_REFS,
    LAST,
    POLLS,
    Received,
    alike,
    ask_twice,
    drawn,
    exchange,
    get,
    read_answer,
)

STREAMS = st.lists(
    st.sampled_from(
        [
            *POLLS.values(),
            get("/healthz"),
            get("/acme/nothing/info/refs?service=git-upload-pack"),
            get(INFO_REFS, method="HEAD"),
            get(INFO_REFS, "Content-Length: 3") + b"abc",
            raw_request(b"nonsense"),
            POLLS["ls-refs"].replace(b"Content-Length", b"content-length"),
            POLLS["ls-refs"].replace(b"\r\nContent-Length: ", b"\r\nContent-Length:\t"),
            b"\r\n" + POLLS["v0"],
            b"\r\n\r\n" + POLLS["v0"],
            POLLS["v0"].replace(b"\r\n", b"\n"),
            POLLS["v0"][:-2] + b"Folded: a\r\n b\r\n\r\n",
            b"nonsense\r\n\r\n",
            POLLS["v0"][:-40],
            get(INFO_REFS, "X: " + "x" * 40_000),
            get(INFO_REFS, "Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n",
            get(INFO_REFS, "Content-Length: 0", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        ]
    ),
    min_size=1,
    max_size=5,
)


@st.composite
def sliced_streams(draw: st.DrawFn) -> list[bytes]:
    """Requests in pieces: each of its own, several together, or cut anywhere."""
    requests = [*draw(STREAMS), LAST]
    if draw(st.booleans()):
        return requests
    stream = b"".join(requests)
    cuts = sorted(draw(st.sets(st.integers(1, len(stream) - 1), max_size=6)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


async def send_sliced(mirror: MirrorService, received: Received, pieces: list[bytes]) -> bytes:
    """Send pieces so that the server reads each by itself; returns all it answers."""
    expected = received.count
    async with connected(mirror, b"") as (reader, writer):
        answers = asyncio.create_task(reader.read())
        for piece in pieces:
            writer.write(piece)
            expected += len(piece)
            arrived = asyncio.create_task(received.until(expected))
            await asyncio.wait(
                (arrived, answers), return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_SECONDS_MAX
            )
            arrived.cancel()
            if answers.done():
                break
        with contextlib.suppress(ConnectionResetError):  # closed with unread bytes
            return await asyncio.wait_for(answers, WAIT_SECONDS_MAX)
        return b"reset"


async def test_in_whatever_pieces_requests_come_the_answers_are_those_without_a_lane(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    repeated: list[Prepared],
    received: dict[type, Received],
) -> None:
    upstream.branches(
        dict.fromkeys((f"team-{number}/change" for number in range(40)), upstream.oid())
    )
    names = [upstream.name]
    async with (
        mirroring(forge, tmp_path / "with", names=names) as fast,
        mirroring(forge, tmp_path / "without", names=names, fast_lane=False) as plain,
    ):
        for pieces in drawn(sliced_streams()):
            without = await send_sliced(plain, received[web.RequestHandler], pieces)
            for _ in range(2):  # the first time much is not known yet
                given_by_lane = await send_sliced(fast, received[Connection], pieces)
                if b"reset" not in (without, given_by_lane):
                    assert alike(given_by_lane) == alike(without), pieces
        assert repeated  # how many depends on what was drawn


async def test_a_poll_behind_other_requests_on_one_connection_is_repeated(
    mirror: MirrorService, repeated: list[Prepared]
) -> None:
    await exchange(mirror, POLLS["v0"], LAST)
    async with connected(mirror, b"") as (reader, writer):
        for request in (raw_request(b"nonsense"), get("/healthz"), POLLS["ls-refs"]):
            writer.write(request)
            await read_answer(reader)
            known = len(repeated)
            writer.write(POLLS["v0"])
            await read_answer(reader)
            assert len(repeated) == known + 1


async def test_requests_that_came_together_are_answered_in_order_and_then_the_lane_is_open(
    mirror: MirrorService, repeated: list[Prepared]
) -> None:
    polls = [POLLS[kind] for kind in ("v0", "ls-refs", "capabilities")]
    alone = [alike((await ask_twice(mirror, poll))[1]) for poll in polls]
    repeated.clear()
    async with connected(mirror, b"".join(polls)) as (reader, writer):
        assert [alike(await read_answer(reader)) for _ in polls] == alone
        assert repeated == []
        writer.write(polls[1])
        assert alike(await read_answer(reader)) == alone[1]
        assert len(repeated) == 1


async def test_behind_bytes_that_aiohttp_may_read_in_another_way_the_lane_stays_closed(
    mirror: MirrorService, repeated: list[Prepared]
) -> None:
    await exchange(mirror, POLLS["v0"], LAST)
    async with connected(mirror, b"\r\n" + POLLS["v0"]) as (reader, writer):
        await read_answer(reader)
        writer.write(POLLS["v0"])
        await read_answer(reader)
    assert repeated == []
