"""The crowd of connections: how many there may be, and which of them are ended, and why.

Owns what all connections of a process have in common, with a fast lane and without: the places for
them, their turns (`mirror.web.turns`), and the time that a client may take for the head of a
request, for what is sent to it, and for the end. Whoever is well-behaved pays nothing for it per
request: connections are looked at in turn, every few seconds, and when there is no place for a new
one.

Knows no request and no answer. What a request's body may take is `mirror.web.protocol`'s.
"""

import asyncio
import resource
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

import structlog
from aiohttp import web

from mirror.metrics import EndReason, Metrics
from mirror.web.broken_bodies import tell_reader
from mirror.web.protocol import CLIENT_SILENCE_SECONDS_MAX
from mirror.web.turns import Turns

HEAD_SECONDS_MAX: Final = 30.0
"""From the first byte of a request's head to its last; a slow line takes a second or two."""

HANDSHAKE_SECONDS_MAX: Final = 10.0
"""For the TLS handshake: four packets."""

CLOSING_SECONDS_MAX: Final = 30.0
"""For what was written already, once a connection is to end."""

TAKEN_BYTES_MIN: Final = 64 * 1024
"""So much of what waits for it has a client to take within `CLIENT_SILENCE_SECONDS_MAX`, or all of
it: a byte now and then does not keep a connection. That is 546 bytes a second. Who takes most of an
answer and then stops has ended after twice that time at the latest."""

YIELDING_SECONDS: Final = 10.0
"""A client that has taken nothing for so long makes room for others where there is no place."""

LOOK_SECONDS: Final = 5.0
LOOKS_AT_ONCE: Final = 256
"""Each takes a microsecond at the most; then others get a turn."""

HELD_BYTES_MAX: Final = 16 * 1024
"""A connection that waits for its turn with more is read no further."""

HEAD_PIECE_BYTES: Final = 16 * 1024
"""Twenty thousand header fields cost as many microseconds, and are refused only then."""

LOG_SECONDS: Final = 10.0
"""Between two lines in the log for one reason, whatever a flood brings."""

_DESCRIPTORS_SHARE: Final = 2
"""Connections get one of so many descriptors. The rest is for the files that readers are sent, for
packs, Git's processes and upstreams."""

_REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 59\r\n\r\n"
    b"too many connections; try again, or raise connections_max\r\n"
)
_TOO_SLOW: Final = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 36\r\n\r\n"
    b"the head of the request is not here\n"
)

logger = structlog.stdlib.get_logger()


