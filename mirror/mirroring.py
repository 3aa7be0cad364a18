"""The upstream side: every repository with its mirror on disk and the refresher that keeps it.

Knows nothing of who serves them. There is one of these per data directory.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import aiohttp
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
from mirror.upstream.connect import lfs_remote_for, open_session, remote_for
from mirror.upstream.keyring import Keyring
from mirror.upstream.storage import Storage

Watch = Callable[[Mirror], None]

logger = structlog.stdlib.get_logger()


class Mirroring:
    """All repositories, each with its refresher.

    Attributes:
        registry: The repositories.
        refreshers: By the name of their repository.
    """

    def __init__(self, refreshers: list[Refresher], keyring: Keyring) -> None:
        self._keyring = keyring
        self.refreshers = {one.mirror.name: one for one in refreshers}
        self.registry = Registry(Hosted.of(one.mirror, one) for one in refreshers)
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(
        cls,
        stack: AsyncExitStack,
        settings: Settings,
        engine: PackEngine,
        session: aiohttp.ClientSession,
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
            session: Reaches the upstreams.
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
        refreshers = []
        for repository in settings.repositories.values():
            mirror = await asyncio.to_thread(open_mirror, repository, places, updater)
            mirror.watch = watch
            credentials = keyring.credentials(repository)
            mirror.credentials = None if credentials is None else credentials.standing
            stack.callback(close_mirror, mirror)
            refreshers.append(
                Refresher(
                    mirror,
                    remote_for(session, keyring, repository, settings.limits, agent=agent),
                    updater,
                    engine,
                    places=shared,
                    metrics=metrics,
                    refresh_seconds_max=settings.limits.refresh_timeout_seconds,
                    on_published=on_published,
                    on_served=on_served,
                )
            )
        mirroring = cls(refreshers, keyring)
        stack.push_async_callback(mirroring._end)
        return mirroring

    def start(self) -> list[asyncio.Task[None]]:
        """Begin to refresh; returns the tasks, none of which should ever end."""
        self._tasks = [
            asyncio.create_task(one.run(), name=f"refresh {name}")
            for name, one in self.refreshers.items()
        ]
        self._tasks.append(asyncio.create_task(self._keyring.watch(), name="look at credentials"))
        return self._tasks

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


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
) -> LargeFiles:
    """Provide what brings LFS objects from the upstreams; `stack` gets its end.

    Raises:
        LocalError: The store can't be used.
    """
    limits, store = settings.limits, lfs_store(settings)
    await asyncio.to_thread(store.prepare)
    metrics.set_lfs_stored_bytes(store.stored_bytes)
    connections_max = limits.lfs_downloads_max + BATCHES_MAX
    session = await stack.enter_async_context(
        open_session(connections_per_host_max=connections_max)
    )
    storage = Storage(stack)
    repositories = {
        name: LfsRepository(
            lfs_remote_for(session, keyring, storage, one, limits, agent=agent),
            store.scope(name, one.upstream),
        )
        for name, one in settings.repositories.items()
    }
    files = LargeFiles(store, repositories, limits, metrics)
    stack.push_async_callback(files.close)
    return files
