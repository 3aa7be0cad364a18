"""The composition root: builds every part, and owns their start and stop."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web

from mirror import __version__
from mirror.config import LogSettings, Settings
from mirror.doors import Doors
from mirror.errors import LocalError
from mirror.handover.held import HeldAnnouncer
from mirror.handover.predecessor import KnownFreshness, Predecessor, apply
from mirror.large_files import open_large_files
from mirror.layout import check_same_version
from mirror.making_room import disk_watch
from mirror.metrics import Metrics
from mirror.mirroring import Mirroring, Watch
from mirror.notify import NOBODY, Manager
from mirror.places import DataDirectory
from mirror.pulling import PullThrough
from mirror.refresh.announcements import Announcements
from mirror.refresh.bundling import Bundler
from mirror.refresh.disk_watch import DiskWatch
from mirror.refresh.foresight import Foresight
from mirror.refresh.maintenance import Maintainer
from mirror.refresh.mirror import Mirror
from mirror.refresh.registry import Registry
from mirror.refresh.relay.relays import Relays
from mirror.refresh.scrub import Scrubber, Store
from mirror.refresh.update import Updated
from mirror.reload.changeover import Changeover, ConfigureLogs, Parts
from mirror.reload.figures import ReloadFigures
from mirror.reload.reloader import Reloader
from mirror.reloading import Reloading
from mirror.repository.snapshot import RefSnapshot
from mirror.serving import AGENT, build_metrics, open_runner, open_tls
from mirror.space import disk_trouble
from mirror.stores import Share, open_engine, open_packs, room_of
from mirror.upgrading import Handed, TakingOver, Upgrading
from mirror.upstream.connect import open_keyring, open_sessions
from mirror.web.control import build_control_app
from mirror.web.listeners import Inherited, Listeners
from mirror.web.monitoring import OwnFigures, state_of
from mirror.work import Work

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
        self.bundler: Bundler | None = None  # once started
        self.disk: DiskWatch | None = None  # once started
        self.pulling: PullThrough | None = None  # once started
        self.reloader: Reloader | None = None  # once started
        self._configure_logs = configure_logs
        self.maintainer: Maintainer | None = None  # once started
        self.upgrading: Upgrading | None = None  # once started
        self._watch = watch
        self._places = DataDirectory(settings.data_dir)
        self._stack = AsyncExitStack()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owned: set[asyncio.Task[None]] = set()
        self._manager = manager
        self._inherited = inherited or Inherited()
        self._predecessor = predecessor
        self._reloading: Reloading | None = None  # once started
        self._doors: Doors | None = None  # once started

    async def __aenter__(self) -> "Service":
        try:
            await self._start()
        except BaseException as error:
            if self._predecessor is not None:
                self._predecessor.fail(error)
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def supervisor(self) -> "Supervisor | None":
        """What keeps the workers, where there are several."""
        return None if self._doors is None else self._doors.supervisor

    @property
    def settings(self) -> Settings:
        """What applies now."""
        return self.started_with if self.reloader is None else self.reloader.settings

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again; returns what came of it, see `Reloaded.describe`.

        Raises:
            HandedOver: It is another process's.
            LocalError: It can't be done now.
        """
        if self._reloading is None:
            raise LocalError("the service has not started yet")
        reloaded = await self._reloading.reload()
        return {"source": str(self.settings.source), **reloaded.describe()}

    def reload_soon(self) -> None:
        """Read the configuration again, once started; the log tells what came of it.

        Where it is another process's by then, that one does.
        """
        if self._reloading is not None:
            self._reloading.reload_soon()

    @property
    def handed_over(self) -> asyncio.Event:
        """Set once another process serves.

        Raises:
            LocalError: This one has not started yet.
        """
        return self._upgrading_now().handed_over

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
        engine = await stack.enter_async_context(
            open_engine(settings.engine, inherited=self._hold.children)
        )
        sessions = await stack.enter_async_context(open_sessions(settings))
        keyring = await stack.enter_async_context(open_keyring(sessions.configured, agent=AGENT))
        metrics = build_metrics(engine)
        # Here, too, where workers serve: what is wrong with a certificate ends the start.
        tls = await open_tls(stack, settings, metrics)
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
            is_certain=predecessor is None,
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
            others_read=self._others_read,
        )
        stack.push_async_callback(pulling.close)
        await pulling.reopen(removes=predecessor is None)
        self.registry.opener = self.pulling = pulling
        apply(known, self.registry)
        announcer = HeldAnnouncer(Announcements(mirroring.refreshers))
        left = {one.name for one in mirroring.left}  # their bundles are another's, too
        await bundler.open(one.mirror for one in self.registry if one.mirror.name not in left)
        await relays.open(stack, [one.mirror for one in self.registry], self._places)
        watch = self.disk = disk_watch(
            room,
            metrics,
            mirroring=mirroring,
            packs=packs,
            lfs=lfs,
            bundler=bundler,
            pulling=pulling,
        )
        figures = OwnFigures(
            self.registry, metrics, engine, relays=relays.describe, disk=watch.describe
        )
        if predecessor is not None:
            announcer.hold()
        else:
            self._own(*mirroring.start())
        doors = self._doors = Doors(self._listeners, tls, workers=self.workers)
        await doors.open(
            stack,
            settings,
            self.registry,
            metrics,
            packs=packs,
            foresight=foresight,
            announcer=announcer,
            figures=figures,
            lfs=lfs,
            pulling=pulling,
            own=self._own,
        )
        self.url = doors.url
        changeover = Changeover(
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
                tls=tls,
                configure_logs=self._configure_logs,
                serving=doors.serving,
                workers=doors.supervisor,
                gone_before=None if predecessor is None else predecessor.is_gone,
            ),
        )
        stack.push_async_callback(changeover.close)
        reloader = self.reloader = Reloader(
            changeover, ReloadFigures(metrics.registry), telling=self._telling_reload
        )
        figures.configuration = reloader.describe
        work = Work(
            self._own,
            bundler=bundler,
            relays=relays,
            pulling=pulling,
            maintainer=mirroring.maintainer,
            disk=watch,
            reloader=reloader,
            scrubber_of=partial(self._scrubber, [packs, bundler, lfs], metrics),
        )
        stack.push_async_callback(work.end)
        handed = Handed(
            listeners=self._listeners,
            hold=self._hold,
            manager=self._manager,
            mirroring=mirroring,
            pulling=pulling,
            lfs=lfs,
            announcer=announcer,
            changeover=changeover,
            reloader=reloader,
            work=work,
        )
        upgrading = self.upgrading = Upgrading(handed)
        reloading = self._reloading = Reloading(reloader, upgrading, work)
        stack.push_async_callback(reloading.close)
        if predecessor is None:
            work.start()
        else:
            taking = TakingOver(handed, predecessor)
            await taking.serving(reloading.reload_soon)
            taking_over = asyncio.create_task(self._take_over(taking), name="take over")
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
            check_same_version(settings.data_dir)
            known = await predecessor.take_over()
            lock, inherited = (
                predecessor.lock,
                Inherited(predecessor.sockets, by_manager=predecessor.by_manager),
            )
        self._hold = stack.enter_context(self._places.held(inherited=lock))
        self.workers = settings.server.workers or len(os.sched_getaffinity(0))
        self._listeners = await Listeners.open(
            stack,
            settings.server.listen,
            settings.unix_socket,
            inherited,
            workers=self.workers,
            is_certain=predecessor is None,
        )
        return known

    @property
    def _share(self) -> Share:
        return Share(
            processes=self.workers, serves=self.workers == 1, is_first=self._predecessor is None
        )

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
        successor = None if self.upgrading is None else self.upgrading.successor
        if successor is not None:
            seconds_max = server.upgrade_timeout_seconds
        if self._doors is not None:
            await self._doors.leave(seconds_max)
        if successor is not None:
            successor.tell("silent")
        await asyncio.gather(self._finish(seconds_max), self._predecessor_gone(seconds_max))
        if successor is not None:
            await successor.let_go()

    async def _finish(self, seconds_max: float) -> None:
        if self._doors is not None:
            await self._doors.finish(seconds_max)

    async def _predecessor_gone(self, seconds_max: float) -> None:
        """Let the process before finish what it answers: a service manager kills it once we end."""
        if self._predecessor is not None:
            await self._predecessor.gone(seconds_max)

    def status_line(self) -> str:
        """Return how the service does, for the service manager's people."""
        states = Counter(state_of(one) for one in self.registry)
        total = states.total()
        serving = "serving 1 repository" if total == 1 else f"serving {total} repositories"
        by_state = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
        workers = f"; {self.workers} workers" if self.workers > 1 else ""
        return f"{serving}{': ' if total else ''}{by_state}{workers}"

    async def canary(self, seconds_max: float) -> None:
        """See `Doors.canary`."""
        if self._doors is None:
            raise LocalError("the service has not started yet")
        await self._doors.canary(seconds_max)

    async def upgrade(self) -> int:
        """Start the installed program and have it take over; returns its process once it serves.

        From then on there is only `drain` to be done here. Who calls while that is under way gets
        the same outcome.

        Raises:
            LocalError: It does not come to serve; all goes on here as before.
        """
        return await self._upgrading_now().upgrade()

    def _upgrading_now(self) -> Upgrading:
        if self.upgrading is None:
            raise LocalError("the service has not started yet")
        return self.upgrading

    async def _take_over(self, taking: TakingOver) -> None:
        self._own(*await taking.finish())
        await taking.tidy()

    def _others_read(self) -> bool:
        """Tell whether the process that this one took over from may still have readers."""
        return self._predecessor is not None and not self._predecessor.is_gone.is_set()

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
