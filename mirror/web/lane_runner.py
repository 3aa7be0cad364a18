"""What stands between the sockets and an application's server: the crowd, and a fast lane.

The lane is there where it is wanted and this aiohttp allows it; the crowd is always.
"""

from typing import Any, Final, cast

import structlog
from aiohttp import web

from mirror.metrics import Metrics
from mirror.web.connections import Crowd, PlainConnection
from mirror.web.fast_lane import FastLane
from mirror.web.forwarded import Proxies

INTERNALS: Final = ("_waiter", "_next_keepalive_close_time")
"""What `mirror.web.fast_lane` uses of `web.RequestHandler` without its being promised."""

logger = structlog.stdlib.get_logger()


def open_fast_lane(
    metrics: Metrics, crowd: Crowd, *, keepalive_seconds: float, proxies: Proxies
) -> FastLane | None:
    """Return a lane; `None`, with a warning, where this aiohttp is not as the lane expects."""
    missing = [name for name in INTERNALS if not hasattr(web.RequestHandler, name)]
    if missing:
        logger.warning("no_fast_lane", missing=missing, reason="another aiohttp than was tested")
        return None
    return FastLane(metrics, crowd, keepalive_seconds=keepalive_seconds, proxies=proxies)


class CrowdRunner(web.AppRunner):
    """Runs an application behind a crowd, and behind a lane where there is one.

    Sites make connections of theirs, which hand over to aiohttp's own.

    Attributes:
        crowd: The connections.
    """

    def __init__(
        self, app: web.Application, crowd: Crowd, lane: FastLane | None, **settings: Any
    ) -> None:
        super().__init__(app, **settings)
        self.crowd = crowd
        self._lane = lane

    @property
    def server(self) -> web.Server | None:
        """What sites make connections with."""
        # A site only calls it. Should it ever do more, it fails at the start.
        make = self._plain if self._lane is None else self._lane
        return cast("web.Server", make)

    def _plain(self) -> PlainConnection:
        make_handler = super().server
        if make_handler is None:
            raise RuntimeError("a connection came before the server was set up, or after the end")
        return PlainConnection(self.crowd, make_handler)

    @property
    def web_server(self) -> web.Server | None:
        """Aiohttp's own, which has the connections that were handed over."""
        return super().server

    async def setup(self) -> None:
        """Set up aiohttp's own server, to which connections are handed over."""
        await super().setup()
        if self._lane is not None:
            self._lane.make_handler = super().server
        self.crowd.start()

    async def shutdown(self) -> None:
        """End what aiohttp's server does not know of; it calls this once it has begun to end."""
        if self._lane is not None:
            self._lane.close()
        await super().shutdown()

    async def cleanup(self) -> None:
        """End all connections; what was written to them goes out before this returns."""
        await super().cleanup()
        if self._lane is not None:
            await self._lane.wait_closed()
        await self.crowd.close()
