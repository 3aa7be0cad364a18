"""Crashes, full disks and damage: the old state or the new one, never half of it."""

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mirror import durable
from mirror.errors import LocalError
from mirror.repository import refs
from mirror.repository.bare import BareRepository
from mirror.wire.names import ObjectId, Ref, RefName
from tests.repository.histories import MAIN, UPSTREAM_URL, Atlas, Scratch, stored
from tests.repository.packs import Kind, blob_id, make_pack, whole


def index(scratch: Scratch, objects: Path, pack: bytes) -> None:
    """Index a pack into a quarantine, by git."""
    env = {"GIT_OBJECT_DIRECTORY": os.fspath(objects)}
    scratch.git("index-pack", "--stdin", stdin=pack, env=env)


class Crash(BaseException):
    """The machine stops here."""


def crashing(at: int, function: Callable[..., object]) -> Callable[..., object]:
    """Wrap a function that does not return from its call number `at`."""
    calls = iter(range(1000))

    def wrapped(*args: object) -> object:
        if next(calls) == at:
            raise Crash
        return function(*args)

    return wrapped


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_crash_leaves_the_old_refs_or_the_new_ones(
    filled: BareRepository,
    scratch: Scratch,
    atlas: Atlas,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    at: int,
) -> None:
    """Refs and HEAD are two files: only between them HEAD can name a branch that is gone."""
    old = stored(Ref(MAIN, atlas["left"]), Ref(RefName(b"refs/tags/light"), atlas["root"]))
    trunk = RefName(b"refs/heads/trunk")
    new = stored(Ref(trunk, atlas["main"]), head=trunk)
    filled.write_refs(old)
    with monkeypatch.context() as patched:
        if step == "fsync":
            patched.setattr(os, "fsync", crashing(at, os.fsync))
        else:
            patched.setattr(Path, "rename", crashing(at, Path.rename))
        try:
            filled.write_refs(new)
            crashed = False
        except Crash:
            crashed = True
    filled.close()
    assert crashed == (at < (5 if step == "fsync" else 3))
    again = BareRepository.open(scratch.path)
    found = again.read_refs()
    again.close()
    assert (found.refs, found.head_target) in (
        (old.refs, MAIN),
        (new.refs, MAIN),
        (new.refs, trunk),
    )
    if step == "rename" and at <= 1:
        assert found == old
    scratch.git("fsck", "--strict")
    assert not list(scratch.path.glob("*.tmp"))


