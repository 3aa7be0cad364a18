"""The workers as the main process sees them: started, told everything, asked, and ended.

Everything is told to all in one go, in the order in which it happened; then the acknowledgements
are waited for. Who does not acknowledge in time is killed, and only its death lets the others go
on: until then it might serve what is not so any more.
"""

import asyncio
import json
import socket
import time
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, Final

import structlog

from mirror.config import Settings
from mirror.errors import LocalError, MirrorError
from mirror.metrics import Metrics
from mirror.refresh.announcements import Announcement, Announcer
from mirror.refresh.lfs import LfsSource
from mirror.refresh.mirror import Mirror
from mirror.refresh.registry import Registry
from mirror.repository.snapshot import RefSnapshot
from mirror.web.listeners import Listeners
from mirror.web.monitoring import Figures
from mirror.workers.figures import Family, added, counts_of, exposition, lasting
from mirror.workers.frames import ChannelError
from mirror.workers.lfs import lfs_answer
from mirror.workers.link import Link
from mirror.workers.managed import COUNTS_SECONDS_MAX, ManagedWorker, text_of
from mirror.workers.messages import (
    Added,
    Announced,
    Bundled,
    CanaryWanted,
    Delivered,
    DrainWanted,
    FiguresWanted,
    Leave,
    LfsAsked,
    LfsFetched,
    Listen,
    Message,
    MirrorWanted,
    Prepare,
    ReadsWanted,
    Reconfigure,
    RefreshWanted,
    Removed,
    Reply,
    Setup,
    Stop,
)
from mirror.workers.process import WorkerProcess
from mirror.workers.proxies import BUSY, REPEATED
from mirror.workers.state import refreshed, unpacked_changes

ANNOUNCE_SECONDS_MAX: Final = 2.0
"""To acknowledge an announcement, or that nothing has changed, a worker's loop has to turn once.
Forges give up at 10 s."""

RECONFIGURE_SECONDS_MAX: Final = 30.0
"""To read a configuration of very many repositories, with others at work beside it."""

PUBLISH_SECONDS_MAX: Final = 30.0
"""To make a snapshot of very many refs, with others before it."""

START_SECONDS_MAX: Final = 120.0
"""To read the refs of all repositories, too."""

END_SECONDS_MAX: Final = 15.0
"""What a worker gets to end, beyond the time for what it serves."""

LEAVE_SECONDS_MAX: Final = 6.0
"""`LET_GO_SECONDS` and `POLLS_SECONDS_MAX`, and some."""

RESTART_SECONDS_MIN: Final = 0.1
RESTART_SECONDS_MAX: Final = 30.0
"""The pauses before a worker is started anew; each twice the one before, until one lasts."""

LASTING_SECONDS: Final = 60.0

logger = structlog.stdlib.get_logger()


