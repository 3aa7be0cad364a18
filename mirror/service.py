"""The composition root: builds every part, and owns their start and stop."""

import asyncio
import os
import ssl
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiohttp import web

from mirror import __version__
from mirror.config import LogSettings, RepositorySettings, Settings
from mirror.errors import LocalError, MirrorError
from mirror.handover.held import HeldAnnouncer
from mirror.handover.messages import HandOverFailed
from mirror.handover.predecessor import KnownFreshness, Predecessor, apply
from mirror.handover.successor import Successor
from mirror.making_room import disk_watch
from mirror.metrics import Metrics
from mirror.mirroring import Mirroring, Watch, close_mirror, open_large_files, open_mirror
from mirror.notify import NOBODY, Manager
from mirror.places import DataDirectory
from mirror.pulling import PullThrough
from mirror.refresh.announcements import Announcement, Announcements
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
from mirror.reload.reloader import Reloader
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
from mirror.web.canary import ask_canary
from mirror.web.control import build_control_app
from mirror.web.fetch import Fetches
from mirror.web.front import LET_GO_SECONDS
from mirror.web.listeners import Inherited, Listeners
from mirror.web.listening import accept, cannot_listen
from mirror.web.monitoring import OwnFigures, state_of
from mirror.web.tls import Tls

if TYPE_CHECKING:
    from mirror.workers.supervisor import Supervisor

