"""What commands do with repositories and receivers where no service runs, or beside one."""

import asyncio
from contextlib import AsyncExitStack

from mirror import __version__
from mirror.config import RepositorySettings, Settings
from mirror.errors import MirrorError
from mirror.metrics import Metrics
from mirror.mirroring import Watch
from mirror.places import DataDirectory
from mirror.refresh.bounds import Bounds
from mirror.refresh.maintenance import Maintainer
from mirror.refresh.mirror import Mirror
from mirror.refresh.opening import close_mirror, open_mirror
from mirror.refresh.registry import unknown
from mirror.refresh.relay.relays import probe_receivers
from mirror.refresh.update import Updater
from mirror.serving import AGENT
from mirror.stores import open_engine, room_of
from mirror.upstream.connect import open_keyring, open_session, open_sessions, remote_for


async def sync_once(
    settings: Settings, name: str, *, watch: Watch | None, accepts_deletions: bool = False
) -> Mirror:
    """Refresh one repository without a running service; returns what came of it.

    `accepts_deletions` is as for `Updater.update`.

    Raises:
        DataDirectoryInUse: There is a running service.
        MirrorError: The refresh failed, or there is no such repository.
    """
    places = DataDirectory(settings.data_dir)
    async with AsyncExitStack() as stack:
        hold = stack.enter_context(places.held())
        engine = await stack.enter_async_context(
            open_engine(settings.engine, inherited=hold.children)
        )
        sessions = await stack.enter_async_context(open_sessions(settings))
        keyring = await stack.enter_async_context(open_keyring(sessions.configured, agent=AGENT))
        bounds = Bounds(room_of(settings))
        updater = Updater(engine, staging=places.staging, agent=AGENT, bounds=bounds)
        repository = settings.find(name)
        if repository is None:
            raise unknown(name)
        mirror = await asyncio.to_thread(open_mirror, repository, places, updater)
        mirror.watch = watch
        stack.callback(close_mirror, mirror)
        if mirror.repository is not None:
            await updater.weigh(mirror, mirror.repository)
        session = sessions.of(repository)
        remote = remote_for(session, keyring, repository, settings.limits, agent=AGENT)
        updated = await updater.update(mirror, remote, accepts_deletions=accepts_deletions)
        mirror.repository, mirror.snapshot = updated.repository, updated.snapshot
        await Maintainer(engine, Metrics(__version__), lambda: [mirror]).look_at(mirror)
        return mirror


async def probe_relays(settings: Settings) -> dict[str, str | None]:
    """Connect to every receiver of events; returns what is wrong with each, `None` for nothing."""
    return await probe_receivers(settings.relays.values())


async def probe(settings: Settings) -> dict[str, str | None]:
    """Reach every upstream; returns what is wrong with each, `None` for nothing."""
    limit = asyncio.Semaphore(settings.limits.refreshes_max)
    async with open_session() as session, open_keyring(session, agent=AGENT) as keyring:

        async def look(repository: RepositorySettings) -> str | None:
            remote = remote_for(session, keyring, repository, settings.limits, agent=AGENT)
            async with limit:
                try:
                    listing = await remote.list_refs([b"refs/heads/"])
                except MirrorError as error:
                    return str(error)
            if remote.moved_to is not None:
                return f"it has moved: put upstream: {remote.moved_to} into the configuration"
            return None if listing.refs else "it is empty: no branch yet"

        found = await asyncio.gather(*map(look, settings.repositories.values()))
    return dict(zip(settings.repositories, found, strict=True))
