"""The serving side: a pack engine, the application that readers talk to, and where it listens.

Knows nothing of who keeps the repositories fresh: that is `mirror.mirroring`, in this process or,
with several workers, in another one.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
from aiohttp import web

from mirror import __version__
from mirror.config import EngineChoice, ListenAddress, Settings
from mirror.errors import LocalError, PackError
from mirror.metrics import Metrics
from mirror.places import DataDirectory
from mirror.refresh.announcements import Announcer
from mirror.refresh.refresher import Trigger
from mirror.refresh.registry import Registry
from mirror.repository.packing.builds import PackBuilds
from mirror.repository.packing.dulwich_engine import DulwichEngine
from mirror.repository.packing.engine import PackEngine
from mirror.repository.packing.git_engine import GitEngine
from mirror.repository.packing.spawner import Spawner
from mirror.upstream.forges import RECEIVERS
from mirror.web.app import build_app
from mirror.web.monitoring import Figures, Monitoring
from mirror.web.protocol import Operation
from mirror.web.smart_http import SmartHttp
from mirror.web.webhooks import Webhooks

AGENT: Final = f"git-mirror/{__version__}".encode()
SHUTDOWN_SECONDS_MAX: Final = 10.0
"""aiohttp waits that long twice: for handlers to end, and again once they are cancelled."""

HEADER_BYTES_MAX: Final = 32 * 1024
"""Tokens in an Authorization header can be long."""

KEEPALIVE_SECONDS: Final = 75.0
BACKLOG: Final = 1024

logger = structlog.stdlib.get_logger()


@asynccontextmanager
async def open_engine(choice: EngineChoice) -> AsyncIterator[PackEngine]:
    """Provide the pack engine that the configuration asks for.

    Raises:
        PackError: It asks for git, and there is none that will do.
    """
    if choice is not EngineChoice.DULWICH:
        spawner = Spawner()
        try:
            engine = await GitEngine.find(spawner)
        except PackError as error:
            spawner.close()
            if choice is EngineChoice.GIT:
                raise
            logger.info("no_usable_git", reason=str(error))
        else:
            try:
                yield engine
            finally:
                spawner.close()
            return
    in_process = DulwichEngine()
    try:
        yield in_process
    finally:
        in_process.close()


def build_metrics(engine: PackEngine) -> Metrics:
    """Make the metrics of a process, with every series that matters at 0."""
    metrics = Metrics(__version__)
    metrics.create_series(
        operations=Operation, triggers=Trigger, forges=RECEIVERS, engines=[engine.name]
    )
    return metrics


async def open_app(
    stack: AsyncExitStack,
    settings: Settings,
    registry: Registry,
    engine: PackEngine,
    metrics: Metrics,
    *,
    announcer: Announcer,
    figures: Figures,
    processes: int,
) -> web.AppRunner:
    """Build what serves `registry`, not listening yet; `stack` gets what is to be closed.

    Args:
        stack: Ends in the opposite order: the application first, then the builds.
        settings: The configuration.
        registry: The repositories.
        engine: Makes the packs.
        metrics: Of this process.
        announcer: Takes what webhooks say.
        figures: What /metrics and /status.json tell.
        processes: How many share the limits on pack builds.
    """
    limits = settings.limits
    builds = PackBuilds(
        engine,
        directory=DataDirectory(settings.data_dir).spool,
        builds_max=-(-limits.pack_builds_max // processes),
        queued_max=-(-limits.pack_builds_queued_max // processes),
        metrics=metrics,
    )
    stack.push_async_callback(builds.close)
    smart_http = SmartHttp(
        registry, builds, metrics, agent=AGENT, request_bytes_max=limits.request_bytes_max
    )
    webhooks = Webhooks(registry, metrics, announcer)
    monitoring = Monitoring(registry, figures)
    return await open_runner(stack, build_app(smart_http, webhooks, monitoring, metrics))


async def open_runner(stack: AsyncExitStack, app: web.Application) -> web.AppRunner:
    """Make ready to serve `app`; `stack` gets its end, which waits for answers under way."""
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
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
    site = web.TCPSite(
        runner, address.host, address.port, backlog=BACKLOG, reuse_port=is_shared or None
    )
    try:
        await site.start()
    except OSError as error:
        raise cannot_listen(address, error) from error
    host, port = runner.addresses[0][:2]
    return ListenAddress(host, port)


def cannot_listen(address: ListenAddress, error: OSError) -> LocalError:
    """Return the error to raise where an address can't be listened on."""
    return LocalError(
        f"can't listen on {address}: {error.strerror}; is another service using the port?"
    )
