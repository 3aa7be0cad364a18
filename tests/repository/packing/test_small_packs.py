"""What a push brings is taken in within the process, and passed on only where it is a true answer.

Whether a pack is one is told by git, for a history with a bit of everything.
"""

import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from mirror.errors import PackError
from mirror.repository.bare import BareRepository
from mirror.repository.packing import small_check, small_pack
from mirror.repository.packing.auto_engine import AutoEngine
from mirror.repository.packing.dulwich_engine import DulwichEngine
from mirror.repository.packing.engine import IndexProgress, PackRequest
from mirror.repository.packing.git_engine import GitEngine
from mirror.repository.packing.spawner import Spawner
from mirror.repository.quarantine import Quarantine
from mirror.wire.names import ObjectId
from tests.repository.histories import Atlas, Change, Scratch, lines
from tests.repository.judge import Judge
from tests.repository.packing.building import pack_of, receive


class WatchedGit(GitEngine):
    """git, and what it was asked to do."""

    asked: list[str]

    async def index_pack(
        self, quarantine: Quarantine, *, progress: IndexProgress | None = None
    ) -> None:
        self.asked.append("index")
        await super().index_pack(quarantine, progress=progress)

    async def check_connected(
        self,
        quarantine: Quarantine,
        tips: Sequence[ObjectId],
        *,
        known: Sequence[ObjectId] = (),
        onto: ObjectId | None = None,
    ) -> bool:
        self.asked.append("check")
        return await super().check_connected(quarantine, tips, known=known, onto=onto)


@pytest.fixture
async def git() -> AsyncIterator[WatchedGit]:
    with closing(Spawner()) as spawner:
        found = await WatchedGit.find(spawner)
        assert isinstance(found, WatchedGit)
        found.asked = []
        yield found


@pytest.fixture
def auto(git: WatchedGit) -> Iterator[AutoEngine]:
    with closing(DulwichEngine()) as in_process:
        yield AutoEngine(git, in_process)


def thin_pack(scratch: Scratch, new: ObjectId, *known: ObjectId) -> bytes:
    """Return what an upstream sends to who wants `new` and has `known`."""
    return scratch.git(
        *("pack-objects", "-q", "--revs", "--thin", "--delta-base-offset", "--stdout"),
        stdin=b"\n".join([new, b"--not", *known, b""]),
    )


async def mirror_of(
    git: GitEngine, path: Path, upstream: Scratch, oids: frozenset[ObjectId]
) -> BareRepository:
    mirror = Scratch(path).open()
    await receive(git, mirror, pack_of(upstream, oids))
    return mirror


async def take(
    engine: AutoEngine | DulwichEngine,
    mirror: BareRepository,
    pack: bytes,
    new: ObjectId,
    known: Sequence[ObjectId],
    onto: ObjectId | None,
) -> bool:
    """Index and check a pack; returns whether it can be passed on to readers of `onto`."""
    with mirror.quarantine() as quarantine:
        quarantine.received.write_bytes(pack)
        await engine.index_pack(quarantine)
        is_enough = await engine.check_connected(quarantine, [new], known=known, onto=onto)
        quarantine.received.unlink()
        quarantine.migrate()
    return is_enough


OLDS = ("root", "reverted", "file-again", "deep-edited", "empty", "left", "cross-left", "diverged")
NEWS = (
    "edited", "reverted", "chmod", "directory", "file-again", "submodule", "no-submodule",
    "deep-edited", "left", "cross-left", "crossed", "equal", "main", "unrelated-2",
)  # fmt: skip


@pytest.mark.parametrize("old", OLDS)
async def test_what_is_passed_on_is_all_that_its_reader_lacks(
    auto: AutoEngine, git: WatchedGit, atlas: Atlas, judge: Judge, tmp_path: Path, old: str
) -> None:
    """Whatever else the mirror has: a pack is made against all of that, its reader has less."""
    passed_on = 0
    for number, (new, other) in enumerate(itertools.product(NEWS, (old, "edited", "right"))):
        known = atlas.all(*dict.fromkeys((old, other)))
        had = judge.reachable(known)
        if atlas[new] in had:
            continue
        mirror = await mirror_of(git, tmp_path / f"{number}/m.git", atlas.scratch, had)
        pack = thin_pack(atlas.scratch, atlas[new], *known)
        if await take(auto, mirror, pack, atlas[new], known, atlas[old]):
            request = PackRequest(
                wants=(atlas[new],), haves=(atlas[old],), thin=True, ofs_delta=True
            )
            judge.check(request, pack)
            passed_on += 1
        mirror.close()
    assert passed_on > 0


async def test_an_ordinary_push_needs_no_git_and_can_be_passed_on(
    auto: AutoEngine, git: WatchedGit, atlas: Atlas, judge: Judge, tmp_path: Path
) -> None:
    old, new = atlas["equal"], atlas["main"]
    mirror = await mirror_of(git, tmp_path / "m.git", atlas.scratch, judge.reachable([old]))
    git.asked.clear()
    assert await take(auto, mirror, thin_pack(atlas.scratch, new, old), new, [old], old)
    assert git.asked == []
    Scratch(mirror.path).git("fsck", "--strict", "--full")
    mirror.close()


