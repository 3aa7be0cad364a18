"""Room for the bodies of requests: what all of them together may take of the memory.

A body of a usual length needs no room. A longer one waits for its place until others are answered,
and has it until its own answer is given, for as long as what was parsed from it is looked at. Who
reads the largest ones holds both kinds of place, always taken in this order: nobody waits for
somebody who waits.
"""

import asyncio
from typing import Final

from aiohttp import web

from mirror.errors import Overloaded

FREE_BYTES: Final = 64 * 1024
"""A fetch of one branch is about a kilobyte, a webhook of a push ten to thirty."""

LONG_BYTES: Final = 1024**2
"""Twenty thousand wants and haves."""

LONG_MAX: Final = 128
"""How many bodies of over `FREE_BYTES` are read and answered at once: 128 MiB."""

LONGEST_MAX: Final = 4
"""How many of over `LONG_BYTES`, each up to its own limit."""

WAIT_SECONDS_MAX: Final = 20.0
"""Argo CD gives up after 15, and somebody has to be told."""

_HELD: Final[web.RequestKey[list[asyncio.Semaphore]]] = web.RequestKey("held_rooms")


class Rooms:
    """The places for long bodies in one process."""

    def __init__(self, *, long_max: int = LONG_MAX, longest_max: int = LONGEST_MAX) -> None:
        self._kinds = (
            (FREE_BYTES, asyncio.Semaphore(long_max)),
            (LONG_BYTES, asyncio.Semaphore(longest_max)),
        )

    async def enter(self, request: web.Request, body_bytes: int) -> None:
        """Wait for the places that a body of so many bytes needs, beyond those it has.

        Raises:
            Overloaded: There is none for too long.
        """
        held = request.setdefault(_HELD, [])
        for bytes_min, places in self._kinds[len(held) :]:
            if body_bytes <= bytes_min:
                return
            try:
                async with asyncio.timeout(WAIT_SECONDS_MAX):
                    await places.acquire()
            except TimeoutError:
                raise Overloaded(
                    f"too many long requests at once; no room for one of over {bytes_min} bytes"
                ) from None
            held.append(places)


ROOMS: Final = web.AppKey("rooms", Rooms)


def leave_rooms(request: web.Request) -> None:
    """Give the places of a request back, once it is answered."""
    for places in request.pop(_HELD, ()):
        places.release()
