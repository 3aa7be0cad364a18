"""The fast lane: a request that equals one aiohttp has answered gets that answer's bytes at once.

Owns the connections of readers from the first byte. A connection is aiohttp's own
(`web.RequestHandler`) as soon as it brings anything that is not known by heart; the lane then only
answers what comes while aiohttp waits for the next request, and aiohttp's parser stands at its
first byte for certain. In doubt aiohttp gets the bytes, with all its hardening: the lane never
parses, and never answers what a handler has not answered in the same words.

It must never show but by its speed: the same header fields, metrics, time-outs and end of a
connection as without it. `server.fast_lane: false` turns it off.

Two internals of `web.RequestHandler` are used, in `connections.waits` and `_stays_open`; where they
are missing `open_fast_lane` leaves the lane closed.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Hashable, Iterator
from email.utils import formatdate
from typing import Final

import structlog
from aiohttp import web

from mirror.access.reader import ANONYMOUS
from mirror.metrics import EndReason, Metrics
from mirror.web.companions import Companions, is_read
from mirror.web.connections import Crowd, Watched, waits
from mirror.web.file_sending import SENT_AS_FILE_BYTES_MIN, send_as_file
from mirror.web.forwarded import NO_PROXIES, Proxies
from mirror.web.guard import GRANT, certificate_of, client_address, granted
from mirror.web.protocol import (
    EDITION,
    OK,
    OPERATION,
    OUTCOME,
    repository_path,
)
from mirror.web.repeating import (
    REPEATABLE,
    REQUEST_BYTES_MAX,
    Answers,
    NoAnswers,
    Prepared,
    prepare,
    request_length,
)

JOINED_BYTES_MAX: Final = 16 * 1024
"""Up to here one copy costs less than two buffers in a system call."""

CLOSE_SECONDS_MAX: Final = 10.0
"""At the end, readers may take that long for what was written already."""

_IDS_DRAWN: Final = 256

logger = structlog.stdlib.get_logger()


def identity_of(transport: asyncio.Transport, proxies: Proxies) -> Hashable:
    """Return who is at the other end, as far as the bytes of a request don't say it.

    It is part of every question, so that one reader's answer is never another's: the client
    certificate, and whether what the request says of its origin is believed.
    """
    certificate = certificate_of(transport)
    is_proxy = proxies.are_there and proxies.trusts(peer_of(transport))
    return None if certificate is None and not is_proxy else (certificate, is_proxy)


def peer_of(transport: asyncio.Transport) -> str | None:
    """Return the address at the other end; `None` for a Unix socket."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, list | tuple) else None


