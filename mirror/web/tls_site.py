"""Accepts connections that are to speak TLS, and begins their handshakes one after another.

A handshake costs the event loop a millisecond or two for the signature, fifty kilobytes until it is
through, and the client next to nothing. So none is begun before its client has said something: who
is silent has a socket here and nothing else, and is the first to go where there is no place. And of
those who speak at once, one is let in at a time, with a few turns of the loop for others between.

Owns connections from the accept to the end of the handshake. Of what goes wrong in between nobody
needs to be told: clients break off handshakes every day.
"""

import asyncio
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog
from aiohttp import web

from mirror.metrics import EndReason
from mirror.web.connections import HANDSHAKE_SECONDS_MAX, Crowd
from mirror.web.lane_runner import CrowdRunner

BACKLOG: Final = 1024

TURNS_BETWEEN: Final = 3
"""A handshake is begun in one turn, its client is heard in the next, and others come after that."""

ACCEPT_AGAIN_SECONDS: Final = 1.0
"""After there was no descriptor for one more."""

logger = structlog.stdlib.get_logger()


class TlsSite(web.BaseSite):
    """Accepts from a bound socket."""

    def __init__(self, runner: CrowdRunner, bound: socket.socket, *, tls: ssl.SSLContext) -> None:
        super().__init__(runner, ssl_context=tls)
        self._crowd, self._bound, self._tls = runner.crowd, bound, tls
        self._door: TlsDoor | None = None

    @property
    def name(self) -> str:
        """Where it is, for aiohttp's own messages."""
        host, port = self._bound.getsockname()[:2]
        return f"https://{host}:{port}"

    async def start(self) -> None:
        """Begin to accept connections."""
        await super().start()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner is not set up")
        self._bound.listen(BACKLOG)
        self._door = TlsDoor(self._bound, self._crowd, server, self._tls)

    async def stop(self) -> None:
        """Accept nothing more."""
        await super().stop()
        if self._door is not None:
            await self._door.close()


class TlsDoor:
    """What accepts from one socket."""

    def __init__(
        self,
        bound: socket.socket,
        crowd: Crowd,
        make: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext,
    ) -> None:
        """Begin to accept.

        Args:
            bound: A TCP socket that is listened on; closed at the end.
            crowd: Has the places.
            make: Makes what speaks once the handshake is through.
            tls: For the handshakes.
        """
        self._loop = asyncio.get_running_loop()
        self._bound, self._crowd, self._make, self._tls = bound, crowd, make, tls
        # Silent so far, the oldest first.
        self._silent: OrderedDict[socket.socket, asyncio.TimerHandle] = OrderedDict()
        self._speaking: asyncio.Queue[socket.socket] = asyncio.Queue()
        self._again: asyncio.TimerHandle | None = None
        self._greeting = asyncio.create_task(self._greet(), name="handshakes")
        bound.setblocking(False)  # noqa: FBT003 - the standard library's
        self._listen()

    async def close(self) -> None:
        """Accept nothing more, and let go of whoever is silent; handshakes under way go on."""
        self._loop.remove_reader(self._bound)
        if self._again is not None:
            self._again.cancel()
        self._bound.close()
        for one in tuple(self._silent):
            self._drop(one)
        self._greeting.cancel()
        await asyncio.wait((self._greeting,))
        while not self._speaking.empty():
            self._crowd.waiting -= 1
            self._speaking.get_nowait().close()

    def _listen(self) -> None:
        self._again = None
        self._loop.add_reader(self._bound, self._accept)

    def _accept(self) -> None:
        """Take one connection: the loop asks again where there are more."""
        try:
            one, _ = self._bound.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            logger.warning("not_accepted", error=str(error))
            self._loop.remove_reader(self._bound)
            self._again = self._loop.call_later(ACCEPT_AGAIN_SECONDS, self._listen)
            return
        one.setblocking(False)  # noqa: FBT003 - the standard library's
        if not self._crowd.has_place():
            if self._silent:
                self._drop(next(iter(self._silent)))
                self._crowd.ended(EndReason.IDLE)
            elif not self._crowd.lets_shake_hands():
                self._crowd.ended(EndReason.NO_PLACE)
                one.close()
                return
            # Else one that is idle makes room, once this one is through with its handshake.
        self._crowd.waiting += 1
        self._silent[one] = self._loop.call_later(HANDSHAKE_SECONDS_MAX, self._drop, one)
        self._loop.add_reader(one, self._speaks, one)

    def _drop(self, one: socket.socket) -> None:
        self._silent.pop(one).cancel()
        self._crowd.waiting -= 1
        self._loop.remove_reader(one)
        one.close()

    def _speaks(self, one: socket.socket) -> None:
        self._silent.pop(one).cancel()
        self._loop.remove_reader(one)
        self._speaking.put_nowait(one)

    async def _greet(self) -> None:
        """Begin the handshakes."""
        while True:
            one = await self._speaking.get()
            await self._crowd.turns.later()
            self._crowd.waiting -= 1
            self._crowd.looks_after(self._shake_hands(one))
            for _ in range(TURNS_BETWEEN):
                await asyncio.sleep(0)

    async def _shake_hands(self, one: socket.socket) -> None:
        with suppress(OSError):  # TLS errors among them
            await self._loop.connect_accepted_socket(
                self._make, one, ssl=self._tls, ssl_handshake_timeout=HANDSHAKE_SECONDS_MAX
            )
