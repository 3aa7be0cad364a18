"""The workers as the main process sees them: started, told everything, asked, and ended.

Everything is told to all in one go, in the order in which it happened; then the acknowledgements
are waited for. Who does not acknowledge in time is killed, and only its death lets the others go
on: until then it might serve what is not so any more.
"""

import asyncio
import socket
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from mirror.config import ListenAddress, Settings
from mirror.errors import LocalError, MirrorError
from mirror.metrics import Metrics
from mirror.refresh.announcements import Announcement, Announcer
from mirror.refresh.lfs import LfsSource
from mirror.refresh.mirror import Mirror
from mirror.refresh.registry import Registry
from mirror.repository.snapshot import RefSnapshot
from mirror.web.monitoring import Figures
from mirror.workers.figures import Family, added, counts_of, exposition, lasting, load
from mirror.workers.frames import ChannelError
from mirror.workers.lfs import lfs_answer
from mirror.workers.link import Link
from mirror.workers.messages import (
    Announced,
    Bundled,
    CountsWanted,
    Delivered,
    FiguresWanted,
    LfsAsked,
    LfsFetched,
    Listen,
    Message,
    RefreshWanted,
    Reply,
    Setup,
    Stop,
)
from mirror.workers.process import WorkerProcess
from mirror.workers.proxies import REPEATED
from mirror.workers.state import refreshed, unpacked_changes

ANNOUNCE_SECONDS_MAX: Final = 2.0
"""To acknowledge an announcement, or that nothing has changed, a worker's loop has to turn once.
Forges give up at 10 s."""

PUBLISH_SECONDS_MAX: Final = 30.0
"""To make a snapshot of very many refs, with others before it."""

START_SECONDS_MAX: Final = 120.0
"""To read the refs of all repositories, too."""

COUNTS_SECONDS_MAX: Final = 1.0
"""A worker that is slower is shown as it was when last asked."""

DRAIN_SECONDS_MAX: Final = 25.0
"""Twice `SHUTDOWN_SECONDS_MAX`, and some; below the TimeoutStopSec of the systemd unit."""

END_SECONDS_MAX: Final = 2.0
"""A worker without a channel ends by itself within that; who needs it dead sooner kills it."""

RESTART_SECONDS_MIN: Final = 0.1
RESTART_SECONDS_MAX: Final = 30.0
"""The pauses before a worker is started anew; each twice the one before, until one lasts."""

LASTING_SECONDS: Final = 60.0

logger = structlog.stdlib.get_logger()


