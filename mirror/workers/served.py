"""What a worker has once it is set up: its copies, and what serves them.

Must never ask an upstream for itself: it passes pushes on, and has the main process ask for what
readers want, such as LFS objects. Writes nothing below data_dir but packs for readers.
"""

import asyncio
import json
import math
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import structlog

from mirror.config import LogSettings, Settings, compare, parse
from mirror.errors import MirrorError
from mirror.metrics import Metrics
from mirror.places import DataDirectory
from mirror.refresh.foresight import Foresight
from mirror.refresh.mirror import Mirror
from mirror.refresh.registry import Hosted, Registry
from mirror.repository.packing.pack_cache import PackCache
from mirror.serving import AGENT, Serving, build_metrics, open_app, open_tls
from mirror.stores import Share, open_engine, open_packs
from mirror.web.canary import ask_own_canary
from mirror.web.fetch import Fetches
from mirror.web.front import LET_GO_SECONDS, Front
from mirror.web.listening import accept
from mirror.web.tls import Tls, load
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
    DrainWanted,
    Leave,
    Listen,
    Message,
    Prepare,
    ReadsWanted,
    Reconfigure,
    Refreshed,
    Removed,
    Reply,
)
from mirror.workers.proxies import (
    BUSY,
    AnnouncerProxy,
    FiguresProxy,
    OpenerProxy,
    RefreshProxy,
)
from mirror.workers.replica import Replica

logger = structlog.stdlib.get_logger()


class Served:
    """The copies, and what serves them."""

    def __init__(
        self,
        settings: Settings,
        link: Link,
        *,
        workers: int,
        listeners: Sequence[socket.socket],
        configure_logs: Callable[[LogSettings], None],
    ) -> None:
        self._configure_logs = configure_logs
        self._settings = settings
        self._listeners = listeners
        self._link = link
        self._workers = workers
        self._share = Share(processes=workers, is_first=False)
        places = DataDirectory(settings.data_dir)
        self._replica = Replica(settings.repositories.values(), places, agent=AGENT)
        self._replica.failed.add_done_callback(self._give_up)
        self._registry = Registry(
            (self._hosted(mirror) for mirror in self._replica.mirrors.values()),
            settings.upstreams,
        )
        self._registry.opener = OpenerProxy(link, self._registry)
        self._foresight: Foresight | None = None
        self._packs: PackCache | None = None
        self._serving: Serving | None = None
        self._tls: Tls | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._prepared: tuple[bytes, Settings, ssl.SSLContext | None] | None = None
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
            case Prepare():
                self._start(self._prepare(message.content, done))
            case Reconfigure():
                self._change(message.content)
                done()
            case DrainWanted():
                self._start(self._drained(done))
            case _:
                self._answer_to(message_id, message)

    def _answer_to(self, message_id: int, message: Message) -> None:
        """Do or tell what the main process asks of what serves here.

        Raises:
            ChannelError: It makes no sense.
        """
        match message:
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

    async def _prepare(self, content: bytes, done: Callable[[], None]) -> None:
        """Read a configuration that is to come; what is wrong with it shows when it does."""
        try:
            read = await asyncio.to_thread(_read, content, self._settings)
        except MirrorError as error:
            logger.warning("configuration_not_prepared", error=str(error))
        else:
            self._prepared = content, *read
        done()

    def _change(self, content: bytes) -> None:
        """Serve by another configuration, in one step: whoever asks next is answered by it.

        Raises:
            MirrorError: It can't be used here; the main process could.
        """
        old, registry, prepared = self._settings, self._registry, self._prepared
        self._prepared = None
        if prepared is None or prepared[0] != content:
            prepared = content, *_read(content, old)
        _, written, loaded = prepared
        here = {one.mirror.name: one.settings for one in registry}
        difference = compare(old, written, here)
        new = difference.settings
        before = registry.copy()
        gone = []
        for name in difference.removed:
            registry.remove(name)
            gone.append(self._replica.retire(name))
            if self._foresight is not None:
                self._foresight.forget(name)
        registry.upstreams = new.upstreams
        for one in difference.changed:
            mirror = self._replica.mirrors[one.name]
            registry.remove(one.name)
            mirror.settings = one
            registry.add(self._hosted(mirror))
            mirror.changed.give()
        for one in difference.added:
            registry.add(self._hosted(self._replica.add(one)))
        self._settings = new
        self._follow_settings(old, before, loaded)
        if new.log != old.log:
            self._configure_logs(new.log)
        if gone:
            self._start(self._let_go(gone))

    def _follow_settings(
        self, old: Settings, before: Registry, loaded: ssl.SSLContext | None
    ) -> None:
        """Have what serves go by the settings of the moment, instead of `old`."""
        new = self._settings
        if self._serving is not None:
            self._serving.change(old, new, before)
        if self._packs is not None:
            self._packs.change(**self._share.pack_limits(new))
        if self._tls is not None and new.tls is not None and loaded is not None:
            self._tls.change(new.tls, loaded)

    async def _let_go(self, gone: list[Mirror]) -> None:
        """Let go of mirrors after their last reader."""
        if self._serving is not None:
            await self._serving.drained()
        for mirror in gone:
            mirror.forsake()

    async def _drained(self, done: Callable[[], None]) -> None:
        if self._serving is not None:
            await self._serving.drained()
        done()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
        settings = self._settings
        try:
            engine = await self._children.enter_async_context(open_engine(settings.engine))
            metrics = self._metrics = build_metrics(engine)
            tls = self._tls = await open_tls(self._stack, settings, metrics)
            packs = self._packs = await open_packs(
                self._stack, settings, engine, metrics, self._share
            )
            foresight = self._foresight = Foresight(packs, metrics)
            self._stack.push_async_callback(foresight.close)
            self._replica.on_followed = foresight.followed
            serving = self._serving = await open_app(
                self._stack,
                settings,
                self._registry,
                metrics,
                fetches=Fetches(packs, foresight, metrics),
                announcer=AnnouncerProxy(self._link),
                figures=FiguresProxy(self._link),
                processes=self._workers,
                lfs=LfsProxy(self._link),
            )
            if settings is not self._settings:  # another has come meanwhile
                _, loaded = _read(self._settings.content, settings)
                self._follow_settings(settings, self._registry.copy(), loaded)
            await self._replica.settled()
            context = None if tls is None else tls.context
            await accept(serving.runner, self._listeners, tls=context)
            self._front = serving.front
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

    async def drain(self, seconds_max: float | None) -> None:
        """Finish what is being served, within that time; by default, within the configured one."""
        if seconds_max is None:
            seconds_max = self._settings.server.drain_timeout_seconds
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


def _read(content: bytes, running: Settings) -> tuple[Settings, ssl.SSLContext | None]:
    """Return a configuration, and its certificates where they are not those of `running`; blocking.

    Raises:
        MirrorError: It can't be used.
    """
    settings = parse(content, source=running.source)
    both = settings.tls is not None and running.tls is not None
    is_new = both and settings.tls != running.tls
    return settings, load(settings.tls) if is_new and settings.tls is not None else None
