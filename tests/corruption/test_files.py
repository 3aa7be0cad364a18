"""Every bit of the small files, and of what lies beside the repositories."""

import ctypes
import hashlib
import mmap
import os
import random
from pathlib import Path

import pytest

from mirror.access.tokens import Tokens, create_token
from mirror.errors import LocalError
from mirror.repository import bare, integrity
from mirror.repository.bare import BareRepository
from mirror.repository.config_file import upstream_url_of
from mirror.repository.integrity import Kind, check_file, pass_over
from mirror.repository.lfs_store import LfsStore
from mirror.repository.packing import pack_store
from mirror.repository.packing.pack_store import PackKey, PackStore
from mirror.repository.refs import StoredRefs
from mirror.wire.lfs import Pointer
from mirror.wire.names import ObjectId, Ref, RefName
from mirror.wire.ref_table import RefTable
from tests.corruption.world import flip

URL = "https://forge.example/acme/gitops-repo.git"
OID = ObjectId(b"1234567890" * 4)
MAIN = RefName(b"refs/heads/main")


@pytest.fixture
def repository(tmp_path: Path) -> BareRepository:
    made = BareRepository.create(tmp_path / "mirror.git", upstream_url=URL)
    refs = RefTable.of([Ref(MAIN, OID), Ref(RefName(b"refs/tags/v1"), OID, OID)])
    made.write_refs(StoredRefs(refs, MAIN, None, {OID: 1_800_000_000}))
    return made


def test_no_flipped_bit_in_packed_refs_makes_other_refs(repository: BareRepository) -> None:
    file = repository.path / "packed-refs"
    right = repository.read_refs()
    copy = repository.path / "git-mirror-refs"
    found = 0
    for bit in range(8 * file.stat().st_size):
        flip(file, bit)
        assert BareRepository.open_beside(repository.path).read_refs() == right  # of the copy
        found += 1
        if bit % 8 == found // 8 % 8:  # each of the bytes, and of the bits
            flip(copy, 1500)
            with pytest.raises(LocalError):
                BareRepository.open_beside(repository.path).read_refs()
            flip(copy, 1500)
        flip(file, bit)
    assert found > 2000
    flip(copy, 1500)
    assert BareRepository.open_beside(repository.path).read_refs() == right


