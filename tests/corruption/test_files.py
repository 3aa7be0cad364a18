"""Every bit of the small files, and of what lies beside the repositories."""

import hashlib
import random
from pathlib import Path

import pytest

from mirror.access.tokens import Tokens, create_token
from mirror.errors import LocalError
from mirror.repository.bare import BareRepository, StoredRefs, upstream_url_of
from mirror.repository.integrity import Kind, pass_over
from mirror.repository.lfs_store import LfsStore
from mirror.repository.packing import pack_store
from mirror.repository.packing.pack_store import PackKey, PackStore
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
    found = 0
    for bit in range(8 * file.stat().st_size):
        flip(file, bit)
        with pytest.raises(LocalError):
            BareRepository.open_beside(repository.path).read_refs()
        found += 1
        flip(file, bit)
    assert found > 2000
    assert BareRepository.open_beside(repository.path).read_refs() == right


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
