"""Where readers come in, and who answers them: this process alone, or several workers."""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from mirror.config import Settings
from mirror.errors import LocalError
from mirror.metrics import Metrics
from mirror.pulling import PullThrough
from mirror.refresh.announcements import Announcer
from mirror.refresh.foresight import Foresight
from mirror.refresh.lfs import LargeFiles
from mirror.refresh.registry import Registry
from mirror.repository.packing.pack_cache import PackCache
from mirror.serving import Serving, open_app
from mirror.web.canary import ask_canary
from mirror.web.fetch import Fetches
from mirror.web.front import LET_GO_SECONDS
from mirror.web.listeners import Listeners
from mirror.web.listening import accept, cannot_listen
from mirror.web.monitoring import OwnFigures
from mirror.web.tls import Tls

if TYPE_CHECKING:
    from mirror.workers.supervisor import Supervisor


class Doors:
    """All processes that serve readers.

    Attributes:
        serving: What serves them, where this process does.
        supervisor: Keeps the workers, where there are several.
    """

    def __init__(self, listeners: Listeners, tls: Tls | None, *, workers: int) -> None:
        self.serving: Serving | None = None
        self.supervisor: Supervisor | None = None
        self._listeners = listeners
        self._tls = tls
        self._workers = workers

    @property
    def url(self) -> str:
        """Where readers connect to."""
        return f"{'http' if self._tls is None else 'https'}://{self._listeners.address}"

    @property
    def _context(self) -> ssl.SSLContext | None:
        return None if self._tls is None else self._tls.context

    async def open(
        self,
        stack: AsyncExitStack,
        settings: Settings,
        registry: Registry,
        metrics: Metrics,
        *,
        packs: PackCache,
        foresight: Foresight,
        announcer: Announcer,
        figures: OwnFigures,
        lfs: LargeFiles,
        pulling: PullThrough,
        own: Callable[..., None],
    ) -> None:
        """Serve from now on; `stack` gets the end of that.

        Args:
            stack: Ends it, after what is under way.
            settings: The configuration.
            registry: The repositories.
            metrics: Of this process.
            packs: Made for readers.
            foresight: Makes them ahead.
            announcer: Takes what webhooks say.
            figures: What /metrics and /status.json tell.
            lfs: Where LFS objects come from.
            pulling: Told of the workers.
            own: Takes tasks that should never end.

        Raises:
            LocalError: Nobody can listen there, or no worker comes to.
        """
        if self._workers > 1:
            # Only here: the single process is to pay nothing for what it does not use.
            from mirror.workers.supervisor import Supervisor  # noqa: PLC0415

            self.supervisor = Supervisor(
                settings,
                registry,
                metrics,
                announcer=announcer,
                figures=figures,
                lfs=lfs,
                listeners=self._listeners,
                count=self._workers,
            )
            pulling.served_by(self.supervisor)  # before one can ask for a first clone
            stack.push_async_callback(self.supervisor.close)
            own(*await self.supervisor.start())
            return
        metrics.set_workers(1)
        serving = self.serving = await open_app(
            stack,
            settings,
            registry,
            metrics,
            fetches=Fetches(packs, foresight, metrics),
            announcer=announcer,
            figures=figures,
            lfs=lfs,
        )
        listeners = self._listeners
        unix = [listeners.unix] if listeners.unix is not None else []
        try:
            await accept(serving.runner, [*unix, *listeners.of()], tls=self._context)
        except OSError as error:
            raise cannot_listen(listeners.address, error) from error

    async def leave(self, seconds_max: float) -> None:
        """Accept nothing more; returns when nobody is shown refs any more."""
        if self.serving is not None:
            await self.serving.front.leave(let_go_seconds=min(LET_GO_SECONDS, seconds_max))
        if self.supervisor is not None:
            await self.supervisor.leave()

    async def finish(self, seconds_max: float) -> None:
        """Let end what is under way, for so long at most."""
        if self.serving is not None:
            await self.serving.front.finish(seconds_max)
        if self.supervisor is not None:
            await self.supervisor.close(seconds_max)

    async def canary(self, seconds_max: float) -> None:
        """Put a real request to ourselves, and one to every worker.

        Raises:
            LocalError: One is not answered in time.
        """
        try:
            async with asyncio.timeout(seconds_max):
                # The workers first: one that hangs is to be found, whoever accepts the other.
                if self.supervisor is not None:
                    await self.supervisor.canaries(seconds_max / 2)
                await ask_canary(self._listeners.address, self._context)
        except TimeoutError:
            raise LocalError(f"no answer to our own request in {seconds_max:.0f} s") from None
        except OSError as error:
            raise LocalError(f"no connection to ourselves: {error}") from error
