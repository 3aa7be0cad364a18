"""What to send: histories and trees in which it is easy to leave something out."""

from pathlib import Path

import pytest

from mirror.errors import LocalError, PackError
from mirror.repository.objects import EMPTY_TREE
from mirror.repository.packing.engine import PackRequest
from mirror.repository.packing.selection import TREE_DEPTH_MAX, select_objects
from mirror.wire.names import ObjectId
from tests.repository.histories import Atlas, Change, Scratch, gitlink
from tests.repository.judge import Judge
from tests.repository.packs import blob_id
from tests.wire.work import assert_linear, calls_made


def selected(scratch: Scratch, request: PackRequest) -> frozenset[ObjectId]:
    repository = scratch.open()
    try:
        selection = select_objects(repository.source, repository.graph, request)
        return frozenset(selection.oids)
    finally:
        repository.close()


def test_commits_that_claim_to_be_older_than_their_parents_lose_nothing(
    scratch: Scratch, judge_of_scratch: Judge
) -> None:
    """Two directories swap places on two branches, and each seems to be known from the other."""
    inner, both = {"e": b"only here\n"}, {"e": b"only here\n", "f": b"f\n"}

    def directory(name: str, files: dict[str, bytes]) -> dict[str, bytes | None]:
        return {name: None} | {f"{name}/{path}": content for path, content in files.items()}

    *_, tip = scratch.commits(
        Change(at=100),
        Change(directory("p", both) | directory("q", inner), [0], at=1000),
        Change(directory("p", inner), [1], at=10),  # older than its parent
        Change({"y": b"y\n"}, [1], at=2000),
        Change(directory("r", inner), [0], at=1000),
        Change(directory("r", both), [4], at=10),  # and here the other way round
        Change({"z": b"z\n"}, [4], at=2000),
        Change({}, [2, 3, 5, 6], at=3000),
    )
    request = PackRequest(wants=(tip,))
    assert selected(scratch, request) == judge_of_scratch.reachable([tip])


def test_a_file_in_place_of_a_submodule_is_sent_even_if_they_have_one_id(
    scratch: Scratch,
) -> None:
    blob = blob_id(b"a strange file\n")
    before = scratch.commit({"odd": gitlink(blob), "directory": gitlink(EMPTY_TREE)})
    after = scratch.commit({"odd": b"a strange file\n"}, before)
    tree = scratch.hash_object(
        "tree",
        b"40000 directory\0" + bytes.fromhex(EMPTY_TREE.decode())
        + b"100644 odd\0" + bytes.fromhex(blob.decode()),
    )  # fmt: skip
    scratch.hash_object("tree", b"")
    last = scratch.merge_of_tree(tree, before)
    assert blob in selected(scratch, PackRequest(wants=(after,), haves=(before,)))
    assert {blob, EMPTY_TREE} <= selected(scratch, PackRequest(wants=(last,), haves=(before,)))


def test_of_two_entries_with_one_name_neither_is_lost(scratch: Scratch) -> None:
    """Git fsck complains about such a tree, but forges have some."""
    one = scratch.hash_object("blob", b"one\n")
    two = scratch.hash_object("blob", b"two\n")
    three = scratch.hash_object("blob", b"three\n")

    def tree(*blobs: ObjectId) -> ObjectId:
        entries = (b"100644 name\0" + bytes.fromhex(blob.decode()) for blob in blobs)
        return scratch.hash_object("tree", b"".join(entries))

    first = scratch.merge_of_tree(tree(one, two))
    second = scratch.merge_of_tree(tree(three, two), first)
    third = scratch.merge_of_tree(tree(two, three), second)
    assert {one, two} <= selected(scratch, PackRequest(wants=(first,)))
    assert three in selected(scratch, PackRequest(wants=(second,), haves=(first,)))
    assert {one, two, three} <= selected(scratch, PackRequest(wants=(third,)))


def test_commits_and_tags_of_old_are_read_as_leniently_as_git_reads_them(
    scratch: Scratch, judge_of_scratch: Judge
) -> None:
    parent = scratch.commit({"a": b"a\n"})
    tree = scratch.oid(f"{parent.decode()}^{{tree}}")
    tip = parent
    for people in (
        b"author A <a@b> 1 +0000\ncommitter C <c@d> 5\n",
        b"author A 1 +0000\ncommitter C 5 +0000\n",
        b"author A <a@b>\ncommitter C <c@d>\n",
        b"author A <a@b> 1 +0000\n",
        b"author A <a@b> 1 +051800\ncommitter C <c@d> 99999999999999999999 --700\n",
        b"author A <a@b> -1 +0000\ncommitter C <<c>@d> -5 +0000\n",
        b"",
    ):
        tip = scratch.hash_object("commit", b"tree %b\nparent %b\n%b\nm\n" % (tree, tip, people))
    for headers in (b"tag x\n", b"tag x\ntagger nobody\n"):
        tip = scratch.hash_object("tag", b"object %b\ntype commit\n%b\nm\n" % (tip, headers))
        tip = scratch.oid(f"{tip.decode()}^{{}}")
    tag = scratch.hash_object("tag", b"object %b\ntype commit\ntag x\n\nm\n" % tip)
    assert selected(scratch, PackRequest(wants=(tag,))) == judge_of_scratch.reachable([tag])


