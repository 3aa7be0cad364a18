"""Of many equal requests at once one is answered by aiohttp, and the others take its answer."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from mirror.repository.snapshot import Encoded, RefSnapshot
from mirror.web.companions import RELEASED_AT_ONCE, Companions, is_read
from mirror.web.repeating import Prepared
from tests.git_client import Upstream
from tests.mirror_service import WAIT_SECONDS_MAX, MirrorService
from tests.web.asking import connected, fetch_v2, raw_request
from tests.web.fast_lane.polls import INFO_REFS, alike, get, read_answer

READERS = 50


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let readers wait for another's answer for as long as it takes, not a moment at the most."""
    monkeypatch.setattr("mirror.web.companions.WAIT_SECONDS_MAX", WAIT_SECONDS_MAX)


@pytest.fixture
def advertised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A 1 for each advertisement that a handler gave."""
    given: list[int] = []
    advertisement = RefSnapshot.advertisement

    def note(self: RefSnapshot, version: int) -> Encoded:
        given.append(1)
        return advertisement(self, version)

    monkeypatch.setattr(RefSnapshot, "advertisement", note)
    return given


async def ask_at_once(mirror: MirrorService, request: bytes) -> list[bytes]:
    """Send the same from many connections before any answer can come."""
    async with AsyncExitStack() as stack:
        readers = [
            (await stack.enter_async_context(connected(mirror, b""))) for _ in range(READERS)
        ]
        for _, writer in readers:
            writer.write(request)
        return [await reader.read() for reader, _ in readers]


@pytest.mark.usefixtures("patient")
async def test_of_many_equal_polls_one_is_answered_the_long_way(
    mirror: MirrorService, advertised: list[int], repeated: list[Prepared]
) -> None:
    answers = await ask_at_once(mirror, get(INFO_REFS, "Connection: close"))
    assert len({alike(answer) for answer in answers}) == 1
    assert b" 200 OK" in answers[0]
    assert len(advertised) == 1
    assert len(repeated) == READERS - 1


async def test_many_equal_fetches_get_the_same_pack(
    mirror: MirrorService, upstream: Upstream
) -> None:
    """Whether it is there, under way, or to be begun."""
    request = raw_request(fetch_v2(upstream.oid()), version=2)
    request = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    answers: list[bytes] = []
    for _ in range(3):
        answers = await ask_at_once(mirror, request)
        assert len(answers) == READERS
        assert all(b"PACK" in answer for answer in answers)
    async with connected(mirror, request) as (reader, _):
        last = await read_answer(reader)
    assert {alike(answer) for answer in answers} == {alike(last)}


@pytest.mark.usefixtures("patient")
async def test_who_leaves_while_others_wait_for_its_answer_holds_up_nobody(
    mirror: MirrorService,
) -> None:
    half = get(INFO_REFS)[:-2]  # the end of the head is missing: no answer will ever come
    async with (
        connected(mirror, b"") as (follower, writer),
        connected(mirror, half) as (_, leading),
    ):
        await asyncio.sleep(0)
        writer.write(half)
        await writer.drain()
        leading.transport.abort()
        writer.write(b"\r\n")
        assert b" 200 OK" in await read_answer(follower)


async def test_who_says_more_while_it_waits_is_understood(mirror: MirrorService) -> None:
    async with (
        connected(mirror, get(INFO_REFS)) as (first, _),
        connected(mirror, get(INFO_REFS)) as (second, writer),
    ):
        writer.write(get(INFO_REFS))
        answers = [await read_answer(one) for one in (first, second, second)]
    assert len({alike(answer) for answer in answers}) == 1


async def test_nobody_waits_longer_than_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.web.companions.WAIT_SECONDS_MAX", 0.0)
    companions, resumed = Companions(), asyncio.Event()
    assert companions.lead("question")
    companions.follow("question", resumed.set)
    await resumed.wait()
    assert companions.lead("question"), "nobody leads any more"


async def test_those_who_wait_go_on_in_order_and_a_few_at_a_time() -> None:
    companions = Companions()
    resumed: list[int] = []
    done = asyncio.Event()
    assert companions.lead("question")
    assert not companions.lead("question")
    for number in range(3 * RELEASED_AT_ONCE):
        companions.follow("question", lambda number=number: resumed.append(number))  # type: ignore[misc]
    companions.follow("question", done.set)
    companions.end("question")
    assert resumed == list(range(RELEASED_AT_ONCE))
    await done.wait()
    assert resumed == list(range(3 * RELEASED_AT_ONCE))


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (get(INFO_REFS), True),
        (raw_request(b"0000"), True),
        (get("/metrics"), False),
        (get("/healthz"), False),
        (b"POST /webhooks/github HTTP/1.1\r\n", False),
    ],
)
def test_only_what_readers_ask_waits(request_bytes: bytes, expected: bool) -> None:
    assert is_read(request_bytes) == expected
