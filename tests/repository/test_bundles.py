"""Bundles on disk: whole or not there, whatever happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mirror.errors import LocalError
from mirror.repository.bundles import KEPT_SECONDS, BundleShelf
from mirror.wire.bundles import Bundle, BundleList, encode_header
from tests.repository.histories import MAIN
from tests.wire.bodies import oid

SOURCE = "one upstream"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "bundles" / "acme%2Fapp"


@pytest.fixture
def shelf(directory: Path) -> BundleShelf:
    opened = BundleShelf(directory, source=SOURCE)
    assert opened.open() is None
    return opened


def make(shelf: BundleShelf, token: int, content: bytes = b"") -> Bundle:
    with shelf.draft(bytes_max=1 << 20) as draft:
        draft.write(encode_header([], {MAIN: oid(token)}) + content)
        return draft.finish(token)


def offer(shelf: BundleShelf, *bundles: Bundle, now: float = 1000.0) -> BundleList:
    listed = BundleList(bundles, now)
    shelf.publish(listed, now)
    return listed


def files(directory: Path) -> set[str]:
    return {file.name for file in directory.iterdir()} if directory.exists() else set()


def test_what_is_offered_is_offered_after_a_restart(shelf: BundleShelf, directory: Path) -> None:
    listed = offer(shelf, make(shelf, 1), make(shelf, 2))
    again = BundleShelf(directory, source=SOURCE)
    assert again.open() == listed
    assert again.tips() == {MAIN: oid(2)}
    assert again.damaged() is None
    assert again.bytes_on_disk() == listed.size + (directory / "list.json").stat().st_size


def test_what_is_not_finished_is_removed(shelf: BundleShelf, directory: Path) -> None:
    with shelf.draft(bytes_max=100) as draft:
        draft.write(b"half")
    assert files(directory) == set()


def test_a_bundle_is_no_longer_than_it_may_be(shelf: BundleShelf, directory: Path) -> None:
    with shelf.draft(bytes_max=5) as draft:
        draft.write(b"12345")
        with pytest.raises(LocalError, match=r"limits\.bundle_bytes_max"):
            draft.write(b"6")
    assert files(directory) == set()


def test_what_was_offered_stays_for_a_while_for_those_who_read_the_list_before(
    shelf: BundleShelf, directory: Path
) -> None:
    now = time.time()
    old, new = make(shelf, 1), make(shelf, 2)
    offer(shelf, old, now=now)
    offer(shelf, new, now=now)
    shelf.sweep(now + KEPT_SECONDS - 1)
    assert files(directory) == {"list.json", old.name, new.name}
    again = BundleShelf(directory, source=SOURCE)
    again.open()
    assert old.name in files(directory), "kept over a restart"
    again.sweep(now + KEPT_SECONDS + 1)
    assert files(directory) == {"list.json", new.name}


def test_bundles_of_another_source_are_never_offered(shelf: BundleShelf, directory: Path) -> None:
    offer(shelf, make(shelf, 1))
    other = BundleShelf(directory, source="another upstream")
    assert other.open() is None
    assert other.last_token == 1, "for tokens to go on rising"
    assert files(directory) == set()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"version": 9}', b"\xff"])
def test_a_list_that_can_not_be_read_is_none(
    shelf: BundleShelf, directory: Path, content: bytes
) -> None:
    offer(shelf, make(shelf, 1))
    (directory / "list.json").write_bytes(content)
    assert BundleShelf(directory, source=SOURCE).open() is None
    assert files(directory) == set()


def test_a_list_of_nothing_is_none(shelf: BundleShelf, directory: Path) -> None:
    offer(shelf, make(shelf, 1))
    stored = json.loads((directory / "list.json").read_bytes())
    (directory / "list.json").write_text(json.dumps(stored | {"bundles": []}))
    assert BundleShelf(directory, source=SOURCE).open() is None


@pytest.mark.parametrize("is_gone", [True, False], ids=["gone", "shorter"])
def test_a_list_is_worth_nothing_without_all_of_its_bundles(
    shelf: BundleShelf, directory: Path, is_gone: bool
) -> None:
    base, more = make(shelf, 1), make(shelf, 2, b"pack")
    offer(shelf, base, more)
    if is_gone:
        (directory / more.name).unlink()
    else:
        os.truncate(directory / more.name, more.size - 1)
    assert BundleShelf(directory, source=SOURCE).open() is None


def test_a_flipped_bit_is_found(shelf: BundleShelf, directory: Path) -> None:
    base, more = make(shelf, 1), make(shelf, 2, b"pack")
    offer(shelf, base, more)
    content = bytearray((directory / more.name).read_bytes())
    content[-2] ^= 1
    (directory / more.name).write_bytes(content)
    assert shelf.damaged() == more.name
    (directory / base.name).unlink()
    assert shelf.damaged() == base.name


def test_nothing_is_left_of_what_is_cleared(shelf: BundleShelf, directory: Path) -> None:
    offer(shelf, make(shelf, 1))
    offer(shelf, make(shelf, 2))
    shelf.clear()
    assert shelf.listed is None
    assert shelf.tips() == {}
    assert files(directory) == set()
    shelf.clear()


_KILLED = """
import os, signal, sys
from pathlib import Path
from mirror.repository.bundles import BundleShelf
from mirror.wire.bundles import BundleList

shelf = BundleShelf(Path(sys.argv[1]), source=sys.argv[2])
listed = shelf.open()
if sys.argv[3] == "half a list":
    rename = Path.rename
    def die(path, target):
        if target.name == "list.json":
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)
    Path.rename = die
with shelf.draft(bytes_max=1 << 30) as draft:
    draft.write(bytes(5 << 20))
    if sys.argv[3] == "half a bundle":
        os.kill(os.getpid(), signal.SIGKILL)
    bundle = draft.finish(5)
shelf.publish(BundleList((*listed.bundles, bundle), 2000.0), 2000.0)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["half a bundle", "half a list", "the list is there"])
def test_a_kill_at_any_moment_leaves_the_list_of_before_or_the_new_one(
    shelf: BundleShelf, directory: Path, moment: str
) -> None:
    before = offer(shelf, make(shelf, 1))
    script = [sys.executable, "-c", _KILLED, str(directory), SOURCE, moment]
    assert subprocess.run(script, check=False).returncode == -signal.SIGKILL
    found = BundleShelf(directory, source=SOURCE)
    listed = found.open()
    assert listed is not None
    assert found.damaged() is None
    if moment == "the list is there":
        assert [bundle.token for bundle in listed.bundles] == [1, 5]
    else:
        assert listed == before
    assert files(directory) == {"list.json", *(bundle.name for bundle in listed.bundles)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")
def test_a_full_disk_leaves_what_was_offered(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", os.fspath(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file systems can be mounted here")
    try:
        shelf = BundleShelf(place / "app", source=SOURCE)
        listed = offer(shelf, make(shelf, 1))
        with pytest.raises(LocalError, match="No space left on device"):
            make(shelf, 2, bytes(100_000))
        (place / "filler").write_bytes(bytes(52 * 1024))
        more = BundleList((*listed.bundles, *(Bundle("x" * 99, at, 1) for at in range(200))), 2.0)
        with pytest.raises(LocalError, match="No space left on device"):
            shelf.publish(more, 2.0)
        assert shelf.listed == listed
        again = BundleShelf(place / "app", source=SOURCE)
        assert again.open() == listed
        again.clear()
        assert again.bytes_on_disk() == 0
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
