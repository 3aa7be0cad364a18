"""LFS objects on disk: nothing unverified gets a name, and what is not needed goes."""

import os
import time
from pathlib import Path

import pytest

from mirror.errors import UpstreamUnavailable
from mirror.repository.lfs_store import (
    GRANT_SECONDS,
    TOUCH_SECONDS,
    LfsStore,
    Part,
    StoreFull,
)
from mirror.space import Reserve, Room, Space
from mirror.wire.lfs import Pointer
from tests.lfs_server import noise, oid_of

CONTENT = noise(10_000)
OBJECT = Pointer(oid_of(CONTENT), len(CONTENT))
UPSTREAM = "https://forge.example/acme/app.git"


@pytest.fixture
def store(tmp_path: Path) -> LfsStore:
    opened = LfsStore(tmp_path / "lfs", bytes_max=1 << 20)
    opened.prepare()
    return opened


def put(store: LfsStore, content: bytes) -> Pointer:
    """Store an object, as a download does."""
    pointer = Pointer(oid_of(content), len(content))
    part = store.new_part(pointer)
    part.write(content)
    part.publish()
    part.abandon()
    return pointer


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then), follow_symlinks=False)


def test_an_object_that_is_published_is_there_for_another_process(
    store: LfsStore, tmp_path: Path
) -> None:
    pointer = put(store, CONTENT)
    other = LfsStore(tmp_path / "lfs", bytes_max=1 << 20)
    assert other.is_stored(pointer)
    file = other.open(pointer)
    assert file is not None
    with file:
        assert file.read() == CONTENT
    assert store.stored_bytes == len(CONTENT)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (CONTENT[:-1], "has 9999 bytes instead of 10000"),
        (CONTENT + b"x", "has more than 10000 bytes"),
        (CONTENT[:-1] + b"x", "has another SHA-256"),
    ],
)
def test_what_is_not_the_object_gets_no_name_and_leaves_nothing(
    store: LfsStore, tmp_path: Path, content: bytes, words: str
) -> None:
    part = store.new_part(OBJECT)
    with pytest.raises(UpstreamUnavailable, match=words):
        _write(part, content)
    part.abandon()
    assert store.open(OBJECT) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def _write(part: Part, content: bytes) -> None:
    part.write(content)
    part.publish()


def test_a_file_that_was_cut_is_not_the_object(store: LfsStore, tmp_path: Path) -> None:
    put(store, CONTENT)
    (path,) = (tmp_path / "lfs/objects").glob("*/*/*")
    os.truncate(path, 5)
    assert store.open(OBJECT) is None
    assert not store.is_stored(OBJECT)
    put(store, CONTENT)
    assert store.is_stored(OBJECT)


def test_a_use_is_noted_and_not_at_each_read(store: LfsStore, tmp_path: Path) -> None:
    put(store, CONTENT)
    (path,) = (tmp_path / "lfs/objects").glob("*/*/*")
    for seconds, is_noted in ((TOUCH_SECONDS / 2, False), (TOUCH_SECONDS * 2, True)):
        age(path, seconds)
        before = path.stat().st_mtime
        file = store.open(OBJECT)
        assert file is not None
        file.close()
        assert (path.stat().st_mtime > before) is is_noted


def test_a_grant_is_for_one_repository_with_one_upstream(store: LfsStore) -> None:
    scope = store.scope("acme/app", UPSTREAM)
    store.grant(scope, OBJECT)
    grant = store.granted(scope, OBJECT.oid)
    assert grant is not None
    assert grant.size == OBJECT.size
    assert grant.is_fresh(time.time())
    for name, upstream in (("acme/other", UPSTREAM), ("acme/app", UPSTREAM + "x"), ("acme", "")):
        assert store.granted(store.scope(name, upstream), OBJECT.oid) is None
    store.grant(scope, Pointer(OBJECT.oid, 7))
    grant = store.granted(scope, OBJECT.oid)
    assert grant is not None
    assert grant.size == 7
    store.revoke(scope, OBJECT.oid)
    assert store.granted(scope, OBJECT.oid) is None
    store.revoke(scope, OBJECT.oid)


