"""One repository as the running service knows it: settings, disk, what is served, how fresh.

Changed only on the event loop, by the repository's own refresher; readers take one reference.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mirror.config import OnStale, RepositorySettings
from mirror.refresh.freshness import Freshness, Policy
from mirror.refresh.vanishing import Vanishing
from mirror.repository.bare import BareRepository
from mirror.repository.snapshot import RefSnapshot
from mirror.upstream.credentials import Standing
from mirror.wire.bundles import BundleList


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a refresh has come.

    Attributes:
        phase: `asking`, `receiving`, `indexing` or `checking`.
        done: Bytes received, or objects indexed.
        total: Of how many, where that is known.
        message: The upstream's own progress message.
    """

    phase: str
    done: int = 0
    total: int | None = None
    message: str = ""


class Signal:
    """Wakes all who wait at the moment it is given."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def give(self) -> None:
        """Wake the waiters."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout_seconds: float) -> None:
        """Wait for the next time it is given, or for the time to run out."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout_seconds)
        finally:
            self._waiters.discard(waiter)


@dataclass(slots=True)
class LastRefresh:
    """What came of the latest refresh; times in seconds since the epoch.

    `error` is in words, and `kind` its label; `None` after a success.

    `announced_at` is that of the latest webhook; only the main process knows it.
    """

    succeeded_at: float | None = None
    failed_at: float | None = None
    error: str | None = None
    kind: str | None = None
    changed_at: float | None = None
    announced_at: float | None = None


class Replicas(Protocol):
    """The copies of a mirror's state in other processes.

    All return only when no reader anywhere is served from what was before. They raise nothing: a
    process that can't follow is ended.
    """

    async def announced(self, mirror: "Mirror") -> None:
        """Tell them the number of the latest announcement."""
        ...

    async def refreshed(self, mirror: "Mirror") -> None:
        """Tell them what came of a refresh."""
        ...

    async def bundled(self, mirror: "Mirror") -> None:
        """Tell them which bundles are offered now."""
        ...


@dataclass(slots=True)
class Mirror:
    """The state of one mirrored repository.

    Attributes:
        settings: From the configuration.
        path: Where the bare repository is, or will be.
        repository: The bare repository, once there is one.
        snapshot: What readers see; `None` before the first clone is done.
        freshness: How old that is.
        last: For people who ask how it went.
        progress: How far the refresh under way has come; `None` when none is.
        changed: Given whenever `snapshot`, `freshness` or `bundles` changed.
        moved_to: Where the upstream says that it is now.
        shown: The digest of the upstream's last listing, and the snapshot that shows what it said.
        noted_at: When the last confirmation that is kept on disk was; seconds since the epoch.
        changing: Held while refs or packs are changed: by a refresh, for a moment by maintenance.
        unreachable_bytes: What nothing reaches and is not removed yet, as it was last found.
        watch: Called with each step of a refresh, for who shows it to people.
        replicas: Its copies, where other processes serve it.
        bundles: What is offered to clients that ask for bundles; `None` for nothing.
        credentials: How those for the upstream stand, where there are any and they are used here.
        readers: How many requests of this process it is being read by.
        read_at: When it was last read in this process; of a monotonic clock.
        vanishing: Refs that the upstream does not list any more, but that are served on.
        damage: What is wrong with it on disk, until it is mended; `None` for nothing.
        damaged_since: When that was found; seconds since the epoch.
        scrubbed_at: When all of its files were last read and checked; seconds since the epoch.
        denied: When the upstream first and last said that there is no such repository (of a
            monotonic clock); `None` once it says otherwise.
        disk_bytes: What its packs took when they were last looked at; only the main process knows.
    """

    settings: RepositorySettings
    path: Path
    repository: BareRepository | None = None
    snapshot: RefSnapshot | None = None
    freshness: Freshness = field(default_factory=Freshness)
    last: LastRefresh = field(default_factory=LastRefresh)
    progress: Progress | None = None
    changed: Signal = field(default_factory=Signal)
    moved_to: str | None = None
    shown: tuple[bytes, RefSnapshot] | None = None
    noted_at: float | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    unreachable_bytes: int = 0
    watch: "Callable[[Mirror], None] | None" = None
    replicas: Replicas | None = None
    bundles: BundleList | None = None
    credentials: Standing | None = None
    readers: int = 0
    read_at: float = float("-inf")
    vanishing: Vanishing | None = None
    denied: tuple[float, float] | None = None
    disk_bytes: int = 0
    damage: str | None = None
    damaged_since: float | None = None
    scrubbed_at: float | None = None

    @property
    def name(self) -> str:
        """The path readers use, without `.git`."""
        return self.settings.name

    @property
    def policy(self) -> Policy:
        """The repository's rules of freshness."""
        return Policy(
            hold_seconds=self.settings.hold_seconds,
            refuse_stale=self.settings.on_stale is OnStale.REFUSE,
            max_age_seconds=self.settings.max_age_seconds,
        )

    def report(self, progress: Progress | None) -> None:
        """Take note of the progress of the refresh under way."""
        self.progress = progress
        if self.watch is not None:
            self.watch(self)

    def forsake(self) -> None:
        """Let nobody see it any more, whoever still knows of it, and let go of its packs."""
        repository = self.repository
        self.repository = self.snapshot = self.shown = self.bundles = None
        if repository is not None:
            repository.close()
        self.changed.give()
