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
        self.mirrors = {one.name: Mirror(one, places.repository(one.name)) for one in settings}
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_followed: OnFollowed | None = None
        self._agent = agent
        self._queues: dict[str, deque[tuple[Refreshed, Done]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loads = asyncio.Semaphore(LOADS_MAX)

    def announce(self, announced: Announced) -> None:
        """Hold readers for an announcement."""
        mirror = self.mirrors[announced.repository]
        mirror.freshness.announced = max(mirror.freshness.announced, announced.number)
        mirror.changed.give()

    def refresh(self, refreshed: Refreshed, done: Done) -> None:
        """Take over what came of a refresh, after what is under way; `done` is called then.

        Raises:
            ChannelError: Too much is under way.
        """
        mirror = self.mirrors[refreshed.repository]
        queue = self._queues.get(mirror.name)
        if queue is None and refreshed.snapshot is None:
            _put(mirror, refreshed)
            done()
        elif queue is None:
            queue = self._queues[mirror.name] = deque([(refreshed, done)])
            task = asyncio.create_task(self._follow(mirror, queue), name=f"follow {mirror.name}")
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        elif len(queue) < REFRESHES_QUEUED_MAX:
            queue.append((refreshed, done))
        else:
            raise ChannelError(f"too many refreshes of {mirror.name} are told at once")

    def bundle(self, bundled: Bundled) -> None:
        """Offer other bundles."""
        self.mirrors[bundled.repository].bundles = bundled.listed

    async def _follow(self, mirror: Mirror, queue: deque[tuple[Refreshed, Done]]) -> None:
        """Take over what is told of one repository, until there is nothing more."""
        while queue:
            refreshed, done = queue[0]
            if refreshed.snapshot is not None:
                async with self._loads:
                    repository, snapshot = await asyncio.to_thread(
                        _load, mirror, refreshed.snapshot, self._agent
                    )
                # Both at once: a reader's refs and objects are to match.
                before = mirror.snapshot
                mirror.repository, mirror.snapshot = repository, snapshot
                if self.on_followed is not None:
                    self.on_followed(mirror, before, repository, snapshot)
            _put(mirror, refreshed)
            done()
            queue.popleft()
        del self._queues[mirror.name]

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
    if repository is None:
        repository = BareRepository.open_beside(mirror.path)
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
