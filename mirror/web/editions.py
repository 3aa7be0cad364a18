"""What answers requests by one configuration, and its change for that of the next.

A request keeps the edition that it began with to its end: what it is let in by, what it finds and
what it is told never are of two configurations. The change is one step of the event loop. The
edition before stays until its last request has ended.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from aiohttp import web

from mirror.refresh.registry import Registry
from mirror.web.bundle_files import BundleFiles
from mirror.web.fast_lane import FastLane
from mirror.web.guard import Guard
from mirror.web.lfs import LfsHandlers
from mirror.web.monitoring import Monitoring
from mirror.web.protocol import EDITION
from mirror.web.smart_http import SmartHttp
from mirror.web.webhooks import Webhooks

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True, eq=False)
class Edition:
    """All handlers, made for one configuration.

    Attributes:
        stack: Ends what they have under way.
        requests: How many are being answered by it.
        ended: Set once it is not the current one any more, and none is.
    """

    guard: Guard
    smart_http: SmartHttp
    bundles: BundleFiles
    lfs: LfsHandlers
    webhooks: Webhooks
    monitoring: Monitoring
    stack: AsyncExitStack
    requests: int = 0
    is_current: bool = True
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def keep_to(self, registry: Registry) -> None:
        """Find what `registry` has from now on, which does not change."""
        for one in (self.guard, self.webhooks, self.monitoring):
            one.keep_to(registry)

    def begin(self) -> None:
        """Take a request."""
        self.requests += 1

    def end(self) -> None:
        """Be done with a request."""
        self.requests -= 1
        if not self.is_current and self.requests == 0:
            self.ended.set()


class Editions:
    """Hands each request to the edition of the moment.

    Attributes:
        edition: That one.
    """

    def __init__(self, edition: Edition, lane: FastLane | None) -> None:
        self.edition = edition
        self._lane = lane
        self._retiring: set[asyncio.Task[None]] = set()
        if lane is not None:
            lane.change(edition, edition.guard.proxies)

    def to(self, handler: Callable[[Edition], Handler]) -> Handler:
        """Return what answers a request by the handler that `handler` takes of its edition."""

        async def answer(request: web.Request) -> web.StreamResponse:
            edition = request[EDITION]
            assert isinstance(edition, Edition)  # noqa: S101 - for mypy: the middleware put it there
            return await handler(edition)(request)

        return answer

    def change(self, edition: Edition, before: Registry) -> Edition:
        """Answer by `edition` from now on; returns the one before.

        Args:
            edition: The new one.
            before: What the requests under way go on with.
        """
        old, self.edition = self.edition, edition
        old.keep_to(before)
        old.is_current = False
        if self._lane is not None:
            self._lane.change(edition, edition.guard.proxies)
        if old.requests == 0:
            old.ended.set()
        task = asyncio.create_task(_end(old), name="end of an edition")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return old

    async def drained(self) -> None:
        """Wait until no request is under way by an edition before this moment's."""
        retiring = tuple(self._retiring)
        if retiring:
            await asyncio.wait(retiring)

    async def close(self) -> None:
        """End what the editions have under way."""
        for task in tuple(self._retiring):
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self.edition.stack.aclose()


async def _end(edition: Edition) -> None:
    try:
        await edition.ended.wait()
    finally:
        await edition.stack.aclose()
