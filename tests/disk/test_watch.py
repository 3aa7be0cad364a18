"""Who watches the disk makes others yield in their order, and wakes what had no room."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from mirror.metrics.disk import DiskFigures
from mirror.refresh.disk_watch import GROWN_BYTES, WAKE_SECONDS_MIN, DiskWatch, Yielding
from mirror.refresh.pull_through.eviction import Kept, Reason, choose
from mirror.refresh.refresher import Refresher, Trigger
from mirror.refresh.schedule import BACKOFF_SECONDS_MAX, Schedule
from mirror.space import Reserve, Room, Space
from tests.refresh.bench import Clock

TOTAL = 1000 * GROWN_BYTES


class Disk:
    """A disk, and what is kept there by kind."""

    def __init__(self, **kept: int) -> None:
        self.free = 0
        self.is_read_only = False
        self.kept = {kind: size * GROWN_BYTES for kind, size in kept.items()}
        self.asked: list[str] = []

    def look(self, _: Path) -> Space:
        return Space(TOTAL, self.free, self.is_read_only)

    def yielding(self, kind: str) -> Yielding:
        async def give(size: int) -> int:
            self.asked.append(kind)
            given = min(size, self.kept[kind])
            self.kept[kind] -= given
            self.free += given
            return given

        return Yielding(kind, give)


class Failing:
    """A repository whose last refresh failed so."""

    def __init__(self, kind: str | None) -> None:
        self.mirror = SimpleNamespace(last=SimpleNamespace(kind=kind))
        self.asked: list[Trigger] = []

    def request(self, trigger: Trigger) -> None:
        self.asked.append(trigger)


class Watched:
    def __init__(self, disk: Disk, *failing: Failing) -> None:
        self.disk = disk
        self.clock = Clock()
        self.registry = CollectorRegistry()

        async def used() -> Mapping[str, int]:
            return disk.kept

        self.watch = DiskWatch(
            Room(Path(), Reserve(80 * GROWN_BYTES, None), look=disk.look),
            DiskFigures(self.registry),
            yielding=[disk.yielding(kind) for kind in disk.kept],
            refreshers=lambda: [cast("Refresher", one) for one in failing],
            used=used,
            clock=self.clock,
        )

    async def look(self, free: int | None = None) -> list[str]:
        """Look once, and return what was logged."""
        if free is not None:
            self.disk.free = free * GROWN_BYTES
        self.clock.advance(2)
        with capture_logs() as logged:
            await self.watch.look()
        return [line["event"] for line in logged]

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"git_mirror_disk_{name}", labels)


async def test_what_is_made_again_soonest_yields_first() -> None:
    disk = Disk(packs=50, lfs=50, bundles=50)
    watched = Watched(disk)
    assert await watched.look(free=200) == []
    assert disk.asked == []
    assert await watched.look(free=70) == ["disk_yielded"]
    assert disk.asked == ["packs"]
    assert disk.free == 90 * GROWN_BYTES, "an eighth to spare"
    assert await watched.look(free=20) == ["disk_yielded"] * 2
    assert disk.asked == ["packs", "packs", "lfs"]
    assert watched.sample("yielded_bytes_total", kind="packs") == 50 * GROWN_BYTES
    assert disk.kept["bundles"] == 50 * GROWN_BYTES
    assert watched.sample("short") == 0


async def test_a_disk_that_stays_short_is_said_once_and_its_end_too() -> None:
    watched = Watched(Disk(packs=1))
    assert await watched.look(free=10) == ["disk_yielded", "disk_short"]
    assert await watched.look(free=10) == []
    assert watched.sample("short") == 1
    assert watched.sample("free_bytes") == 10 * GROWN_BYTES
    assert watched.sample("reserve_bytes") == 80 * GROWN_BYTES
    shown = watched.watch.describe()
    assert shown is not None
    assert shown["is_short"]
    assert await watched.look(free=100) == ["disk_has_room_again"]
    assert watched.sample("short") == 0


async def test_what_had_no_room_is_woken_when_there_is_more_long_before_the_reserve_is_whole() -> (
    None
):
    full, quota, well = Failing("disk_full"), Failing("over_quota"), Failing(None)
    watched = Watched(Disk(), full, quota, well)
    await watched.look(free=3)
    await watched.look(free=2)
    assert full.asked == []
    assert "refreshes_resumed" in await watched.look(free=3)
    assert (full.asked, quota.asked, well.asked) == ([Trigger.ROOM], [], [])
    await watched.look(free=3)
    await watched.look(free=20)
    assert full.asked == [Trigger.ROOM], "not with each file that somebody removes"
    watched.clock.advance(WAKE_SECONDS_MIN)
    await watched.look()
    assert full.asked == [Trigger.ROOM] * 2


async def test_a_disk_that_is_writable_again_wakes_refreshes_and_nothing_is_removed_meanwhile() -> (
    None
):
    failing = Failing("disk_read_only")
    disk = Disk(packs=50)
    watched = Watched(disk, failing)
    disk.is_read_only = True
    assert await watched.look(free=10) == ["disk_read_only", "disk_short"]
    assert disk.asked == []
    assert watched.sample("read_only") == 1
    disk.is_read_only = False
    events = await watched.look()
    assert "disk_writable_again" in events
    assert failing.asked == [Trigger.ROOM]
    assert watched.sample("read_only") == 0


def test_a_disk_that_fails_is_tried_within_a_minute_however_seldom_the_upstream_is_asked() -> None:
    schedule = Schedule(poll_interval_seconds=7 * 86_400.0)
    assert schedule.after_failure(100, 0.0) > BACKOFF_SECONDS_MAX
    assert schedule.after_failure(100, 0.0, is_passing=True) == BACKOFF_SECONDS_MAX


def test_mirrors_yield_that_were_read_least_recently() -> None:
    kept = [Kept(name, read_at, 100, None) for name, read_at in (("a", 1.0), ("b", 2.0))]
    chosen = choose(kept, 1000.0, count_max=10, bytes_max=1000, lacking=50)
    assert chosen == {"a": Reason.DISK}
    assert choose(kept, 1000.0, count_max=10, bytes_max=1000, lacking=150) == {
        "a": Reason.DISK,
        "b": Reason.DISK,
    }
    assert choose(kept, 1000.0, count_max=10, bytes_max=150, lacking=0) == {"a": Reason.SIZE}


@pytest.mark.parametrize("lacking", [0, 50])
def test_a_busy_mirror_does_not_yield(lacking: int) -> None:
    kept = [Kept("a", 1.0, 100, None, is_busy=True)]
    assert choose(kept, 1000.0, count_max=10, bytes_max=1000, lacking=lacking) == {}
