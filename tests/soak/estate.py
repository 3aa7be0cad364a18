"""All parts of a soak: a forge behind a bad line, its repositories, receivers, and the service."""

import asyncio
import random
import shutil
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

from mirror.access.tokens import create_token
from mirror.demo.forge import HttpBackend
from mirror.demo.latency import CHUNK_BYTES, LatencyProxy, Line
from mirror.places import DataDirectory
from tests.disk.small import NotMounted, SmallDisk
from tests.e2e.day.place import write_secret
from tests.e2e.day.process import MirrorProcess
from tests.git_client import GitClient, Upstream
from tests.lfs_server import LfsServer, lfs_server, noise
from tests.lifecycle.manager import FakeManager, fake_manager
from tests.mirror_service import SECRET
from tests.ports import free_port
from tests.refresh.relay import receiving as relay
from tests.soak.judges import MAIN, Hearing, Watch
from tests.soak.ledger import Conditions, Ledger

RTT_SECONDS: Final = 0.02
USER, TOKEN = "deployer", "forge-token-of-the-soak"
AT: Final = "code"
LINES_KEPT_MAX: Final = 2000
REQUESTS_KEPT_MAX: Final = 1000
TRICKLE_SECONDS: Final = 0.05
"""Between the chunks of a line that trickles."""

DISK_LIMITS: Final = {
    "packs": 24 * 1024 * 1024,
    "lfs": 1024 * 1024,
    "bundles": 256 * 1024 * 1024,
    "(top)": 16 * 1024 * 1024,
}
"""Below the data directory. At its top is `relays.db`, whose log grows to 4 MiB before it is taken
in. Bundles stay for three hours after a force-push: that is room for one every ten seconds."""

DISK: Final = "disk"
DISK_BYTES: Final = 512 * 1024 * 1024
"""Of the file system of the data: what is kept there is limited to about half of it."""

WATCHDOG_SECONDS: Final = 40
"""A worker has five for its answer: one that is busy is not to look like one that hangs."""

BUNDLED: Final[dict[str, object]] = {"bundle_interval": "10s", "bundle_bytes_min": 0}
RECEIVERS: Final = {"argo": "argocd", "flux": "flux", "moody": "argocd"}
LFS_OBJECTS: Final = 12
LFS_BYTES: Final = 200_000
LARGE_BYTES: Final = 1_500_000


class BadLine(LatencyProxy):
    """The way to the forge.

    Attributes:
        chunk_bytes: Less, and it trickles: so much in each direction every `TRICKLE_SECONDS`.
    """

    chunk_bytes = CHUNK_BYTES

    def cut(self) -> None:
        """Break off every connection there is."""
        for one in self._carrying:
            one.cancel()

    async def _send(self, reader: asyncio.StreamReader, line: Line, opened_at: float) -> None:
        chunk = b"start"
        while chunk:
            chunk = await reader.read(self.chunk_bytes)
            sent_at = max(time.monotonic(), opened_at)
            await line.put((sent_at + self.rtt_seconds / 2, chunk))
            if self.chunk_bytes < CHUNK_BYTES:
                await asyncio.sleep(TRICKLE_SECONDS)


