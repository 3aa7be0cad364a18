"""How much is begun in one turn of the event loop: a little, so that polls get in between.

A poll that is known by heart is answered while the loop looks at its sockets, so it waits for the
end of the turn before and for nothing else. Everything else that connections bring costs a tenth to
a third of a millisecond a step, and a thousand of them may bring something at once, or be woken at
once. Only so many steps are taken in one turn; the others wait in line.

There are two lines. What a client sends comes first; later come the further requests of one that
sends several without waiting for answers, and the pieces of long answers. The later ones get at
least one step in each turn.

Knows no connection and no request. While nobody waits in line, a step costs a microsecond.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Final

from aiohttp import web

STEPS_PER_TURN: Final = 4
"""A millisecond, or nearly so."""


class Turns:
    """The steps of one event loop."""

    def __init__(self) -> None:
        self._left = STEPS_PER_TURN
        self._first: deque[Callable[[], None]] = deque()
        self._later: deque[asyncio.Future[None]] = deque()
        self._is_renewing = False
        # Whoever is let in must not get the log's words about whoever happened to be before.
        self._context = contextvars.Context()

    def __len__(self) -> int:
        return len(self._first) + len(self._later)

    def take(self) -> bool:
        """Take a step for what a client sent; `False` if it is to `wait`."""
        if self._first or not self._left:
            return False
        self._left -= 1
        self._renew_soon()
        return True

    def wait(self, step: Callable[[], None]) -> None:
        """Have `step` called in a turn of its own; each connection waits with one at the most."""
        self._first.append(step)
        self._renew_soon()

    async def later(self) -> None:
        """Wait for a step of what is not urgent."""
        self._renew_soon()
        if self._left and not self._first and not self._later:
            self._left -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._later.append(turn)
        await turn

    def _renew_soon(self) -> None:
        if not self._is_renewing:
            self._is_renewing = True
            asyncio.get_running_loop().call_soon(self._renew, context=self._context)

    def _renew(self) -> None:
        """Begin a turn: let in whoever waits."""
        self._is_renewing = False
        left, first, later = STEPS_PER_TURN, self._first, self._later
        if first or later:
            self._renew_soon()
            call_soon = asyncio.get_running_loop().call_soon
            while first and left > (1 if later else 0):
                call_soon(first.popleft(), context=self._context)
                left -= 1
            while later and left:
                turn = later.popleft()
                if not turn.done():  # its owner may have been cancelled
                    turn.set_result(None)
                    left -= 1
        self._left = left


TURNS: Final = web.AppKey("turns", Turns)


async def later(request: web.Request) -> None:
    """Wait for a step of what is not urgent, where steps are counted."""
    turns = request.config_dict.get(TURNS)
    if turns is not None:
        await turns.later()
