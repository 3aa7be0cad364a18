"""The serving side: a pack engine, the application that readers talk to, and where it listens.

Knows nothing of who keeps the repositories fresh: that is `mirror.mirroring`, in this process or,
with several workers, in another one.
"""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
from aiohttp import web

from mirror import __version__
from mirror.config import EngineChoice, ListenAddress, Settings
from mirror.errors import LocalError, PackError
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
from mirror.upstream.connect import open_session
from mirror.upstream.forges import RECEIVERS
from mirror.web.app import build_app
from mirror.web.bundle_files import BundleFiles
from mirror.web.fast_lane import FastLane
from mirror.web.fetch import Fetches
from mirror.web.lane_runner import FastLaneRunner, open_fast_lane
from mirror.web.lfs import LfsHandlers
from mirror.web.monitoring import Figures, Monitoring
from mirror.web.protocol import Operation
from mirror.web.push import Pushes
from mirror.web.smart_http import SmartHttp
from mirror.web.webhooks import Webhooks

AGENT: Final = f"git-mirror/{__version__}".encode()
SHUTDOWN_SECONDS_MAX: Final = 10.0
"""aiohttp waits that long twice: for handlers to end, and again once they are cancelled."""

HEADER_BYTES_MAX: Final = 32 * 1024
"""Tokens in an Authorization header can be long."""

KEEPALIVE_SECONDS: Final = 75.0
BACKLOG: Final = 1024

_EVERY_IPV6: Final = "::"
_EVERY_IPV4: Final = "0.0.0.0"  # noqa: S104 - where the configuration asks for every address
_LACKING: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
"""What a machine without IPv6 says of its addresses."""

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
    session = await stack.enter_async_context(open_session())
    pushes = Pushes(session, announcer, metrics, settings.limits, processes=processes)
    smart_http = SmartHttp(
        registry,
        fetches,
        pushes,
        metrics,
        agent=AGENT,
        request_bytes_max=settings.limits.request_bytes_max,
    )
    objects = lfs_store(settings)
    lfs_handlers = LfsHandlers(registry, objects, lfs, metrics, settings.limits)
    bundles = BundleFiles(registry, DataDirectory(settings.data_dir))
    webhooks = Webhooks(registry, metrics, announcer)
    monitoring = Monitoring(registry, figures)
    lane = None
    if settings.server.fast_lane:
        lane = open_fast_lane(metrics, keepalive_seconds=KEEPALIVE_SECONDS)
    app = build_app(smart_http, bundles, lfs_handlers, webhooks, monitoring, metrics, lane=lane)
    return await open_runner(stack, app, lane)


async def open_runner(
    stack: AsyncExitStack, app: web.Application, lane: FastLane | None = None
) -> web.AppRunner:
    """Make ready to serve `app`; `stack` gets its end, which waits for answers under way."""
    make = web.AppRunner if lane is None else partial(FastLaneRunner, lane=lane)
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


async def listen(
    runner: web.AppRunner, address: ListenAddress, *, is_shared: bool = False
) -> ListenAddress:
    """Accept connections; returns where, for port 0 lets the system choose.

    Args:
        runner: Serves them.
        address: Where.
        is_shared: Other processes of ours accept connections there too (SO_REUSEPORT).

    Raises:
        LocalError: The address is not to be had.
    """
    bound = await bind(address, is_shared=is_shared)
    host, port = bound[0].getsockname()[:2]
    try:
        while bound:
            await web.SockSite(runner, bound[0], backlog=BACKLOG).start()
            del bound[0]  # now the site's
    except OSError as error:
        raise cannot_listen(address, error) from error
    finally:
        for left in bound:
            left.close()
    return ListenAddress(host, port)


async def bind(address: ListenAddress, *, is_shared: bool = False) -> list[socket.socket]:
    """Take every address that `address` stands for, all with one port; at least one.

    A name may stand for several. What the machine lacks, IPv6 or IPv4, is left out where there is
    something else.

    Args:
        address: The configured one; the system chooses a port instead of 0.
        is_shared: See `listen`.

    Raises:
        LocalError: One of them is taken, or there is none.
    """
    bound: list[socket.socket] = []
    lacking: OSError | None = None
    port = address.port
    try:
        for family, place in await _places(address):
            try:
                one = _bound(family, (place[0], port, *place[2:]), is_shared=is_shared)
            except OSError as error:
                if error.errno not in _LACKING:
                    raise
                lacking = error
                continue
            bound.append(one)
            port = one.getsockname()[1]
        if lacking is not None and not bound:
            raise lacking
    except OSError as error:
        for one in bound:
            one.close()
        raise cannot_listen(address, error) from error
    return bound


async def _places(address: ListenAddress) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    found = await asyncio.get_running_loop().getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    places = [(family, place) for family, _, _, _, place in found]
    if places[0][1][0] == _EVERY_IPV6:
        # One socket could do for both, but would show IPv4 clients under names of IPv6.
        places.append((socket.AF_INET, (_EVERY_IPV4, address.port)))
    return list(dict.fromkeys(places))


def _bound(
    family: socket.AddressFamily, place: tuple[Any, ...], *, is_shared: bool
) -> socket.socket:
    with ExitStack() as stack:
        one = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(place)
        stack.pop_all()
        return one


def cannot_listen(address: ListenAddress, error: OSError) -> LocalError:
    """Return the error to raise where an address can't be listened on."""
    return LocalError(
        f"can't listen on {address}: {error.strerror}; is another service using the port?"
    )
