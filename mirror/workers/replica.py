"""A worker's copies of the mirrors: each follows what the main process tells of it, in order.

An announcement counts the moment it comes; what came of a refresh, when its snapshot is made. Each
repository has its own order: one with many refs holds up no other. Must never write to the disk:
the repositories are the main process's.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from mirror.config import RepositorySettings
from mirror.errors import LocalError
from mirror.places import DataDirectory
from mirror.refresh.mirror import Mirror
from mirror.repository.bare import BareRepository
from mirror.repository.snapshot import RefSnapshot
from mirror.workers.frames import ChannelError
from mirror.workers.messages import Announced, Bundled, Refreshed, SnapshotNews
from mirror.workers.state import derived, put_freshness, put_last

REFRESHES_QUEUED_MAX: Final = 100
"""Of one repository. The main process waits for the acknowledgement of each."""

LOADS_MAX: Final = 2
"""Snapshots read or derived at once: more threads of Python would only slow the readers down."""

Done = Callable[[], None]
OnFollowed = Callable[[Mirror, RefSnapshot | None, BareRepository, RefSnapshot], None]
"""Called with a mirror, what readers saw until now, and its repository and refs from now on."""


class Replica:
    """The copies of all mirrors.

    Attributes:
        mirrors: By name.
        on_followed: Told of each change that readers see, once there is somebody to tell.
        failed: Has an exception when a copy can't follow any more: the worker is to end.
    """

    def __init__(
        self, settings: Iterable[RepositorySettings], places: DataDirectory, *, agent: bytes
    ) -> None:
        self._places = places
        self.mirrors: dict[str, Mirror] = {}
        for one in settings:
            self.add(one)
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_followed: OnFollowed | None = None
        self._agent = agent
        self._queues: dict[str, deque[tuple[Refreshed, Done]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loads = asyncio.Semaphore(LOADS_MAX)

    def add(self, settings: RepositorySettings) -> Mirror:
        """Begin a copy of a mirror, of which nothing is known yet."""
        mirror = Mirror(settings, self._places.repository(settings.name))
        self.mirrors[mirror.name] = mirror
        return mirror

    def is_following(self, name: str) -> bool:
        """Tell whether something of a mirror is being taken over."""
        return name in self._queues

    def remove(self, name: str) -> None:
        """Let go of a mirror."""
        self.retire(name).forsake()

    def retire(self, name: str) -> Mirror:
        """Follow a mirror no more; it is to be forsaken after its last reader."""
        self._queues.pop(name, None)
        return self.mirrors.pop(name)

    def announce(self, announced: Announced) -> None:
        """Hold readers for an announcement."""
        mirror = self.mirrors.get(announced.repository)
        if mirror is None:  # it was removed, and nobody is served from it
            return
        mirror.freshness.announced = max(mirror.freshness.announced, announced.number)
        mirror.changed.give()

    def refresh(self, refreshed: Refreshed, done: Done) -> None:
        """Take over what came of a refresh, after what is under way; `done` is called then.

        Raises:
            ChannelError: Too much is under way.
        """
        mirror = self.mirrors.get(refreshed.repository)
        if mirror is None:  # as above
            done()
            return
        queue = self._queues.get(mirror.name)
        if queue is None and refreshed.snapshot is None:
            _put(mirror, refreshed)
            done()
            self._let_go_of_packs(mirror)
        elif queue is None:
            queue = self._queues[mirror.name] = deque([(refreshed, done)])
            task = asyncio.create_task(self._follow(mirror, queue), name=f"follow {mirror.name}")
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        elif len(queue) < REFRESHES_QUEUED_MAX:
            queue.append((refreshed, done))
        else:
            raise ChannelError(f"too many refreshes of {mirror.name} are told at once")

    def _let_go_of_packs(self, mirror: Mirror) -> None:
        """Follow what maintenance did to the packs: the room of old ones is free only then."""
        repository = mirror.repository
        if repository is not None and repository.source.is_outdated():
            task = asyncio.create_task(self._rescan(repository), name=f"rescan {mirror.name}")
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    async def _rescan(self, repository: BareRepository) -> None:
        async with self._loads:
            await asyncio.to_thread(repository.source.rescan)

    def bundle(self, bundled: Bundled) -> None:
        """Offer other bundles."""
        mirror = self.mirrors.get(bundled.repository)
        if mirror is not None:  # else as above
            mirror.bundles = bundled.listed

    async def _follow(self, mirror: Mirror, queue: deque[tuple[Refreshed, Done]]) -> None:
        """Take over what is told of one repository, until there is nothing more."""
        while queue and self._is_kept(mirror):
            refreshed, done = queue[0]
            if refreshed.snapshot is not None:
                await self._take_over(mirror, refreshed.snapshot)
            _put(mirror, refreshed)
            done()
            queue.popleft()
        for _, done in queue:
            done()  # nobody is served from it any more
        if self._queues.get(mirror.name) is queue:
            del self._queues[mirror.name]

    async def _take_over(self, mirror: Mirror, news: SnapshotNews) -> None:
        try:
            async with self._loads:
                repository, snapshot = await asyncio.to_thread(_load, mirror, news, self._agent)
        except LocalError:
            if self._is_kept(mirror):
                raise
            return
        if not self._is_kept(mirror):
            if repository is not mirror.repository:  # else readers may be at it still
                repository.close()
            return
        # Both at once: a reader's refs and objects are to match.
        before = mirror.snapshot
        mirror.repository, mirror.snapshot = repository, snapshot
        if self.on_followed is not None:
            self.on_followed(mirror, before, repository, snapshot)

    def _is_kept(self, mirror: Mirror) -> bool:
        """Tell whether a mirror was not removed meanwhile."""
        return self.mirrors.get(mirror.name) is mirror

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if task.cancelled() or self.failed.done():
            return
        error = task.exception()
        if error is not None:
            self.failed.set_exception(error)

    async def settled(self) -> None:
        """Wait until all that was told is taken over."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """End what is under way and let go of the packs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for mirror in self.mirrors.values():
            if mirror.repository is not None:
                mirror.repository.close()


def _put(mirror: Mirror, refreshed: Refreshed) -> None:
    put_freshness(refreshed.freshness, mirror.freshness)
    put_last(refreshed.last, mirror.last)
    mirror.changed.give()


def _load(mirror: Mirror, news: SnapshotNews, agent: bytes) -> tuple[BareRepository, RefSnapshot]:
    """Make the next snapshot; blocking.

    What is on disk may be newer than what is told of; what is told next brings it in line.

    Raises:
        LocalError: The repository can't be read, or the news are about another snapshot.
    """
    repository = mirror.repository
    if repository is None or repository.was_replaced():
        repository = BareRepository.open_beside(mirror.path, upstream_url=mirror.settings.upstream)
    else:
        repository.source.rescan()  # now, not at the first object that a reader lacks
    if news.base is not None:
        return repository, derived(mirror.snapshot, news, agent=agent)
    stored = repository.read_refs()
    snapshot = RefSnapshot(
        news.number,
        stored.refs.values(),
        head_target=stored.head_target,
        detached_head=stored.head,
        agent=agent,
    )
    return repository, snapshot.prepare(mirror.snapshot)