class FastLane:
    """What all connections share: the answers, and what makes aiohttp's handlers.

    Attributes:
        crowd: All connections, those that aiohttp has a handler for too.
        answers: What is known by heart.
        companions: Who waits for an answer that is being made.
        make_handler: Makes aiohttp's side of a connection; set when its server is set up.
        keepalive_seconds: How long a connection may be idle.
        is_closing: No answer is given any more.
    """

    def __init__(
        self,
        metrics: Metrics,
        crowd: Crowd,
        *,
        keepalive_seconds: float,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        self.crowd = crowd
        self.answers = Answers()
        self.companions = Companions()
        self.make_handler: Callable[[], web.RequestHandler] | None = None
        self.keepalive_seconds = keepalive_seconds
        self.is_closing = False
        self.request_ids = _request_ids()
        self.proxies = proxies
        self._edition: object = None
        self._metrics = metrics
        self._date = b""
        self._date_until = 0.0
        self._alone: set[Connection] = set()
        self._handled: dict[web.RequestHandler, Connection] = {}
        self._emptied: asyncio.Event | None = None

    def __call__(self) -> "Connection":
        """Make the protocol of a new connection."""
        return Connection(self)

    def change(self, edition: object, proxies: Proxies) -> None:
        """Forget all answers, and learn only those that are given by `edition` from now on.

        Args:
            edition: What requests have as `EDITION`.
            proxies: Who is believed by it.
        """
        self._edition = edition
        self.answers = Answers()
        if proxies == self.proxies:
            return
        self.proxies = proxies
        for connection in (*self._alone, *self._handled.values()):
            connection.identify()

    def date(self, now: float) -> bytes:
        """Return the value of Date for an answer given now, which `time.perf_counter` says."""
        if now >= self._date_until:
            seconds = time.time()
            self._date = formatdate(seconds, usegmt=True).encode()
            self._date_until = now + 1.0 - seconds % 1.0
        return self._date

    def answers_with(self, request: web.Request, response: web.StreamResponse) -> None:
        """Learn an answer whose headers are complete, if its handler offers that."""
        connection = self._handled.get(request.protocol)
        if connection is None:
            return
        self._learn(connection, request, response)
        connection.stop_leading()

    def _learn(
        self, connection: "Connection", request: web.Request, response: web.StreamResponse
    ) -> None:
        data = connection.account_for(request)
        offered = request.get(REPEATABLE)
        is_current = request.get(EDITION) is self._edition
        if data is None or offered is None or request[OUTCOME] != OK or not is_current:
            return
        grant = request.get(GRANT, ANONYMOUS)
        context = {"repository": repository_path(request)}
        if grant is not ANONYMOUS:
            context["reader"] = grant.reader
        if connection.identity is not None:  # else the connection's own address says it
            context["remote"] = client_address(self.proxies, request)
        prepared = prepare(
            request,
            response,
            granted(offered, grant),
            record=self._metrics.request_recorder(request[OPERATION], OK),
            context=context,
        )
        if prepared is not None:
            self.answers.keep(connection.identity, data, prepared)

    # --- connections ---------------------------------------------------------------------------

    def opened(self, connection: "Connection") -> None:
        """Note a connection that aiohttp knows nothing of."""
        self._alone.add(connection)

    def handed_over(self, connection: "Connection", handler: web.RequestHandler) -> None:
        """Note that aiohttp has a handler for the connection now, and will end it."""
        self._alone.discard(connection)
        self._handled[handler] = connection

    def closed(self, connection: "Connection", handler: web.RequestHandler | None) -> None:
        """Forget a connection."""
        self._alone.discard(connection)
        if handler is not None:
            self._handled.pop(handler, None)
        if self._emptied is not None and not self._alone and not self._handled:
            self._emptied.set()

    def leave(self) -> None:
        """Pass every request on from now on: aiohttp tells readers that the connection ends."""
        self.answers = NoAnswers()

    def has_idle(self) -> bool:
        """Tell whether a connection waits for its next request, or its first."""
        return bool(self._alone) or any(map(waits, self._handled))

    def close(self) -> None:
        """End the connections that aiohttp knows nothing of; what was written goes out first."""
        self.is_closing = True
        for connection in tuple(self._alone):
            connection.close()

    async def wait_closed(self) -> None:
        """Wait until all connections are closed, those that aiohttp ends too, or took too long."""
        if not self._alone and not self._handled:
            return
        self._emptied = asyncio.Event()
        try:
            async with asyncio.timeout(CLOSE_SECONDS_MAX):
                await self._emptied.wait()
        except TimeoutError:
            for connection in (*self._alone, *self._handled.values()):
                connection.abort()


class Connection(Watched):
    """One reader's connection.

    Attributes:
        identity: Who reads.
    """

    __slots__ = (
        *("identity", "_lane", "_given", "_active_at", "_idle_timer"),
        *("_leads", "_waiting", "_waits_since"),
    )

    def __init__(self, lane: FastLane) -> None:
        super().__init__(lane.crowd)
        self.identity: Hashable = None
        self._lane = lane
        # What aiohttp was given that no request it has answered accounts for. Empty: the next byte
        # begins a request, once aiohttp waits for one. `None`: that can't be known any more.
        self._given: bytes | None = b""
        self._active_at = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._leads: Hashable = None  # the question whose answer others wait for
        self._waiting: bytes | None = None  # a request that waits for another's answer
        self._waits_since = 0.0

    # --- what the event loop calls -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin without aiohttp: its parser, task and timer are made when they are needed."""
        super().connection_made(transport)
        if self._transport is None:
            return
        self.identity = identity_of(self._transport, self._lane.proxies)
        lane = self._lane
        lane.opened(self)
        if lane.is_closing:
            self._transport.close()
            return
        self._active_at = self._used = time.perf_counter()
        self._idle_timer = self._loop.call_later(lane.keepalive_seconds, self._end_if_idle)

    def identify(self) -> None:
        """Look anew who reads."""
        if self._transport is not None:
            self.identity = identity_of(self._transport, self._lane.proxies)

    def data_received(self, data: bytes) -> None:
        """Answer a request that is known by heart; all else is aiohttp's."""
        began_at = time.perf_counter()
        handler = self._handler
        if self._waiting is not None:
            # It says more than one request: nothing is to be kept of that here.
            data, self._waiting = self._waiting + data, None
            self._pass_on(data)
        elif (
            self._given == b""
            and not self._is_write_paused
            and len(data) <= REQUEST_BYTES_MAX
            and (handler is None or waits(handler))
        ):
            prepared = self._lane.answers.find(self.identity, data)
            if prepared is not None:
                self._repeat(prepared, began_at)
            elif not self._follows(data, began_at):
                self._pass_on(data)
        else:
            self._pass_on(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of everything."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        self._waiting = None
        self.stop_leading()
        self._lane.closed(self, self._handler)
        super().connection_lost(exc)

    # --- the lane ------------------------------------------------------------------------------

    def _repeat(self, prepared: Prepared, began_at: float) -> None:
        transport, lane = self._transport, self._lane
        if transport is None:
            return
        request_id = next(lane.request_ids)
        head = b"%b%b\r\n\r\n" % (prepared.head(lane.date(began_at)), request_id)
        body = prepared.body
        if len(body) <= JOINED_BYTES_MAX:
            transport.write(head + body)
        elif len(body) < SENT_AS_FILE_BYTES_MIN or not send_as_file(transport, head, prepared):
            transport.writelines((head, body))
        if prepared.closes:
            transport.close()
        elif self._handler is None:
            self._active_at = began_at
        else:
            _stays_open(self._handler, until=self._loop.time() + lane.keepalive_seconds)
        prepared.record(time.perf_counter() - began_at)
        if prepared.on_repeat is not None:
            context = {"remote": peer_of(transport) or "local", **prepared.context}
            with structlog.contextvars.bound_contextvars(request_id=request_id.decode(), **context):
                prepared.on_repeat()

    # --- waiting for another's answer -----------------------------------------------------------

    def _follows(self, data: bytes, began_at: float) -> bool:
        """Wait where an equal request is being answered; else be the one that others wait for."""
        if self._leads is not None or not is_read(data):
            return False
        companions, question = self._lane.companions, (self.identity, data)
        if companions.lead(question):
            self._leads = question
            return False
        self._waiting, self._waits_since = data, began_at
        companions.follow(question, self._resume)
        return True

    def _resume(self) -> None:
        """Take the other's answer, or go the long way; the client may have left or said more."""
        data, self._waiting = self._waiting, None
        if data is None or self._transport is None or self._transport.is_closing():
            return
        prepared = None
        if not self._is_write_paused:
            prepared = self._lane.answers.find(self.identity, data)
        if prepared is not None:
            self._repeat(prepared, self._waits_since)
        else:
            self._pass_on(data)

    def stop_leading(self) -> None:
        """Let go of those who wait for this connection's answer."""
        question, self._leads = self._leads, None
        if question is not None:
            self._lane.companions.end(question)

    # --- aiohttp -------------------------------------------------------------------------------

    def _pass_on(self, data: bytes) -> None:
        given = self._given
        if given is not None:
            fits = len(given) + len(data) <= REQUEST_BYTES_MAX
            self._given = given + data if fits else None
        self._give(data)

    def _hand(self, data: bytes) -> None:
        if self._handler is None:
            self._hand_over()
        super()._hand(data)

    def _hand_over(self) -> None:
        """Make aiohttp's side of the connection, and put it where it would be without the lane."""
        make_handler, transport = self._lane.make_handler, self._transport
        if make_handler is None or transport is None:
            raise RuntimeError("data came before the server was set up, or after the end")
        handler = self._handler = make_handler()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        self._lane.handed_over(self, handler)
        handler.connection_made(transport)
        if self._is_write_paused:
            handler.pause_writing()

    def account_for(self, request: web.Request) -> bytes | None:
        """Return the bytes of a request that aiohttp is answering, if they are known for certain.

        They are taken from what it was given: once nothing is left, and it waits for more, the
        lane is open again.
        """
        given = self._given
        length = None if given is None else request_length(given, request)
        if given is None or length is None:
            self._given = None
            return None
        self._given = given[length:]
        return given[:length]

    # --- the end -------------------------------------------------------------------------------

    def _end_if_idle(self) -> None:
        """Close a connection that was idle for too long; aiohttp does it where it has a handler."""
        seconds_left = self._lane.keepalive_seconds
        if not self._is_write_paused:
            seconds_left -= time.perf_counter() - self._active_at
        if seconds_left > 0:
            self._idle_timer = self._loop.call_later(seconds_left, self._end_if_idle)
        else:
            self.close()

    def yields(self) -> EndReason | None:
        """Tell why this one may make room for another; not while it waits for an answer."""
        return None if self._waiting is not None else super().yields()

    def _last_used(self) -> float:
        """Return something that is another after each answer, whoever gave it."""
        return self._active_at if self._handler is None else super()._last_used()


def _stays_open(handler: web.RequestHandler, *, until: float) -> None:
    """Put off the end of an idle connection, as the handler does after an answer of its own."""
    handler._next_keepalive_close_time = until  # noqa: SLF001 - guarded by `open_fast_lane`


def _request_ids() -> Iterator[bytes]:
    """Yield fresh ids like `secrets.token_hex(8)`, for which a system call each is too slow."""
    while True:
        drawn = secrets.token_hex(8 * _IDS_DRAWN).encode()
        for start in range(0, len(drawn), 16):
            yield drawn[start : start + 16]