@dataclass(slots=True)
class Repository:
    """One repository, at both ends.

    Attributes:
        name: As readers name it.
        upstream: The forge's.
        keys: Of the configuration.
        is_pulled: It is mirrored when it is asked for, and evicted again.
        is_private: Only readers with a token may.
        is_large: A clone takes megabytes.
        may_refuse: It answers 503 instead of what is stale.
        damaged_at: When it was damaged last.
        pushing: Held by who changes the upstream.
    """

    name: str
    upstream: Upstream
    keys: dict[str, object] = field(default_factory=dict)
    is_pulled: bool = False
    is_private: bool = False
    is_large: bool = False
    may_refuse: bool = False
    damaged_at: float = float("-inf")
    watch: Watch = field(default_factory=Watch)
    pushing: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class Estate:
    """What everybody shares.

    Attributes:
        chance: The soak's random numbers.
        extra: A repository that is added and removed while the service runs.
        has_extra: Whether it is configured.
        tuning: The keys of `defaults` that change: all of them, so that another is another file.
        disk: The small one of the data; `None` where none can be had.
        manager: The service manager.
        restarts: How often the service was started.
        contents: The LFS objects of the repository `lfs`.
        hearings: By receiver and repository, what it knows.
    """

    seed: int
    chance: random.Random
    directory: Path
    ledger: Ledger
    conditions: Conditions
    forge: HttpBackend
    line: BadLine
    lfs: LfsServer
    receivers: dict[str, relay.Receiver]
    repositories: dict[str, Repository]
    mirror: MirrorProcess
    extra: Repository
    disk: SmallDisk | None
    manager: FakeManager
    has_extra: bool = False
    tuning: dict[str, object] = field(default_factory=lambda: {"poll_interval": "2s", "hold": "2s"})
    token: str = ""
    workers: int = 1
    restarts: int = 0
    contents: list[bytes] = field(default_factory=list)
    hearings: dict[tuple[str, str], Hearing] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.directory / "mirror" / "mirror.yaml"

    @property
    def data(self) -> Path:
        return self.directory / "mirror" / DISK / "data"

    @property
    def secrets(self) -> list[str]:
        """What no log may hold."""
        return [SECRET, TOKEN, self.token, relay.SECRET]

    def url(self, repository: Repository, *, signed: bool = True) -> str:
        """Return a repository's URL, with a reader's token where it needs one."""
        base = f"{self.mirror.url}/{repository.name}"
        if repository.is_private and signed:
            base = base.replace("://", f"://any:{self.token}@")
        return base

    def upstream_url(self, repository: Repository) -> str:
        """Return a repository's URL as the mirror and the forge's webhooks have it."""
        return f"{self.line.url}/{repository.upstream.name}.git"

    def git(self, name: str, version: int | None = None) -> GitClient:
        """Return a git client with a directory of that name."""
        config = {"fetch.fsckObjects": "true", "gc.auto": "0", "maintenance.auto": "false"}
        return GitClient(self.directory / "clients" / name, version, config=config)

    async def start(self, workers: int | None = None) -> None:
        """Start the service, with so many workers."""
        self.workers = workers or self.workers
        self.restarts += 1
        self.configure()
        await self.mirror.start()

    def configure(self) -> None:
        """Write the configuration, in one step."""
        shared: dict[str, object] = {
            "credentials": {"username": USER, "password_file": "forge-token"},
        }
        document = {
            "server": {
                "listen": self.mirror.url.removeprefix("http://"),
                "workers": self.workers,
                "public_url": relay.PUBLIC_URL,
                "monitoring_from": ["127.0.0.0/8"],
            },
            "data_dir": f"{DISK}/data",
            "log": {"format": "json"},
            "limits": {
                "pack_cache_bytes_max": DISK_LIMITS["packs"],
                "pack_cache_memory_bytes_max": "4MiB",
                "lfs_cache_bytes_max": DISK_LIMITS["lfs"],
                "bundle_bytes_max": DISK_LIMITS["bundles"],
                "upstream_timeout": "5s",
                "scrub_interval": "15s",
                "pull_through_repositories_max": 2,
                "pull_through_per_minute": 10000,
                "pull_through_per_client_per_minute": 10000,
            },
            "defaults": {
                "webhook_secret_file": "webhook-secret",
                "push": "proxy",
                **shared,
                **self.tuning,
            },
            "repositories": {
                one.name: {"upstream": self.upstream_url(one), "forge": "github", **one.keys}
                for one in [*self.repositories.values(), *[self.extra][: self.has_extra]]
                if not one.is_pulled
            },
            "upstreams": [
                {
                    "at": f"/{AT}",
                    "from": self.line.url,
                    "repositories": ["**"],
                    "forge": "github",
                    "max_age": "1s",
                    **shared,
                }
            ],
            "relays": {
                name: {
                    "type": kind,
                    "url": f"{self.receivers[name].url}/{name}",
                    "secret_file": "relay-secret",
                    "repositories": ["acme/*"],
                }
                for name, kind in RECEIVERS.items()
            },
        }
        self.write(yaml.safe_dump(document, sort_keys=False))

    def write(self, content: str) -> None:
        """Have the file say that from one moment to the next."""
        draft = self.file.with_suffix(".draft")
        draft.write_text(content)
        draft.replace(self.file)

    def trim(self) -> None:
        """Forget what is recorded for tests: hours of it would be memory."""
        self.manager.forget()
        del self.forge.requests[:-REQUESTS_KEPT_MAX]
        del self.lfs.batches[:], self.lfs.authorizations[:], self.lfs.downloads[:]
        for one in self.receivers.values():
            del one.events[:]


