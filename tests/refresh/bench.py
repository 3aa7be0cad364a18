"""One mirror on a workbench: an upstream, a forge, and what turns one into the other.

Time stands still unless a test moves it, and nothing sleeps: tests wait for what happens.
"""

import asyncio
import subprocess
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import aiohttp

from mirror.config import RepositorySettings
from mirror.demo.forge import ForgeRequest, HttpBackend
from mirror.metrics import Metrics
from mirror.refresh.gate import Admitted, Gate
from mirror.refresh.mirror import Mirror
from mirror.refresh.places import RefreshPlaces
from mirror.refresh.refresher import OnPublished, Refresher, Trigger
from mirror.refresh.update import Updated, Updater
from mirror.repository.packing.engine import PackEngine
from mirror.upstream.forges import RefChange
from mirror.upstream.line import Line
from mirror.upstream.remote import Remote, RemoteLimits
from mirror.wire.names import ObjectId, RefName
from tests.git_client import Upstream, environment

WAIT_SECONDS_MAX = 60.0
"""A test fails after that instead of hanging; nothing takes so long."""

AGENT = b"git-mirror/test"
LIMITS = RemoteLimits(silence_seconds_max=60.0, pack_bytes_max=1 << 30)


class Bench:
    """A mirror that is refreshed when a test says so.

    Attributes:
        now: The wall clock, in seconds since the epoch.
    """

    def __init__(
        self,
        forge: HttpBackend,
        upstream: Upstream,
        session: aiohttp.ClientSession,
        engine: PackEngine,
        data: Path,
        *,
        url: str = "",
        **settings: Any,
    ) -> None:
        self.forge = forge
        self.upstream = upstream
        self.engine = engine
        self.now = 1_800_000_000.0
        self.clock = Clock()
        self.staging = data / "staging"
        self.staging.mkdir(parents=True, exist_ok=True)
        self.settings = RepositorySettings(
            name=upstream.name, upstream=url or forge.repository_url(upstream.name), **settings
        )
        self.mirror = Mirror(self.settings, data / "repositories" / f"{upstream.name}.git")
        self._session = session
        self.remote = self.remote_to(self.settings.upstream)
        self.updater = Updater(
            engine, staging=self.staging, agent=AGENT, now=lambda: self.now, clock=self.clock
        )

    @property
    def path(self) -> Path:
        return self.mirror.path

    def remote_to(self, url: str) -> Remote:
        return Remote(Line(self._session), url, credentials=None, limits=LIMITS, agent=AGENT)

    def close(self) -> None:
        if self.mirror.repository is not None:
            self.mirror.repository.close()

    async def update(self, *announced: RefChange) -> Updated:
        """Refresh, and publish as the refresher does."""
        updated = await self.updater.update(self.mirror, self.remote, announced)
        self.mirror.repository, self.mirror.snapshot = updated.repository, updated.snapshot
        return updated

    # --- what is there -------------------------------------------------------------------------

    def git(self, *args: str) -> str:
        """Run git in the mirror and return what it prints, stripped."""
        completed = subprocess.run(
            ["git", *args],
            cwd=self.path,
            env=environment(self.path),
            capture_output=True,
            check=False,
            text=True,
        )
        assert completed.returncode == 0, completed.stderr
        return completed.stdout.strip()

    def refs(self) -> dict[str, str]:
        """Return the refs that readers see."""
        snapshot = self.mirror.snapshot
        assert snapshot is not None
        return {ref.name.decode(): ref.oid.decode() for ref in snapshot.refs}

    def stored_refs(self) -> dict[str, str]:
        """Return the refs on disk as git reads them, those of our own included."""
        listing = self.git("for-each-ref", "--format=%(refname) %(objectname)")
        return dict(line.split(" ") for line in listing.splitlines())

    def kept(self) -> set[str]:
        """Return the old tips that are kept."""
        names = (name for name in self.stored_refs() if name.startswith("refs/git-mirror/kept/"))
        return {name.rpartition("/")[2] for name in names}

    def holds(self, oid: str) -> bool:
        repository = self.mirror.repository
        assert repository is not None
        return repository.source.contains(ObjectId(oid.encode()))

    def is_whole(self) -> None:
        """Assert that git finds nothing wrong."""
        printed = self.git("fsck", "--strict", "--full", "--no-dangling")
        assert "missing" not in printed
        assert "error" not in printed

    def mirrors(self, expected: Mapping[str, str] | None = None) -> None:
        """Assert that readers and disk show what the upstream has, and that git likes it."""
        expected = self.upstream.refs() if expected is None else expected
        assert self.refs() == expected
        own = "refs/git-mirror/"
        on_disk = {name: oid for name, oid in self.stored_refs().items() if own not in name}
        assert on_disk == expected
        self.is_whole()
        assert not list(self.staging.iterdir())
        assert not list((self.path / "objects").glob("tmp_*"))
        assert not [*self.path.glob("*.tmp"), *self.path.glob("*.lock")]

    def fingerprint(self) -> dict[str, str]:
        """Return a hash of each file of the mirror."""
        return {
            str(file.relative_to(self.path)): sha256(file.read_bytes()).hexdigest()
            for file in sorted(self.path.rglob("*"))
            if file.is_file()
        }