def places_for(connections_max: int, *, processes: int) -> int:
    """Return how many connections this process takes, its limit on open files raised for them.

    Args:
        connections_max: How many all processes are to take.
        processes: How many there are.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted = -(-connections_max // processes)
    if hard == resource.RLIM_INFINITY or wanted <= hard // _DESCRIPTORS_SHARE:
        return wanted
    places = hard // _DESCRIPTORS_SHARE
    logger.warning(
        "fewer_connections", wanted=wanted, places=places, open_files_max=hard, raise_="LimitNOFILE"
    )
    return places


class Crowd:
    """All connections of a process.

    Attributes:
        places: How many there may be.
        turns: How much of what they bring is begun at once.
        waiting: How many are accepted, and have said nothing or wait for their TLS handshake.
    """

    def __init__(self, metrics: Metrics, *, places: int) -> None:
        self.places = places
        self.turns = Turns()
        self.waiting = 0
        self._metrics = metrics
        # Those looked at least recently first: `_make_room` goes round.
        self._open: OrderedDict[Watched, None] = OrderedDict()
        # Within the TLS handshake; a failed one is not told of.
        self._coming: WeakKeyDictionary[Watched, float] = WeakKeyDictionary()
        self._unlogged: Counter[EndReason] = Counter()
        self._logged_at: dict[EndReason, float] = {}
        self._looking: asyncio.Task[None] | None = None
        self._handshakes: set[asyncio.Task[None]] = set()
        metrics.watch_connections(self.__len__)

    def __len__(self) -> int:
        return len(self._open)

    def start(self) -> None:
        """Begin to look at connections in turn."""
        self._looking = asyncio.create_task(self._look_after(), name="connections")

    def looks_after(self, handshake: Coroutine[Any, Any, None]) -> None:
        """Have a handshake go on; it ends in time by itself."""
        task = asyncio.create_task(handshake, name="handshake")
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def close(self) -> None:
        """Look at them no more."""
        tasks = {*self._handshakes, *([self._looking] if self._looking is not None else [])}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def comes(self, connection: "Watched") -> None:
        """Note a connection that begins; it is `opened` when TLS is through its handshake."""
        self._coming[connection] = time.monotonic()

    def has_place(self) -> bool:
        """Tell whether there is a place for one more."""
        return len(self._open) + self.waiting + self._shaking_hands() < self.places

    def lets_shake_hands(self) -> bool:
        """Tell whether one more TLS handshake may begin where there is no place."""
        return self._shaking_hands() <= self.places // 4

    def opened(self, connection: "Watched") -> bool:
        """Take a connection in; `False` where there is no place: it was refused."""
        self._coming.pop(connection, None)
        if not self.has_place() and not self._make_room():
            self.ended(EndReason.NO_PLACE)
            return False
        self._open[connection] = None
        return True

    def closed(self, connection: "Watched") -> None:
        """Forget a connection."""
        self._open.pop(connection, None)

    def ended(self, reason: EndReason) -> None:
        """Count a connection that we have ended; the log says it, but not each one."""
        self._metrics.record_connection_ended(reason)
        self._unlogged[reason] += 1
        self._log(reason)

    def _log(self, reason: EndReason) -> None:
        now = time.monotonic()
        if now - self._logged_at.get(reason, -LOG_SECONDS) >= LOG_SECONDS:
            self._logged_at[reason] = now
            count = self._unlogged.pop(reason)
            logger.warning("connections_ended", reason=reason, count=count, open=len(self._open))

    def _shaking_hands(self) -> int:
        coming = self._coming
        if len(coming) > self.places // 4:
            # Whoever failed is remembered until the collector comes by.
            since = time.monotonic() - HANDSHAKE_SECONDS_MAX
            for connection in [one for one, at in coming.items() if at < since]:
                del coming[connection]
        return len(coming)

    def _make_room(self) -> bool:
        """End one connection: of those that nobody uses, one used least recently, or nearly so."""
        for _ in range(min(LOOKS_AT_ONCE, len(self._open))):
            connection = next(iter(self._open))
            self._open.move_to_end(connection)
            reason = connection.yields()
            if reason is not None:
                del self._open[connection]
                connection.abort()
                self.ended(reason)
                return True
        return False

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            everybody = tuple(self._open)
            for start in range(0, len(everybody), LOOKS_AT_ONCE):
                now = time.monotonic()
                for connection in everybody[start : start + LOOKS_AT_ONCE]:
                    reason = connection.outstays(now)
                    if reason is not None:
                        self.ended(reason)
                await asyncio.sleep(0)
            for reason in tuple(self._unlogged):
                self._log(reason)


class Watched(asyncio.Protocol):
    """What the crowd knows of a connection. Whoever derives from it moves the bytes."""

    __slots__ = (
        *("_crowd", "_loop", "_transport", "_handler", "_is_write_paused", "_paused_at"),
        *("_silence_timer", "_used", "_head_of", "_head_at", "_closing_at"),
        *("_held", "_is_held_back", "_is_let_in", "__weakref__"),
    )

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._handler: web.RequestHandler | None = None
        self._is_write_paused = False
        self._paused_at = 0.0
        self._silence_timer: asyncio.TimerHandle | None = None
        self._used = 0.0  # as `_last_used` was when the crowd last looked for room
        self._head_of = -1.0  # after which answer the head began that is on its way
        self._head_at = 0.0
        self._closing_at: float | None = None
        self._held: bytes | None = None  # what came, and waits for its turn
        self._is_held_back = False  # and is not read further meanwhile
        self._is_let_in = True  # the next request had its turn when it came
        crowd.comes(self)

    # --- what the event loop calls -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place, or end: `_transport` is `None` then."""
        made = cast("asyncio.Transport", transport)
        if self._crowd.opened(self):
            self._transport = made
            return
        if made.get_extra_info("sslcontext") is None:
            made.write(_REFUSAL)
            made.close()
        else:
            made.abort()  # its own end of TLS could be waited for

    def pause_writing(self) -> None:
        """The client takes less than it asks for."""
        self._is_write_paused = True
        self._paused_at = time.monotonic()
        self._watch_silence()
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._is_write_paused = False
        self._cancel_silence()
        if self._handler is not None:
            self._handler.resume_writing()

    def eof_received(self) -> None:
        """Let the transport close itself, as aiohttp does."""

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of everything."""
        self._held = None
        self._cancel_silence()
        self._crowd.closed(self)
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.connection_lost(exc)

    # --- what the crowd asks -------------------------------------------------------------------

    def yields(self) -> EndReason | None:
        """Tell why this one may make room for another; a used one is spared once."""
        if self._held is not None:
            return None
        if self._is_write_paused and time.monotonic() - self._paused_at > YIELDING_SECONDS:
            return EndReason.STALLED
        used, before = self._last_used(), self._used
        self._used = used
        if used == before and (self._handler is None or waits(self._handler)):
            return EndReason.IDLE
        return None

    def outstays(self, now: float) -> EndReason | None:
        """End the connection if its client takes too long; tells why it did."""
        transport = self._transport
        if transport is None:
            return None
        if transport.is_closing():
            if self._closing_at is None:
                self._closing_at = now
            elif now - self._closing_at >= CLOSING_SECONDS_MAX:
                transport.abort()
                self._transport = None
                return EndReason.NOT_CLOSED
            return None
        handler = self._handler
        if (
            handler is not None
            and self._head_of == self._last_used()
            and now - self._head_at >= HEAD_SECONDS_MAX
            and waits(handler)
        ):
            transport.write(_TOO_SLOW)
            transport.close()
            return EndReason.SLOW_HEAD
        return None

    def close(self) -> None:
        """End the connection once all that was written is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # --- what those that derive from it call ---------------------------------------------------

    def _give(self, data: bytes) -> None:
        """Give aiohttp what came, when it is its turn."""
        if self._held is not None:
            self._held += data
        elif self._crowd.turns.take():
            self._hand_piece(data)
            return
        else:
            self._held = data
            self._crowd.turns.wait(self._hand_held)
        self._hold_back()

    def _hold_back(self) -> None:
        """Read no further where much is held already, unless it is so: aiohttp does that, too."""
        held, transport = self._held, self._transport
        if held is None or len(held) <= HELD_BYTES_MAX or transport is None:
            return
        if not self._is_held_back and transport.is_reading():
            self._is_held_back = True
            transport.pause_reading()

    def _hand_held(self) -> None:
        data, self._held = self._held, None
        if data is None or self._transport is None or self._transport.is_closing():
            return
        if self._is_held_back:
            self._is_held_back = False
            self._transport.resume_reading()  # before aiohttp pauses it
        self._hand_piece(data)

    def _hand_piece(self, data: bytes) -> None:
        """Give aiohttp what came, of heads no more than a piece at a time."""
        if len(data) <= HEAD_PIECE_BYTES or not self._is_at_a_head():
            self._hand(data)
            return
        self._held = data[HEAD_PIECE_BYTES:]
        self._crowd.turns.wait(self._hand_held)
        self._hand(data[:HEAD_PIECE_BYTES])
        self._hold_back()

    def _is_at_a_head(self) -> bool:
        handler = self._handler
        return self._is_let_in or handler is None or waits(handler)

    def _hand(self, data: bytes) -> None:
        """Give aiohttp what came, and note when a head began."""
        handler = self._handler
        if handler is None:
            return
        used = self._last_used()
        if self._head_of != used:
            self._head_of, self._head_at = used, time.monotonic()
        is_answering = not waits(handler)
        if not is_answering:
            self._is_let_in = True
        handler.data_received(data)
        if is_answering:
            tell_reader(handler)

    def let_in(self) -> bool:
        """Tell, once per request, whether it had a turn: not if it came before it was its time."""
        was, self._is_let_in = self._is_let_in, False
        return was

    def _last_used(self) -> float:
        """Return something that is another after each answer."""
        handler = self._handler
        return 0.0 if handler is None else getattr(handler, "_next_keepalive_close_time", 0.0)

    def _cancel_silence(self) -> None:
        if self._silence_timer is not None:
            self._silence_timer.cancel()
            self._silence_timer = None

    def _watch_silence(self) -> None:
        """Break the connection off if the client takes next to nothing of what waits for it."""
        transport = self._transport
        if transport is None:
            return
        waiting = transport.get_write_buffer_size()

        def look_again() -> None:
            if transport.get_write_buffer_size() <= waiting - TAKEN_BYTES_MIN:
                self._watch_silence()
            else:
                self._crowd.ended(EndReason.STALLED)
                transport.abort()

        self._silence_timer = self._loop.call_later(CLIENT_SILENCE_SECONDS_MAX, look_again)


class PlainConnection(Watched):
    """A connection that is aiohttp's own from the first byte."""

    __slots__ = ("_make_handler",)

    def __init__(self, crowd: Crowd, make_handler: Callable[[], web.RequestHandler]) -> None:
        super().__init__(crowd)
        self._make_handler = make_handler

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Make aiohttp's side of the connection."""
        super().connection_made(transport)
        if self._transport is not None:
            self._handler = self._make_handler()
            self._handler.connection_made(transport)
            self._used = self._last_used()

    def data_received(self, data: bytes) -> None:
        """Give it to aiohttp."""
        self._give(data)


def waits(handler: web.RequestHandler) -> bool:
    """Tell whether a handler has answered all it was given, and waits for the next request."""
    # Not there in another aiohttp than was tested: then nobody is ended for that.
    waiter = getattr(handler, "_waiter", None)
    return waiter is not None and not waiter.done()


def had_turn(request: web.Request) -> bool:
    """Tell, once, whether a request had a turn when it came; others came while one was answered."""
    transport = request.transport
    connection = transport.get_protocol() if transport is not None else None
    return not isinstance(connection, Watched) or connection.let_in()
