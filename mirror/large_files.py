"""LFS objects from the upstreams, by the configuration: their store, and the way to each.

There is one of these per data directory, beside `mirror.mirroring`.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

from mirror.config import LimitSettings, RepositorySettings, Settings
from mirror.metrics import Metrics
from mirror.refresh.lfs import BATCHES_MAX, LargeFiles, LfsRepository
from mirror.stores import lfs_store
from mirror.upstream.addresses import GuardedResolver
from mirror.upstream.connect import admit_places, lfs_remote_for, open_sessions
from mirror.upstream.keyring import Keyring
from mirror.upstream.storage import Storage

LFS_CONNECTIONS_MAX = 256 + BATCHES_MAX
"""To one host: as many as `limits.lfs_downloads_max` can be; that is what bounds them."""


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
    store = lfs_store(settings)
    await asyncio.to_thread(store.prepare, clear=is_first)
    metrics.set_lfs_stored_bytes(store.stored_bytes)
    sessions = await stack.enter_async_context(
        open_sessions(settings, connections_per_host_max=LFS_CONNECTIONS_MAX)
    )
    configured = Storage(stack)
    below_places = Storage(stack, resolver=sessions.guard)

    def repository_of(one: RepositorySettings, limits: LimitSettings) -> LfsRepository:
        storage = configured if one.place is None else below_places
        return LfsRepository(
            lfs_remote_for(sessions.of(one), keyring, storage, one, limits, agent=agent),
            store.scope(one.name, one.upstream),
        )

    repositories = _LfsRepositories(settings, repository_of, sessions.guard)
    files = LargeFiles(store, repositories, settings.limits, metrics)
    stack.push_async_callback(files.close)
    return files


class _LfsRepositories(dict[str, LfsRepository]):
    """LFS repositories by name, each made when it is first asked for."""

    def __init__(
        self,
        settings: Settings,
        repository_of: Callable[[RepositorySettings, LimitSettings], LfsRepository],
        guard: GuardedResolver,
    ) -> None:
        super().__init__()
        self._settings = settings
        self._repository_of = repository_of
        self._guard = guard

    def change(self, settings: Settings) -> None:
        """Make them by other settings from now on."""
        was, self._settings = self._settings, settings
        admit_places(self._guard, settings)
        for name in tuple(self):
            if settings.limits != was.limits or settings.find(name) != was.find(name):
                del self[name]

    def __missing__(self, name: str) -> LfsRepository:
        settings = self._settings.find(name)
        if settings is None:
            raise KeyError(name)
        found = self[name] = self._repository_of(settings, self._settings.limits)
        return found
