"""The composition root: builds every part, and owns their start and stop."""

import asyncio
import os
import socket
import ssl
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from mirror import __version__
from mirror.config import ListenAddress, RepositorySettings, Settings
from mirror.errors import MirrorError
from mirror.metrics import Metrics
from mirror.mirroring import Mirroring, Watch, close_mirror, open_large_files, open_mirror
from mirror.places import DataDirectory
from mirror.pulling import PullThrough
from mirror.refresh.announcements import Announcements
from mirror.refresh.bundling import Bundler
from mirror.refresh.foresight import Foresight
from mirror.refresh.lfs import LargeFiles
from mirror.refresh.maintenance import Maintainer
from mirror.refresh.mirror import Mirror
from mirror.refresh.registry import Registry, unknown
from mirror.refresh.relay.relays import Relays, probe_receivers
from mirror.refresh.update import Updated, Updater
from mirror.repository.snapshot import RefSnapshot
from mirror.serving import (
    AGENT,
    Share,
    build_metrics,
    open_app,
    open_engine,
    open_packs,
    open_runner,
    open_tls,
)
from mirror.upstream.connect import open_keyring, open_session, open_sessions, remote_for
from mirror.web.control import build_control_app
from mirror.web.fetch import Fetches
from mirror.web.listening import bound_unix_socket, listen, listen_on_unix_socket
from mirror.web.monitoring import OwnFigures

if TYPE_CHECKING:
    from mirror.workers.supervisor import Supervisor

logger = structlog.stdlib.get_logger()


class Service:
    """The running service: `async with Service(settings) as service: await service.wait()`."""

    def __init__(self, settings: Settings, *, watch: Watch | None = None) -> None:
        self.settings = settings
        self.registry = Registry([])
        self.url = ""
        self.workers = 0
        self.supervisor: Supervisor | None = None  # where there are several workers
        self.bundler: Bundler | None = None  # once started
        self.maintainer: Maintainer | None = None  # the same
        self.pulling: PullThrough | None = None  # where there are `upstreams`
        self._watch = watch
        self._places = DataDirectory(settings.data_dir)
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._tls: ssl.SSLContext | None = None
        self._unix_socket: socket.socket | None = None

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
        sessions = await stack.enter_async_context(open_sessions(settings))
        keyring = await stack.enter_async_context(open_keyring(sessions.configured, agent=AGENT))
        metrics = build_metrics(engine)
        # Here, too, where workers serve: what is wrong with a certificate ends the start.
        self._tls = await open_tls(stack, settings, metrics)
        if settings.unix_socket is not None:
            self._unix_socket = stack.enter_context(bound_unix_socket(settings.unix_socket))
        self.workers = settings.server.workers or len(os.sched_getaffinity(0))
        share = Share(processes=self.workers, serves=self.workers == 1)
        packs = await open_packs(stack, settings, engine, metrics, share)
        foresight = Foresight(packs, metrics)
        stack.push_async_callback(foresight.close)
        bundler = Bundler(engine, self._places, metrics, bytes_max=settings.limits.bundle_bytes_max)

        def published(mirror: Mirror, before: RefSnapshot | None, updated: Updated) -> None:
            foresight.published(mirror, before, updated)
            bundler.published(mirror)

        relays = Relays(settings.relays, metrics, agent=AGENT.decode())
        mirroring = await Mirroring.open(
            stack,
            settings,
            engine,
            sessions,
            keyring,
            metrics,
            agent=AGENT,
            watch=self._watch,
            on_published=published,
            on_served=relays.served,
        )
        self.registry = mirroring.registry
        self.bundler = bundler
        self.maintainer = mirroring.maintainer
        stack.push_async_callback(bundler.close)
        lfs = await open_large_files(stack, settings, keyring, metrics, agent=AGENT)
        pulling = PullThrough(
            settings,
            mirroring,
            foresight,
            bundler,
            metrics,
            on_removed=[lfs.forget, relays.forget],
        )
        stack.push_async_callback(pulling.close)
        await pulling.reopen()
        if settings.upstreams:
            self.registry.opener = self.pulling = pulling
        await bundler.open(one.mirror for one in self.registry)
        await relays.open(stack, [one.mirror for one in self.registry], self._places)
        figures = OwnFigures(self.registry, metrics, engine, relays=relays.describe)
        if self.workers == 1:
            fetches = Fetches(packs, foresight, metrics)
            address = await self._serve(mirroring, fetches, figures, lfs, metrics)
        else:
            address = await self._serve_by_workers(mirroring, figures, lfs, metrics)
        self._tasks = [*self._tasks, bundler.start()]
        self.url = f"{'http' if settings.tls is None else 'https'}://{address}"
        self._tasks += relays.start(self._stack)
        if self.pulling is not None:
            self._tasks.append(asyncio.create_task(self.pulling.run(), name="pull-through"))
            stack.push_async_callback(_cancelled, self._tasks[-1])
        await self._listen_for_control(figures)
        logger.info(
            "serving",
            url=self.url,
            workers=self.workers,
            repositories=len(self.registry),
            mirrored=sum(one.mirror.snapshot is not None for one in self.registry),
            engine=engine.name,
            engine_version=engine.version,
            version=__version__,
        )

    async def _serve(
        self,
        mirroring: Mirroring,
        fetches: Fetches,
        figures: OwnFigures,
        lfs: LargeFiles,
        metrics: Metrics,
    ) -> ListenAddress:
        """Serve from this process."""
        metrics.set_workers(1)
        self._tasks = mirroring.start()
        runner = await open_app(
            self._stack,
            self.settings,
            self.registry,
            metrics,
            fetches=fetches,
            announcer=Announcements(mirroring.refreshers),
            figures=figures,
            lfs=lfs,
        )
        if self._unix_socket is not None:
            await listen_on_unix_socket(runner, self._unix_socket)
        return await listen(runner, self.settings.server.listen, tls=self._tls)

    async def _serve_by_workers(
        self, mirroring: Mirroring, figures: OwnFigures, lfs: LargeFiles, metrics: Metrics
    ) -> ListenAddress:
        """Serve from several processes, none of which is this one."""
        # Only here: the single process is to pay nothing for what it does not use.
        from mirror.workers.port import reserve  # noqa: PLC0415
        from mirror.workers.supervisor import Supervisor  # noqa: PLC0415

        address = await reserve(self._stack, self.settings.server.listen)
        self.supervisor = Supervisor(
            self.settings,
            self.registry,
            metrics,
            announcer=Announcements(mirroring.refreshers),
            figures=figures,
            lfs=lfs,
            address=address,
            count=self.workers,
            listener=self._unix_socket,
        )
        if self.pulling is not None:
            self.pulling.processes = self.supervisor
        self._tasks = mirroring.start()
        self._stack.push_async_callback(self.supervisor.close)
        self._tasks += await self.supervisor.start()
        return address

    async def _listen_for_control(self, figures: OwnFigures) -> None:
        control = await open_runner(self._stack, build_control_app(self.registry, figures))
        self._places.control.unlink(missing_ok=True)
        await web.UnixSite(control, str(self._places.control)).start()
        self._places.control.chmod(0o600)


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait((task,))


