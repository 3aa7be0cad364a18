"""Objects by their id, from whichever pack, while packs come and go."""

import gc
import os
import random
import threading
from pathlib import Path

import pytest

from mirror.errors import LocalError
from mirror.repository.bare import BareRepository
from mirror.repository.objects import EMPTY_TREE, TREE, ObjectSource
from mirror.wire.names import ObjectId
from tests.repository.histories import Atlas, Scratch
from tests.repository.packing.processes import open_files
from tests.repository.packs import Kind, blob_id, make_pack, whole

NOWHERE = ObjectId(b"1" * 40)


def add(scratch: Scratch, *contents: bytes) -> None:
    """Let another process add a pack."""
    pack = make_pack([whole(Kind.BLOB, content) for content in contents])
    scratch.git("index-pack", "--stdin", stdin=pack)


def test_every_object_is_read_as_git_reads_it(repository: BareRepository, atlas: Atlas) -> None:
    ids = atlas.scratch.git("rev-list", "--all", "--objects", "--no-object-names")
    printed = atlas.scratch.git("cat-file", "--batch", stdin=ids)
    at = 0
    for oid in map(ObjectId, ids.split()):
        end = printed.index(b"\n", at)
        _, kind, size = printed[at:end].split()
        content = printed[end + 1 : end + 1 + int(size)]
        at = end + 2 + int(size)
        assert repository.source.raw(oid) == (Kind[kind.decode().upper()], content)
        assert repository.source.size(oid) == int(size)
        assert repository.source.contains(oid)


def test_what_is_not_here_is_an_error(repository: BareRepository) -> None:
    assert not repository.source.contains(NOWHERE)
    with pytest.raises(LocalError, match="is missing"):
        repository.source.raw(NOWHERE)
    with pytest.raises(LocalError, match="is missing"):
        repository.source.size(NOWHERE)


def test_the_empty_tree_is_always_here(scratch: Scratch) -> None:
    source = ObjectSource(scratch.path / "objects")
    assert source.contains(EMPTY_TREE)
    assert source.raw(EMPTY_TREE) == (TREE, b"")


def test_packs_that_others_add_are_found(scratch: Scratch) -> None:
    source = ObjectSource(scratch.path / "objects")
    for number in range(3):
        content = b"pack %d\n" % number
        assert not source.contains(blob_id(content))
        add(scratch, content)
        assert source.raw(blob_id(content)) == (Kind.BLOB, content)
    assert len(source.packs()) == 3
    source.close()


def test_an_index_without_its_pack_is_no_pack(scratch: Scratch) -> None:
    add(scratch, b"one\n")
    add(scratch, b"two\n")
    source = ObjectSource(scratch.path / "objects")
    newest = source.packs()[0].path
    source.close()
    newest.unlink()
    source = ObjectSource(scratch.path / "objects")
    assert len(source.packs()) == 1
    assert source.contains(blob_id(b"one\n")) != source.contains(blob_id(b"two\n"))
    source.close()


def test_what_is_held_stays_readable_when_its_files_are_gone(scratch: Scratch) -> None:
    add(scratch, b"one\n")
    source = ObjectSource(scratch.path / "objects")
    (pack,) = source.packs()
    for file in (scratch.path / "objects/pack").iterdir():
        file.unlink()
    source.rescan()
    assert source.packs() == ()
    assert not source.contains(blob_id(b"one\n"))
    sha = bytes.fromhex(blob_id(b"one\n").decode())
    assert pack.raw(sha) == (Kind.BLOB, b"one\n")
    del pack
    gc.collect()
    assert not [name for name in open_files() if os.fspath(scratch.path) in name]


def test_objects_behind_are_found_through_what_is_in_front(
    scratch: Scratch, atlas: Atlas, repository: BareRepository
) -> None:
    add(scratch, b"in front\n")
    source = ObjectSource(scratch.path / "objects", behind=repository.source)
    assert source.contains(blob_id(b"in front\n"))
    assert source.raw(atlas["main"]) == repository.source.raw(atlas["main"])
    assert not source.contains(NOWHERE)
    assert len(source.packs()) == 1
    source.close()


def test_a_damaged_object_is_an_error(scratch: Scratch) -> None:
    noise = random.Random(1).randbytes(4000)
    add(scratch, noise, b"another\n")
    (pack,) = (scratch.path / "objects/pack").glob("*.pack")
    content = bytearray(pack.read_bytes())
    content[content.index(noise[1000:1100])] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(content)
    source = ObjectSource(scratch.path / "objects")
    with pytest.raises(LocalError, match="is damaged"):
        source.raw(blob_id(noise))
    assert source.raw(blob_id(b"another\n")) == (Kind.BLOB, b"another\n")
    source.close()


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="can't be read"):
        ObjectSource(tmp_path / "nowhere")


class Rush:
    """Threads that read the same objects, all at once."""

    def __init__(self, source: ObjectSource, contents: list[bytes]) -> None:
        self._source = source
        self._contents = contents
        self._start = threading.Barrier(8)
        self.found: list[bool] = []

    def _read(self) -> None:
        self._start.wait()
        read = [self._source.raw(blob_id(content))[1] for content in self._contents]
        self.found.append(read == self._contents)

    def run(self) -> None:
        threads = [threading.Thread(target=self._read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(("mapped_bytes_min", "files"), [(0, 24), (1 << 20, 0)])
def test_threads_that_come_all_at_once_open_nothing_twice(
    scratch: Scratch, monkeypatch: pytest.MonkeyPatch, mapped_bytes_min: int, files: int
) -> None:
    monkeypatch.setattr("mirror.repository.objects.MAPPED_BYTES_MIN", mapped_bytes_min)
    source = ObjectSource(scratch.path / "objects")
    for number in range(12):
        contents = [b"%d %d\n" % (number, place) for place in range(20)]
        add(scratch, *contents)
        rush = Rush(source, contents)
        rush.run()
        assert rush.found == [True] * 8
    names = [name for name in open_files() if os.fspath(scratch.path) in name]
    assert len(set(names)) == files
    assert len(names) == files  # each the one that Python keeps for the mapping
    source.close()
    gc.collect()
    assert not [name for name in open_files() if os.fspath(scratch.path) in name]
