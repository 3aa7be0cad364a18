"""How much is kept free, and which errors are the disk's."""

import errno
import os
from pathlib import Path

import pytest

from mirror.config import Settings, parse
from mirror.errors import DiskFull, DiskReadOnly, LocalError, PackError
from mirror.space import Reserve, Room, Space, disk_trouble, look_at
from mirror.stores import room_of

GIB = 1 << 30


@pytest.mark.parametrize(
    ("reserve", "total", "expected"),
    [
        (Reserve(), 100 * GIB, GIB),
        (Reserve(), 10 * GIB, GIB // 2),
        (Reserve(3 * GIB, None), 10 * GIB, 3 * GIB),
        (Reserve(None, 0.25), 8 * GIB, 2 * GIB),
        (Reserve(0, None), 8 * GIB, 0),
    ],
)
def test_the_reserve_is_a_size_or_a_share(reserve: Reserve, total: int, expected: int) -> None:
    assert reserve.of(total) == expected


def settings_with(limits: str) -> Settings:
    text = f"limits: {limits}\nrepositories: {{a: {{upstream: 'https://forge.invalid/a.git'}}}}"
    return parse(text.encode(), source=Path("/etc/mirror.yaml"))


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ("{}", GIB),
        ("{disk_reserve: 2GiB}", 2 * GIB),
        ("{disk_reserve: 10%}", 10 * GIB),
        ("{disk_reserve: 0}", 0),
        ("{disk_reserve: 2.5%}", int(2.5 * GIB)),
    ],
)
def test_the_reserve_is_as_configured(limits: str, expected: int) -> None:
    space = Space(100 * GIB, 50 * GIB)
    assert room_of(settings_with(limits)).reserve_bytes(space) == expected


@pytest.mark.parametrize("written", ["91%", "-1%", "1GB", "%", "1.234%"])
def test_a_reserve_that_is_none_is_a_mistake(written: str) -> None:
    with pytest.raises(LocalError, match="disk_reserve"):
        settings_with(f"{{disk_reserve: {written!r}}}")


def test_what_is_lacking_is_told_with_some_to_spare() -> None:
    space = Space(1000, 300)
    room = Room(Path(), Reserve(200, None), look=lambda _: space)
    assert room.left() == 100
    assert room.lacking(100) == 0
    assert room.lacking(101) == 1 + 25


def test_a_disk_that_can_not_be_looked_at_holds_nothing_back(tmp_path: Path) -> None:
    room = Room(tmp_path / "gone")
    assert room.look() is None
    assert room.left() is None
    assert room.lacking(1 << 60) == 0


def test_a_real_disk_is_looked_at(tmp_path: Path) -> None:
    space = look_at(tmp_path)
    assert 0 < space.free_bytes <= space.total_bytes
    assert not space.is_read_only


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EROFS, DiskReadOnly),
        (errno.EIO, None),
    ],
)
def test_an_error_of_the_system_is_the_disks_or_not(number: int, kind: type | None) -> None:
    bare = OSError(number, os.strerror(number))
    wrapped = LocalError("can't write the refs")
    wrapped.__cause__ = bare
    said = PackError(f"git index-pack failed (128): fatal: write error: {os.strerror(number)}")
    for error in (bare, wrapped, said):
        found = disk_trouble(error)
        assert (None if found is None else type(found)) is kind
