"""One end of a channel: messages out and in, answers to their questions, and the end of it all."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

import structlog

from mirror.workers.frames import FRAME_BYTES_MAX, ChannelError, Decoder, encode
from mirror.workers.messages import Envelope, Message, Reply

ASKED_MAX: Final = 100_000
"""Questions without an answer yet; a new worker is told of every repository in one go."""

UNSENT_BYTES_MAX: Final = 4 * FRAME_BYTES_MAX
"""What the other end has not taken yet; past that it is stuck."""

Receive = Callable[[int, Message], None]
"""Called with each message and the id to answer it by. What it raises ends the channel."""

logger = structlog.stdlib.get_logger()


class Link(asyncio.Protocol):
    """A channel's end, in the order in which things are said.

    Attributes:
        lost: Set when the channel has ended, whatever ended it.
    """

    def __init__(self, receive: Receive) -> None:
        self.lost = asyncio.Event()
        self._receive = receive
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._asked: dict[int, asyncio.Future[Reply]] = {}
        self._last_id = 0

    async def open(self, channel: socket.socket) -> None:
        """Take over a connected socket."""
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=channel)
        except BaseException:
            channel.close()
            raise

    def tell(self, message: Message) -> None:
        """Send what needs no answer. To a channel that is lost it goes nowhere."""
        with suppress(ChannelError):
            self._send(0, message)

    def reply(self, question_id: int, reply: Reply) -> None:
        """Answer a question."""
        with suppress(ChannelError):
            self._send(question_id, reply)

    def ask(self, message: Message) -> "asyncio.Future[Reply]":
        """Send a question; the future has its answer, or raises `ChannelError`."""
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_see)
        if len(self._asked) >= ASKED_MAX:
            answer.set_exception(ChannelError("too many questions without an answer"))
            return answer
        self._last_id += 1
        self._asked[self._last_id] = answer
        try:
            self._send(self._last_id, message)
        except ChannelError as error:
            del self._asked[self._last_id]
            if not answer.done():
                answer.set_exception(error)
        return answer

    def abort(self) -> None:
        """End the channel at once."""
        if self._transport is not None:
            self._transport.abort()

    def _send(self, message_id: int, message: Message) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ChannelError("the other process is gone")
        transport.write(encode(Envelope(message_id, message)))
        if transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            logger.error("channel_broke", error="the other process does not read")
            transport.abort()

    # --- asyncio.Protocol ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; asyncio calls this."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take what came; asyncio calls this."""
        try:
            for envelope in self._decoder.feed(data):
                self._take(envelope)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other end can't be trusted
            log = logger.error if isinstance(error, ChannelError) else logger.exception
            log("channel_broke", error=str(error))
            self.abort()

    def _take(self, envelope: Envelope) -> None:
        message = envelope.message
        if not isinstance(message, Reply):
            self._receive(envelope.id, message)
            return
        answer = self._asked.pop(envelope.id, None)
        if answer is None:
            raise ChannelError(f"an answer to no question: {envelope.id}")
        if answer.done():
            return  # who asked has given up
        if message.error is not None:
            answer.set_exception(ChannelError(message.error))
        else:
            answer.set_result(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """End; asyncio calls this."""
        del exc
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            if not answer.done():
                answer.set_exception(ChannelError("the other process is gone"))
        self.lost.set()


def _see(answer: "asyncio.Future[Reply]") -> None:
    """Nobody has to be waiting for an answer."""
    if not answer.cancelled():
        answer.exception()
