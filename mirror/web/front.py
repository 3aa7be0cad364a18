"""What faces readers in one process, and how it leaves: nobody is cut off who can be let finish.

Leaving has two steps. First no connection is accepted any more, every answer says `Connection:
close`, and idle connections get a moment to ask for one more, for a request that is on its way
while its connection is closed is lost (RFC 9112, 9.3.1): from the end of that on, nobody learns a
ref here. Then what is under way, clones above all, is let finish; what lasts longer is cut.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog
from aiohttp import hdrs, web

from mirror.web.connections import waits
from mirror.web.fast_lane import FastLane
from mirror.web.lane_runner import CrowdRunner
from mirror.web.protocol import OPERATION, Operation

LET_GO_SECONDS: Final = 2.0
"""What idle connections get to ask once more: pollers in steady use do within that."""

POLLS_SECONDS_MAX: Final = 3.0
"""What polls under way get after that: held ones end with what they were held for, or stale."""

LOOK_SECONDS: Final = 0.02
"""How often to look whether all is done; nobody waits for that but the end."""

SHOWS_NO_REFS: Final = frozenset(
    {
        *(Operation.FETCH, Operation.OBJECT_INFO, Operation.RECEIVE_PACK, Operation.BUNDLE),
        *(Operation.LFS_BATCH, Operation.LFS_DOWNLOAD, Operation.LFS_UPLOAD, Operation.LFS_LOCKS),
        *(Operation.WEBHOOK, Operation.CONTROL, Operation.MONITORING, Operation.PROBE),
    }
)

logger = structlog.stdlib.get_logger()


class Traffic:
    """The requests that aiohttp has in hand; those of the fast lane take no time.

    Attributes:
        is_leaving: No connection is to be used again.
    """

    def __init__(self) -> None:
        self._under_way: dict[int, web.Request] = {}  # by `id`: requests have no hash
        self.is_leaving = False

    @property
    def under_way(self) -> tuple[web.Request, ...]:
        """The requests."""
        return tuple(self._under_way.values())

    def began(self, request: web.Request) -> None:
        """Take note of a request."""
        self._under_way[id(request)] = request

    def ended(self, request: web.Request) -> None:
        """Forget a request."""
        self._under_way.pop(id(request), None)

    def answers(self, response: web.StreamResponse) -> None:
        """Take note of an answer whose headers are complete: while leaving, it is the last."""
        if self.is_leaving:
            response.force_close()
            response.headers[hdrs.CONNECTION] = "close"

    @property
    def shows_refs(self) -> bool:
        """Whether a request under way may be answered with refs."""
        return any(one[OPERATION] not in SHOWS_NO_REFS for one in self.under_way)


class Front:
    """A runner with its fast lane, if there is one, and its requests."""

    def __init__(self, runner: web.AppRunner, lane: FastLane | None, traffic: Traffic) -> None:
        self.runner = runner
        self.traffic = traffic
        self._lane = lane

    async def leave(self, *, let_go_seconds: float = LET_GO_SECONDS) -> None:
        """Accept nothing more and let go of connections; returns when no refs are shown here.

        At most `let_go_seconds` and `POLLS_SECONDS_MAX` later.
        """
        if self.traffic.is_leaving:
            return
        self.traffic.is_leaving = True
        for site in tuple(self.runner.sites):
            await site.stop()
        if self._lane is not None:
            self._lane.leave()
        await _until(lambda: not self._has_idle(), let_go_seconds)
        self._close_idle()
        await _until(lambda: not self.traffic.shows_refs, POLLS_SECONDS_MAX)

    async def finish(self, seconds_max: float) -> int:
        """Let end what is under way, for so long at most; returns how many requests were cut."""
        await _until(lambda: not self.traffic.under_way, seconds_max)
        cut = self.traffic.under_way
        for request in cut:
            if request.transport is not None:
                request.transport.abort()
            request.task.cancel()
        if cut:
            operations = Counter(one[OPERATION].value for one in cut)
            logger.warning(
                "cut_off", requests=len(cut), operations=dict(operations), seconds=seconds_max
            )
        return len(cut)

    def _has_idle(self) -> bool:
        if self._lane is not None:
            return self._lane.has_idle()
        server = self._server
        return server is not None and any(map(waits, server.connections))

    def _close_idle(self) -> None:
        """Close the connections that wait for a request, and the others once they have answered."""
        if self._lane is not None:
            self._lane.close()
        for handler in self._server.connections if self._server is not None else ():
            if waits(handler):
                handler.force_close()  # what it wrote before goes out first
            else:
                handler.close()

    @property
    def _server(self) -> web.Server | None:
        runner = self.runner
        return runner.web_server if isinstance(runner, CrowdRunner) else runner.server


async def _until(met: Callable[[], bool], seconds_max: float) -> None:
    give_up_at = time.monotonic() + seconds_max
    while not met():
        left = give_up_at - time.monotonic()
        if left <= 0:
            return
        await asyncio.sleep(min(LOOK_SECONDS, left))
