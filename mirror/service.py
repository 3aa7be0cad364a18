"""The composition root: builds every part, and owns their start and stop."""

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web

from mirror import __version__
from mirror.config import ListenAddress, LogSettings, RepositorySettings, Settings
from mirror.errors import LocalError, MirrorError
from mirror.making_room import disk_watch
from mirror.metrics import Metrics
from mirror.mirroring import Mirroring, Watch, close_mirror, open_large_files, open_mirror
from mirror.places import DataDirectory
from mirror.pulling import PullThrough
from mirror.refresh.announcements import Announcements
from mirror.refresh.bounds import Bounds
from mirror.refresh.bundling import Bundler
from mirror.refresh.disk_watch import DiskWatch
from mirror.refresh.foresight import Foresight
from mirror.refresh.lfs import LargeFiles
from mirror.refresh.maintenance import Maintainer
from mirror.refresh.mirror import Mirror
from mirror.refresh.registry import Registry, unknown
from mirror.refresh.relay.relays import Relays, probe_receivers
from mirror.refresh.scrub import Scrubber, Store
from mirror.refresh.update import Updated, Updater
from mirror.reload.changeover import Changeover, ConfigureLogs, Parts
from mirror.reload.figures import ReloadFigures
from mirror.reload.reloader import Reloader, Telling
from mirror.repository.snapshot import RefSnapshot
from mirror.serving import (
    AGENT,
    Serving,
    Share,
    build_metrics,
    open_app,
    open_engine,
    open_packs,
    open_runner,
    open_tls,
    room_of,
)
from mirror.space import disk_trouble
from mirror.upstream.connect import open_keyring, open_session, open_sessions, remote_for
from mirror.web.control import build_control_app
from mirror.web.fetch import Fetches
from mirror.web.listening import bound_unix_socket, listen, listen_on_unix_socket
from mirror.web.monitoring import OwnFigures
from mirror.web.tls import Tls

if TYPE_CHECKING:
    from mirror.workers.supervisor import Supervisor

logger = structlog.stdlib.get_logger()


def _log_as_before(log: LogSettings) -> None:
    """Be the `configure_logs` of a service that somebody else logs for."""