def test_a_tag_is_followed_through_however_many_tags(
    scratch: Scratch, judge_of_scratch: Judge
) -> None:
    tag = scratch.commit({"a": b"a\n"})
    for number in range(130):
        tag = ObjectId(
            scratch.git(
                *("hash-object", "-t", "tag", "-w", "--stdin"),
                stdin=b"object %b\ntype %b\ntag v%d\ntagger T <t@e> 1 +0000\n\nm\n"
                % (tag, b"tag" if number else b"commit", number),
            ).strip()
        )
    assert selected(scratch, PackRequest(wants=(tag,))) == judge_of_scratch.reachable([tag])


def test_directories_too_deep_to_walk_are_refused(scratch: Scratch) -> None:
    path = "/".join("d" for _ in range(TREE_DEPTH_MAX))
    just = scratch.commit({f"{path}/leaf": b"deep\n"})
    beyond = scratch.commit({f"{path}/d/leaf": b"deeper\n"})
    assert blob_id(b"deep\n") in selected(scratch, PackRequest(wants=(just,)))
    with pytest.raises(PackError, match="directories deep"):
        selected(scratch, PackRequest(wants=(beyond,)))


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("commit", b"no commit at all"),
        ("tag", b"no tag at all"),
        ("tree", b"100644 cut off\0" + bytes(19)),
        ("tree", b"mode name\0" + bytes(20)),
        ("tree", b"40000 commit\0" + bytes(20)),
    ],
)
def test_what_is_damaged_or_missing_is_said_not_skipped(
    scratch: Scratch, kind: str, content: bytes
) -> None:
    with pytest.raises(LocalError):
        selected(scratch, PackRequest(wants=(scratch.hash_object(kind, content),)))


def test_a_directory_that_is_a_file_is_said_not_skipped(scratch: Scratch) -> None:
    blob = scratch.hash_object("blob", b"a file\n")
    tree = scratch.hash_object("tree", b"40000 d\0" + bytes.fromhex(blob.decode()))
    with pytest.raises(PackError, match="should be a tree"):
        selected(scratch, PackRequest(wants=(tree,)))


def test_nobody_waits_for_a_selection_that_was_abandoned(atlas: Atlas) -> None:
    repository = atlas.scratch.open()
    try:
        with pytest.raises(PackError, match="nobody waits"):
            select_objects(
                repository.source,
                repository.graph,
                PackRequest(wants=atlas.all("main")),
                is_abandoned=lambda: True,
            )
    finally:
        repository.close()


def test_a_commit_without_parents_to_follow_is_compared_with_what_the_reader_has(
    atlas: Atlas, judge: Judge
) -> None:
    """A reader of depth 1 gets the next commit: what that commit changed, not the whole tree."""
    request = PackRequest(
        wants=atlas.all("main"),
        haves=atlas.all("equal"),
        shallow=frozenset(atlas.all("main", "equal")),
    )
    assert selected(atlas.scratch, request) == judge.needed(request)


@pytest.mark.parametrize(
    ("want", "haves"),
    [
        ("crossed", "cross-left cross-right"),
        ("equal", "crossed"),
        ("main", "equal"),
        ("main", "nested-tag"),
        ("submodule", "file-again"),
        ("deep-edited", "deep"),
        ("left", "main"),
    ],
)
def test_an_increment_is_what_changed_and_nothing_else(
    atlas: Atlas, judge: Judge, want: str, haves: str
) -> None:
    """Also a merge, of which most is in one parent or the other, and a reader that is ahead."""
    request = PackRequest(wants=atlas.all(want), haves=atlas.all(*haves.split()))
    # A tag that the reader has by another tag is sent again.
    assert selected(atlas.scratch, request) - {atlas["tag"]} == judge.needed(request) - {
        atlas["tag"]
    }


def test_changes_of_modes_alone_send_no_files(scratch: Scratch, judge_of_scratch: Judge) -> None:
    before = scratch.commit({"run.sh": b"#!/bin/sh\n"})
    after = ObjectId(before)
    tree = scratch.git(
        "mktree", stdin=b"100755 blob %b\trun.sh\n" % blob_id(b"#!/bin/sh\n")
    ).strip()
    after = scratch.merge_of_tree(ObjectId(tree), before)
    request = PackRequest(wants=(after,), haves=(before,))
    assert selected(scratch, request) == judge_of_scratch.needed(request) == {after, tree}


def history(scratch: Scratch, length: int) -> list[ObjectId]:
    """Make commits in a row, each of which changes one of nine files."""
    changes = [Change({f"d{number}/f": b"%d\n" % number for number in range(9)})]
    changes += [Change({f"d{n % 9}/f": b"x%d\n" % n}, [n]) for n in range(length)]
    return scratch.commits(*changes)


def work(scratch: Scratch, request: PackRequest) -> int:
    repository = scratch.open()
    calls = calls_made(lambda: select_objects(repository.source, repository.graph, request))
    repository.close()
    return calls


@pytest.mark.parametrize(("want", "have"), [(-1, -2), (-3, -1), (-2, -2)])
def test_the_work_of_an_increment_does_not_grow_with_the_history_behind_it(
    tmp_path: Path, want: int, have: int
) -> None:
    calls = []
    for length in (40, 120):
        scratch = Scratch(tmp_path / f"{length}/mirror.git")
        commits = history(scratch, length)
        request = PackRequest(wants=(commits[want],), haves=(commits[have],))
        calls.append(work(scratch, request))
    assert calls[1] <= 1.2 * calls[0]


def test_the_work_of_a_whole_history_grows_no_faster_than_the_history(tmp_path: Path) -> None:
    def whole(length: int) -> int:
        scratch = Scratch(tmp_path / f"{length}/mirror.git")
        return work(scratch, PackRequest(wants=(history(scratch, length)[-1],)))

    assert_linear(whole, size=60)
