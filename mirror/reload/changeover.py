"""Has every part of the service go on by another configuration.

First all that can fail is done beside what runs: mirrors are opened, certificates loaded. Then
comes one step of the event loop, in which nothing waits: from it on every request that begins here
is answered by the new configuration, and the workers are told. What follows takes its time and is
no reader's concern: their acknowledgements, the end of what is not here any more, first clones.

A mirror that is not here any more is let go of when the last request by an earlier configuration
has ended. Its files stay where they are, and are found again when it comes back; only those of a
mirror that came by `upstreams` go.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog

from mirror.config import Difference, LogSettings, RepositorySettings, Settings, compare
from mirror.errors import LocalError
from mirror.mirroring import Mirroring, Retired
from mirror.places import DataDirectory
from mirror.pulling import PullThrough
from mirror.refresh.bundling import Bundler
from mirror.refresh.foresight import Foresight
from mirror.refresh.lfs import LargeFiles
from mirror.refresh.mirror import Mirror
from mirror.refresh.opening import close_mirror
from mirror.refresh.relay.relays import Relays
from mirror.repository.packing.pack_cache import PackCache
from mirror.serving import Serving
from mirror.stores import Share
from mirror.web.tls import Tls, load

DRAIN_SECONDS_MAX: Final = 60.0
"""Readers of a repository whose place another one takes may go on that long; after that what they
read is moved, and their answers may break off."""

LETTING_GO: Final = "let go of mirrors"
"""The name of the tasks that wait for readers of what is not here any more, which takes long."""

ConfigureLogs = Callable[[LogSettings], None]

logger = structlog.stdlib.get_logger()


class Workers(Protocol):
    """The processes that serve readers, where it is not this one."""

    async def prepare(self, settings: Settings) -> None:
        """Have them read another configuration, so that the change takes them no time."""
        ...

    def change(
        self, settings: Settings, removed: Iterable[Mirror], added: Iterable[Mirror]
    ) -> Coroutine[Any, Any, None]:
        """Tell them of another configuration, at once; to be awaited for their acknowledgement."""
        ...

    async def drained(self, seconds_max: float) -> None:
        """Wait until they answer no request by an earlier configuration."""
        ...


@dataclass(slots=True, kw_only=True)
class Parts:
    """What goes by the configuration in the main process.

    Attributes:
        serving: Where this process serves readers; else there are `workers`.
        gone_before: Set once the process that this one took over from, if any, has no readers.
    """

    places: DataDirectory
    mirroring: Mirroring
    packs: PackCache
    share: Share
    foresight: Foresight
    bundler: Bundler
    relays: Relays
    lfs: LargeFiles
    pulling: PullThrough
    tls: Tls | None
    configure_logs: ConfigureLogs
    serving: Serving | None = None
    workers: Workers | None = None
    gone_before: asyncio.Event | None = None


class Changeover:
    """Applies configurations, one after the other.

    Attributes:
        settings: What applies now.
    """

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self.settings = settings
        self._parts = parts
        self._tasks: set[asyncio.Task[None]] = set()
        self._moving = asyncio.Lock()
        self._bundling = asyncio.Lock()

    async def apply(self, written: Settings) -> Difference:
        """Have `written` apply, but for what needs a restart; on return it does, everywhere.

        Returns:
            What has changed.

        Raises:
            LocalError: It can't be applied. Nothing has changed.
        """
        parts = self._parts
        difference = self._compare(written)
        if not difference.is_any:
            return difference
        certificates = await self._prepare(difference.settings)
        async with parts.pulling.tidier.still():
            # Below `upstreams`, readers may have brought some meanwhile.
            opened: dict[str, Mirror] = {}
            while lacking := [one for one in difference.added if one.name not in opened]:
                await self._open(lacking, difference.removed, opened)
                difference = self._compare(written)
            added = [opened.pop(one.name) for one in difference.added]
            for mirror in opened.values():
                close_mirror(mirror)
            retired, told = self._switch(difference, added, certificates)
        if told is not None:
            await told
        gone = [one.mirror for one in retired]
        changed = [
            hosted.mirror
            for one in difference.changed
            if (hosted := parts.mirroring.registry.get(one.name)) is not None
        ]
        await self._tell(changed, added)
        await asyncio.gather(*(one.end() for one in retired))
        await self._follow(difference, gone, added)
        for mirror in added:
            if mirror.name in difference.removed:
                self._start(self._replace(mirror), f"replace {mirror.name}")
            else:
                parts.mirroring.begin(mirror.name)
        if gone:
            self._start(self._let_go(gone), LETTING_GO)
        for mirror in changed:
            self._start(self._bundle(mirror), f"bundles of {mirror.name}")
        return difference

    async def _prepare(self, new: Settings) -> ssl.SSLContext | None:
        """Do what can fail and changes nothing; returns the certificates that are new.

        Raises:
            LocalError: Something can't be used.
        """
        parts, old = self._parts, self.settings
        if new.relays != old.relays:
            await parts.relays.prepare(new.relays)
        if parts.workers is not None:
            await parts.workers.prepare(new)
        if new.tls is None or new.tls == old.tls:
            return None
        return await asyncio.to_thread(load, new.tls)

    def _switch(
        self, difference: Difference, added: list[Mirror], certificates: ssl.SSLContext | None
    ) -> tuple[list[Retired], Awaitable[None] | None]:
        """Go by the new configuration from now on: the one step, in which nothing waits.

        Returns:
            What is not here any more, and the workers' acknowledgement, to be awaited.
        """
        parts, old, new = self._parts, self.settings, difference.settings
        before = parts.mirroring.registry.copy()
        retired = parts.mirroring.change(difference, added)
        gone = [one.mirror for one in retired]
        told: Awaitable[None] | None = None
        if parts.workers is not None:
            told = parts.workers.change(new, gone, added)
        if parts.serving is not None:
            parts.serving.change(old, new, before)
        parts.packs.change(**parts.share.pack_limits(new))
        parts.bundler.resize(new.limits.bundle_bytes_max)
        parts.lfs.change(new)
        parts.pulling.change(difference, gone)
        if parts.tls is not None and new.tls is not None and certificates is not None:
            parts.tls.change(new.tls, certificates)
        if new.log != old.log:
            parts.configure_logs(new.log)
        self.settings = new
        return retired, told

    def _compare(self, written: Settings) -> Difference:
        here = {one.mirror.name: one.settings for one in self._parts.mirroring.registry}
        return compare(self.settings, written, here)

    async def _open(
        self,
        added: Iterable[RepositorySettings],
        removed: Collection[str],
        opened: dict[str, Mirror],
    ) -> None:
        """Open the mirrors of what is added, beside what is here.

        Raises:
            LocalError: One can neither be used nor set aside.
        """
        try:
            for one in added:
                if one.name in removed:  # what is there is another's, and is being read
                    opened[one.name] = Mirror(one, self._parts.places.repository(one.name))
                else:
                    opened[one.name] = await self._parts.mirroring.opened(one)
        except LocalError:
            for mirror in opened.values():
                close_mirror(mirror)
            raise

    async def _tell(self, changed: list[Mirror], added: list[Mirror]) -> None:
        """Have the workers hold readers where other refs count, and show what was on disk."""
        telling = [one.replicas.announced(one) for one in changed if one.replicas is not None]
        telling += [
            one.replicas.refreshed(one)
            for one in added
            if one.replicas is not None and one.snapshot is not None
        ]
        await asyncio.gather(*telling)

    async def _follow(
        self, difference: Difference, gone: list[Mirror], added: list[Mirror]
    ) -> None:
        """Have what does not face readers follow."""
        parts = self._parts
        await parts.pulling.tidier.keep(difference.changed)
        for mirror in gone:
            parts.foresight.forget(mirror.name)
            await parts.lfs.forget(mirror.name)
            await parts.relays.forget(mirror.name)
        if "relays" in difference.parts or gone or added:
            here = [one.mirror for one in parts.mirroring.registry]
            await parts.relays.change(difference.settings.relays, here)
        for mirror in gone:
            logger.info("repository_removed", repository=mirror.name, path=str(mirror.path))
        for mirror in added:
            if mirror.name not in difference.removed:
                await parts.bundler.change(mirror)
            logger.info(
                "repository_added", repository=mirror.name, is_on_disk=mirror.snapshot is not None
            )

    def replace(self, mirrors: Iterable[Mirror]) -> None:
        """Begin with repositories in whose place on disk another one is, which may have readers."""
        for mirror in mirrors:
            self._start(self._replace(mirror), f"replace {mirror.name}")

    def check_settled(self) -> None:
        """See that nothing on disk is still being changed after an `apply`.

        Raises:
            LocalError: Something is.
        """
        if any(one.get_name() != LETTING_GO for one in self._tasks):
            raise LocalError("the last reload is not over yet; try again in some seconds")

    # --- in its own time -----------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        async def finish() -> None:
            try:
                await work
            except Exception:  # whatever it is, there are readers to serve
                logger.exception("changeover_broke", what=name)

        task = asyncio.create_task(finish(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drained(self) -> None:
        parts = self._parts
        if parts.serving is not None:
            await parts.serving.drained()
        if parts.workers is not None:
            await parts.workers.drained(DRAIN_SECONDS_MAX)
        if parts.gone_before is not None:
            await parts.gone_before.wait()

    async def _let_go(self, gone: list[Mirror]) -> None:
        """Let go of mirrors once nobody reads them any more."""
        for mirror in gone:
            if self._parts.mirroring.registry.get(mirror.name) is None:
                await self._parts.bundler.forget(mirror.name)
        await self._drained()
        for mirror in gone:
            mirror.forsake()
            if mirror.settings.place is not None:
                await self._parts.pulling.tidier.discard(mirror)

    async def _replace(self, mirror: Mirror) -> None:
        """Begin with a repository whose place another one had, once nobody reads that one."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS_MAX):
                await self._drained()
        except TimeoutError:
            logger.warning("readers_not_waited_for", repository=mirror.name)
        mirroring = self._parts.mirroring
        async with self._moving:
            if not self._is_here(mirror):
                return  # yet another configuration has come
            found = await mirroring.opened(mirror.settings)  # sets aside what is another's
            if not self._is_here(mirror):
                close_mirror(found)
                return
            mirror.repository, mirror.snapshot = found.repository, found.snapshot
            await self._parts.bundler.change(mirror)
            if mirror.replicas is not None and mirror.snapshot is not None:
                await mirror.replicas.refreshed(mirror)
            mirroring.begin(mirror.name)

    def _is_here(self, mirror: Mirror) -> bool:
        hosted = self._parts.mirroring.registry.get(mirror.name)
        return hosted is not None and hosted.mirror is mirror

    async def _bundle(self, mirror: Mirror) -> None:
        async with self._bundling:
            if self._is_here(mirror):
                await self._parts.bundler.change(mirror)

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