@pytest.mark.parametrize(
    ("module", "limit", "value", "asked"),
    [
        (small_pack, "OBJECTS_MAX", 3, ["index", "check"]),
        (small_pack, "PACK_BYTES_MAX", 100, ["index", "check"]),
        (small_pack, "CONTENT_BYTES_MAX", 300, ["index", "check"]),
        (small_check, "READS_MAX", 1, ["check"]),
        (small_check, "TREE_BYTES_MAX", 40, ["check"]),
    ],
)
async def test_what_is_over_a_limit_is_gits(
    auto: AutoEngine, git: WatchedGit, atlas: Atlas, judge: Judge, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, module: object, limit: str, value: int, asked: list[str],
) -> None:  # fmt: skip
    old, new = atlas["equal"], atlas["main"]
    mirror = await mirror_of(git, tmp_path / "m.git", atlas.scratch, judge.reachable([old]))
    git.asked.clear()
    monkeypatch.setattr(module, limit, value)
    assert not await take(auto, mirror, thin_pack(atlas.scratch, new, old), new, [old], old)
    assert git.asked == asked
    mirror.close()


async def test_the_merge_of_a_branch_that_forked_off_long_ago_needs_no_git(
    auto: AutoEngine, git: WatchedGit, scratch: Scratch, judge_of_scratch: Judge, tmp_path: Path
) -> None:
    """What a merged pull request looks like; the branch itself was never mirrored."""
    line = scratch.commits(*(Change({"a": b"%d\n" % n}, [n - 1] if n else []) for n in range(60)))
    branch = scratch.commit({"b": b"b\n"}, line[5])
    merge = scratch.commit({"b": b"b\n"}, line[-1], branch)
    old = line[-1]
    had = judge_of_scratch.reachable([old])
    mirror = await mirror_of(git, tmp_path / "m/m.git", scratch, had)
    git.asked.clear()
    assert await take(auto, mirror, thin_pack(scratch, merge, old), merge, [old], old)
    assert git.asked == []
    mirror.close()


async def test_a_pack_against_another_branch_is_not_passed_on(
    auto: AutoEngine, git: WatchedGit, scratch: Scratch, judge_of_scratch: Judge, tmp_path: Path
) -> None:
    """A reader of main has never seen the branch that was merged."""
    root = scratch.commit({"a": lines(50)})
    branch = scratch.commit({"b": lines(50)}, root)
    merge = scratch.commit({"b": lines(50)}, root, branch)
    had = judge_of_scratch.reachable([branch])
    mirror = await mirror_of(git, tmp_path / "m/m.git", scratch, had)
    git.asked.clear()
    pack = thin_pack(scratch, merge, branch)
    assert not await take(auto, mirror, pack, merge, [root, branch], root)
    assert git.asked == [], "it is whole all the same"
    mirror.close()


async def test_a_pack_without_a_file_that_only_history_has_is_not_passed_on(
    auto: AutoEngine, git: WatchedGit, scratch: Scratch, judge_of_scratch: Judge, tmp_path: Path
) -> None:
    """A forge with bitmaps leaves out whatever is reachable; we can't tell who has that."""
    first = scratch.commit({"a": lines(30)})
    second = scratch.commit({"a": lines(40)}, first)
    third = scratch.commit({"a": lines(30)}, second)  # back to the first, as a new commit
    had = judge_of_scratch.reachable([second])
    mirror = await mirror_of(git, tmp_path / "m/m.git", scratch, had)
    assert not await take(auto, mirror, pack_of(scratch, [third]), third, [second], second)
    mirror.close()


async def test_a_missing_blob_is_missing_whoever_looks_for_it(
    auto: AutoEngine, git: WatchedGit, scratch: Scratch, judge_of_scratch: Judge, tmp_path: Path
) -> None:
    old = scratch.commit({"a": b"1\n"})
    new = scratch.commit({"a": b"2\n", "b": b"3\n"}, old)
    had = judge_of_scratch.reachable([old])
    gap = scratch.oid(f"{new.decode()}:b")
    sent = judge_of_scratch.reachable([new]) - had - {gap}
    mirror = await mirror_of(git, tmp_path / "m/m.git", scratch, had)
    with pytest.raises(PackError):
        await take(auto, mirror, pack_of(scratch, sent), new, [old], old)
    mirror.close()


async def test_two_packs_of_one_refresh_are_checked_as_one(
    auto: AutoEngine, git: WatchedGit, atlas: Atlas, judge: Judge, tmp_path: Path
) -> None:
    old, new, tag = atlas["cross-left"], atlas["crossed"], atlas["nested-tag"]
    mirror = await mirror_of(git, tmp_path / "m.git", atlas.scratch, judge.reachable([old]))
    git.asked.clear()
    with mirror.quarantine() as quarantine:
        for pack in (
            thin_pack(atlas.scratch, new, old),
            pack_of(atlas.scratch, judge.reachable([tag]) - judge.reachable([new])),
        ):
            quarantine.received.write_bytes(pack)
            await auto.index_pack(quarantine)
        assert not await auto.check_connected(quarantine, [tag, new], known=[old], onto=old)
        quarantine.migrate()
    assert git.asked == []
    assert mirror.source.contains(tag)
    mirror.close()
