"""When upstreams are asked for LFS objects: once for all, and not without a bound."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from mirror.config import LimitSettings, Settings
from mirror.errors import Overloaded, UpstreamUnavailable
from mirror.metrics import Metrics
from mirror.refresh import lfs
from mirror.refresh.lfs import LargeFiles, LfsRepository
from mirror.repository.lfs_store import LfsStore
from mirror.upstream.lfs import LfsRemote
from mirror.wire.lfs import Action, Pointer, Refusal
from tests.lfs_server import noise, oid_of
from tests.refresh.bench import Clock

CONTENT = noise(5000)
OBJECT = Pointer(oid_of(CONTENT), len(CONTENT))


class Remote:
    """Offers one object, once it is let go on."""

    def __init__(self) -> None:
        self.batches = 0
        self.downloads = 0
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.expires_at: float | None = None
        self.pause: float | None = None

    def _answer(self) -> None:
        if self.pause is not None:
            raise UpstreamUnavailable("slow down", retry_after_seconds=self.pause)

    async def batch(self, pointers: Sequence[Pointer]) -> dict[str, Action | Refusal]:
        self.batches += 1
        self.asked.set()
        await self.go_on.wait()
        self._answer()
        return {one.oid: Action("x", expires_at=self.expires_at) for one in pointers}

    async def download(
        self, action: Action, pointer: Pointer, *, offset: int
    ) -> AsyncGenerator[bytes, None]:
        assert (action.href, pointer, offset) == ("x", OBJECT, 0)
        self.downloads += 1
        self.asked.set()
        await self.go_on.wait()
        self._answer()
        yield CONTENT


class Repositories(dict[str, LfsRepository]):
    """Those of one configuration, which stays."""

    def change(self, settings: Settings) -> None:
        raise NotImplementedError


@pytest.fixture
def remote() -> Remote:
    return Remote()


@pytest.fixture
def store(tmp_path: Path) -> LfsStore:
    opened = LfsStore(tmp_path, bytes_max=1 << 20)
    opened.prepare()
    return opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def files(store: LfsStore, remote: Remote, clock: Clock) -> AsyncIterator[LargeFiles]:
    repositories = Repositories()
    repositories["a"] = LfsRepository(cast("LfsRemote", remote), store.scope("a", "https://x"))
    limits = LimitSettings(lfs_downloads_max=1)
    opened = LargeFiles(store, repositories, limits, Metrics("0"), clock=clock)
    yield opened
    await opened.close()


async def test_equal_batches_that_come_at_once_are_asked_once(
    files: LargeFiles, remote: Remote
) -> None:
    asking = [asyncio.create_task(files.ask("a", [OBJECT])) for _ in range(3)]
    await remote.asked.wait()
    asking[0].cancel()
    remote.go_on.set()
    assert await asyncio.gather(*asking[1:]) == [{OBJECT.oid: None}] * 2
    assert remote.batches == 1


async def test_an_offer_that_is_about_to_expire_is_asked_for_again(
    files: LargeFiles, store: LfsStore, remote: Remote
) -> None:
    remote.go_on.set()
    remote.expires_at = 1.0
    await files.ask("a", [OBJECT])
    remote.expires_at = None
    await files.fetch("a", OBJECT)
    assert (remote.batches, remote.downloads) == (2, 1)
    assert store.is_stored(OBJECT)


async def test_what_would_have_to_wait_too_long_is_refused(
    files: LargeFiles, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lfs, "QUEUED_MAX", 1)
    first = asyncio.create_task(files.ask("a", [OBJECT]))
    await remote.asked.wait()
    with pytest.raises(Overloaded, match="too many LFS batches"):
        await files.ask("a", [Pointer("b" * 64, 1)])
    fetching = [
        asyncio.create_task(files.fetch("a", Pointer(digit * 64, 1))) for digit in ("c", "d")
    ]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="too many LFS downloads"):
        await files.fetch("a", Pointer("e" * 64, 1))
    for task in (first, *fetching):
        task.cancel()


async def test_a_download_that_does_not_end_is_given_up(
    files: LargeFiles, store: LfsStore, remote: Remote
) -> None:
    remote.go_on.set()
    await files.ask("a", [OBJECT])
    remote.go_on.clear()
    files._limits = files._limits.model_copy(update={"refresh_timeout_seconds": 0.1})
    with pytest.raises(UpstreamUnavailable, match="took longer than"):
        await files.fetch("a", OBJECT)
    assert not store.is_stored(OBJECT)


async def test_retry_after_silences_batches_and_downloads(
    files: LargeFiles, store: LfsStore, remote: Remote, clock: Clock
) -> None:
    remote.go_on.set()
    await files.ask("a", [OBJECT])
    remote.pause = 60.0
    with pytest.raises(UpstreamUnavailable, match="slow down"):
        await files.fetch("a", OBJECT)
    remote.pause = None
    clock.advance(59.0)
    with pytest.raises(UpstreamUnavailable, match="for 1 seconds more") as caught:
        await files.fetch("a", OBJECT)
    assert caught.value.retry_after_seconds == 1.0
    with pytest.raises(UpstreamUnavailable, match="Retry-After"):
        await files.ask("a", [OBJECT])
    assert (remote.batches, remote.downloads) == (1, 1)
    clock.advance(1.0)
    await files.fetch("a", OBJECT)
    assert store.is_stored(OBJECT)