class Supervisor:
    """Keeps a number of workers running. The mirrors' `Replicas`, and the service's `Figures`."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        metrics: Metrics,
        *,
        announcer: Announcer,
        figures: Figures,
        lfs: LfsSource,
        listeners: Listeners,
        count: int,
    ) -> None:
        """Become the replicas of all mirrors; no worker runs yet.

        Args:
            settings: The configuration.
            registry: The repositories, with their refreshers.
            metrics: Of the main process.
            announcer: Takes what webhooks say.
            figures: Of the main process.
            lfs: Where LFS objects come from.
            listeners: What the workers accept from.
            count: How many.
        """
        self._settings = settings
        self._started = settings.content
        self._registry = registry
        self._metrics = metrics
        self._announcer = announcer
        self._figures = figures
        self._lfs = lfs
        self._listeners = listeners
        self._count = count
        self._workers: dict[int, ManagedWorker] = {}
        self._ended_counts: list[Family] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._is_stopping = False
        self._told: dict[str, RefSnapshot | None] = {}
        for one in registry:
            one.mirror.replicas = self
            self._told[one.mirror.name] = one.mirror.snapshot

    @property
    def pids(self) -> list[int]:
        """The processes of the workers that serve."""
        return [one.process.pid for one in self._workers.values() if one.is_serving]

    # --- start and stop ------------------------------------------------------------------------

    async def start(self) -> list[asyncio.Task[None]]:
        """Start the workers; returns when all listen. The tasks should never end.

        Raises:
            LocalError: One does not come to listen.
        """
        loop = asyncio.get_running_loop()
        listening: list[asyncio.Future[None]] = [loop.create_future() for _ in range(self._count)]
        self._keepers = [
            asyncio.create_task(self._keep(number, first), name=f"worker {number}")
            for number, first in enumerate(listening, 1)
        ]
        await asyncio.gather(*listening)
        return self._keepers

    async def canaries(self, seconds_max: float) -> None:
        """Have every worker put a real request to itself; one that does not answer is ended.

        Raises:
            LocalError: One does not answer, or does not serve just now.
        """
        asked = await self._ask_listening(CanaryWanted(), seconds_max)
        well = sum(
            answer.done() and not answer.cancelled() and answer.exception() is None
            for answer in asked
        )
        if well < self._count:
            raise LocalError(f"{well} of {self._count} workers answer")

    async def leave(self) -> None:
        """Have the workers accept nothing more; returns when none shows refs any more."""
        self._is_stopping = True
        await self._ask_listening(Leave(), LEAVE_SECONDS_MAX)

    async def _ask_listening(
        self, message: Message, seconds_max: float
    ) -> "list[asyncio.Future[Reply]]":
        """Ask the workers that can be reached by readers; one that does not answer is ended."""
        asked = [(one, one.link.ask(message)) for one in self._workers.values() if one.is_listening]
        await asyncio.gather(*(one.acknowledged(answer, seconds_max) for one, answer in asked))
        return [answer for _, answer in asked]

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Let the workers finish what they serve, for so long at most, then end them."""
        self._is_stopping = True
        draining = []
        for number, keeper in enumerate(self._keepers, 1):
            worker = self._workers.get(number)
            if worker is not None and worker.is_serving:
                worker.link.tell(Stop(drain_seconds))
                draining.append(keeper)
        if draining:
            await asyncio.wait(draining, timeout=drain_seconds + END_SECONDS_MAX)
        tasks = [*self._keepers, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, number: int, listening: "asyncio.Future[None]") -> None:
        """Keep one worker running: a new one for each that ends."""
        pause = RESTART_SECONDS_MIN
        while True:
            began_at = time.monotonic()
            error = await self._run(number, listening)
            if self._is_stopping:
                return
            if not listening.done():
                listening.set_exception(LocalError(f"worker {number} did not start: {error}"))
                return
            self._metrics.record_worker_restart()
            if time.monotonic() - began_at > LASTING_SECONDS:
                pause = RESTART_SECONDS_MIN
            logger.error("worker_ended", worker=number, error=error, restart_seconds=pause)
            if pause > RESTART_SECONDS_MIN:
                self._listeners.ended(number)  # its successor would keep them waiting too long
            await asyncio.sleep(pause)
            pause = min(2 * pause, RESTART_SECONDS_MAX)

    async def _run(self, number: int, listening: "asyncio.Future[None]") -> str:
        """Run one worker to its end; returns what ended it."""
        try:
            process, channel = await WorkerProcess.start(self._sockets(number))
        except LocalError as error:
            return str(error)
        except OSError as error:
            return f"it can't be started: {error.strerror}"
        link = Link(lambda message_id, message: self._receive(worker, message_id, message))
        worker = ManagedWorker(number, process, link)
        try:
            await link.open(channel)
            self._workers[number] = worker
            async with asyncio.timeout(START_SECONDS_MAX):
                await self._bring_up(worker)
            logger.info("worker_serves", worker=number, pid=process.pid)
            if not listening.done():
                listening.set_result(None)
            await link.lost.wait()
            await worker.ends_by_itself()
        except MirrorError as error:
            return str(error)
        except TimeoutError:
            return f"it does not serve after {START_SECONDS_MAX:.0f} seconds"
        finally:
            # Dead first, forgotten then: who waits for its acknowledgement has to know it dead.
            await asyncio.shield(process.end())
            link.abort()
            self._workers.pop(number, None)
            self._ended_counts = added([self._ended_counts, lasting(worker.counts)])
        return f"exit code {process.exit_code}"

    def _sockets(self, number: int) -> list[socket.socket]:
        unix = self._listeners.unix
        return [*self._listeners.of(number, self._count), *([unix] if unix is not None else [])]

    async def _bring_up(self, worker: ManagedWorker) -> None:
        """Tell a new worker all there is, and let it listen.

        Raises:
            ChannelError: It broke down, or can't listen.
        """
        settings = self._settings
        source, number = str(settings.source), worker.number
        worker.link.tell(Setup(self._started, settings.content, source, number, self._count))
        # In one go: what happens from here on is told to it as to the others.
        mirrors = [one.mirror for one in self._registry if one.mirror.name in self._told]
        for one in mirrors:
            if one.settings.place is not None:
                worker.link.tell(Added(one.name))
        known = [worker.link.ask(refreshed(one, None)) for one in mirrors]
        known += [
            worker.link.ask(Bundled(one.name, one.bundles))
            for one in mirrors
            if one.bundles is not None
        ]
        for answer in known:
            await answer
        worker.is_serving = True
        await worker.link.ask(Listen())
        worker.is_listening = True

    # --- to the workers ------------------------------------------------------------------------

    async def announced(self, mirror: Mirror) -> None:
        """See `Replicas.announced`."""
        message = Announced(mirror.name, mirror.freshness.announced)
        await self._ask_all(message, ANNOUNCE_SECONDS_MAX)

    async def refreshed(self, mirror: Mirror) -> None:
        """See `Replicas.refreshed`."""
        if mirror.name not in self._told:
            return  # it is being removed
        message = refreshed(mirror, self._told[mirror.name])
        self._told[mirror.name] = mirror.snapshot
        # Without news there is nothing to make: so the polls find a worker that hangs.
        seconds_max = ANNOUNCE_SECONDS_MAX if message.snapshot is None else PUBLISH_SECONDS_MAX
        await self._ask_all(message, seconds_max)

    async def bundled(self, mirror: Mirror) -> None:
        """See `Replicas.bundled`."""
        if mirror.name in self._told:  # it is not being removed
            await self._ask_all(Bundled(mirror.name, mirror.bundles), ANNOUNCE_SECONDS_MAX)

    def added(self, mirror: Mirror) -> None:
        """See `Processes.added`."""
        mirror.replicas = self
        self._told[mirror.name] = None
        for worker in self._workers.values():
            worker.link.tell(Added(mirror.name))

    async def removed(self, mirror: Mirror, *, by_force: bool) -> bool:
        """See `Processes.removed`."""
        self._told.pop(mirror.name, None)  # from now on, no new worker is told of it
        asked = []
        for worker in self._workers.values():
            # Those that do not serve yet have no readers, and let go before they do.
            message = Removed(mirror.name, by_force or not worker.is_serving)
            asked.append((worker, worker.link.ask(message)))
        serving = [each for each in asked if each[0].is_serving]
        await asyncio.gather(
            *(one.acknowledged(answer, ANNOUNCE_SECONDS_MAX) for one, answer in serving)
        )
        if BUSY not in [text_of(answer) for _, answer in asked]:
            return True
        self.added(mirror)
        await self.refreshed(mirror)
        await self.bundled(mirror)
        return False

    async def prepare(self, settings: Settings) -> None:
        """See `Workers.prepare`."""
        await self._ask_all(Prepare(settings.content), RECONFIGURE_SECONDS_MAX)

    def change(
        self, settings: Settings, removed: Iterable[Mirror], added: Iterable[Mirror]
    ) -> Coroutine[Any, Any, None]:
        """See `Workers.change`."""
        self._settings = settings
        for mirror in removed:
            self._told.pop(mirror.name, None)
        for mirror in added:
            mirror.replicas = self
            self._told[mirror.name] = None
        message = Reconfigure(settings.content)
        asked = [(one, one.link.ask(message)) for one in self._workers.values()]
        return _acknowledged(asked, RECONFIGURE_SECONDS_MAX)

    async def drained(self, seconds_max: float) -> None:
        """See `Workers.drained`."""
        asked = [one.link.ask(DrainWanted()) for one in self._workers.values()]
        if asked:
            await asyncio.wait(asked, timeout=seconds_max)

    async def reads(self) -> Mapping[str, float]:
        """See `Processes.reads`."""
        asked = [one.link.ask(ReadsWanted()) for one in self._workers.values() if one.is_serving]
        if asked:
            await asyncio.wait(asked, timeout=COUNTS_SECONDS_MAX)
        latest: dict[str, float] = {}
        for answer in asked:
            for name, at in json.loads(text_of(answer) or "{}").items():
                latest[name] = max(at, latest.get(name, at))
        return latest

    async def _ask_all(self, message: Message, seconds_max: float) -> None:
        # Those that do not serve yet are told, too, but not waited for: they follow before they do.
        asked = [(one, one.link.ask(message)) for one in self._workers.values()]
        await _acknowledged(asked, seconds_max)

    # --- from the workers ----------------------------------------------------------------------

    def _receive(self, worker: ManagedWorker, message_id: int, message: Message) -> None:
        """Do what a worker asks for.

        Raises:
            MirrorError: It makes no sense.
        """
        match message:
            case RefreshWanted():
                hosted = self._registry.get(message.repository)
                if hosted is None:  # removed at this very moment
                    worker.link.reply(message_id, Reply(error="the mirror was removed"))
                    return
                outcome = hosted.refresher.request(message.trigger)
                outcome.add_done_callback(
                    lambda outcome: worker.link.reply(message_id, _reply_of(outcome))
                )
            case MirrorWanted():
                self._answer(worker, message_id, self._open(message))
            case Delivered():
                self._answer(worker, message_id, self._announce(message))
            case FiguresWanted(what="metrics"):
                self._answer(worker, message_id, self.exposition())
            case FiguresWanted(what="status"):
                self._answer(worker, message_id, self.status())
            case LfsAsked() | LfsFetched():
                self._answer(worker, message_id, lfs_answer(self._lfs, message))
            case _:
                raise ChannelError(f"{message.kind!r} is not for the main process")

    def _answer(
        self, worker: ManagedWorker, message_id: int, work: Coroutine[Any, Any, bytes]
    ) -> None:
        """Answer with what `work` returns; a worker has a bounded number of questions."""

        async def answer() -> None:
            try:
                reply = Reply((await work).decode())
            except MirrorError as error:
                reply = Reply(error=str(error))
            worker.link.reply(message_id, reply)

        task = asyncio.create_task(answer())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, wanted: MirrorWanted) -> bytes:
        try:
            settings = self._registry.resolve(wanted.repository)
            await asyncio.shield(self._registry.open(settings, wanted.client))
        except MirrorError as error:
            return f"{error.label} {error}".encode()
        return b""

    async def _announce(self, delivered: Delivered) -> bytes:
        is_news = await self._announcer.announce(
            Announcement(
                delivered.forge,
                delivered.delivery,
                delivered.repositories,
                unpacked_changes(delivered.changes),
            )
        )
        return b"" if is_news else REPEATED.encode()

    # --- figures -------------------------------------------------------------------------------

    async def exposition(self) -> bytes:
        """See `Figures.exposition`: the sum of all processes."""
        serving = [one for one in self._workers.values() if one.is_serving]
        await asyncio.gather(*(one.count() for one in serving))
        self._metrics.set_workers(len(serving))
        counts = [one.counts for one in self._workers.values()]
        own = counts_of(self._metrics.registry)
        return exposition(added([own, self._ended_counts, *counts]))

    async def status(self) -> bytes:
        """See `Figures.status`."""
        return await self._figures.status()


async def _acknowledged(
    asked: "list[tuple[ManagedWorker, asyncio.Future[Reply]]]", seconds_max: float
) -> None:
    """Wait for those that serve readers."""
    await asyncio.gather(
        *(one.acknowledged(answer, seconds_max) for one, answer in asked if one.is_serving)
    )


def _reply_of(outcome: "asyncio.Future[None]") -> Reply:
    if outcome.cancelled():
        return Reply(error="the service stopped before the refresh had ended")
    error = outcome.exception()
    return Reply() if error is None else Reply(error=str(error))
