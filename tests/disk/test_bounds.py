"""Quotas and the reserve are bounds for what arrives, not remarks about what has arrived."""

import os
from pathlib import Path
from typing import Any

import pytest

from mirror.config import RepositorySettings
from mirror.demo.forge import HttpBackend
from mirror.errors import DiskFull, OverQuota
from mirror.refresh.bounds import REMEMBERED_SECONDS, Bounds
from mirror.refresh.update import Updater
from mirror.space import Reserve, Room, Space
from mirror.wire.names import ObjectId
from tests.disk.conftest import MIB
from tests.git_client import Upstream
from tests.refresh.bench import AGENT, Bench, Clock

TIPS = [ObjectId(b"1" * 40)]
OTHERS = [ObjectId(b"2" * 40)]


class Disk:
    """A disk with so much free."""

    def __init__(self, free: int) -> None:
        self.free = free

    def room(self, reserve: int) -> Room:
        return Room(Path(), Reserve(reserve, None), look=lambda _: Space(1 << 40, self.free))


def settings(name: str = "a", **more: Any) -> RepositorySettings:
    return RepositorySettings(name=name, upstream=f"https://forge.invalid/{name}.git", **more)


def bench_of(bench: Bench, bounds: Bounds) -> Bench:
    bench.updater = Updater(
        bench.engine, staging=bench.staging, agent=AGENT, bounds=bounds, now=lambda: bench.now
    )
    return bench


def test_a_repository_takes_no_more_than_it_may() -> None:
    bounds = Bounds()
    bounds.note("a", 600)
    quota = settings(repository_bytes_max=1000)
    with bounds.taken(quota, TIPS, is_clone=False) as share:
        share.check(400)
        with pytest.raises(OverQuota, match=r"more than repository_bytes_max \(1000\)"):
            share.check(401)


def test_all_together_take_no_more_than_they_may_with_what_is_under_way() -> None:
    bounds = Bounds(bytes_max=1000)
    bounds.note("a", 300)
    with (
        bounds.taken(settings("b"), TIPS, is_clone=True) as one,
        bounds.taken(settings("c"), TIPS, is_clone=True) as other,
    ):
        one.check(400)
        other.check(300)
        with pytest.raises(OverQuota, match=r"limits.repositories_bytes_max \(1000\)"):
            other.check(301)
        other.check(0)
        one.check_indexed(700)
    # What came and is being checked counts until it is noted, or given up.
    assert bounds.total() == 1000
    bounds.settle("b")
    bounds.forget("a")
    assert bounds.total() == 0


def test_a_first_clone_leaves_the_reserve_alone_and_a_refresh_may_take_of_it() -> None:
    disk = Disk(100 * MIB)
    bounds = Bounds(disk.room(20 * MIB))
    with bounds.taken(settings(), TIPS, is_clone=True) as share:
        share.check(80 * MIB)
    with (
        pytest.raises(DiskFull, match="has to wait"),
        bounds.taken(settings(), TIPS, is_clone=True) as share,
    ):
        share.check(81 * MIB)  # once more when it is indexed
    disk.free = 10 * MIB
    with pytest.raises(DiskFull), bounds.taken(settings("b"), TIPS, is_clone=True):
        pass
    with bounds.taken(settings("c"), TIPS, is_clone=False) as share:
        share.check(1 << 30)


def test_what_did_not_fit_is_not_tried_again_until_it_may() -> None:
    clock = Clock()
    bounds = Bounds(clock=clock)
    quota = settings(repository_bytes_max=1000)

    def tried(tips: list[ObjectId] = TIPS) -> bool:
        """Tell whether it was received, to be refused at its end."""
        received = False
        with pytest.raises(OverQuota), bounds.taken(quota, tips, is_clone=False) as share:
            received = True
            share.check(2000)
        return received

    bounds.note("a", 500)
    assert tried()
    assert not tried()
    assert tried(OTHERS), "something else is missing now"
    assert not tried(OTHERS)
    bounds.note("a", 400)
    assert tried(OTHERS), "there is more room"
    clock.advance(REMEMBERED_SECONDS + 1)
    assert tried(OTHERS), "that was long ago"


def test_what_the_disk_itself_refused_is_tried_again() -> None:
    """It may be full of files, or full for this user: how much is free says nothing of that."""
    bounds = Bounds(Disk(1000).room(0))
    for _ in range(2):
        with (
            pytest.raises(OSError, match="No space left"),
            bounds.taken(settings(), TIPS, is_clone=False) as share,
        ):
            share.check(10)
            raise OSError(28, "No space left on device")


async def test_a_refresh_over_the_quota_is_refused_and_the_last_state_stays(
    upstream: Upstream, forge: HttpBackend, make_bench: Any
) -> None:
    bench = make_bench(upstream, repository_bytes_max=2 * MIB)
    bounds = Bounds()
    bench_of(bench, bounds)
    await bench.update()
    before = bench.fingerprint()
    assert bench.mirror.disk_bytes == bounds.total() > 0

    big = upstream.commit(files={"big.bin": os.urandom(3 * MIB)})
    with pytest.raises(OverQuota, match="raise that"):
        await bench.update()
    assert bench.fingerprint() == before
    assert not bench.holds(big)
    bench.is_whole()

    asked = forge.operations.count("fetch")
    with pytest.raises(OverQuota):
        await bench.update()
    assert forge.operations.count("fetch") == asked, "the same pack is not fetched again"

    upstream.force("main", "main~1")
    upstream.commit(files={"small.txt": "small"})
    await bench.update()
    bench.mirrors()
    assert bench.mirror.disk_bytes == bounds.total() < 2 * MIB


async def test_an_index_counts_as_well_as_its_pack(upstream: Upstream, make_bench: Any) -> None:
    """Many small objects: the index is larger than what is compressed."""
    upstream.history(300)
    bench = make_bench(upstream)
    await bench.update()
    repository = bench.mirror.repository
    assert repository is not None
    packs = sum(file.stat().st_size for file in repository.pack_files())
    assert repository.bytes_on_disk() > packs
    another = make_bench(upstream, repository_bytes_max=packs + 100)
    another.mirror.path = bench.mirror.path.with_name("another.git")
    with pytest.raises(OverQuota):
        await another.update()
    assert not another.mirror.path.exists()
    assert not list(another.staging.iterdir())


async def test_a_first_clone_that_does_not_fit_leaves_nothing_and_comes_when_there_is_room(
    upstream: Upstream, forge: HttpBackend, make_bench: Any
) -> None:
    upstream.commit(files={"big.bin": os.urandom(9 * MIB)})
    disk = Disk(12 * MIB)
    bench = bench_of(make_bench(upstream), Bounds(disk.room(4 * MIB)))
    for _ in range(2):
        with pytest.raises(DiskFull, match=r"limits\.disk_reserve"):
            await bench.update()
        assert not bench.path.exists()
        assert not list(bench.staging.iterdir())
    assert forge.operations.count("fetch") == 1
    disk.free = 64 * MIB
    await bench.update()
    bench.mirrors()
