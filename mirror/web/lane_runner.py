"""Puts a fast lane in front of an application's server, where this aiohttp allows it."""

from typing import Any, Final, cast

import structlog
from aiohttp import web

from mirror.metrics import Metrics
from mirror.web.fast_lane import FastLane
from mirror.web.forwarded import Proxies

INTERNALS: Final = ("_waiter", "_next_keepalive_close_time")
"""What `mirror.web.fast_lane` uses of `web.RequestHandler` without its being promised."""

logger = structlog.stdlib.get_logger()


def open_fast_lane(
    metrics: Metrics, *, keepalive_seconds: float, proxies: Proxies
) -> FastLane | None:
    """Return a lane; `None`, with a warning, where this aiohttp is not as the lane expects."""
    missing = [name for name in INTERNALS if not hasattr(web.RequestHandler, name)]
    if missing:
        logger.warning("no_fast_lane", missing=missing, reason="another aiohttp than was tested")
        return None
    return FastLane(metrics, keepalive_seconds=keepalive_seconds, proxies=proxies)


class FastLaneRunner(web.AppRunner):
    """Runs an application behind a lane: its sites get the lane's connections."""

    def __init__(self, app: web.Application, lane: FastLane, **settings: Any) -> None:
        super().__init__(app, **settings)
        self._lane = lane

    @property
    def server(self) -> web.Server | None:
        """What sites make connections with."""
        # A site only calls it. Should it ever do more, it fails at the start.
        return cast("web.Server", self._lane)

    @property
    def web_server(self) -> web.Server | None:
        """Aiohttp's own, which has the connections that were handed over."""
        return super().server

    async def setup(self) -> None:
        """Set up aiohttp's own server, to which the lane hands over."""
        await super().setup()
        self._lane.make_handler = super().server

    async def shutdown(self) -> None:
        """End what aiohttp's server does not know of; it calls this once it has begun to end."""
        self._lane.close()
        await super().shutdown()

    async def cleanup(self) -> None:
        """End all connections; what was written to them goes out before this returns."""
        await super().cleanup()
        await self._lane.wait_closed()
