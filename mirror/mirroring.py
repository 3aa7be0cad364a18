"""The upstream side: every repository with its mirror on disk and the refresher that keeps it.

Knows nothing of who serves them. There is one of these per data directory.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Final

import structlog

from mirror.config import RepositorySettings, Settings
from mirror.errors import LocalError
from mirror.metrics import Metrics
from mirror.places import DataDirectory
from mirror.refresh.lfs import BATCHES_MAX, LargeFiles, LfsRepository
from mirror.refresh.mirror import Mirror
from mirror.refresh.refresher import OnPublished, OnServed, Refresher, RefreshPlaces
from mirror.refresh.registry import Hosted, Registry
from mirror.refresh.update import Updater
from mirror.repository.bare import BareRepository
from mirror.repository.packing.engine import PackEngine
from mirror.serving import lfs_store
from mirror.upstream.connect import (
    Sessions,
    guarded_resolver,
    lfs_remote_for,
    open_sessions,
    remote_for,
)
from mirror.upstream.keyring import Keyring
from mirror.upstream.storage import Storage

Watch = Callable[[Mirror], None]

SETTLING_LOOK_SECONDS: Final = 0.02

logger = structlog.stdlib.get_logger()


class Mirroring:
    """All repositories, each with its refresher.

    Attributes:
        registry: The repositories.
        refreshers: By the name of their repository.
    """

    def __init__(
        self,
        open_one: Callable[[RepositorySettings], Awaitable[Mirror]],
        refresher_of: Callable[[Mirror], Refresher],
        upstreams: Sequence[RepositorySettings],
        keyring: Keyring,
    ) -> None:
        self._keyring = keyring
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
        """
        places = DataDirectory(settings.data_dir)
        updater = Updater(engine, staging=places.staging, agent=agent)
        shared = RefreshPlaces.of(settings.limits.refreshes_max)

        async def open_one(repository: RepositorySettings) -> Mirror:
            try:
                mirror = await asyncio.to_thread(open_mirror, repository, places, updater)
            except OSError as error:
                raise LocalError(f"{repository.name} can't be opened: {error}") from error
            mirror.watch = watch
            return mirror

        def refresher_of(mirror: Mirror) -> Refresher:
            session = sessions.of(mirror.settings)
            remote = remote_for(session, keyring, mirror.settings, settings.limits, agent=agent)
            # Only now that the remote has them: the keyring keeps none that nobody else has.
            credentials = keyring.credentials(mirror.settings)
            mirror.credentials = None if credentials is None else credentials.standing
            return Refresher(
                mirror,
                remote,
                updater,
                engine,
                places=shared,
                metrics=metrics,
                refresh_seconds_max=settings.limits.refresh_timeout_seconds,
                on_published=on_published,
                on_served=on_served,
            )

        mirroring = cls(open_one, refresher_of, settings.upstreams, keyring)
        stack.push_async_callback(mirroring._end)
        for repository in settings.repositories.values():
            await mirroring.add(repository)
        return mirroring

    async def add(self, settings: RepositorySettings) -> Hosted:
        """Take in a repository, with its mirror if there is one on disk; nothing is refreshed yet.

        Raises:
            LocalError: The one on disk can neither be used nor set aside.
        """
        mirror = await self._open_one(settings)
        refresher = self.refreshers[mirror.name] = self._refresher_of(mirror)
        hosted = Hosted.of(mirror, refresher)
        self.registry.add(hosted)
        return hosted

    def start(self) -> list[asyncio.Task[None]]:
        """Begin to refresh; returns tasks, none of which should ever end."""
        for one in self.registry:
            is_pending = one.mirror.freshness.is_pending
            self.begin(one.mirror.name, at_once=is_pending)
        self._watching = [
            asyncio.create_task(self._until_broken(), name="refreshers"),
            asyncio.create_task(self._keyring.watch(), name="look at credentials"),
        ]
        return self._watching

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
        hosted.mirror.forsake()

    async def _end(self) -> None:
        tasks = [*self._tasks.values(), *self._watching]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._broken.done() and not self._broken.cancelled():
            self._broken.exception()  # seen: nobody has to be waiting
        for one in self.registry:
            close_mirror(one.mirror)


def open_mirror(settings: RepositorySettings, places: DataDirectory, updater: Updater) -> Mirror:
    """Open a repository's mirror if there is one on disk; blocking.

    One that can't be read, or that is of another upstream, is set aside and cloned anew.
    """
    mirror = Mirror(settings, places.repository(settings.name))
    if not mirror.path.exists():
        return mirror
    repository = None
    try:
        repository = BareRepository.open(mirror.path)
        _check_upstream(repository, settings)
        mirror.snapshot = updater.open(repository)
        mirror.repository = repository
    except LocalError as error:
        if repository is not None:
            repository.close()
        aside = places.set_aside / f"{settings.name.replace('/', '%2F')}.{time.time_ns()}.git"
        mirror.path.rename(aside)
        logger.warning(
            "mirror_set_aside", repository=settings.name, reason=str(error), path=str(aside)
        )
    return mirror


def _check_upstream(repository: BareRepository, settings: RepositorySettings) -> None:
    if repository.upstream_url != settings.upstream:
        raise LocalError(
            f"it mirrors {repository.upstream_url}; the configuration says {settings.upstream}"
        )


def close_mirror(mirror: Mirror) -> None:
    """Let go of a mirror's packs."""
    if mirror.repository is not None:
        mirror.repository.close()


async def open_large_files(
    stack: AsyncExitStack,
    settings: Settings,
    keyring: Keyring,
    metrics: Metrics,
    *,
    agent: bytes,
    is_first: bool = True,
) -> LargeFiles:
    """Provide what brings LFS objects from the upstreams; `stack` gets its end.

    With `is_first` nobody else uses the store yet, and what was half done is cleared.

    Raises:
        LocalError: The store can't be used.
    """
    limits, store = settings.limits, lfs_store(settings)
    await asyncio.to_thread(store.prepare, clear=is_first)
    metrics.set_lfs_stored_bytes(store.stored_bytes)
    connections_max = limits.lfs_downloads_max + BATCHES_MAX
    sessions = await stack.enter_async_context(
        open_sessions(settings, connections_per_host_max=connections_max)
    )
    guarded = guarded_resolver(settings)
    configured = Storage(stack)
    below_places = Storage(stack, resolver=guarded)

    def repository_of(one: RepositorySettings) -> LfsRepository:
        storage = configured if one.place is None else below_places
        return LfsRepository(
            lfs_remote_for(sessions.of(one), keyring, storage, one, limits, agent=agent),
            store.scope(one.name, one.upstream),
        )

    files = LargeFiles(store, _LfsRepositories(settings, repository_of), limits, metrics)
    stack.push_async_callback(files.close)
    return files


class _LfsRepositories(dict[str, LfsRepository]):
    """LFS repositories by name, each made when it is first asked for."""

    def __init__(
        self, settings: Settings, repository_of: Callable[[RepositorySettings], LfsRepository]
    ) -> None:
        super().__init__()
        self._settings = settings
        self._repository_of = repository_of

    def __missing__(self, name: str) -> LfsRepository:
        settings = self._settings.find(name)
        if settings is None:
            raise KeyError(name)
        found = self[name] = self._repository_of(settings)
        return found
