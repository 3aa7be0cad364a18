"""Real file systems that are small, or become read-only: only root can have them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.refresh import disk_watch
from tests.disk.small import MIB, NotMounted, SmallDisk
from tests.refresh.conftest import make_bench

__all__ = ["MIB", "SmallDisk", "make_bench"]


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    """A disk of 48 MiB where `mirror_service.configuration` puts the data directory."""
    monkeypatch.setattr(disk_watch, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(disk_watch, "WAKE_SECONDS_MIN", 0.0)
    try:
        opened = SmallDisk(tmp_path / "mirror" / "data", 48 * MIB)
    except NotMounted as error:
        pytest.skip(f"{error}: run these tests as root, where mount is allowed")
    yield opened
    opened.close()
