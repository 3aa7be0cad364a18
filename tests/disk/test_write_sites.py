"""Every place that writes below data_dir, on a disk that is full and on one that is read-only.

Each says what it is about in the one way that refreshes tell apart, or is a help that does without;
what was there before is as it was, and nothing half done stays behind once the disk is writable.
"""

import gc
import os
import shutil
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, closing
from pathlib import Path

import pytest

from mirror.access.tokens import create_token, read_tokens
from mirror.config import EngineChoice
from mirror.errors import DiskFull, DiskReadOnly, DiskTrouble, LocalError
from mirror.places import DataDirectory
from mirror.refresh.pull_through import disk as pull_through
from mirror.repository.bare import BareRepository
from mirror.repository.bundles import BundleShelf
from mirror.repository.lfs_store import LfsStore
from mirror.repository.packing.engine import PackEngine
from mirror.repository.packing.pack_store import PackKey, PackStore
from mirror.space import disk_trouble
from mirror.stores import open_engine
from mirror.wire.bundles import BundleList
from mirror.wire.lfs import Pointer
from mirror.wire.names import ObjectId, Ref, RefName
from tests.disk.conftest import MIB, SmallDisk
from tests.git_client import environment
from tests.repository.histories import stored
from tests.repository.packs import Kind, make_pack, whole

Site = AsyncGenerator[None, None]
"""Prepares, yields once, and then writes: on a disk that takes nothing."""

KEY = PackKey("ab" * 20)
POINTER = Pointer("0" * 64, MIB)
PACKS = [make_pack([whole(Kind.BLOB, os.urandom(MIB))]) for _ in range(3)]


