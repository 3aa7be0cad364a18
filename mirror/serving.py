"""The serving side: a pack engine, the application that readers talk to, and where it listens.

Knows nothing of who keeps the repositories fresh: that is `mirror.mirroring`, in this process or,
with several workers, in another one.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
from aiohttp import web

from mirror import __version__
from mirror.access.doorkeeper import Doorkeeper
from mirror.access.forge import ForgeAccess
from mirror.access.oidc import Oidc
from mirror.access.tokens import Tokens
from mirror.config import EngineChoice, Settings
from mirror.errors import PackError
from mirror.metrics import Metrics
from mirror.places import DataDirectory
from mirror.refresh.announcements import Announcer
from mirror.refresh.lfs import LfsSource
from mirror.refresh.refresher import Trigger
from mirror.refresh.registry import Registry
from mirror.repository.lfs_store import LfsStore
from mirror.repository.packing.auto_engine import AutoEngine
from mirror.repository.packing.dulwich_engine import DulwichEngine
from mirror.repository.packing.engine import PackEngine
from mirror.repository.packing.git_engine import GitEngine
from mirror.repository.packing.pack_cache import PackCache
from mirror.repository.packing.pack_store import PackStore
from mirror.repository.packing.spawner import Spawner
from mirror.upstream.connect import Sessions, open_sessions
from mirror.upstream.forges import RECEIVERS
from mirror.upstream.keyring import Keyring
from mirror.upstream.line import Line
from mirror.web.app import build_app
from mirror.web.bundle_files import BundleFiles
from mirror.web.connections import Crowd, places_for
from mirror.web.fetch import Fetches
from mirror.web.forwarded import Proxies
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

logger = structlog.stdlib.get_logger()


@asynccontextmanager
async def open_engine(choice: EngineChoice) -> AsyncIterator[PackEngine]:
    """Provide the pack engine that the configuration asks for.

    Raises:
        PackError: It asks for git, and there is none that will do.
    """
    with ExitStack() as stack:
        if choice is EngineChoice.DULWICH:
            yield stack.enter_context(closing(DulwichEngine()))
            return
        spawner = stack.enter_context(closing(Spawner()))
        try:
            git = await GitEngine.find(spawner)
        except PackError as error:
            if choice is EngineChoice.GIT:
                raise
            logger.info("no_usable_git", reason=str(error))
            yield stack.enter_context(closing(DulwichEngine()))
            return
        if choice is EngineChoice.GIT:
            yield git
        else:
            yield AutoEngine(git, stack.enter_context(closing(DulwichEngine())))


def build_metrics(engine: PackEngine) -> Metrics:
    """Make the metrics of a process, with every series that matters at 0."""
    metrics = Metrics(__version__)
    metrics.create_series(
        operations=Operation, triggers=Trigger, forges=RECEIVERS, engines=[engine.name]
    )
    return metrics


def lfs_store(settings: Settings) -> LfsStore:
    """Return the store of LFS objects; one process prepares it and writes there, all read."""
    bytes_max = settings.limits.lfs_cache_bytes_max
    return LfsStore(DataDirectory(settings.data_dir).lfs, bytes_max=bytes_max)


@dataclass(frozen=True, slots=True)
class Share:
    """A process's part of the work for readers.

    Attributes:
        processes: How many share the limits on packs.
        serves: Whether this one serves readers; else it only keeps packs for those that do.
        is_first: Whether it is the first to use the data directory, and clears up.
    """

    processes: int = 1
    serves: bool = True
    is_first: bool = True


async def open_packs(
    stack: AsyncExitStack,
    settings: Settings,
    engine: PackEngine,
    metrics: Metrics,
    share: Share,
) -> PackCache:
    """Provide the packs for readers; `stack` gets the end of those being built.

    Raises:
        LocalError: The directory can't be used.
    """
    limits = settings.limits
    store = PackStore(
        DataDirectory(settings.data_dir).packs,
        bytes_max=limits.pack_cache_bytes_max,
        memory_bytes_max=limits.pack_cache_memory_bytes_max // share.processes * share.serves,
    )
    if share.is_first:
        await asyncio.to_thread(store.prepare)
    packs = PackCache(
        engine,
        store,
        builds_max=-(-limits.pack_builds_max // share.processes),
        queued_max=-(-limits.pack_builds_queued_max // share.processes),
        is_shared=share.processes > 1,
        metrics=metrics,
    )
    stack.push_async_callback(packs.close)
    return packs


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
) -> web.AppRunner:
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
    keyring = Keyring(
        sessions.configured, agent=AGENT
    )  # for its routes: clients' credentials are their own
    pushes = Pushes(sessions, keyring, announcer, metrics, settings.limits, processes=processes)
    guard = open_guard(stack, settings, registry, sessions, keyring, metrics)
    smart_http = SmartHttp(
        guard,
        fetches,
        pushes,
        metrics,
        agent=AGENT,
        request_bytes_max=settings.limits.request_bytes_max,
    )
    objects = lfs_store(settings)
    lfs_handlers = LfsHandlers(guard, objects, lfs, metrics, settings.limits)
    bundles = BundleFiles(guard, DataDirectory(settings.data_dir))
    webhooks = Webhooks(registry, metrics, announcer)
    monitoring = Monitoring(registry, figures, guard)
    places = places_for(settings.limits.connections_max, processes=processes)
    crowd = Crowd(metrics, places=places)
    lane = None
    if settings.server.fast_lane:
        lane = open_fast_lane(
            metrics, crowd, keepalive_seconds=KEEPALIVE_SECONDS, proxies=guard.proxies
        )
    app = build_app(
        smart_http,
        bundles,
        lfs_handlers,
        webhooks,
        monitoring,
        metrics,
        proxies=guard.proxies,
        lane=lane,
    )
    return await open_runner(stack, app, partial(CrowdRunner, crowd=crowd, lane=lane))


def open_guard(
    stack: AsyncExitStack,
    settings: Settings,
    registry: Registry,
    sessions: Sessions,
    keyring: Keyring,
    metrics: Metrics,
) -> Guard:
    """Build what lets readers in; `stack` gets the end of the questions it asks."""
    readers = settings.readers
    oidc = Oidc(sessions.configured, readers.oidc)
    stack.push_async_callback(oidc.close)

    def line_to(name: str) -> Line:
        repository = registry.resolve(name)
        return Line(sessions.of(repository), keyring.route(repository))

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
        registry,
        doorkeeper,
        Proxies(
            settings.server.trusted_proxies, trusts_local=settings.server.unix_socket is not None
        ),
        metrics,
        monitoring_from=settings.server.monitoring_from,
    )


async def open_tls(
    stack: AsyncExitStack, settings: Settings, metrics: Metrics
) -> ssl.SSLContext | None:
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
    return tls.context


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