async def sync_once(
    settings: Settings, name: str, *, watch: Watch | None, accepts_deletions: bool = False
) -> Mirror:
    """Refresh one repository without a running service; returns what came of it.

    `accepts_deletions` is as for `Updater.update`.

    Raises:
        DataDirectoryInUse: There is a running service.
        MirrorError: The refresh failed, or there is no such repository.
    """
    places = DataDirectory(settings.data_dir)
    async with AsyncExitStack() as stack:
        stack.enter_context(places.held())
        engine = await stack.enter_async_context(open_engine(settings.engine))
        sessions = await stack.enter_async_context(open_sessions(settings))
        keyring = await stack.enter_async_context(open_keyring(sessions.configured, agent=AGENT))
        updater = Updater(engine, staging=places.staging, agent=AGENT)
        repository = settings.find(name)
        if repository is None:
            raise unknown(name)
        mirror = await asyncio.to_thread(open_mirror, repository, places, updater)
        mirror.watch = watch
        stack.callback(close_mirror, mirror)
        session = sessions.of(repository)
        remote = remote_for(session, keyring, repository, settings.limits, agent=AGENT)
        updated = await updater.update(mirror, remote, accepts_deletions=accepts_deletions)
        mirror.repository, mirror.snapshot = updated.repository, updated.snapshot
        await Maintainer(engine, Metrics(__version__), lambda: [mirror]).look_at(mirror)
        return mirror


async def probe_relays(settings: Settings) -> dict[str, str | None]:
    """Connect to every receiver of events; returns what is wrong with each, `None` for nothing."""
    return await probe_receivers(settings.relays.values())


async def probe(settings: Settings) -> dict[str, str | None]:
    """Reach every upstream; returns what is wrong with each, `None` for nothing."""
    limit = asyncio.Semaphore(settings.limits.refreshes_max)
    async with open_session() as session, open_keyring(session, agent=AGENT) as keyring:

        async def look(repository: RepositorySettings) -> str | None:
            remote = remote_for(session, keyring, repository, settings.limits, agent=AGENT)
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
