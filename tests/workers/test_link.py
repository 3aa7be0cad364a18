"""A channel's two ends, over a real socket pair."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from mirror.refresh.announcements import PATIENCE_SECONDS, Announcement
from mirror.workers import link
from mirror.workers.frames import ChannelError, encode
from mirror.workers.link import Link
from mirror.workers.messages import Announced, Delivered, Envelope, Message, Reply, Stop
from mirror.workers.proxies import AnnouncerProxy
from tests.mirror_service import WAIT_SECONDS_MAX


class End(Link):
    """An end that keeps what it got; a test answers it."""

    def __init__(self) -> None:
        super().__init__(self._keep)
        self.got: list[tuple[int, Message]] = []
        self.came = asyncio.Event()

    def _keep(self, message_id: int, message: Message) -> None:
        self.got.append((message_id, message))
        self.came.set()
        assert not isinstance(message, Stop), "can't stop"


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, End]]:
    near, far = socket.socketpair()
    one, other = End(), End()
    await one.open(near)
    await other.open(far)
    yield one, other
    one.abort()
    other.abort()
    await gone(one, other)


async def gone(*links: Link) -> None:
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        for each in links:
            await each.lost.wait()


async def test_a_question_gets_its_own_answer_whatever_the_order(ends: tuple[End, End]) -> None:
    one, other = ends
    answers = [one.ask(Announced("a/b", number)) for number in range(3)]
    while len(other.got) < 3:
        other.came.clear()
        await other.came.wait()
    for message_id, message in reversed(other.got):
        assert isinstance(message, Announced)
        other.reply(message_id, Reply(str(message.number)))
    assert [answer.text for answer in await asyncio.gather(*answers)] == ["0", "1", "2"]


async def test_a_refusal_is_raised_where_the_question_was_asked(ends: tuple[End, End]) -> None:
    one, other = ends
    answer = one.ask(Announced("a/b", 1))
    await other.came.wait()
    other.reply(other.got[0][0], Reply(error="not today"))
    with pytest.raises(ChannelError, match="not today"):
        await answer


async def test_questions_fail_when_the_other_end_is_gone(ends: tuple[End, End]) -> None:
    one, other = ends
    answer = one.ask(Announced("a/b", 1))
    other.abort()
    with pytest.raises(ChannelError, match="gone"):
        await answer
    with pytest.raises(ChannelError, match="gone"):
        await one.ask(Announced("a/b", 2))
    one.tell(Stop(20.0))  # goes nowhere, and says nothing
    assert one.lost.is_set()


async def test_only_so_many_questions_are_open(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "ASKED_MAX", 1)
    one, other = ends
    first = one.ask(Announced("a/b", 1))
    with pytest.raises(ChannelError, match="too many"):
        await one.ask(Announced("a/b", 2))
    await other.came.wait()
    other.reply(other.got[0][0], Reply())
    await first


async def test_garbage_ends_the_channel() -> None:
    near, far = socket.socketpair()
    with far:
        end = End()
        await end.open(near)
        far.send(b"GET / HTTP/1.1\r\n\r\n")
        with capture_logs() as logs:
            await gone(end)
    assert [line["event"] for line in logs] == ["channel_broke"]


async def test_an_answer_to_no_question_ends_the_channel() -> None:
    near, far = socket.socketpair()
    with far:
        end = End()
        await end.open(near)
        far.send(encode(Envelope(7, Reply())))
        with capture_logs() as logs:
            await gone(end)
    assert "no question" in logs[0]["error"]


async def test_what_breaks_on_a_message_ends_the_channel(ends: tuple[End, End]) -> None:
    one, other = ends
    with capture_logs() as logs:
        one.tell(Stop(20.0))
        await gone(one, other)
    assert [line["event"] for line in logs] == ["channel_broke"]


async def test_an_end_that_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "UNSENT_BYTES_MAX", 100_000)
    near, far = socket.socketpair()
    with far, capture_logs() as logs:
        end = End()
        await end.open(near)
        while not end.lost.is_set():
            end.tell(Announced("a" * 10_000, 1))
            await asyncio.sleep(0)
    assert "does not read" in logs[0]["error"]


async def test_who_announces_waits_as_long_as_it_said(ends: tuple[End, End]) -> None:
    """A forge is told before it gives up; a push waits for a hand-over to be over."""
    one, other = ends
    impatient = Announcement("push", "1", ("a/b",), (), patience_seconds=0)
    with pytest.raises(ChannelError, match="try again"):
        async with asyncio.timeout(PATIENCE_SECONDS / 2):
            await AnnouncerProxy(one).announce(impatient)
    assert not other.got or isinstance(other.got[0][1], Delivered)