async def shown_by_git(bench: Bench, place: str) -> list[str]:
    """Return what `git ls-remote --symref` shows of a URL or path, our own refs left out."""
    completed = await asyncio.to_thread(
        subprocess.run,
        ["git", "ls-remote", "--symref", place],
        env=environment(bench.staging),
        capture_output=True,
        check=True,
    )
    lines: list[str] = completed.stdout.decode().splitlines()
    return [line for line in lines if "refs/git-mirror/" not in line]


def moved(before: str | None, after: str | None, ref: str = "refs/heads/main") -> RefChange:
    """Return what a webhook says of one ref."""
    tips = [None if tip is None else ObjectId(tip.encode()) for tip in (before, after)]
    return RefChange(RefName(ref.encode()), *tips)


class Clock:
    """A monotonic clock that goes on when told to.

    Attributes:
        tick: How much it goes on whenever it is read.
    """

    def __init__(self) -> None:
        self.now = 5000.0
        self.tick = 0.0

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Running:
    """A bench whose refresher runs, with the gate that readers come through."""

    def __init__(
        self,
        bench: Bench,
        *,
        places: RefreshPlaces | None = None,
        seconds_max: float = 60.0,
        on_published: OnPublished = lambda *_: None,
    ) -> None:
        self.bench = bench
        self.mirror = bench.mirror
        self.forge = bench.forge
        self.upstream = bench.upstream
        self.clock = Clock()
        self.metrics = Metrics("test")
        self.refresher = Refresher(
            bench.mirror,
            bench.remote,
            bench.updater,
            places=places or RefreshPlaces.of(8),
            metrics=self.metrics,
            refresh_seconds_max=seconds_max,
            clock=self.clock,
            chance=lambda: 0.0,
            on_published=on_published,
        )
        self.gate = Gate(bench.mirror, self.refresher, clock=self.clock)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def start(self) -> None:
        self._task = asyncio.create_task(self.refresher.run())

    async def stop(self) -> None:
        """End the refresher, which must not have ended by itself."""
        if self._task is None:
            return
        assert not self._task.done(), self._task
        self._task.cancel()
        await asyncio.wait((self._task,))
        assert self._task.cancelled()
        self._task = None
        # The forge is to notice the hang-up before it closes: it must not cancel a handler twice.
        if handlers := set(self.forge._handlers):
            await asyncio.wait(handlers, timeout=WAIT_SECONDS_MAX)

    async def refreshed(self, trigger: Trigger = Trigger.MANUAL) -> None:
        """Ask for a refresh and wait for it; raises what it raised."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await asyncio.shield(self.refresher.request(trigger))

    async def until(self, met: Callable[[], object]) -> None:
        """Wait until refreshes have made it so."""
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while not met():
                await self.mirror.changed.wait(WAIT_SECONDS_MAX)

    async def idle(self) -> None:
        """Wait until the refresher has seen to every request, or put it off."""
        await soon(lambda: not self.refresher._wake.is_set())

    def reader(self) -> "asyncio.Task[Admitted]":
        """Let a reader in."""
        return asyncio.create_task(self.gate.admit())

    async def held(self, *readers: "asyncio.Task[Admitted]") -> None:
        """Wait until all these readers are held."""
        await soon(lambda: len(self.mirror.changed._waiters) >= len(readers))
        assert not any(reader.done() for reader in readers)

    def refreshes(self, trigger: str, outcome: str) -> float:
        """Return how many refreshes the metrics know of."""
        labels = {"trigger": trigger, "outcome": outcome}
        return self.sample("git_mirror_refresh_seconds_count", labels)

    def sample(self, name: str, labels: dict[str, str] | None = None) -> float:
        return self.metrics.registry.get_sample_value(name, labels or {}) or 0.0

    def announce(self, before: str | None, after: str | None, ref: str = "refs/heads/main") -> None:
        """Deliver a webhook for one ref."""
        self.refresher.announce([moved(before, after, ref)])

    @property
    def looks(self) -> int:
        """How many times the upstream was asked for its refs."""
        return self.forge.operations.count("ls-refs")


class Gatekeeper:
    """Holds up requests at the forge until the test lets them through.

    Attributes:
        waiting: How many are held up now.
        most: How many there were at most.
    """

    def __init__(self, forge: HttpBackend) -> None:
        self.waiting = 0
        self.most = 0
        self._open = asyncio.Event()
        self._arrival = asyncio.Condition()
        forge.on_request = self._hold_up

    async def _hold_up(self, _: ForgeRequest) -> None:
        async with self._arrival:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            self._arrival.notify_all()
        await self._open.wait()
        self.waiting -= 1

    def let_through(self) -> None:
        """Let all through, those that come later too."""
        self._open.set()

    async def wait_for(self, count: int) -> None:
        """Wait until so many are held up."""
        async with asyncio.timeout(WAIT_SECONDS_MAX), self._arrival:
            await self._arrival.wait_for(lambda: self.waiting >= count)


async def soon(met: Callable[[], object]) -> None:
    """Let the loop turn until `met`, which takes it a few turns and no IO."""
    for _ in range(1000):
        if met():
            return
        await asyncio.sleep(0)
    raise AssertionError("not so soon")