@dataclass(slots=True)
class _Worker:
    """A worker's process and its channel; `is_serving` from the moment it is told to listen."""

    number: int
    process: WorkerProcess
    link: Link
    is_serving: bool = False
    counts: list[Family] = field(default_factory=list)


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
        address: ListenAddress,
        count: int,
        listener: socket.socket | None = None,
    ) -> None:
        """Become the replicas of all mirrors; no worker runs yet.

        Args:
            settings: The configuration.
            registry: The repositories, with their refreshers.
            metrics: Of the main process.
            announcer: Takes what webhooks say.
            figures: Of the main process.
            lfs: Where LFS objects come from.
            address: Where the workers listen; reserved for them.
            count: How many.
            listener: A Unix socket that they inherit, and listen on too.
        """
        self._settings = settings
        self._registry = registry
        self._metrics = metrics
        self._announcer = announcer
        self._figures = figures
        self._lfs = lfs
        self._address = address
        self._count = count
        self._listener = listener
        self._workers: dict[int, _Worker] = {}
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

    async def close(self) -> None:
        """Let the workers finish what they serve, then end them."""
        self._is_stopping = True
        draining = []
        for number, keeper in enumerate(self._keepers, 1):
            worker = self._workers.get(number)
            if worker is not None and worker.is_serving:
                worker.link.tell(Stop())
                draining.append(keeper)
        if draining:
            await asyncio.wait(draining, timeout=DRAIN_SECONDS_MAX)
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
            await asyncio.sleep(pause)
            pause = min(2 * pause, RESTART_SECONDS_MAX)

    async def _run(self, number: int, listening: "asyncio.Future[None]") -> str:
        """Run one worker to its end; returns what ended it."""
        try:
            process, channel = await WorkerProcess.start(self._listener)
        except OSError as error:
            return f"it can't be started: {error.strerror}"
        link = Link(lambda message_id, message: self._receive(worker, message_id, message))
        worker = _Worker(number, process, link)
        try:
            await link.open(channel)
            self._workers[number] = worker
            async with asyncio.timeout(START_SECONDS_MAX):
                await self._bring_up(worker)
            logger.info("worker_serves", worker=number, pid=process.pid)
            if not listening.done():
                listening.set_result(None)
            await link.lost.wait()
            await _ends_by_itself(process)
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

    async def _bring_up(self, worker: _Worker) -> None:
        """Tell a new worker all there is, and let it listen.

        Raises:
            ChannelError: It broke down, or can't listen.
        """
        settings = self._settings
        worker.link.tell(Setup(settings.content, str(settings.source), worker.number, self._count))
        # In one go: what happens from here on is told to it as to the others.
        known = [worker.link.ask(refreshed(one.mirror, None)) for one in self._registry]
        known += [
            worker.link.ask(Bundled(one.mirror.name, one.mirror.bundles))
            for one in self._registry
            if one.mirror.bundles is not None
        ]
        for answer in known:
            await answer
        worker.is_serving = True
        await worker.link.ask(Listen(self._address.host, self._address.port))

    # --- to the workers ------------------------------------------------------------------------

    async def announced(self, mirror: Mirror) -> None:
        """See `Replicas.announced`."""
        message = Announced(mirror.name, mirror.freshness.announced)
        await self._ask_all(message, ANNOUNCE_SECONDS_MAX)

    async def refreshed(self, mirror: Mirror) -> None:
        """See `Replicas.refreshed`."""
        message = refreshed(mirror, self._told[mirror.name])
        self._told[mirror.name] = mirror.snapshot
        # Without news there is nothing to make: so the polls find a worker that hangs.
        seconds_max = ANNOUNCE_SECONDS_MAX if message.snapshot is None else PUBLISH_SECONDS_MAX
        await self._ask_all(message, seconds_max)

    async def bundled(self, mirror: Mirror) -> None:
        """See `Replicas.bundled`."""
        await self._ask_all(Bundled(mirror.name, mirror.bundles), ANNOUNCE_SECONDS_MAX)

    async def _ask_all(self, message: Message, seconds_max: float) -> None:
        # Those that do not serve yet are told, too, but not waited for: they follow before they do.
        asked = [(one, one.link.ask(message)) for one in self._workers.values()]
        await asyncio.gather(
            *(_acknowledged(one, answer, seconds_max) for one, answer in asked if one.is_serving)
        )

    # --- from the workers ----------------------------------------------------------------------

    def _receive(self, worker: _Worker, message_id: int, message: Message) -> None:
        """Do what a worker asks for.

        Raises:
            MirrorError: It makes no sense.
        """
        match message:
            case RefreshWanted():
                outcome = self._registry.find(message.repository).refresher.request(message.trigger)
                outcome.add_done_callback(
                    lambda outcome: worker.link.reply(message_id, _reply_of(outcome))
                )
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

    def _answer(self, worker: _Worker, message_id: int, work: Coroutine[Any, Any, bytes]) -> None:
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
        await asyncio.gather(*map(_count, serving))
        self._metrics.set_workers(len(serving))
        counts = [one.counts for one in self._workers.values()]
        own = counts_of(self._metrics.registry)
        return exposition(added([own, self._ended_counts, *counts]))

    async def status(self) -> bytes:
        """See `Figures.status`."""
        return await self._figures.status()


async def _acknowledged(
    worker: _Worker, answer: "asyncio.Future[Reply]", seconds_max: float
) -> None:
    """Wait until a worker has acknowledged, or is dead."""
    try:
        async with asyncio.timeout(seconds_max):
            await answer
    except TimeoutError:
        # Without a traceback: it would be that of our own wait.
        logger.error(  # noqa: TRY400
            "worker_does_not_answer", worker=worker.number, seconds=seconds_max
        )
        await worker.process.end()
    except ChannelError:
        await worker.process.end()


async def _ends_by_itself(process: WorkerProcess) -> None:
    """Give a worker without a channel the time to kill its children."""
    with suppress(TimeoutError):
        async with asyncio.timeout(END_SECONDS_MAX):
            await process.ended.wait()


async def _count(worker: _Worker) -> None:
    """Ask a worker for its own metrics."""
    try:
        async with asyncio.timeout(COUNTS_SECONDS_MAX):
            worker.counts = load((await worker.link.ask(CountsWanted())).text)
    except (TimeoutError, ChannelError):
        logger.warning("worker_not_counted", worker=worker.number)


def _reply_of(outcome: "asyncio.Future[None]") -> Reply:
    if outcome.cancelled():
        return Reply(error="the service stopped before the refresh had ended")
    error = outcome.exception()
    return Reply() if error is None else Reply(error=str(error))
