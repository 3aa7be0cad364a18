"""The files of a range, compared with what git says of it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from mirror.refresh.relay import files
from mirror.refresh.relay.backlog import Change
from mirror.refresh.relay.events import Files, Told
from mirror.refresh.relay.files import Ranges, look
from mirror.repository.bare import BareRepository
from mirror.wire.names import ObjectId
from tests.git_client import Upstream
from tests.mirror_service import MirrorService, mirroring
from tests.refresh.relay.tables import MAIN


def change(before: str | None, after: str | None) -> Change:
    old, new = (None if tip is None else ObjectId(tip.encode()) for tip in (before, after))
    return Change(MAIN, old, new, since=0.0)


def looked(upstream: Upstream, before: str, after: str) -> Told:
    upstream.git("config", "remote.origin.url", "https://example.com/x")
    upstream.git("repack", "-adkq")
    return look(BareRepository.open_beside(upstream.path), change(before, after))


def by_git(upstream: Upstream, before: str, after: str) -> Files:
    """Return what `git diff` lists, without looking for renames."""
    found: dict[str, list[str]] = {"A": [], "M": [], "D": [], "T": []}
    listing = upstream.git("diff", "--no-renames", "--name-status", "-z", before, after)
    words = listing.rstrip("\0").split("\0")
    for kind, path in zip(words[::2], words[1::2], strict=True):
        found[kind].append(path)
    modified = tuple(sorted(found["M"] + found["T"]))
    return Files(tuple(sorted(found["A"])), modified, tuple(sorted(found["D"])))


def test_the_files_of_several_commits_are_those_that_git_lists(upstream: Upstream) -> None:
    before = upstream.commit(
        files={"a/b/c.txt": "1", "a/d": "1", "gone/x": "1", "gone/y/z": "1", "tree": "1", "ü": "1"}
    )
    upstream.commit(files={"a/b/c.txt": "2", "gone/x": None, "gone/y/z": None, "new/deep/er": "1"})
    after = upstream.commit(files={"tree": None, "tree/inside": "1", "ü": "2", "a/d": None})
    found = looked(upstream, before, after)
    assert found.files == by_git(upstream, before, after)
    assert found.files is not None
    assert (len(found.files), found.is_forced) == (8, False)


def test_a_file_that_is_as_before_in_the_end_is_not_listed(upstream: Upstream) -> None:
    before = upstream.commit(files={"a": "1", "b": "1"})
    upstream.commit(files={"a": "2"})
    after = upstream.commit(files={"a": "1", "b": "2"})
    assert looked(upstream, before, after).files == Files(modified=("b",))


def test_the_files_of_an_annotated_tag_are_those_of_its_commit(upstream: Upstream) -> None:
    upstream.tag("v1")
    before = upstream.refs()["refs/tags/v1"]
    upstream.git("update-ref", "refs/kept/v1", before)
    upstream.commit(files={"a": "2"})
    upstream.git("tag", "--force", "--annotate", "--message=2", "v1", "main")
    after = upstream.refs()["refs/tags/v1"]
    assert upstream.git("cat-file", "-t", after) == "tag"
    assert looked(upstream, before, after).files == Files(added=("a",))


def test_a_force_push_has_no_list(upstream: Upstream) -> None:
    first = upstream.refs()["refs/heads/main"]
    before = upstream.commit(files={"a": "1"})
    after = upstream.commit("other", files={"b": "1"}, parents=[first])
    found = looked(upstream, before, after)
    assert (found.files, found.is_forced) == (None, True)


def test_a_ref_that_is_new_or_gone_has_no_list(
    upstream: Upstream,
) -> None:
    tip = upstream.refs()["refs/heads/main"]
    upstream.git("config", "remote.origin.url", "https://example.com/x")
    repository = BareRepository.open_beside(upstream.path)
    for one in (change(None, tip), change(tip, None)):
        assert look(repository, one) == Told(one)


def test_a_commit_that_is_not_here_means_that_there_is_no_list(upstream: Upstream) -> None:
    found = looked(upstream, "1" * 40, upstream.refs()["refs/heads/main"])
    assert (found.files, found.is_forced) == (None, False)


@pytest.mark.parametrize("limit", ["FILES_MAX", "PATHS_BYTES_MAX", "TREES_MAX"])
def test_past_a_limit_there_is_no_list_rather_than_a_part_of_one(
    upstream: Upstream, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = upstream.refs()["refs/heads/main"]
    after = upstream.commit(files={f"d{number}/f": "1" for number in range(9)})
    found = looked(upstream, before, after)
    assert found.files is not None
    assert len(found.files) == 9
    monkeypatch.setattr(files, limit, 8)
    assert looked(upstream, before, after).files is None


def test_a_path_that_is_no_utf8_means_that_there_is_no_list(upstream: Upstream) -> None:
    before = upstream.refs()["refs/heads/main"]
    blob = upstream.git("hash-object", "-w", "--stdin", stdin=b"x")
    tree = upstream.git("mktree", "-z", stdin=b"100644 blob " + blob.encode() + b"\t\xff\xfe\0")
    after = upstream.git("commit-tree", tree, "-p", before, "-m", "odd")
    upstream.git("update-ref", "refs/heads/main", after)
    assert looked(upstream, before, after).files is None


@pytest.fixture
async def mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> AsyncIterator[MirrorService]:
    async with mirroring(forge, tmp_path / "mirror", names=[upstream.name]) as running:
        yield running


async def test_receivers_that_ask_for_the_same_range_share_the_work(
    upstream: Upstream, mirror: MirrorService, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = upstream.refs()["refs/heads/main"]
    after = upstream.commit(files={"a": "1"})
    await mirror.announce(upstream)
    await mirror.caught_up(upstream)
    repository = mirror.mirror().repository
    assert repository is not None
    looks: list[Change] = []

    def counted(repository: BareRepository, one: Change) -> Told:
        looks.append(one)
        return look(repository, one)

    monkeypatch.setattr(files, "look", counted)
    ranges = Ranges()
    wanted = change(before, after)
    other = Change(MAIN, wanted.before, wanted.after, since=5.0)
    assert (await ranges.told("x", repository, wanted)).files == Files(added=("a",))
    again = await ranges.told("x", repository, other)
    assert (again.change, again.files) == (other, Files(added=("a",)))
    assert len(looks) == 1
    await ranges.close()