class Service:
    """The running service: `async with Service(settings) as service: await service.wait()`."""

    def __init__(
        self,
        settings: Settings,
        *,
        watch: Watch | None = None,
        configure_logs: ConfigureLogs = _log_as_before,
        telling_reloads: Telling = nullcontext,
    ) -> None:
        """Be ready to start.

        Args:
            settings: The configuration.
            watch: Called with each step of each refresh.
            configure_logs: Called when another configuration logs otherwise.
            telling_reloads: Entered while the configuration is read again; see `Reloader`.
        """
        self.started_with = settings
        self.registry = Registry([])
        self.url = ""
        self.workers = 0
        self.supervisor: Supervisor | None = None  # where there are several workers
        self.bundler: Bundler | None = None  # once started
        self.disk: DiskWatch | None = None  # once started
        self.pulling: PullThrough | None = None  # once started
        self.reloader: Reloader | None = None  # once started
        self._configure_logs = configure_logs
        self._telling_reloads = telling_reloads
        self.maintainer: Maintainer | None = None  # once started
        self._watch = watch
        self._places = DataDirectory(settings.data_dir)
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._tls: Tls | None = None
        self._serving: Serving | None = None  # where this process serves
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

    @property
    def settings(self) -> Settings:
        """What applies now."""
        return self.started_with if self.reloader is None else self.reloader.settings

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again; returns what came of it, see `Reloaded.describe`."""
        if self.reloader is None:
            raise LocalError("the service has not started yet")
        reloaded = await asyncio.shield(self.reloader.reload())
        return {"source": str(self.settings.source), **reloaded.describe()}

    def reload_soon(self) -> None:
        """Read the configuration again; the log tells what came of it."""
        if self.reloader is not None:
            self.reloader.reload()

    async def wait(self) -> None:
        """Wait until a part ends that should never end, and raise what it raised."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _start(self) -> None:  # noqa: PLR0915 - one part after the other
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
        room = room_of(settings)
        bundler = Bundler(
            engine,
            self._places,
            metrics,
            bytes_max=settings.limits.bundle_bytes_max,
            room=room,
        )

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
        self.registry.opener = self.pulling = pulling
        await bundler.open(one.mirror for one in self.registry)
        await relays.open(stack, [one.mirror for one in self.registry], self._places)
        watch = self.disk = disk_watch(
            room,
            metrics,
            mirroring=mirroring,
            packs=packs,
            lfs=lfs,
            bundler=bundler,
            pulling=self.pulling,
        )
        figures = OwnFigures(
            self.registry, metrics, engine, relays=relays.describe, disk=watch.describe
        )
        if self.workers == 1:
            fetches = Fetches(packs, foresight, metrics)
            address = await self._serve(mirroring, fetches, figures, lfs, metrics)
        else:
            address = await self._serve_by_workers(mirroring, figures, lfs, metrics)
        self._tasks = [*self._tasks, bundler.start()]
        self._tasks.append(asyncio.create_task(watch.run(), name="disk"))
        stack.push_async_callback(_cancelled, self._tasks[-1])
        self.url = f"{'http' if settings.tls is None else 'https'}://{address}"
        self._tasks += relays.start(self._stack)
        self._scrub([packs, bundler, lfs], metrics)
        pulling.start()
        changeover = Changeover(
            settings,
            Parts(
                places=self._places,
                mirroring=mirroring,
                packs=packs,
                share=share,
                foresight=foresight,
                bundler=bundler,
                relays=relays,
                lfs=lfs,
                pulling=pulling,
                tls=self._tls,
                configure_logs=self._configure_logs,
                serving=self._serving,
                workers=self.supervisor,
            ),
        )
        stack.push_async_callback(changeover.close)
        self.reloader = Reloader(
            changeover, ReloadFigures(metrics.registry), telling=self._telling_reloads
        )
        figures.configuration = self.reloader.describe
        stack.push_async_callback(self.reloader.close)
        self.reloader.start()
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
        serving = self._serving = await open_app(
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
            await listen_on_unix_socket(serving.runner, self._unix_socket)
        context = None if self._tls is None else self._tls.context
        return await listen(serving.runner, self.settings.server.listen, tls=context)

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

    def _scrub(self, stores: Sequence[Store], metrics: Metrics) -> None:
        """Begin to read, slowly, all that is on the disk."""
        limits = self.settings.limits
        if limits.scrub_interval_seconds is None:
            return
        scrubber = Scrubber(
            self.registry,
            stores,
            metrics,
            interval_seconds=limits.scrub_interval_seconds,
            bytes_per_second=limits.scrub_bytes_per_second,
        )
        self._tasks.append(asyncio.create_task(scrubber.run(), name="scrub"))
        self._stack.push_async_callback(_cancelled, self._tasks[-1])

    async def _listen_for_control(self, figures: OwnFigures) -> None:
        control = await open_runner(self._stack, build_control_app(self.registry, figures, self))
        try:
            self._places.control.unlink(missing_ok=True)
            await web.UnixSite(control, str(self._places.control)).start()
            self._places.control.chmod(0o600)
        except OSError as error:
            if disk_trouble(error) is None:
                raise
            # Readers are served all the same; `git-mirror status` asks as they do.
            logger.warning("no_control_socket", error=str(error))


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
        bounds = Bounds(room_of(settings))
        updater = Updater(engine, staging=places.staging, agent=AGENT, bounds=bounds)
        repository = settings.find(name)
        if repository is None:
            raise unknown(name)
        mirror = await asyncio.to_thread(open_mirror, repository, places, updater)
        mirror.watch = watch
        stack.callback(close_mirror, mirror)
        if mirror.repository is not None:
            await updater.weigh(mirror, mirror.repository)
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