SETTLE_SECONDS_MAX: Final = 3.0
"""What refreshes under way get to end before the next process takes over; it begins them anew."""

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
        manager: Manager = NOBODY,
        inherited: Inherited | None = None,
        predecessor: Predecessor | None = None,
    ) -> None:
        """Be ready to start.

        Args:
            settings: The configuration.
            watch: Called with each step of each refresh.
            configure_logs: Called when another configuration logs otherwise.
            manager: Told where another process takes over, and of reloads.
            inherited: Listening sockets that are there already.
            predecessor: The process to take over from.
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
        self.maintainer: Maintainer | None = None  # once started
        self._watch = watch
        self._places = DataDirectory(settings.data_dir)
        self.handed_over = asyncio.Event()  # to a process that serves now
        self._stack = AsyncExitStack()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owned: set[asyncio.Task[None]] = set()
        self._tls: Tls | None = None
        self._manager = manager
        self._inherited = inherited or Inherited()
        self._predecessor = predecessor
        self._successor: Successor | None = None
        self._upgrading: asyncio.Task[int] | None = None
        self._working: list[asyncio.Task[None]] = []
        self._is_working = False
        self._serving: Serving | None = None  # where this process serves

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
        """Read the configuration again; returns what came of it, see `Reloaded.describe`.

        Raises:
            LocalError: Not now: it is another process's, or about to be.
        """
        reloaded = await asyncio.shield(self._reloader_now().reload())
        return {"source": str(self.settings.source), **reloaded.describe()}

    def reload_soon(self) -> None:
        """Read the configuration again; the log tells what came of it."""
        try:
            self._reloader_now().reload()
        except LocalError as error:
            logger.warning("not_reloaded", reason=str(error))

    def _reloader_now(self) -> Reloader:
        """Return what reads the configuration again, if this process is to do that now.

        Raises:
            LocalError: It is not.
        """
        if self.reloader is None:
            raise LocalError("the service has not started yet")
        if self._is_handing_over or not self._is_working:
            raise LocalError(
                "another process is about to take over, and reads the configuration as it is now;"
                " reload again in some seconds if it changes after that"
            )
        return self.reloader

    @property
    def _is_handing_over(self) -> bool:
        upgrading = self._upgrading
        return self.handed_over.is_set() or (upgrading is not None and not upgrading.done())

    @contextmanager
    def _telling_reload(self) -> Iterator[None]:
        """Tell the service manager that the configuration is read again, and of the end of that."""
        self._manager.reloading("reading the configuration again")
        try:
            yield
        finally:
            self._manager.ready(self.status_line())

    async def wait(self) -> None:
        """Wait until a part ends that should never end, and raise what it raised."""
        await asyncio.shield(self._broken)

    def _own(self, *tasks: asyncio.Task[None]) -> None:
        """Take note of tasks that should never end, but where they are cancelled."""
        for task in tasks:
            self._owned.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._owned.discard(task)
        if not task.cancelled() and not self._broken.done():
            error = task.exception() or RuntimeError(f"{task.get_name()} ended")
            self._broken.set_exception(error)
            self._broken.exception()  # seen: nobody has to be waiting

    async def _start(self) -> None:  # noqa: PLR0915 - one part after the other
        """Start from the bottom up; what is entered here is left in the opposite order."""
        stack, settings, predecessor = self._stack, self.settings, self._predecessor
        known = await self._take_places()
        engine = await stack.enter_async_context(open_engine(settings.engine))
        sessions = await stack.enter_async_context(open_sessions(settings))
        keyring = await stack.enter_async_context(open_keyring(sessions.configured, agent=AGENT))
        metrics = build_metrics(engine)
        # Here, too, where workers serve: what is wrong with a certificate ends the start.
        self._tls = await open_tls(stack, settings, metrics)
        packs = await open_packs(stack, settings, engine, metrics, self._share)
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

        relays = self._relays = Relays(settings.relays, metrics, agent=AGENT.decode())
        mirroring = self._mirroring = await Mirroring.open(
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
        lfs = await open_large_files(
            stack, settings, keyring, metrics, agent=AGENT, is_first=predecessor is None
        )
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
        apply(known, self.registry)
        self._announcer = HeldAnnouncer(Announcements(mirroring.refreshers))
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
        if predecessor is not None:
            self._announcer.hold()
        else:
            self._own(*mirroring.start())
        if self.workers == 1:
            fetches = Fetches(packs, foresight, metrics)
            await self._serve(fetches, figures, lfs, metrics)
        else:
            await self._serve_by_workers(figures, lfs, metrics)
        self.url = f"{'http' if settings.tls is None else 'https'}://{self._listeners.address}"
        self._scrubber_of = partial(self._scrubber, [packs, bundler, lfs], metrics)
        changeover = self._changeover = Changeover(
            settings,
            Parts(
                places=self._places,
                mirroring=mirroring,
                packs=packs,
                share=self._share,
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
            changeover, ReloadFigures(metrics.registry), telling=self._telling_reload
        )
        figures.configuration = self.reloader.describe
        stack.push_async_callback(self._end_work)
        if predecessor is None:
            self._work()
        else:
            await predecessor.serving(self._announced_before)
            taking_over = asyncio.create_task(self._take_over(predecessor, lfs), name="take over")
            stack.push_async_callback(_cancelled, taking_over)
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

    async def _take_places(self) -> dict[str, KnownFreshness]:
        """Take the data directory and the listening sockets; returns how fresh all is, if known.

        Raises:
            LocalError: They are not to be had.
        """
        stack, settings, predecessor = self._stack, self.settings, self._predecessor
        known: dict[str, KnownFreshness] = {}
        lock, inherited = None, self._inherited
        if predecessor is not None:
            stack.push_async_callback(predecessor.close)
            known = await predecessor.take_over()
            lock, inherited = predecessor.lock, Inherited(predecessor.sockets)
        self._hold = stack.enter_context(self._places.held(inherited=lock))
        self.workers = settings.server.workers or len(os.sched_getaffinity(0))
        self._listeners = await Listeners.open(
            stack,
            settings.server.listen,
            settings.unix_socket,
            inherited,
            workers=self.workers,
        )
        return known

    @property
    def _tls_context(self) -> ssl.SSLContext | None:
        return None if self._tls is None else self._tls.context

    @property
    def _share(self) -> Share:
        return Share(
            processes=self.workers, serves=self.workers == 1, is_first=self._predecessor is None
        )

    async def _serve(
        self,
        fetches: Fetches,
        figures: OwnFigures,
        lfs: LargeFiles,
        metrics: Metrics,
    ) -> None:
        """Serve from this process."""
        metrics.set_workers(1)
        serving = self._serving = await open_app(
            self._stack,
            self.settings,
            self.registry,
            metrics,
            fetches=fetches,
            announcer=self._announcer,
            figures=figures,
            lfs=lfs,
        )
        listeners = self._listeners
        unix = [listeners.unix] if listeners.unix is not None else []
        try:
            await accept(serving.runner, [*unix, *listeners.of()], tls=self._tls_context)
        except OSError as error:
            raise cannot_listen(listeners.address, error) from error

    async def _serve_by_workers(
        self, figures: OwnFigures, lfs: LargeFiles, metrics: Metrics
    ) -> None:
        """Serve from several processes, none of which is this one."""
        # Only here: the single process is to pay nothing for what it does not use.
        from mirror.workers.supervisor import Supervisor  # noqa: PLC0415

        self.supervisor = Supervisor(
            self.settings,
            self.registry,
            metrics,
            announcer=self._announcer,
            figures=figures,
            lfs=lfs,
            listeners=self._listeners,
            count=self.workers,
        )
        if self.pulling is not None:
            self.pulling.processes = self.supervisor
        self._stack.push_async_callback(self.supervisor.close)
        self._own(*await self.supervisor.start())

    def _work(self) -> None:
        """Begin all that changes what is served or is on disk, but for the refreshes."""
        if self.bundler is not None:
            self._own(self.bundler.start())
        self._own(*self._relays.start())
        if self.pulling is not None:
            self.pulling.start()
        self._begin(self._mirroring.maintainer.run(), "maintenance")
        if self.disk is not None:
            self._begin(self.disk.run(), "disk")
        scrubber = self._scrubber_of()
        if scrubber is not None:
            self._begin(scrubber.run(), "scrub")
        self._is_working = True
        if self.reloader is not None:
            self.reloader.start()

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._working.append(task)
        self._own(task)

    async def _end_work(self) -> None:
        """End what `_work` began."""
        self._is_working = False
        if self.reloader is not None:
            await self.reloader.close()
        if self.pulling is not None:
            await self.pulling.stop()
        tasks, self._working = self._working, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._relays.stop()
        if self.bundler is not None:
            await self.bundler.close()

    def _scrubber(self, stores: Sequence[Store], metrics: Metrics) -> Scrubber | None:
        """Return what reads, slowly, all that is on the disk; `None` where that is not wanted."""
        limits = self.settings.limits
        if limits.scrub_interval_seconds is None:
            return None
        return Scrubber(
            self.registry,
            stores,
            metrics,
            interval_seconds=limits.scrub_interval_seconds,
            bytes_per_second=limits.scrub_bytes_per_second,
        )

    # --- the end, and the hand-over -------------------------------------------------------------

    async def drain(self) -> None:
        """Accept nothing more, and let answers under way finish; to be called once, at the end."""
        server = self.settings.server
        seconds_max = server.drain_timeout_seconds
        if self._successor is not None:
            seconds_max = server.upgrade_timeout_seconds
        if self._serving is not None:
            await self._serving.front.leave(let_go_seconds=min(LET_GO_SECONDS, seconds_max))
        if self.supervisor is not None:
            await self.supervisor.leave()
        if self._successor is not None:
            self._successor.tell("silent")
        if self._serving is not None:
            await self._serving.front.finish(seconds_max)
        if self.supervisor is not None:
            await self.supervisor.close(seconds_max)
        if self._successor is not None:
            await self._successor.let_go()

    def status_line(self) -> str:
        """Return how the service does, for the service manager's people."""
        states = Counter(state_of(one) for one in self.registry)
        total = states.total()
        serving = "serving 1 repository" if total == 1 else f"serving {total} repositories"
        by_state = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
        workers = f"; {self.workers} workers" if self.workers > 1 else ""
        return f"{serving}{': ' if total else ''}{by_state}{workers}"

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
                await ask_canary(self._listeners.address, self._tls_context)
        except TimeoutError:
            raise LocalError(f"no answer to our own request in {seconds_max:.0f} s") from None
        except OSError as error:
            raise LocalError(f"no connection to ourselves: {error}") from error

    async def upgrade(self) -> int:
        """Start the installed program and have it take over; returns its process once it serves.

        From then on there is only `drain` to be done here. Who calls while that is under way gets
        the same outcome.

        Raises:
            LocalError: It does not come to serve; all goes on here as before.
        """
        if self._upgrading is None or (self._upgrading.done() and not self.handed_over.is_set()):
            self._upgrading = asyncio.create_task(self._hand_over(), name="upgrade")
        return await asyncio.shield(self._upgrading)

    async def _hand_over(self) -> int:
        if self._predecessor is not None and not self._predecessor.is_silent.is_set():
            raise HandOverFailed("the last hand-over is not over yet; try again in some seconds")
        reloader, changeover = self.reloader, self._changeover
        if reloader is None:
            raise HandOverFailed("the service has not started yet")
        logger.info("upgrading")
        self._manager.status("starting the installed version")
        # What the file says from now on is the successor's to find, once it works.
        await reloader.pause()
        successor: Successor | None = None
        has_paused = False
        try:
            changeover.check_settled()
            successor = await Successor.start(self._listeners.all, self._hold.descriptor)
            await successor.prepared()
            has_paused = True
            await self._pause()
            await successor.take_over(
                {
                    one.mirror.name: asdict(KnownFreshness.of(one.mirror.freshness))
                    for one in self.registry
                }
            )
        except BaseException as error:
            if successor is not None:
                await asyncio.shield(successor.end())
            if has_paused:
                self._hold.take_back()
                self._resume()
            else:
                reloader.start()
            pid = None if successor is None else successor.pid
            logger.error("upgrade_failed", error=str(error), pid=pid)  # noqa: TRY400
            self._manager.ready(f"serving; an upgrade failed: {error}")
            raise
        await changeover.close()  # what was removed is the successor's to remove
        self._successor = successor
        self._listeners.handed_over = self._hold.handed_over = True
        self._manager.replaced_by(successor.pid)
        successor.tell("main")
        self._announcer.go_on(successor.announce)
        logger.info("handed_over", to=successor.pid)
        self.handed_over.set()
        return successor.pid

    async def _pause(self) -> None:
        """Change nothing any more, on disk or for readers, who are served all the same."""
        self._announcer.hold()
        if self.pulling is not None:
            await self.pulling.pause()
        await self._mirroring.pause(settle_seconds=SETTLE_SECONDS_MAX)
        await self._end_work()

    def _resume(self) -> None:
        """Undo `_pause`."""
        if self.pulling is not None:
            self.pulling.resume()
        self._mirroring.resume()
        self._work()
        self._announcer.go_on()

    async def _take_over(self, predecessor: Predecessor, lfs: LargeFiles) -> None:
        """Change what is served only once nobody is served by the old process any more."""
        await predecessor.silent()
        await lfs.count_again()
        self._own(*self._mirroring.start())
        self._work()
        self._announcer.go_on()
        logger.info("took_over")

    async def _announced_before(self, repositories: Sequence[str]) -> None:
        """Take a webhook that the old process was sent; once more is once too often, not lost."""
        nobody = Announcement("hand-over", "sha256:", tuple(repositories), ())
        await self._announcer.announce(nobody)

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