@pytest.mark.parametrize("name", ["git-mirror-refs.tmp", "packed-refs.tmp", "HEAD.tmp"])
def test_a_full_disk_leaves_the_refs_as_they_were(
    filled: BareRepository,
    scratch: Scratch,
    atlas: Atlas,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    old = stored(Ref(MAIN, atlas["left"]))
    filled.write_refs(old)
    write = durable.write_durably

    def fail(path: Path, content: bytes) -> None:
        write(path, content[:10])
        if path.name == name:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(refs, "write_durably", fail)
    with pytest.raises(LocalError, match="No space left on device"):
        filled.write_refs(stored(Ref(MAIN, atlas["main"]), head=RefName(b"refs/heads/x")))
    assert filled.read_refs() == old
    filled.close()
    scratch.open().close()
    assert not list(scratch.path.glob("*.tmp"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")
def test_a_disk_that_is_really_full_leaves_the_refs_as_they_were(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", os.fspath(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file systems can be mounted here")
    try:
        repository = BareRepository.create(place / "mirror.git", upstream_url=UPSTREAM_URL)
        old = stored(Ref(MAIN, ObjectId(b"1" * 40)))
        repository.write_refs(old)
        names = (RefName(b"refs/heads/%d" % number) for number in range(5000))
        many = (Ref(name, ObjectId(b"2" * 40)) for name in names)
        with pytest.raises(LocalError, match="No space left on device"):
            repository.write_refs(stored(*many))
        assert repository.read_refs() == old
        repository.close()
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def test_what_a_crash_left_is_cleared_away_at_opening(
    filled: BareRepository, scratch: Scratch, atlas: Atlas
) -> None:
    filled.close()
    kept = set(scratch.path.rglob("*"))
    objects = scratch.path / "objects"
    quarantine = objects / "tmp_objdir-incoming-123456/pack"
    quarantine.mkdir(parents=True)
    (objects / "info").mkdir(exist_ok=True)
    for leftover in (
        quarantine / "tmp_pack_x",
        scratch.path / "packed-refs.tmp",
        scratch.path / "HEAD.lock",
        objects / "pack/tmp_pack_y",
        objects / "pack/tmp_idx_y",
        objects / "pack/.tmp-77-pack-abc.pack",
        objects / "pack/pack-0123.pack",  # its index never came
        objects / "info/commit-graph.lock",
    ):
        leftover.write_bytes(b"half of it")
    repository = scratch.open()
    assert set(scratch.path.rglob("*")) - {objects / "info"} == kept - {objects / "info"}
    assert repository.source.contains(atlas["main"])
    repository.close()


@pytest.mark.parametrize(
    "content",
    [
        b"not refs at all\n",
        b"%b refs/heads/main" % (b"1" * 40),
        b"%b refs/heads/main\n" % (b"1" * 39),
        b"%b refs/heads/ma\0in\n" % (b"1" * 40),
        b"%b\n" % (b"1" * 40),
        b"^%b\n" % (b"1" * 40),
        b"%b refs/heads/main\n^%b\n" % (b"1" * 40, b"2" * 20),
        b"%b refs/heads/main\n\0\0\0\0\0\0\0" % (b"1" * 40),
        b"%b main\n" % (b"1" * 40),
        b"# pack-refs with: peeled",
        b"%b refs/git-mirror/kept/soon/x\n" % (b"1" * 40),
        b"%b refs/git-mirror/kept/\n" % (b"1" * 40),
        None,
    ],
)
def test_damaged_refs_are_an_error_and_never_an_empty_repository(
    scratch: Scratch, content: bytes | None
) -> None:
    repository = scratch.open()
    for name in ("packed-refs", "git-mirror-refs"):
        if content is None:
            (scratch.path / name).unlink()
        else:
            (scratch.path / name).write_bytes(content)
    with pytest.raises(LocalError, match=r"can't be read|are damaged"):
        repository.read_refs()
    repository.close()


@pytest.mark.parametrize(
    "content",
    [b"", bytes(41), b"ref: \n", b"ref: somewhere\n", b"ref: refs/heads/..\n", b"1234567\n", None],
)
def test_a_damaged_head_is_known_from_the_refs_and_made_anew(
    filled: BareRepository, content: bytes | None
) -> None:
    stored, head = filled.read_refs(), (filled.path / "HEAD").read_bytes()
    filled.close()
    (filled.path / "HEAD").unlink()
    if content is not None:
        (filled.path / "HEAD").write_bytes(content)
    opened = BareRepository.open(filled.path)
    assert opened.read_refs().head_target == stored.head_target
    assert (filled.path / "HEAD").read_bytes() == head
    opened.close()


@pytest.mark.parametrize(
    "content", [b"", b"[core]\n", b"\xff\xfe[", b'[remote "origin"]\nurl = \xff\n', None]
)
def test_what_is_no_mirror_is_not_opened(scratch: Scratch, content: bytes | None) -> None:
    if content is None:
        (scratch.path / "config").unlink()
    else:
        (scratch.path / "config").write_bytes(content)
    with pytest.raises(LocalError):
        BareRepository.open(scratch.path)


def test_a_mirror_without_objects_is_not_opened(scratch: Scratch) -> None:
    (scratch.path / "objects/pack").rmdir()
    with pytest.raises(LocalError):
        BareRepository.open(scratch.path)


@pytest.mark.parametrize("suffix", [".pack", ".idx"])
@pytest.mark.parametrize("content", [b"", b"PACK", bytes(2000), b"\xfftOc\0\0\0\2" + bytes(400)])
def test_a_damaged_pack_is_passed_over(filled: BareRepository, suffix: str, content: bytes) -> None:
    filled.close()
    (pack,) = filled.pack_files()
    file = pack.with_suffix(suffix)
    file.chmod(0o644)
    file.write_bytes(content)
    opened = BareRepository.open(filled.path)
    assert opened.source.damaged.keys() == {pack.name}
    assert not opened.source.packs()
    assert [one.path.stem for one in opened.check()] == [pack.stem]
    opened.close()


def test_where_something_is_no_mirror_is_made(scratch: Scratch, tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="File exists"):
        BareRepository.create(scratch.path, upstream_url=UPSTREAM_URL)
    (tmp_path / "file").touch()
    with pytest.raises(LocalError, match="Not a directory"):
        BareRepository.create(tmp_path / "file/mirror.git", upstream_url=UPSTREAM_URL)


# --- the quarantine -----------------------------------------------------------------------------

PACKS = [make_pack([whole(Kind.BLOB, b"pack %d\n" % number)]) for number in range(2)]


def test_what_is_received_is_seen_from_inside_only_until_it_is_migrated(scratch: Scratch) -> None:
    repository = scratch.open()
    with repository.quarantine() as quarantine:
        index(scratch, quarantine.objects, PACKS[0])
        inside = quarantine.source()
        assert inside.contains(blob_id(b"pack 0\n"))
        assert not repository.source.contains(blob_id(b"pack 0\n"))
        inside.close()
        quarantine.migrate()
        assert repository.source.contains(blob_id(b"pack 0\n"))
    assert repository.source.raw(blob_id(b"pack 0\n")) == (Kind.BLOB, b"pack 0\n")
    assert repository.bytes_on_disk() > 1000
    repository.close()


def test_what_is_not_migrated_is_gone(scratch: Scratch) -> None:
    repository = scratch.open()
    before = set(scratch.path.rglob("*"))
    with pytest.raises(Crash), repository.quarantine() as quarantine:
        index(scratch, quarantine.objects, PACKS[0])
        raise Crash
    assert set(scratch.path.rglob("*")) == before
    repository.close()


@pytest.mark.parametrize("at", range(6))
def test_packs_migrate_whole_and_together_or_not_at_all(
    scratch: Scratch, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    repository = scratch.open()
    before = set(scratch.path.rglob("*"))
    rename = Path.rename
    calls = iter(range(100))

    def fail(file: Path, target: Path) -> Path:
        if next(calls) == at:
            raise OSError(5, "Input/output error")
        return rename(file, target)

    with repository.quarantine() as quarantine:
        for pack in PACKS:
            index(scratch, quarantine.objects, pack)
        files = [file for file in (quarantine.objects / "pack").iterdir() if file.suffix != ".keep"]
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", fail)
            if at < len(files):
                with pytest.raises(LocalError, match="Input/output error"):
                    quarantine.migrate()
            else:
                quarantine.migrate()
    migrated = [repository.source.contains(blob_id(b"pack %d\n" % number)) for number in range(2)]
    assert migrated == [at >= len(files)] * 2
    if at < len(files):
        assert set(scratch.path.rglob("*")) == before
    repository.close()


@pytest.mark.parametrize("at", range(6))
def test_a_crash_while_packs_migrate_leaves_whole_packs_only(
    scratch: Scratch, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    repository = scratch.open()
    with repository.quarantine() as quarantine:
        for received in PACKS:
            index(scratch, quarantine.objects, received)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", crashing(at, Path.rename))
            with suppress(Crash):
                quarantine.migrate()
    repository.close()
    again = scratch.open()
    for pack in again.pack_files():
        scratch.git("verify-pack", str(pack))
    scratch.git("fsck", "--strict")
    again.close()


def test_a_quarantine_that_can_not_be_made_is_an_error(
    scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = scratch.open()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", fail)
        with pytest.raises(LocalError, match="No space left"), repository.quarantine():
            pass
    repository.close()


def test_a_clone_made_from_scratch_is_flushed_file_by_file(
    filled: BareRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = set()
    fsync = os.fsync

    def note(descriptor: int) -> None:
        flushed.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    filled.make_durable()
    assert flushed == {filled.path, *filled.path.rglob("*")}
    filled.close()