def git(path: Path, *args: str, stdin: bytes = b"") -> None:
    done = subprocess.run(
        ["git", *args],
        cwd=path,
        env=environment(path),
        input=stdin,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def made(place: Path, packs: int = 1) -> BareRepository:
    path = place / "repositories" / "made.git"
    repository = BareRepository.create(path, upstream_url="https://forge.invalid/made.git")
    for pack in PACKS[:packs]:
        git(path, "index-pack", "--stdin", stdin=pack)
    repository.source.rescan()
    return repository


async def lock(place: Path, _: PackEngine) -> Site:
    with DataDirectory(place).held():
        pass
    yield
    with DataDirectory(place).held():
        pass


async def creation(place: Path, _: PackEngine) -> Site:
    path = place / "staging" / "new.git"
    path.parent.mkdir()
    yield
    try:
        BareRepository.create(path, upstream_url="https://forge.invalid/new.git").close()
    finally:
        shutil.rmtree(path, ignore_errors=True)  # as the updater does


async def quarantine(place: Path, _: PackEngine) -> Site:
    with closing(made(place)) as repository:
        yield
        with repository.quarantine():
            pass


async def received_pack(place: Path, _: PackEngine) -> Site:
    with closing(made(place)) as repository, repository.quarantine() as opened:
        yield
        opened.received.write_bytes(PACKS[1])


async def index_pack(place: Path, engine: PackEngine) -> Site:
    with closing(made(place)) as repository, repository.quarantine() as opened:
        opened.received.write_bytes(PACKS[1])
        yield
        await engine.index_pack(opened)


async def migration(place: Path, engine: PackEngine) -> Site:
    with closing(made(place)) as repository, repository.quarantine() as opened:
        opened.received.write_bytes(PACKS[1])
        await engine.index_pack(opened)
        yield
        opened.migrate()


async def refs(place: Path, _: PackEngine) -> Site:
    with closing(made(place)) as repository:
        oid = repository.source.packs()[0].ids()
        old = stored(Ref(RefName(b"refs/tags/blob"), next(iter(oid))))
        repository.write_refs(old)
        yield
        try:
            names = (RefName(b"refs/heads/%d" % number) for number in range(5000))
            repository.write_refs(stored(*(Ref(name, ObjectId(b"2" * 40)) for name in names)))
        finally:
            assert repository.read_refs() == old


async def confirmation(place: Path, _: PackEngine) -> Site:
    with closing(made(place)) as repository:
        yield
        repository.note_confirmed(1.0)


async def repack(place: Path, engine: PackEngine) -> Site:
    with closing(made(place, packs=3)) as repository:
        yield
        await engine.repack(repository)


async def kept_pack(place: Path, _: PackEngine) -> Site:
    store = PackStore(place / "packs", bytes_max=64 * MIB, memory_bytes_max=MIB)
    store.prepare()
    yield
    _spool, path = store.new_spool()
    pack = store.keep(KEY, b"x" * 1000, path, 1000)
    assert pack is not None, "it stays in memory"
    store.touch(pack)


async def spool(place: Path, _: PackEngine) -> Site:
    store = PackStore(place / "packs", bytes_max=64 * MIB, memory_bytes_max=MIB)
    store.prepare()
    yield
    opened, path = store.new_spool()
    try:
        await opened.append(bytes(2 * MIB))
        opened.end()
        assert opened.is_passing
        async with aclosing(opened.follow(idle_seconds=9.0)) as pieces:
            assert sum([len(piece) async for piece in pieces]) == 2 * MIB
    finally:
        opened.close()
        if path.exists():
            path.unlink()  # as the cache does


async def bundle_draft(place: Path, _: PackEngine) -> Site:
    shelf = BundleShelf(place / "bundles", source="here")
    (place / "bundles").mkdir()
    yield
    with shelf.draft(bytes_max=64 * MIB) as draft:
        draft.write(bytes(2 * MIB))
        draft.finish(1)


async def bundle_list(place: Path, _: PackEngine) -> Site:
    shelf = BundleShelf(place / "bundles", source="here")
    with shelf.draft(bytes_max=MIB) as draft:
        draft.write(b"x")
        bundle = draft.finish(1)
    yield
    shelf.publish(BundleList((bundle,), 1.0), 1.0)


async def lfs_object(place: Path, _: PackEngine) -> Site:
    store = LfsStore(place / "lfs", bytes_max=64 * MIB)
    store.prepare()
    yield
    part = store.new_part(POINTER)
    try:
        part.write(bytes(MIB))
    finally:
        part.abandon()


async def lfs_grant_again(place: Path, _: PackEngine) -> Site:
    store = LfsStore(place / "lfs", bytes_max=64 * MIB)
    store.prepare()
    scope = store.scope("made", "https://forge.invalid/made.git")
    store.grant(scope, POINTER)
    yield
    store.grant(scope, POINTER)


async def lfs_grant(place: Path, _: PackEngine) -> Site:
    store = LfsStore(place / "lfs", bytes_max=64 * MIB)
    store.prepare()
    yield
    scope = store.scope("made", "https://forge.invalid/made.git")
    store.grant(scope, POINTER)
    store.revoke(scope, POINTER.oid)
    store.forget("made")


async def tokens(place: Path, _: PackEngine) -> Site:
    file = place / "tokens.json"
    create_token(file, "first", repositories=(), expires_at=None)
    yield
    try:
        create_token(file, "second", repositories=("x" * 5000,), expires_at=None)
    finally:
        assert [one.name for one in read_tokens(file)] == ["first"]


async def removal(place: Path, _: PackEngine) -> Site:
    """A rename needs no room."""
    made(place).close()
    trash = place / "trash"
    trash.mkdir()
    yield
    path = place / "repositories" / "made.git"
    pull_through.note_read(path, 1.0)
    pull_through.throw_away(path, trash, "made")
    path = next(trash.iterdir())
    path.rename(place / "repositories" / "made.git")


SITES: list[Callable[[Path, PackEngine], Site]] = [
    lock, creation, quarantine, received_pack, index_pack, migration, refs, confirmation, repack,
    kept_pack, spool, bundle_draft, bundle_list, lfs_object, lfs_grant, lfs_grant_again, tokens,
    removal,
]  # fmt: skip

NEEDS_NO_ROOM = {lock, migration, lfs_grant, removal}
"""On a full disk they go on, or not, as the file system likes."""

GOES_ON = {lock, confirmation, kept_pack, spool, lfs_grant_again}
"""Whatever the disk says."""

TELLS_OUR_ERRORS = {bundle_draft, bundle_list}
"""Whoever calls these knows no others, and would log a traceback."""

WITH_ENGINE = {index_pack, repack}


def cases() -> list[object]:
    return [
        pytest.param(site, engine, id=f"{site.__name__}-{engine}")
        for site in SITES
        for engine in (("git", "dulwich") if site in WITH_ENGINE else ("git",))
    ]


# dulwich leaves a file to the garbage collector that can't be closed on a full disk.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", [DiskFull, DiskReadOnly])
@pytest.mark.parametrize(("site", "engine"), cases())
async def test_a_disk_that_takes_nothing_is_said_to_and_damages_nothing(
    disk: SmallDisk,
    site: Callable[[Path, PackEngine], Site],
    engine: str,
    kind: type[DiskTrouble],
) -> None:
    break_it, mend_it = {
        DiskFull: (disk.fill, disk.free),
        DiskReadOnly: (disk.become_read_only, disk.become_writable),
    }[kind]
    error: Exception | None = None
    async with open_engine(EngineChoice(engine)) as opened:
        steps = site(disk.path, opened)
        await anext(steps)
        before = files(disk.path)
        break_it()
        try:
            await anext(steps, None)
        except Exception as raised:  # noqa: BLE001 - judged below
            error = raised
        mend_it()
    trouble = None if error is None else disk_trouble(error)
    if site in GOES_ON:
        assert error is None
    elif site in NEEDS_NO_ROOM and kind is DiskFull:
        assert error is None or isinstance(trouble, kind)
    else:
        assert isinstance(trouble, kind), error
        assert site not in TELLS_OUR_ERRORS or isinstance(error, LocalError)
    made_by_us = files(disk.path) - before
    if kind is DiskFull and site not in NEEDS_NO_ROOM:
        assert not {file for file in made_by_us if file.stat().st_size}, "nothing half done"
    for path in disk.path.glob("repositories/*.git"):
        git(path, "fsck", "--strict", "--no-dangling", "--connectivity-only")
        again = BareRepository.open(path)
        assert not list(path.rglob("tmp_*"))
        again.close()
    error = trouble = None
    gc.collect()


def files(place: Path) -> set[Path]:
    return {path for path in place.rglob("*") if path.is_file()}