def test_the_copy_of_the_refs_is_never_older_than_they_are(
    repository: BareRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, copy = (repository.path / name for name in ("packed-refs", "git-mirror-refs"))
    before = copy.read_bytes()
    assert before == file.read_bytes()
    rename = Path.rename
    renamed: list[Path] = []

    def cut_off(path: Path, target: Path) -> Path:
        if renamed:
            raise OSError(5, "the power is gone")
        renamed.append(target)
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", cut_off)
        with pytest.raises(LocalError):
            repository.write_refs(StoredRefs(RefTable.of([Ref(MAIN, OID)]), MAIN, None))
    assert renamed == [copy]
    assert file.read_bytes() == before != copy.read_bytes()
    # What was not published is not kept: the copy of before a crash is made anew, too.
    for one in (copy.read_bytes(), b""):
        copy.write_bytes(one)
        opened = BareRepository.open(repository.path)
        assert opened.found == ()
        opened.close()
        assert copy.read_bytes() == before


def test_what_is_damaged_on_a_disk_that_takes_nothing_is_served_all_the_same(
    repository: BareRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = repository.read_refs()
    files = [repository.path / name for name in ("packed-refs", "HEAD", "config")]
    contents = [file.read_bytes() for file in files]
    for file in files:
        flip(file, 100)
    with monkeypatch.context() as patched:

        def refuse(path: Path, content: bytes) -> None:
            raise OSError(30, "Read-only file system")

        patched.setattr(bare, "write_durably", refuse)
        opened = BareRepository.open(repository.path, upstream_url=URL)
    assert opened.read_refs() == right
    assert opened.not_mended is not None
    assert "Read-only file system" in opened.not_mended
    assert opened.upstream_url == URL
    kinds = {Kind.REFS, Kind.CONFIG}  # HEAD is compared with refs that are right
    assert {one.kind for one in opened.check()} == kinds
    assert {one.kind for one in opened.mend()} == {*kinds, Kind.HEAD}
    assert [file.read_bytes() for file in files] == contents
    opened.close()


def test_refs_are_written_again_from_memory(repository: BareRepository) -> None:
    right = repository.read_refs()
    flip(repository.path / "packed-refs", 1500)
    flip(repository.path / "HEAD", 40)
    assert {one.kind for one in repository.check()} == {Kind.REFS}
    repository.write_known_refs()
    assert repository.check() == []
    assert BareRepository.open_beside(repository.path).read_refs() == right


def test_no_flipped_bit_in_the_configuration_makes_another_upstream(
    repository: BareRepository,
) -> None:
    file = repository.path / "config"
    right = file.read_bytes()
    for bit in range(8 * file.stat().st_size):
        flip(file, bit)
        with pytest.raises(LocalError):
            upstream_url_of(repository.path)
        flip(file, bit)
    flip(file, 1000)
    BareRepository.open(repository.path, upstream_url=URL).close()
    assert file.read_bytes() == right
    flip(file, 1000)
    with pytest.raises(LocalError, match="another upstream"):
        BareRepository.open(repository.path, upstream_url=URL + "x")


def test_refs_of_an_earlier_version_are_read_and_get_a_checksum(
    repository: BareRepository,
) -> None:
    file = repository.path / "packed-refs"
    header, _, lines = file.read_bytes().partition(b"\n")
    file.write_bytes(b"# pack-refs with: peeled fully-peeled sorted \n" + lines)
    opened = BareRepository.open(repository.path)
    opened.write_refs(opened.read_refs())
    assert file.read_bytes() == header + b"\n" + lines


def test_no_flipped_bit_in_tokens_lets_anybody_in_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    secret = create_token(file, "argocd", repositories=("acme/*",), expires_at=2e9).encode()
    right = Tokens(file).find(secret)
    assert right is not None
    let_in = 0
    for bit in range(8 * file.stat().st_size):
        flip(file, bit)
        found = Tokens(file).find(secret)
        assert found in (None, right), bit
        let_in += found is not None
        flip(file, bit)
    assert let_in < 128  # white space, and where it is no longer clear that there is a checksum


def test_a_cached_pack_is_found_damaged_by_the_scrub_and_when_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PackStore(tmp_path / "packs", bytes_max=1 << 30, memory_bytes_max=0)
    store.prepare()
    content = random.Random(1).randbytes(600_000)
    other, key = PackKey("0" * 40), PackKey("1" * 40)
    for one in (other, key):
        made = store.keep(one, content, store.new_spool()[1], len(content))
        assert made is not None
        store.admit(one, made)
    pack = store.find(key)
    assert pack is not None
    assert list(store.scrub(pass_over)) == []
    flip(pack.path, 8 * 300_000)
    assert bytes(pack.framed) != content  # mapped: what it is checked for
    monkeypatch.setattr(pack_store, "RECHECK_SECONDS", 0.0)
    store.touch(pack)
    assert store.find(key) is None
    assert store.open(key) is None
    kept = store.find(other)
    assert kept is not None
    flip(kept.path, 100)
    (damage,) = store.scrub(pass_over)
    assert (damage.kind, damage.path) == (Kind.CACHED_PACK, kept.path)
    assert not kept.path.exists()


def test_a_damaged_lfs_object_is_removed_by_the_scrub(tmp_path: Path) -> None:
    store = LfsStore(tmp_path / "lfs", bytes_max=1 << 30)
    store.prepare()
    content = random.Random(2).randbytes(50_000)
    pointer = Pointer(hashlib.sha256(content).hexdigest(), len(content))
    part = store.new_part(pointer)
    part.write(content)
    part.publish()
    assert list(store.scrub(pass_over)) == []
    (file,) = (tmp_path / "lfs/objects").glob("*/*/*")
    flip(file, 77)
    (damage,) = store.scrub(pass_over)
    assert (damage.kind, damage.path) == (Kind.LFS_OBJECT, file)
    assert not store.is_stored(pointer)
    assert store.stored_bytes == 0


def test_a_scrub_leaves_the_page_cache_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "pack-x.pack"
    content = random.Random(3).randbytes(3 << 20)
    with file.open("wb") as opened:
        opened.write(content + hashlib.sha1(content, usedforsecurity=False).digest())
        os.fsync(opened.fileno())
    with file.open("rb", buffering=0) as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if cached(file):
            pytest.skip("the file system of the temporary directory keeps all in memory")
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
        for place in (0, 11, 32):  # what others read all the time
            os.pread(opened.fileno(), 2 * integrity.STEP_BYTES, place * integrity.STEP_BYTES)
    hot = cached(file)
    assert len(hot) == 3 * 2 * integrity.STEP_BYTES // mmap.PAGESIZE
    read: list[int] = []
    assert check_file(file, read.append, leaves_cache=True) is None
    assert sum(read) == len(content) + 20
    assert cached(file) == hot
    assert check_file(file) is None
    assert len(cached(file)) > 700


def cached(file: Path) -> set[int]:
    """Return the numbers of the pages of a file that are in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    place = ctypes.c_char.from_buffer(mapped)
    pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
    address, size = ctypes.c_void_p(ctypes.addressof(place)), ctypes.c_size_t(len(mapped))
    assert libc.mincore(address, size, pages) == 0
    del place
    mapped.close()
    return {number for number, page in enumerate(pages) if page & 1}
