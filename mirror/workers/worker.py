"""A worker's process: serves from its copies, and ends with its channel.

Does as the main process tells: takes its setup, follows the mirrors, listens, stops. Without the
main process nothing that it says could be called fresh, so it ends at once, answers under way or
not. Must never ask an upstream for itself: it passes pushes on, and has the main process ask for
what readers want, such as LFS objects. Writes nothing below data_dir but packs for readers.
"""

import asyncio
import json
import math
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from mirror.config import LogSettings, Settings, parse
from mirror.errors import MirrorError
from mirror.metrics import Metrics
from mirror.places import DataDirectory
from mirror.refresh.foresight import Foresight
from mirror.refresh.mirror import Mirror
from mirror.refresh.registry import Hosted, Registry
from mirror.serving import (
    AGENT,
    Share,
    build_metrics,
    open_app,
    open_engine,
    open_packs,
    open_tls,
)
from mirror.web.canary import ask_own_canary
from mirror.web.fetch import Fetches
from mirror.web.front import LET_GO_SECONDS, Front
from mirror.web.listening import accept
from mirror.workers.figures import counts_of, dump
from mirror.workers.frames import ChannelError
from mirror.workers.lfs import LfsProxy
from mirror.workers.link import Link
from mirror.workers.messages import (
    Added,
    Announced,
    Bundled,
    CanaryWanted,
    CountsWanted,
    Leave,
    Listen,
    Message,
    ReadsWanted,
    Refreshed,
    Removed,
    Reply,
    Setup,
    Stop,
)
from mirror.workers.proxies import (
    BUSY,
    AnnouncerProxy,
    FiguresProxy,
    OpenerProxy,
    RefreshProxy,
)
from mirror.workers.replica import Replica

ConfigureLogs = Callable[[LogSettings, int], None]
"""Called with how to log and the worker's number."""

logger = structlog.stdlib.get_logger()


