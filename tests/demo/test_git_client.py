"""The tests' own tools: what they make and report must be right before anything else is."""

import asyncio
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from tests.git_client import GitClient, GitFailed, Upstream


def test_commits_go_onto_a_branch_or_onto_named_parents(upstream: Upstream) -> None:
    first = upstream.oid()
    second = upstream.commit(files={"a.txt": "a", "README.md": None}, message="Second")
    root = upstream.commit("orphan", {"b.bin": b"\x00\xff"}, parents=[])
    merge = upstream.commit("main", {}, parents=["main", "orphan"])
    parents = upstream.git("rev-list", "--parents", "main").splitlines()
    assert sorted(parents) == sorted([f"{merge} {second} {root}", root, f"{second} {first}", first])
    assert upstream.git("ls-tree", "-r", "--name-only", "main").split() == [
        "a.txt",
        "base/app.yaml",
    ]
    rewound = upstream.commit(parents=[first])
    assert upstream.git("rev-list", "main").split() == [rewound, first]


def test_a_history_is_many_commits_in_a_row(upstream: Upstream) -> None:
    first = upstream.oid()
    commits = upstream.history(20, "refs/heads/main")
    assert upstream.git("rev-list", "--reverse", "main").split() == [first, *commits]


def test_refs_are_made_moved_and_deleted(upstream: Upstream) -> None:
    first = upstream.oid()
    upstream.commit()
    upstream.force("main", first)
    upstream.force("refs/pull/1/head", "main")
    upstream.branches({"a": first, "refs/notes/b": first})
    light = upstream.tag("light", annotated=False)
    annotated = upstream.tag("annotated")
    nested = upstream.tag("nested", "annotated")
    upstream.delete_ref("a")
    upstream.set_head("unborn")
    assert upstream.refs() == {
        "refs/heads/main": first,
        "refs/notes/b": first,
        "refs/pull/1/head": first,
        "refs/tags/annotated": annotated,
        "refs/tags/light": first,
        "refs/tags/nested": nested,
    }
    assert light == first
    assert upstream.git("cat-file", "-p", nested).splitlines()[:2] == [
        f"object {annotated}",
        "type tag",
    ]
    assert upstream.git("symbolic-ref", "HEAD") == "refs/heads/unborn"


def test_ids_are_the_same_on_every_run(tmp_path: Path) -> None:
    upstreams = [Upstream(tmp_path, name) for name in ("a", "b")]
    for upstream in upstreams:
        upstream.history(3)
        upstream.tag("v1")
    assert upstreams[0].refs() == upstreams[1].refs()


async def test_the_client_lists_fetches_and_commits(
    forge: HttpBackend, upstream: Upstream, git_client: GitClient
) -> None:
    url = forge.repository_url(upstream.name)
    tag = upstream.tag("v1")
    first = upstream.oid()
    assert await git_client.ls_remote(url, "--tags") == {
        "refs/tags/v1": tag,
        "refs/tags/v1^{}": first,
    }
    assert await git_client.ls_remote(url, "--symref") == {
        "HEAD": first,
        "refs/heads/main": first,
        "refs/tags/v1": tag,
        "refs/tags/v1^{}": first,
    }
    assert await git_client.default_branch(url) == "refs/heads/main"
    clone = await git_client.clone(url, "--depth=1", name="here")
    assert clone.name == "here"
    second = await git_client.commit_file(clone, "new/file.txt", "text", "Add a file")
    assert await git_client.rev_parse(clone, "HEAD^") == first
    await git_client.run("push", "--quiet", "origin", "main", cwd=clone)
    assert upstream.oid() == second
    third = upstream.commit()
    await git_client.fetch(clone, "origin", third)
    assert await git_client.rev_parse(clone, "FETCH_HEAD") == third
    await git_client.fsck(clone)


async def test_an_empty_upstream_has_no_refs(
    forge: HttpBackend, upstream_root: Path, git_client: GitClient
) -> None:
    empty = Upstream(upstream_root, "acme/empty", branch="trunk")
    url = forge.repository_url(empty.name)
    assert await git_client.ls_remote(url) == {}
    assert await git_client.default_branch(url) is None
    assert empty.refs() == {}
    clone = await git_client.clone(url)
    assert await git_client.refs(clone) == {}
    assert await git_client.output("symbolic-ref", "HEAD", cwd=clone) == "refs/heads/trunk"


async def test_a_failure_says_all_that_git_said(git_client: GitClient, upstream: Upstream) -> None:
    with pytest.raises(
        GitFailed, match=r"git rev-parse --verify nothing exited with 128\n(.*\n)*fatal"
    ):
        await git_client.rev_parse(upstream.path, "nothing")
    completed = await git_client.run("rev-parse", "nothing", cwd=upstream.path, check=False)
    assert (completed.returncode, completed.stdout) == (128, "nothing\n")
    with pytest.raises(GitFailed, match="exited with 128"):
        upstream.oid("main~7")


async def test_a_command_that_takes_too_long_is_killed_with_its_children(
    forge: HttpBackend, upstream: Upstream, git_client: GitClient
) -> None:
    forge.faults.stall = asyncio.Event()
    with pytest.raises(GitFailed, match=r"took longer than 0\.5 s"):
        await git_client.run("ls-remote", forge.repository_url(upstream.name), timeout=0.5)


async def test_a_cancelled_command_is_killed_with_its_children(
    forge: HttpBackend, upstream: Upstream, git_client: GitClient
) -> None:
    forge.faults.stall = asyncio.Event()
    listing = asyncio.create_task(git_client.ls_remote(forge.repository_url(upstream.name)))
    await forge.wait_for_requests(1)
    listing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listing
