"""The serving side: the application that readers talk to, and how it listens.

Knows nothing of who keeps the repositories fresh: that is `mirror.mirroring`, in this process or,
with several workers, in another one.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from aiohttp import web

from mirror import __version__
from mirror.access.doorkeeper import Doorkeeper
from mirror.access.forge import ForgeAccess
from mirror.access.oidc import Oidc
from mirror.access.tokens import Tokens
from mirror.config import Settings
from mirror.metrics import Metrics
from mirror.places import DataDirectory
from mirror.refresh.announcements import Announcer
from mirror.refresh.lfs import LfsSource
from mirror.refresh.refresher import Trigger
from mirror.refresh.registry import Registry, unknown
from mirror.repository.integrity import Kind
from mirror.repository.packing.engine import PackEngine
from mirror.stores import lfs_store
from mirror.upstream.connect import Sessions, admit_places, open_sessions
from mirror.upstream.forges import RECEIVERS
from mirror.upstream.keyring import Keyring
from mirror.upstream.line import Line
from mirror.web.app import build_app
from mirror.web.bundle_files import BundleFiles
from mirror.web.connections import Crowd, places_for
from mirror.web.editions import Edition, Editions
from mirror.web.fetch import Fetches
from mirror.web.forwarded import Proxies
from mirror.web.front import Front, Traffic
from mirror.web.guard import Guard
from mirror.web.lane_runner import CrowdRunner, open_fast_lane
from mirror.web.lfs import LfsHandlers
from mirror.web.monitoring import Figures, Monitoring
from mirror.web.protocol import Operation
from mirror.web.push import Pushes
from mirror.web.smart_http import SmartHttp
from mirror.web.tls import Tls
from mirror.web.webhooks import Webhooks

AGENT: Final = f"git-mirror/{__version__}".encode()
SHUTDOWN_SECONDS_MAX: Final = 10.0
"""aiohttp waits that long twice: for handlers to end, and again once they are cancelled."""

HEADER_BYTES_MAX: Final = 32 * 1024
"""Tokens in an Authorization header can be long."""

KEEPALIVE_SECONDS: Final = 75.0


def build_metrics(engine: PackEngine) -> Metrics:
    """Make the metrics of a process, with every series that matters at 0."""
    metrics = Metrics(__version__)
    metrics.create_series(
        operations=Operation,
        triggers=Trigger,
        forges=RECEIVERS,
        engines=[engine.name],
        damage=Kind,
    )
    return metrics


class Serving:
    """What serves readers in this process, by the configuration of the moment.

    Attributes:
        front: What faces readers: the runner of the application, and its requests.
    """

    front: Front

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        sessions: Sessions,
        *,
        fetches: Fetches,
        announcer: Announcer,
        figures: Figures,
        lfs: LfsSource,
        processes: int,
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._sessions = sessions
        # For its routes: clients' credentials are their own.
        self._keyring = Keyring(sessions.configured, agent=AGENT)
        self._fetches = fetches
        self._announcer = announcer
        self._figures = figures
        self._lfs = lfs
        self._processes = processes
        self._traffic = Traffic()
        self._editions: Editions | None = None

    async def open(self, stack: AsyncExitStack, settings: Settings) -> None:
        """Serve by `settings`, not listening yet; `stack` gets the end of that."""
        edition = self._edition(settings)
        places = places_for(settings.limits.connections_max, processes=self._processes)
        crowd = Crowd(self._metrics, places=places)
        lane = None
        if settings.server.fast_lane:
            proxies = edition.guard.proxies
            lane = open_fast_lane(
                self._metrics, crowd, keepalive_seconds=KEEPALIVE_SECONDS, proxies=proxies
            )
        self._editions = editions = Editions(edition, lane)
        stack.push_async_callback(editions.close)
        app = build_app(
            editions, self._metrics, traffic=self._traffic, turns=crowd.turns, lane=lane
        )
        make = partial(CrowdRunner, crowd=crowd, lane=lane)
        self.front = Front(await open_runner(stack, app, make), lane, self._traffic)

    @property
    def runner(self) -> web.AppRunner:
        """Runs the application."""
        return self.front.runner

    def change(self, old: Settings, new: Settings, before: Registry) -> None:
        """Serve by `new` from now on; requests under way go on by `old`, with what is `before`.

        What the registry has is to be changed in the same step of the event loop.
        """
        editions = self._editions
        if editions is None:
            raise RuntimeError("nothing is served yet")

        def is_same(name: str) -> bool:
            was, now = old.find(name), new.find(name)
            if was is None or now is None:
                return False
            return (was.upstream, was.route) == (now.upstream, now.route)

        admit_places(self._sessions.guard, new)
        self._keyring.keep_routes(one.route for one in (*new.repositories.values(), *new.upstreams))
        edition = self._edition(new)
        edition.guard.doorkeeper.take_over(editions.edition.guard.doorkeeper, is_same=is_same)
        editions.change(edition, before)

    async def drained(self) -> None:
        """Wait until no request is under way by an earlier configuration."""
        if self._editions is not None:
            await self._editions.drained()

    def _edition(self, settings: Settings) -> Edition:
        stack = AsyncExitStack()
        guard = self._guard(stack, settings)
        limits, metrics = settings.limits, self._metrics
        pushes = Pushes(
            self._sessions,
            self._keyring,
            self._announcer,
            metrics,
            limits,
            processes=self._processes,
        )
        return Edition(
            guard,
            SmartHttp(
                guard,
                self._fetches,
                pushes,
                metrics,
                agent=AGENT,
                request_bytes_max=limits.request_bytes_max,
            ),
            BundleFiles(guard, DataDirectory(settings.data_dir)),
            LfsHandlers(guard, lfs_store(settings), self._lfs, metrics, limits),
            Webhooks(self._registry, metrics, self._announcer),
            Monitoring(self._registry, self._figures, guard, self._traffic),
            stack,
        )

    def _guard(self, stack: AsyncExitStack, settings: Settings) -> Guard:
        """Build what lets readers in; `stack` gets the end of the questions it asks."""
        readers = settings.readers
        oidc = Oidc(self._sessions.configured, readers.oidc)
        stack.push_async_callback(oidc.close)

        def line_to(name: str) -> Line:
            repository = settings.find(name)
            if repository is None:
                raise unknown(name)
            return Line(self._sessions.of(repository), self._keyring.route(repository))

        forge = ForgeAccess(
            line_to,
            valid_seconds=readers.upstream_valid_seconds,
            outage_seconds=readers.upstream_outage_seconds,
        )
        stack.push_async_callback(forge.close)
        doorkeeper = Doorkeeper(
            (one.access for one in (*settings.repositories.values(), *settings.upstreams)),
            Tokens(DataDirectory(settings.data_dir).tokens),
            oidc,
            forge,
            readers.certificates,
        )
        return Guard(
            self._registry,
            doorkeeper,
            Proxies(
                settings.server.trusted_proxies,
                trusts_local=settings.server.unix_socket is not None,
            ),
            self._metrics,
            monitoring_from=settings.server.monitoring_from,
        )


async def open_app(
    stack: AsyncExitStack,
    settings: Settings,
    registry: Registry,
    metrics: Metrics,
    *,
    fetches: Fetches,
    announcer: Announcer,
    figures: Figures,
    lfs: LfsSource,
    processes: int = 1,
) -> Serving:
    """Build what serves `registry`, not listening yet; `stack` gets its end.

    Args:
        stack: Takes the application's end, which waits for answers under way.
        settings: The configuration.
        registry: The repositories.
        metrics: Of this process.
        fetches: Answers fetches.
        announcer: Takes what webhooks say.
        figures: What /metrics and /status.json tell.
        lfs: Where LFS objects come from.
        processes: How many share the limits.
    """
    sessions = await stack.enter_async_context(open_sessions(settings))
    serving = Serving(
        registry,
        metrics,
        sessions,
        fetches=fetches,
        announcer=announcer,
        figures=figures,
        lfs=lfs,
        processes=processes,
    )
    await serving.open(stack, settings)
    return serving


async def open_tls(stack: AsyncExitStack, settings: Settings, metrics: Metrics) -> Tls | None:
    """Provide what a listener needs to speak TLS; `stack` gets the end of looking after it.

    Raises:
        LocalError: The certificates can't be loaded.
    """
    if settings.tls is None:
        return None
    tls = Tls(settings.tls, metrics)
    watching = asyncio.create_task(tls.run(), name="certificates")

    async def end() -> None:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    stack.push_async_callback(end)
    return tls


async def open_runner(
    stack: AsyncExitStack,
    app: web.Application,
    make: Callable[..., web.AppRunner] = web.AppRunner,
) -> web.AppRunner:
    """Make ready to serve `app`; `stack` gets its end, which waits for answers under way."""
    runner = make(
        app,
        access_log=None,
        handle_signals=False,
        auto_decompress=False,  # `mirror.web.protocol.read_body` does that, within its limits
        max_field_size=HEADER_BYTES_MAX,
        keepalive_timeout=KEEPALIVE_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS_MAX,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner
