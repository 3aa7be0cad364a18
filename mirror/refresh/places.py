"""How many refreshes run at once, and that neither clones nor one silent host take all places."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(slots=True)
class RefreshPlaces:
    """How many refreshes may run at once in the whole service.

    First clones may take half of the places at most, so that webhooks are never queued behind them.
    One upstream host may take three quarters of them: one that has fallen silent keeps the
    repositories of the others from nothing.
    """

    all: asyncio.Semaphore
    clones: asyncio.Semaphore
    each_host_max: int
    hosts: dict[str, asyncio.Semaphore] = field(default_factory=dict)

    @classmethod
    def of(cls, refreshes_max: int) -> "RefreshPlaces":
        """Make `refreshes_max` places."""
        return cls(
            asyncio.Semaphore(refreshes_max),
            asyncio.Semaphore(max(1, refreshes_max // 2)),
            refreshes_max - refreshes_max // 4,
        )

    def resize(self, refreshes_max: int) -> None:
        """Make it other places; refreshes under way keep theirs, beside the new ones."""
        new = RefreshPlaces.of(refreshes_max)
        self.all, self.clones, self.each_host_max = new.all, new.clones, new.each_host_max
        self.hosts.clear()

    @asynccontextmanager
    async def taken(self, upstream: str, *, is_clone: bool) -> AsyncIterator[None]:
        """Take a place for a refresh from the upstream with this URL; the scarcest comes first."""
        host = urlsplit(upstream).netloc.rpartition("@")[2]
        at_host = self.hosts.setdefault(host, asyncio.Semaphore(self.each_host_max))
        async with AsyncExitStack() as places:
            if is_clone:
                await places.enter_async_context(self.clones)
            await places.enter_async_context(at_host)
            await places.enter_async_context(self.all)
            yield