def test_at_the_start_what_is_half_done_goes_and_old_grants_of_what_is_not_here(
    store: LfsStore, tmp_path: Path
) -> None:
    scope = store.scope("acme/app", UPSTREAM)
    stored = put(store, CONTENT)
    absent, recent = Pointer("b" * 64, 1), Pointer("c" * 64, 1)
    for pointer in (stored, absent, recent):
        store.grant(scope, pointer)
    for pointer in (stored, absent):
        age(scope / pointer.oid[:2] / pointer.oid, GRANT_SECONDS + 1)
    (tmp_path / "lfs/tmp" / f"{absent.oid}-1").write_bytes(b"")
    again = LfsStore(tmp_path / "lfs", bytes_max=1 << 20)
    again.prepare()
    assert [again.granted(scope, one.oid) is None for one in (stored, absent, recent)] == [
        False,
        True,
        False,
    ]
    assert list((tmp_path / "lfs/tmp").iterdir()) == []
    assert again.stored_bytes == len(CONTENT)


def test_room_is_made_of_what_was_used_least_recently(tmp_path: Path) -> None:
    store = LfsStore(tmp_path / "lfs", bytes_max=100_000)
    store.prepare()
    pointers = [put(store, noise(20_000, seed)) for seed in range(4)]
    for number, pointer in enumerate(pointers):
        (path,) = (tmp_path / "lfs/objects").glob(f"*/*/{pointer.oid}")
        age(path, 1000 - number)
    assert store.make_room(20_000) == 0
    assert store.make_room(30_000) == 1
    assert [store.is_stored(one) for one in pointers] == [False, True, True, True]
    assert store.make_half_empty() == 2
    assert store.stored_bytes == 20_000


def test_what_the_process_before_still_stored_is_counted_when_it_is_gone(tmp_path: Path) -> None:
    before, store = (LfsStore(tmp_path / "lfs", bytes_max=100_000) for _ in range(2))
    before.prepare()
    store.prepare(clear=False)
    for seed in range(4):
        put(before, noise(20_000, seed))
    assert store.stored_bytes == 0
    store.count_again()
    assert store.stored_bytes == 80_000
    assert store.make_room(30_000) == 1


def test_objects_leave_the_reserve_alone(tmp_path: Path) -> None:
    """What there is goes for what is asked for, and what does not fit even so is refused."""
    free = [100_000]
    room = Room(tmp_path, Reserve(40_000, None), look=lambda _: Space(1 << 20, free[0]))
    store = LfsStore(tmp_path / "lfs", bytes_max=1 << 20, room=room)
    store.prepare()
    pointers = [put(store, noise(20_000, seed)) for seed in range(2)]
    assert store.make_room(60_000) == 0
    free[0] = 30_000
    with pytest.raises(StoreFull, match=r"limits\.disk_reserve"):
        store.make_room(10_000)
    assert not any(store.is_stored(one) for one in pointers)


def test_objects_go_when_the_disk_is_short(tmp_path: Path) -> None:
    store = LfsStore(tmp_path / "lfs", bytes_max=1 << 20)
    store.prepare()
    for seed in range(4):
        put(store, noise(20_000, seed))
    assert store.give(25_000) == 40_000
    assert store.give(1 << 30) == 40_000
    assert store.give(1) == 0
    assert store.stored_bytes == 0


def test_two_processes_may_download_the_same_object(store: LfsStore, tmp_path: Path) -> None:
    """While one takes over from the other: neither touches what the other has written so far."""
    other = LfsStore(tmp_path / "lfs", bytes_max=1 << 20)
    other.prepare(clear=False)
    old, new = store.new_part(OBJECT), other.new_part(OBJECT)
    new.write(CONTENT[:5000])
    following = store.open_part(OBJECT)
    assert following is not None
    with following:
        assert following.read() == CONTENT[:5000]  # what grew last
    old.write(CONTENT)
    old.publish()
    old.abandon()
    file = store.open(OBJECT)
    assert file is not None
    with file:
        assert file.read() == CONTENT
    new.write(CONTENT[5000:])
    new.publish()
    new.abandon()
    assert store.is_stored(OBJECT)
    assert list((tmp_path / "lfs" / "tmp").iterdir()) == []