class Worker:
    """One worker, in its own process."""

    def __init__(
        self, configure_logs: ConfigureLogs, listeners: Sequence[socket.socket] = ()
    ) -> None:
        """Be ready to run.

        Args:
            configure_logs: Called once it is known how to log.
            listeners: The sockets to accept from, inherited from the main process.
        """
        self._configure_logs = configure_logs
        self._listeners = listeners
        self._drain_seconds = 0.0
        self._link = Link(self._receive)
        self._stopping = asyncio.Event()
        self._served: _Served | None = None

    async def run(self, channel: socket.socket) -> bool:
        """Serve until told to stop; `False` when the end came in another way."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # a terminal's is the main process's
        await self._link.open(channel)
        lost = asyncio.create_task(self._link.lost.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((lost, stopping), return_when=asyncio.FIRST_COMPLETED)
        if self._served is None:
            return not lost.done()
        if not lost.done():
            draining = asyncio.create_task(self._served.drain(self._drain_seconds))
            await asyncio.wait((lost, draining), return_when=asyncio.FIRST_COMPLETED)
            if draining.done():
                await draining
                self._link.abort()
                await lost
                return True
        await self._served.end_children()
        return False

    def _receive(self, message_id: int, message: Message) -> None:
        """Do what the main process says.

        Raises:
            ChannelError: It makes no sense.
        """
        match message:
            case Setup() if self._served is None:
                settings = parse(message.content, source=Path(message.source))
                self._configure_logs(settings.log, message.number)
                self._served = _Served(
                    settings, self._link, workers=message.workers, listeners=self._listeners
                )
            case Stop():
                self._drain_seconds = message.drain_seconds
                self._stopping.set()
            case _ if self._served is not None:
                self._served.receive(message_id, message)
            case _:
                raise ChannelError(f"{message.kind!r} before or after its time")


class _Served:
    """What a worker has once it is set up."""

    def __init__(
        self,
        settings: Settings,
        link: Link,
        *,
        workers: int,
        listeners: Sequence[socket.socket],
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._link = link
        self._workers = workers
        places = DataDirectory(settings.data_dir)
        self._replica = Replica(settings.repositories.values(), places, agent=AGENT)
        self._replica.failed.add_done_callback(self._give_up)
        self._registry = Registry(
            (self._hosted(mirror) for mirror in self._replica.mirrors.values()),
            settings.upstreams,
        )
        self._registry.opener = OpenerProxy(link, self._registry)
        self._foresight: Foresight | None = None
        self._metrics: Metrics | None = None
        self._listening: asyncio.Task[None] | None = None
        self._front: Front | None = None
        self._asked: set[asyncio.Task[None]] = set()
        self._children = AsyncExitStack()
        self._stack = AsyncExitStack()
        self._stack.push_async_callback(self._replica.close)

    def receive(self, message_id: int, message: Message) -> None:
        """Follow the main process.

        Raises:
            ChannelError: What it says makes no sense.
        """
        done = partial(self._link.reply, message_id, Reply())
        match message:
            case Announced():
                self._replica.announce(message)
                done()
            case Refreshed():
                self._replica.refresh(message, done)
            case Bundled():
                self._replica.bundle(message)
                done()
            case Added():
                self._add(message.repository)
            case Removed():
                self._link.reply(message_id, Reply("" if self._remove(message) else BUSY))
            case ReadsWanted():
                self._link.reply(message_id, Reply(json.dumps(self._reads())))
            case CountsWanted():
                counts = [] if self._metrics is None else counts_of(self._metrics.registry)
                self._link.reply(message_id, Reply(dump(counts)))
            case Listen() if self._listening is None:
                self._listening = asyncio.create_task(self._listen(message_id))
            case CanaryWanted() if self._front is not None:
                self._answer(message_id, ask_own_canary(self._front.runner))
            case Leave() if self._front is not None:
                self._answer(message_id, self._front.leave())
            case _:
                raise ChannelError(f"{message.kind!r} is not for a worker")

    def _hosted(self, mirror: Mirror) -> Hosted:
        return Hosted.of(mirror, RefreshProxy(self._link, mirror.name))

    def _add(self, name: str) -> None:
        """Take in a mirror below `upstreams`, unless it is here."""
        settings = self._settings.find(name)
        if settings is None:
            raise ChannelError(f"{name} is not below `upstreams`")
        if self._registry.get(name) is None:
            self._registry.add(self._hosted(self._replica.add(settings)))

    def _remove(self, removed: Removed) -> bool:
        """Let go of a mirror; `False` where somebody reads it."""
        hosted = self._registry.get(removed.repository)
        if hosted is None:
            return True
        name = hosted.mirror.name
        is_busy = hosted.mirror.readers > 0 or self._replica.is_following(name)
        if is_busy and not removed.by_force:
            return False
        self._registry.remove(name)
        if self._foresight is not None:
            self._foresight.forget(name)
        self._replica.remove(name)
        return True

    def _reads(self) -> dict[str, float]:
        mirrors = (one.mirror for one in self._registry if one.mirror.settings.place is not None)
        return {one.name: one.read_at for one in mirrors if math.isfinite(one.read_at)}

    def _answer(self, message_id: int, work: Coroutine[Any, Any, None]) -> None:
        """Answer once `work` is done; the main process asks one thing of a kind at a time."""

        async def answer() -> None:
            reply = Reply()
            try:
                await work
            except (MirrorError, OSError) as error:
                reply = Reply(error=str(error))
            self._link.reply(message_id, reply)

        task = asyncio.create_task(answer())
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _listen(self, message_id: int) -> None:
        """Build what serves, and accept connections once all that was told is followed."""
        try:
            engine = await self._children.enter_async_context(open_engine(self._settings.engine))
            metrics = self._metrics = build_metrics(engine)
            tls = await open_tls(self._stack, self._settings, metrics)
            share = Share(processes=self._workers, is_first=False)
            packs = await open_packs(self._stack, self._settings, engine, metrics, share)
            foresight = self._foresight = Foresight(packs, metrics)
            self._stack.push_async_callback(foresight.close)
            self._replica.on_followed = foresight.followed
            front = await open_app(
                self._stack,
                self._settings,
                self._registry,
                metrics,
                fetches=Fetches(packs, foresight, metrics),
                announcer=AnnouncerProxy(self._link),
                figures=FiguresProxy(self._link),
                processes=self._workers,
                lfs=LfsProxy(self._link),
            )
            await self._replica.settled()
            await accept(front.runner, self._listeners, tls=tls)
            self._front = front
        except MirrorError as error:
            self._link.reply(message_id, Reply(error=str(error)))
        except OSError as error:
            self._link.reply(message_id, Reply(error=f"can't listen: {error.strerror or error}"))
        except Exception:
            logger.exception("worker_broke")
            self._link.abort()
        else:
            self._link.reply(message_id, Reply())

    def _give_up(self, failed: "asyncio.Future[None]") -> None:
        logger.error("worker_can_not_follow", error=str(failed.exception()))
        self._link.abort()

    async def drain(self, seconds_max: float) -> None:
        """Finish what is being served, within that time."""
        if self._listening is not None:
            await asyncio.wait((self._listening,))
        if self._front is not None:
            await self._front.leave(let_go_seconds=min(LET_GO_SECONDS, seconds_max))
            await self._front.finish(seconds_max)
        if self._asked:
            await asyncio.wait(self._asked)
        await self._stack.aclose()
        await self._children.aclose()

    async def end_children(self) -> None:
        """Kill the child processes; they would outlive this one."""
        await self._children.aclose()
