"""Reads all that is kept, now and then, and looks whether it is still what was written.

Every repository within `scrub_interval`, and with them the packs made for readers, bundles and LFS
objects: what lies unread for months is found damaged before somebody needs it. Slowly: so many
bytes a second at most, in one thread that reads and hashes in slices, for both leave the
interpreter to others. What was not in the page cache is dropped from it again: what is served stays
there, and what nobody reads comes from the disk the next time, too. What is wrong with a repository
is its refresher's to mend; a pack, a bundle or an LFS object is removed, and made or fetched anew
when it is asked for.

There is one of these per data directory, in the process that refreshes.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, Protocol, TypeVar

import structlog

from mirror.metrics import Metrics
from mirror.refresh.mirror import Mirror
from mirror.refresh.refresher import Trigger
from mirror.refresh.registry import Hosted, Registry
from mirror.repository.bare import BareRepository
from mirror.repository.integrity import Damage, OnRead, Soundness

RETRY_SECONDS: Final = 60.0
"""What was found damaged is looked at again so soon: the refresher may have mended it."""

PAUSE_SECONDS_MAX: Final = 300.0
"""So often at least it is looked what is due: repositories come and go."""

logger = structlog.stdlib.get_logger()

Clock = Callable[[], float]
P = ParamSpec("P")
T = TypeVar("T")


class Store(Protocol):
    """What is kept beside the repositories, and can be had again."""

    def scrub(self, on_read: OnRead) -> Iterable[Damage]:
        """Read all of it; yield what is damaged, which is removed by then. Blocking."""
        ...


class _Stopped(Exception):
    """The service stops: so does the reading."""


class _Pace:
    """Reads no faster than it may, and not at all once it is stopped."""

    def __init__(self, bytes_per_second: int, metrics: Metrics) -> None:
        self._bytes_per_second = bytes_per_second
        self._metrics = metrics
        self.stopping = threading.Event()

    def __call__(self, count: int) -> None:
        """Sleep for as long as `count` bytes are to take; in the thread that reads."""
        self._metrics.record_scrubbed(count)
        if self.stopping.wait(count / self._bytes_per_second):
            raise _Stopped


class Scrubber:
    """Reads everything again and again."""

    def __init__(
        self,
        registry: Registry,
        stores: Iterable[Store],
        metrics: Metrics,
        *,
        interval_seconds: float,
        bytes_per_second: int,
        wall_clock: Clock = time.time,
    ) -> None:
        """Be ready to run.

        Args:
            registry: The repositories.
            stores: What else is kept.
            metrics: Told of what is read and found.
            interval_seconds: Within which everything is to be read.
            bytes_per_second: The most that is read.
            wall_clock: Seconds since the epoch.
        """
        self._registry = registry
        self._stores = tuple(stores)
        self._metrics = metrics
        self._interval = interval_seconds
        self._wall_clock = wall_clock
        self._pace = _Pace(bytes_per_second, metrics)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scrub")
        self._began_at = wall_clock()
        self._stores_at = self._began_at
        self._tried_at: dict[str, float] = {}

    async def run(self) -> None:
        """Read what is due, until cancelled."""
        try:
            while True:
                due_at, hosted = self._next()
                pause = due_at - self._wall_clock()
                if pause > 0:
                    await asyncio.sleep(min(pause, PAUSE_SECONDS_MAX))
                elif hosted is None:
                    await self.scrub_stores()
                else:
                    await self.scrub(hosted)
        finally:
            self.close()

    def close(self) -> None:
        """End the reading that is under way."""
        self._pace.stopping.set()
        self._thread.shutdown()

    def _next(self) -> tuple[float, Hosted | None]:
        """Return what is due next, and when; `None` stands for the stores."""
        due: list[tuple[float, Hosted | None]] = [(self._stores_at + self._interval, None)]
        due += [
            (self._due_at(one.mirror, one.mirror.repository), one)
            for one in self._registry
            if one.mirror.repository is not None
        ]
        return min(due, key=lambda pair: pair[0])

    def _due_at(self, mirror: Mirror, repository: BareRepository) -> float:
        """Return when a repository is to be read."""
        tried_at = self._tried_at.get(mirror.name)
        at = (mirror.scrubbed_at or repository.scrubbed_before or self._began_at) + self._interval
        return at if tried_at is None else max(at, tried_at + min(RETRY_SECONDS, self._interval))

    async def scrub(self, hosted: Hosted) -> list[Damage]:
        """Read one repository; have it mended where it is damaged. Returns what was found."""
        mirror, repository = hosted.mirror, hosted.mirror.repository
        self._tried_at[mirror.name] = self._wall_clock()
        if repository is None:
            return []
        found = await self._in_thread(self._read, repository)
        if found is None or mirror.repository is not repository:
            return []  # stopped, or it was cloned anew meanwhile
        if found:
            logger.error("scrub_found_damage", repository=mirror.name, first=str(found[0]))
            hosted.refresher.request(Trigger.DAMAGE)
            return found
        mirror.scrubbed_at = self._wall_clock()
        await self._in_thread(repository.note_scrubbed, mirror.scrubbed_at)
        logger.info("scrubbed", repository=mirror.name)
        return []

    def _read(self, repository: BareRepository) -> list[Damage] | None:
        try:
            # With findings of its own: who builds a pack is not to wait for this slow look.
            return repository.check(
                self._pace, soundness=Soundness(repository.objects, leaves_cache=True)
            )
        except _Stopped:
            return None

    async def scrub_stores(self) -> list[Damage]:
        """Read what is kept beside the repositories; returns what was found and removed."""
        self._stores_at = self._wall_clock()
        found: list[Damage] = []
        for store in self._stores:
            found += await self._in_thread(self._read_store, store)
        for one in found:
            self._metrics.record_damage(one.kind.value)
            logger.error("damage_found", kind=one.kind.value, path=str(one.path), reason=one.reason)
        return found

    def _read_store(self, store: Store) -> list[Damage]:
        found: list[Damage] = []
        try:
            found.extend(store.scrub(self._pace))
        except _Stopped:
            pass
        except OSError as error:
            logger.warning("scrub_failed", error=str(error))
        return found

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))
