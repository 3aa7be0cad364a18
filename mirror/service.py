"""The composition root: builds every part, and owns their start and stop.

data_dir/
lock            held while a process uses the directory
control.sock    what `git-mirror sync` talks to
repositories/   the bare mirrors, by name
staging/        first clones under way; cleared at the start
packs/          packs that were made for readers, to be used again; may be removed at any time
set-aside/      mirrors that could not be used; kept for a look, never served
"""

import asyncio
import fcntl
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog
from aiohttp import web

from mirror import __version__
from mirror.config import EngineChoice, RepositorySettings, Settings
from mirror.errors import LocalError, MirrorError, PackError
from mirror.metrics import Metrics
from mirror.refresh.foresight import Foresight
from mirror.refresh.gate import Gate
from mirror.refresh.mirror import Mirror
from mirror.refresh.refresher import Refresher, RefreshPlaces, Trigger
from mirror.refresh.registry import Hosted, Registry
from mirror.refresh.update import Updater
from mirror.repository.bare import BareRepository
from mirror.repository.packing.auto_engine import AutoEngine
from mirror.repository.packing.dulwich_engine import DulwichEngine
from mirror.repository.packing.engine import PackEngine
from mirror.repository.packing.git_engine import GitEngine
from mirror.repository.packing.pack_cache import PackCache
from mirror.repository.packing.pack_store import PackStore
from mirror.repository.packing.spawner import Spawner
from mirror.upstream.connect import open_session, remote_for
from mirror.upstream.credentials import SecretFile
from mirror.upstream.forges import RECEIVERS
from mirror.web.app import build_app
from mirror.web.control import build_control_app
from mirror.web.fast_lane import FastLane, FastLaneRunner, open_fast_lane
from mirror.web.fetch import Fetches
from mirror.web.monitoring import Monitoring
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

Watch = Callable[[Mirror], None]

logger = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The places below `data_dir`."""

    root: Path

    @property
    def control(self) -> Path:
        """The control socket."""
        return self.root / "control.sock"

    @property
    def staging(self) -> Path:
        """First clones under way."""
        return self.root / "staging"

    @property
    def packs(self) -> Path:
        """Packs made for readers."""
        return self.root / "packs"

    @property
    def set_aside(self) -> Path:
        """Mirrors that could not be used."""
        return self.root / "set-aside"

    def repository(self, name: str) -> Path:
        """The mirror of one repository."""
        return self.root / "repositories" / f"{name}.git"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the places, hold the lock, clear what a crash left.

        Raises:
            LocalError: They can't be made, or another process has the lock.
        """
        try:
            for place in (self.root, self.root / "repositories", self.packs, self.set_aside):
                place.mkdir(parents=True, exist_ok=True, mode=0o750)
            lock = (self.root / "lock").open("ab")
        except OSError as error:
            raise LocalError(f"can't use data_dir {self.root}: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataDirectoryInUse(
                    f"{self.root} is in use by another git-mirror; stop that one first"
                ) from None
            try:
                shutil.rmtree(self.staging, ignore_errors=True)
                self.staging.mkdir(exist_ok=True, mode=0o750)
                yield
            finally:
                # Not by closing alone: a child that a thread is starting at this very moment has
                # the file open too, until it has become another program.
                fcntl.flock(lock, fcntl.LOCK_UN)


class DataDirectoryInUse(LocalError):
    """Another process works on the same data directory."""

    label = "data_dir_in_use"


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