@asynccontextmanager
async def set_up(
    directory: Path, *, seed: int, ledger: Ledger, has_small_disk: bool
) -> AsyncIterator[Estate]:
    """Make everything; the service is not started yet."""
    root = directory / "forge"
    root.mkdir(parents=True)
    home = directory / "mirror"
    home.mkdir()
    for name, secret in (
        ("forge-token", TOKEN),
        ("webhook-secret", SECRET),
        ("relay-secret", relay.SECRET),
    ):
        write_secret(home / name, secret)
    repositories = await asyncio.to_thread(_repositories, root)
    extra = await asyncio.to_thread(_repository, root, "other/extra", may_refuse=True)
    async with AsyncExitStack() as stack:
        disk = stack.enter_context(_disk(home / DISK, ledger)) if has_small_disk else None
        manager = stack.enter_context(fake_manager())
        forge = await stack.enter_async_context(HttpBackend(root, basic_auth=(USER, TOKEN)))
        line = await stack.enter_async_context(BadLine("127.0.0.1", forge.port, RTT_SECONDS))
        lfs = await stack.enter_async_context(lfs_server(forge))
        receivers = {name: await stack.enter_async_context(relay.receiving()) for name in RECEIVERS}
        mirror = MirrorProcess(
            home / "mirror.yaml",
            f"http://127.0.0.1:{free_port()}",
            lines_kept_max=LINES_KEPT_MAX,
            environment={**manager.environment, "WATCHDOG_USEC": str(WATCHDOG_SECONDS * 10**6)},
            module="tests.soak.hastened",
        )
        stack.push_async_callback(mirror.close)
        estate = Estate(
            seed=seed,
            chance=random.Random(seed),
            directory=directory,
            ledger=ledger,
            conditions=Conditions(),
            forge=forge,
            line=line,
            lfs=lfs,
            receivers=receivers,
            repositories=repositories,
            mirror=mirror,
            extra=extra,
            disk=disk,
            manager=manager,
        )
        store = DataDirectory(estate.data).tokens
        store.parent.mkdir(parents=True)
        estate.token = create_token(store, "soak", repositories=("acme/*",), expires_at=None)
        estate.contents = [noise(LFS_BYTES, number) for number in range(LFS_OBJECTS)]
        for content in estate.contents:
            lfs.add("acme/lfs", content)
        estate.hearings = {
            (receiver, one.name): Hearing(one.watch)
            for receiver in RECEIVERS
            for one in repositories.values()
            if not one.is_pulled
        }
        yield estate


@contextmanager
def _disk(path: Path, ledger: Ledger) -> Iterator[SmallDisk | None]:
    """Have a disk of its own for the data, if that can be had; keep what is on it for a look."""
    try:
        disk = SmallDisk(path, DISK_BYTES)
    except NotMounted as error:
        ledger.notes.append(f"no trouble with the disk: {error}")
        yield None
        return
    try:
        yield disk
    finally:
        if ledger.count:
            sockets = shutil.ignore_patterns("*.sock")
            shutil.copytree(path, path.with_name("data-at-the-end"), symlinks=True, ignore=sockets)
        disk.close()


def _repositories(root: Path) -> dict[str, Repository]:
    found = [
        _repository(root, "acme/app", keys=BUNDLED | {"refs_vanish_after": "5s"}),
        _repository(root, "acme/private", keys={"access": ["readers"]}, is_private=True),
        _repository(root, "acme/strict", keys={"on_stale": "refuse"}, may_refuse=True),
        _repository(root, "acme/lfs"),
        _repository(root, "acme/large", is_large=True),
        *(_repository(root, f"team/pulled-{number}", is_pulled=True) for number in range(4)),
    ]
    return {one.name: one for one in found}


def _repository(root: Path, name: str, **more: object) -> Repository:
    upstream = Upstream(root, name)
    files: dict[str, str | bytes | None] = {
        f"apps/{number}/values.yaml": textwrap.dedent(f"image: web\ntag: 1.{number}\n")
        for number in range(20)
    }
    if more.get("is_large"):
        files |= {f"blobs/{number}": noise(LARGE_BYTES, number) for number in range(4)}
    first = upstream.commit(files=files, message="Begin")
    is_pulled = bool(more.get("is_pulled"))
    one = Repository(f"{AT}/{name}" if is_pulled else name, upstream, **more)  # type: ignore[arg-type]
    one.watch.history.record(MAIN, first)
    return one
