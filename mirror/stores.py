"""What makes and keeps what readers get, by the configuration: the pack engine, packs, LFS objects.

And how much of the disk they may take. Each process that mirrors, serves or looks opens its own.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from dataclasses import dataclass

import structlog

from mirror.config import EngineChoice, Settings
from mirror.errors import PackError
from mirror.metrics import Metrics
from mirror.places import DataDirectory
from mirror.repository.lfs_store import LfsStore
from mirror.repository.packing.auto_engine import AutoEngine
from mirror.repository.packing.dulwich_engine import DulwichEngine
from mirror.repository.packing.engine import PackEngine
from mirror.repository.packing.git_engine import GitEngine
from mirror.repository.packing.pack_cache import PackCache
from mirror.repository.packing.pack_store import PackStore
from mirror.repository.packing.spawner import Spawner
from mirror.space import Reserve, Room

logger = structlog.stdlib.get_logger()


@asynccontextmanager
async def open_engine(
    choice: EngineChoice, *, inherited: int | None = None
) -> AsyncIterator[PackEngine]:
    """Provide the pack engine that the configuration asks for.

    Args:
        choice: Which.
        inherited: A descriptor that its children get.

    Raises:
        PackError: It asks for git, and there is none that will do.
    """
    with ExitStack() as stack:
        if choice is EngineChoice.DULWICH:
            yield stack.enter_context(closing(DulwichEngine()))
            return
        spawner = stack.enter_context(closing(Spawner(inherited=inherited)))
        try:
            git = await GitEngine.find(spawner)
        except PackError as error:
            if choice is EngineChoice.GIT:
                raise
            logger.info("no_usable_git", reason=str(error))
            yield stack.enter_context(closing(DulwichEngine()))
            return
        if choice is EngineChoice.GIT:
            yield git
        else:
            yield AutoEngine(git, stack.enter_context(closing(DulwichEngine())))


def lfs_store(settings: Settings) -> LfsStore:
    """Return the store of LFS objects; one process prepares it and writes there, all read."""
    bytes_max = settings.limits.lfs_cache_bytes_max
    place = DataDirectory(settings.data_dir).lfs
    return LfsStore(place, bytes_max=bytes_max, room=room_of(settings))


def room_of(settings: Settings) -> Room:
    """Return the room on the disk of the data directory."""
    return Room(settings.data_dir, reserve_of(settings))


def reserve_of(settings: Settings) -> Reserve:
    """Return how much of that disk is kept free."""
    match settings.limits.disk_reserve:
        case None:
            return Reserve()
        case int(size):
            return Reserve(size, None)
        case share:
            return Reserve(None, share)


@dataclass(frozen=True, slots=True)
class Share:
    """A process's part of the work for readers.

    Attributes:
        processes: How many share the limits on packs.
        serves: Whether this one serves readers; else it only keeps packs for those that do.
        is_first: Whether it is the first to use the data directory, and clears up.
    """

    processes: int = 1
    serves: bool = True
    is_first: bool = True

    def pack_limits(self, settings: Settings) -> dict[str, int]:
        """Return this process's part of the limits on packs, as `PackCache.change` takes them."""
        limits = settings.limits
        memory_bytes_max = limits.pack_cache_memory_bytes_max // self.processes
        return {
            "builds_max": -(-limits.pack_builds_max // self.processes),
            "queued_max": -(-limits.pack_builds_queued_max // self.processes),
            "bytes_max": limits.pack_cache_bytes_max,
            "memory_bytes_max": memory_bytes_max * self.serves,
        }


async def open_packs(
    stack: AsyncExitStack,
    settings: Settings,
    engine: PackEngine,
    metrics: Metrics,
    share: Share,
) -> PackCache:
    """Provide the packs for readers; `stack` gets the end of those being built.

    Raises:
        LocalError: The directory can't be used.
    """
    limits = share.pack_limits(settings)
    store = PackStore(
        DataDirectory(settings.data_dir).packs,
        bytes_max=limits["bytes_max"],
        memory_bytes_max=limits["memory_bytes_max"],
        room=room_of(settings),
    )
    if share.is_first:
        await asyncio.to_thread(store.prepare)
    packs = PackCache(
        engine,
        store,
        builds_max=limits["builds_max"],
        queued_max=limits["queued_max"],
        is_shared=share.processes > 1,
        metrics=metrics,
    )
    stack.push_async_callback(packs.close)
    if share.processes > 1:
        following = asyncio.create_task(packs.follow_removals(), name="follow removals")

        async def end() -> None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

        stack.push_async_callback(end)
    return packs