class Service:
    """The running service: `async with Service(settings) as service: await service.wait()`."""

    def __init__(self, settings: Settings, *, watch: Watch | None = None) -> None:
        self.settings = settings
        self.registry = Registry([])
        self.url = ""
        self._watch = watch
        self._places = DataDirectory(settings.data_dir)
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Service":
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def wait(self) -> None:
        """Wait until a part ends that should never end, and raise what it raised."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _start(self) -> None:
        """Start from the bottom up; what is entered here is left in the opposite order."""
        stack, settings = self._stack, self.settings
        stack.enter_context(self._places.held())
        engine = await stack.enter_async_context(open_engine(settings.engine))
        session = await stack.enter_async_context(open_session())
        metrics = Metrics(__version__)
        metrics.create_series(
            operations=Operation, triggers=Trigger, forges=RECEIVERS, engines=[engine.name]
        )
        packs = await self._open_packs(engine, metrics)
        foresight = Foresight(packs, metrics)
        stack.push_async_callback(foresight.close)
        updater = Updater(engine, staging=self._places.staging, agent=AGENT)
        places = RefreshPlaces.of(settings.limits.refreshes_max)
        hosted = []
        for repository in settings.repositories.values():
            mirror = await asyncio.to_thread(open_mirror, repository, self._places, updater)
            mirror.watch = self._watch
            refresher = Refresher(
                mirror,
                remote_for(session, repository, settings.limits, agent=AGENT),
                updater,
                engine,
                places=places,
                metrics=metrics,
                refresh_seconds_max=settings.limits.refresh_timeout_seconds,
                on_published=foresight.published,
            )
            hosted.append(_hosted(mirror, refresher, repository))
            stack.callback(_close, mirror)
        self.registry = Registry(hosted)
        stack.push_async_callback(self._end_tasks)
        self._tasks = [
            asyncio.create_task(one.refresher.run(), name=f"refresh {one.mirror.name}")
            for one in hosted
        ]
        await self._listen(engine, Fetches(packs, foresight, metrics), metrics)
        logger.info(
            "serving",
            url=self.url,
            repositories=len(self.registry),
            mirrored=sum(one.mirror.snapshot is not None for one in self.registry),
            engine=engine.name,
            engine_version=engine.version,
            version=__version__,
        )

    async def _open_packs(self, engine: PackEngine, metrics: Metrics) -> PackCache:
        limits = self.settings.limits
        store = PackStore(
            self._places.packs,
            bytes_max=limits.pack_cache_bytes_max,
            memory_bytes_max=limits.pack_cache_memory_bytes_max,
        )
        await asyncio.to_thread(store.prepare)
        packs = PackCache(
            engine,
            store,
            builds_max=limits.pack_builds_max,
            queued_max=limits.pack_builds_queued_max,
            metrics=metrics,
        )
        self._stack.push_async_callback(packs.close)
        return packs

    async def _listen(self, engine: PackEngine, fetches: Fetches, metrics: Metrics) -> None:
        smart_http = SmartHttp(
            self.registry,
            fetches,
            metrics,
            agent=AGENT,
            request_bytes_max=self.settings.limits.request_bytes_max,
        )
        webhooks = Webhooks(self.registry, metrics)
        monitoring = Monitoring(self.registry, metrics, engine)
        lane = None
        if self.settings.server.fast_lane:
            lane = open_fast_lane(metrics, keepalive_seconds=KEEPALIVE_SECONDS)
        app = build_app(smart_http, webhooks, monitoring, metrics, lane=lane)
        runner = await self._runner(app, lane)
        listen = self.settings.server.listen
        try:
            await web.TCPSite(runner, listen.host, listen.port, backlog=BACKLOG).start()
        except OSError as error:
            raise LocalError(
                f"can't listen on {listen}: {error.strerror}; is another service using the port?"
            ) from error
        host, port = runner.addresses[0][:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        control = await self._runner(build_control_app(self.registry))
        self._places.control.unlink(missing_ok=True)
        await web.UnixSite(control, str(self._places.control)).start()
        self._places.control.chmod(0o600)

    async def _runner(self, app: web.Application, lane: FastLane | None = None) -> web.AppRunner:
        make = web.AppRunner if lane is None else partial(FastLaneRunner, lane=lane)
        runner = make(
            app,
            access_log=None,
            handle_signals=False,
            max_field_size=HEADER_BYTES_MAX,
            keepalive_timeout=KEEPALIVE_SECONDS,
            shutdown_timeout=SHUTDOWN_SECONDS_MAX,
        )
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        return runner

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _hosted(mirror: Mirror, refresher: Refresher, settings: RepositorySettings) -> Hosted:
    secret = settings.webhook_secret_file
    return Hosted(
        mirror, refresher, Gate(mirror, refresher), SecretFile(secret) if secret else None
    )


def _close(mirror: Mirror) -> None:
    if mirror.repository is not None:
        mirror.repository.close()


def open_mirror(settings: RepositorySettings, places: DataDirectory, updater: Updater) -> Mirror:
    """Open a repository's mirror if there is one on disk; blocking.

    One that can't be read, or that is of another upstream, is set aside and cloned anew.
    """
    mirror = Mirror(settings, places.repository(settings.name))
    if not mirror.path.exists():
        return mirror
    repository = None
    try:
        repository = BareRepository.open(mirror.path)
        _check_upstream(repository, settings)
        mirror.snapshot = updater.open(repository)
        mirror.repository = repository
    except LocalError as error:
        if repository is not None:
            repository.close()
        aside = places.set_aside / f"{settings.name.replace('/', '%2F')}.{time.time_ns()}.git"
        mirror.path.rename(aside)
        logger.warning(
            "mirror_set_aside", repository=settings.name, reason=str(error), path=str(aside)
        )
    return mirror


def _check_upstream(repository: BareRepository, settings: RepositorySettings) -> None:
    if repository.upstream_url != settings.upstream:
        raise LocalError(
            f"it mirrors {repository.upstream_url}; the configuration says {settings.upstream}"
        )


async def sync_once(settings: Settings, name: str, *, watch: Watch | None) -> Mirror:
    """Refresh one repository without a running service; returns what came of it.

    Raises:
        DataDirectoryInUse: There is a running service.
        MirrorError: The refresh failed.
    """
    places = DataDirectory(settings.data_dir)
    async with AsyncExitStack() as stack:
        stack.enter_context(places.held())
        engine = await stack.enter_async_context(open_engine(settings.engine))
        session = await stack.enter_async_context(open_session())
        updater = Updater(engine, staging=places.staging, agent=AGENT)
        repository = settings.repositories[name]
        mirror = await asyncio.to_thread(open_mirror, repository, places, updater)
        mirror.watch = watch
        stack.callback(_close, mirror)
        remote = remote_for(session, repository, settings.limits, agent=AGENT)
        updated = await updater.update(mirror, remote)
        mirror.repository, mirror.snapshot = updated.repository, updated.snapshot
        return mirror


async def probe(settings: Settings) -> dict[str, str | None]:
    """Reach every upstream; returns what is wrong with each, `None` for nothing."""
    limit = asyncio.Semaphore(settings.limits.refreshes_max)
    async with open_session() as session:

        async def look(repository: RepositorySettings) -> str | None:
            remote = remote_for(session, repository, settings.limits, agent=AGENT)
            async with limit:
                try:
                    listing = await remote.list_refs([b"refs/heads/"])
                except MirrorError as error:
                    return str(error)
            if remote.moved_to is not None:
                return f"it has moved: put upstream: {remote.moved_to} into the configuration"
            return None if listing.refs else "it is empty: no branch yet"

        found = await asyncio.gather(*map(look, settings.repositories.values()))
    return dict(zip(settings.repositories, found, strict=True))
