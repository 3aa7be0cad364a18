"""The upstream side: every repository with its mirror on disk and the refresher that keeps it.

Knows nothing of who serves them. There is one of these per data directory.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Final

from mirror.config import Difference, LimitSettings, RepositorySettings, Settings
from mirror.errors import LocalError
from mirror.metrics import Metrics
from mirror.places import DataDirectory
from mirror.refresh.bounds import Bounds
from mirror.refresh.healing import Healer
from mirror.refresh.maintenance import Maintainer
from mirror.refresh.mirror import Mirror
from mirror.refresh.opening import close_mirror, open_mirror
from mirror.refresh.places import RefreshPlaces
from mirror.refresh.refresher import OnPublished, OnServed, Refresher, Trigger
from mirror.refresh.registry import Hosted, Registry
from mirror.refresh.update import Updated, Updater
from mirror.repository.packing.engine import PackEngine
from mirror.repository.snapshot import RefSnapshot
from mirror.stores import room_of
from mirror.upstream.connect import Sessions, admit_places, remote_for
from mirror.upstream.keyring import Keyring
from mirror.upstream.remote import Remote

Watch = Callable[[Mirror], None]

SETTLING_LOOK_SECONDS: Final = 0.02


class Mirroring:
    """All repositories, each with its refresher.

    Attributes:
        registry: The repositories.
        refreshers: By the name of their repository.
        bounds: What they may take of the disk, and take.
        left: Those whose place on disk has what can't be used, which is not ours to move yet.
        maintainer: Keeps them small and quick.
    """

    def __init__(
        self,
        open_one: Callable[[RepositorySettings], Awaitable[Mirror]],
        refresher_of: Callable[[Mirror], Refresher],
        maintainer_of: Callable[[Callable[[], Iterable[Mirror]]], Maintainer],
        *,
        ways: "_Ways",
        places: RefreshPlaces,
        upstreams: Sequence[RepositorySettings],
        bounds: Bounds,
        is_certain: bool,
    ) -> None:
        self.left: list[Mirror] = []
        self._is_certain = is_certain
        self._ways = ways
        self._places = places
        self.bounds = bounds
        self.maintainer = maintainer_of(lambda: [one.mirror for one in self.registry])
        self.refreshers: dict[str, Refresher] = {}
        self.registry = Registry([], upstreams)
        self._open_one = open_one
        self._refresher_of = refresher_of
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watching: list[asyncio.Task[None]] = []

    @classmethod
    async def open(
        cls,
        stack: AsyncExitStack,
        settings: Settings,
        engine: PackEngine,
        sessions: Sessions,
        keyring: Keyring,
        metrics: Metrics,
        *,
        agent: bytes,
        watch: Watch | None,
        on_published: OnPublished,
        on_served: OnServed,
        is_certain: bool = True,
    ) -> "Mirroring":
        """Open every mirror on disk; nothing is refreshed yet. `stack` gets what is to be closed.

        Args:
            stack: Ends in the opposite order: the refreshers first, then the mirrors.
            settings: The configuration.
            engine: Indexes and merges packs.
            sessions: Reach the upstreams.
            keyring: How, and with which credentials.
            metrics: Of this process.
            agent: What upstreams and the mirror's readers know us by.
            watch: Called with each step of each refresh.
            on_published: Told of each change that readers see.
            on_served: Told when no reader sees what was before it.
            is_certain: Whether the directory is this process's for good: until `take_charge`, what
                can't be used stays where it is, for another process may be reading it.
        """
        places = DataDirectory(settings.data_dir)
        bounds = Bounds(room_of(settings), bytes_max=settings.limits.repositories_bytes_max)
        updater = Updater(engine, staging=places.staging, agent=agent, bounds=bounds)
        shared = RefreshPlaces.of(settings.limits.refreshes_max)
        ways = _Ways(sessions, keyring, settings.limits, agent)

        async def open_one(repository: RepositorySettings) -> Mirror:
            try:
                mirror = await asyncio.to_thread(
                    open_mirror, repository, places, updater, sets_aside=mirroring._is_certain
                )
                if mirror.repository is not None:
                    for one in mirror.repository.found:
                        metrics.record_damage(one.kind.value)
                    await updater.weigh(mirror, mirror.repository)
            except OSError as error:
                raise LocalError(f"{repository.name} can't be opened: {error}") from error
            mirror.watch = watch
            return mirror

        def damaged(mirror: Mirror) -> None:
            mirroring._mend(mirror)

        def maintainer_of(mirrors: Callable[[], Iterable[Mirror]]) -> Maintainer:
            return Maintainer(
                engine,
                metrics,
                mirrors,
                has_room=bounds.has_room,
                weigh=updater.weigh,
                on_damaged=damaged,
            )

        def published(mirror: Mirror, before: RefSnapshot | None, updated: Updated) -> None:
            mirroring.maintainer.published(mirror)
            on_published(mirror, before, updated)

        def refresher_of(mirror: Mirror) -> Refresher:
            remote = ways.remote(mirror)
            return Refresher(
                mirror,
                remote,
                updater,
                places=shared,
                healer=Healer(
                    mirror,
                    remote,
                    updater,
                    engine,
                    metrics,
                    set_aside=places.set_aside,
                    alone=lambda: mirroring.maintainer.paused(mirror.name),
                ),
                metrics=metrics,
                refresh_seconds_max=ways.limits.refresh_timeout_seconds,
                on_published=published,
                on_served=on_served,
            )

        mirroring = cls(
            open_one,
            refresher_of,
            maintainer_of,
            ways=ways,
            places=shared,
            upstreams=settings.upstreams,
            bounds=bounds,
            is_certain=is_certain,
        )
        stack.push_async_callback(mirroring._end)
        for repository in settings.repositories.values():
            await mirroring.add(repository)
        return mirroring

    async def add(self, settings: RepositorySettings) -> Hosted:
        """Take in a repository, with its mirror if there is one on disk; nothing is refreshed yet.

        Raises:
            LocalError: The one on disk can neither be used nor set aside.
        """
        hosted = self.take(await self._open_one(settings))
        mirror = hosted.mirror
        if not self._is_certain and mirror.repository is None and mirror.path.exists():
            self.left.append(mirror)
        return hosted

    def take(self, mirror: Mirror) -> Hosted:
        """Take in a repository whose mirror was `opened`; nothing is refreshed yet."""
        refresher = self.refreshers[mirror.name] = self._refresher_of(mirror)
        hosted = Hosted.of(mirror, refresher)
        self.registry.add(hosted)
        return hosted

    async def opened(self, settings: RepositorySettings) -> Mirror:
        """Open a repository's mirror on disk, if there is one; it is not taken in yet.

        Raises:
            LocalError: The one on disk can neither be used nor set aside.
        """
        return await self._open_one(settings)

    def change(self, difference: Difference, mirrors: Iterable[Mirror]) -> "list[Retired]":
        """Have the repositories of another configuration, in one step; nothing is awaited.

        Args:
            difference: What changes.
            mirrors: What was `opened` for those that are added; nothing is refreshed yet.

        Returns:
            Those that are not here any more: to be ended, and let go of after their last reader.
        """
        settings, ways, registry = difference.settings, self._ways, self.registry
        if ways.limits.refreshes_max != settings.limits.refreshes_max:
            self._places.resize(settings.limits.refreshes_max)
        is_limited_otherwise = ways.limits != settings.limits
        ways.limits = settings.limits
        admit_places(ways.sessions.guard, settings)
        registry.upstreams = settings.upstreams
        retired = []
        for name in difference.removed:
            hosted = registry.get(name)
            if hosted is not None:
                registry.remove(name)
                del self.refreshers[name]
                hosted.mirror.replicas = None  # of another mirror from now on, or of none
                task = self._tasks.pop(name, None)
                if task is not None:
                    task.cancel()
                retired.append(Retired(hosted.mirror, task))
        changed = {one.name: one for one in difference.changed}
        for hosted in registry if changed or is_limited_otherwise else ():
            mirror = hosted.mirror
            refresher = self.refreshers[mirror.name]
            now = changed.get(mirror.name, mirror.settings)
            if now != mirror.settings:
                registry.remove(mirror.name)
            seconds_max = ways.limits.refresh_timeout_seconds
            refresher.change(now, ways.remote(mirror, now), seconds_max)
            if registry.get(mirror.name) is None:
                registry.add(Hosted.of(mirror, refresher))
        for mirror in mirrors:
            refresher = self.refreshers[mirror.name] = self._refresher_of(mirror)
            registry.add(Hosted.of(mirror, refresher))
        in_use = (*(one.settings for one in registry), *settings.upstreams)
        ways.keyring.keep_routes(one.route for one in in_use)
        return retired

    def start(self) -> list[asyncio.Task[None]]:
        """Begin to refresh all but what is `left`; returns tasks, none of which should end."""
        left = {one.name for one in self.left}
        for one in self.registry:
            if one.mirror.name in left:
                continue
            is_pending = one.mirror.freshness.is_pending
            self.begin(one.mirror.name, at_once=is_pending)
        self._watching = [
            asyncio.create_task(self._until_broken(), name="refreshers"),
            asyncio.create_task(self._ways.keyring.watch(), name="look at credentials"),
        ]
        return self._watching

    def take_charge(self) -> list[Mirror]:
        """Take the data directory for good; returns what is `left`, for `Changeover.replace`."""
        self._is_certain = True
        return [one for one in self.left if self.registry.get(one.name) is not None]

    async def pause(self, *, settle_seconds: float) -> None:
        """Refresh nothing until `resume`; what is under way gets so long to end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(settle_seconds):
                while any(one.is_busy for one in self.refreshers.values()):  # noqa: ASYNC110 - rare
                    await asyncio.sleep(SETTLING_LOOK_SECONDS)
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def resume(self) -> None:
        """Refresh again, all of it at once: nobody knows what was missed."""
        for name in self.refreshers:
            self.begin(name)

    def begin(self, name: str, *, at_once: bool = True) -> None:
        """Begin to refresh one repository."""
        work = self.refreshers[name].run(at_once=at_once)
        task = self._tasks[name] = asyncio.create_task(work, name=f"refresh {name}")
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and not self._broken.done():
            error = task.exception() or RuntimeError(f"{task.get_name()} ended")
            self._broken.set_exception(error)

    async def _until_broken(self) -> None:
        await self._broken

    async def remove(self, name: str) -> None:
        """Let go of a repository: from now on it is not here. What is on disk stays."""
        hosted = self.registry.get(name)
        if hosted is None:
            return
        self.registry.remove(name)
        del self.refreshers[name]
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        self.bounds.forget(name)
        await self.maintainer.forget(name)
        hosted.mirror.forsake()

    def _mend(self, mirror: Mirror) -> None:
        """Have a repository mended that was found damaged, if it is still here."""
        refresher = self.refreshers.get(mirror.name)
        if refresher is not None:
            refresher.request(Trigger.DAMAGE)

    async def _end(self) -> None:
        tasks = [*self._tasks.values(), *self._watching]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._broken.done() and not self._broken.cancelled():
            self._broken.exception()  # seen: nobody has to be waiting
        for one in self.registry:
            close_mirror(one.mirror)


@dataclass(slots=True)
class _Ways:
    """How upstreams are reached, by the configuration of the moment."""

    sessions: Sessions
    keyring: Keyring
    limits: LimitSettings
    agent: bytes

    def remote(self, mirror: Mirror, settings: RepositorySettings | None = None) -> Remote:
        """Make the client for a mirror's upstream, with its own settings or those it will have."""
        settings = mirror.settings if settings is None else settings
        session = self.sessions.of(settings)
        remote = remote_for(session, self.keyring, settings, self.limits, agent=self.agent)
        # Only now that the remote has them: the keyring keeps none that nobody else has.
        credentials = self.keyring.credentials(settings)
        mirror.credentials = None if credentials is None else credentials.standing
        return remote


@dataclass(frozen=True, slots=True)
class Retired:
    """A mirror that is not here any more, and the task that has kept it."""

    mirror: Mirror
    task: "asyncio.Task[None] | None"

    async def end(self) -> None:
        """Wait for the end of its refreshes."""
        if self.task is not None:
            await asyncio.wait((self.task,))
