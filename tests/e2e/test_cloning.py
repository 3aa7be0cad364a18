"""Clones through the mirror: of all kinds, by every protocol, with either engine."""

import asyncio

import pytest

from tests.e2e.comparing import assert_same_repository
from tests.e2e.conftest import Estate
from tests.git_client import FIRST_COMMIT_AT, GitClient

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLONES = [
    (),
    ("--mirror",),
    ("--bare",),
    ("--single-branch",),
    ("--single-branch", "--branch=release/1.0"),
    ("--no-tags",),
    ("--no-tags", "--single-branch", "--branch=gh-pages"),
    ("--branch=v1.0.0",),
    ("--depth=1",),
    ("--depth=1", "--no-single-branch"),
    ("--depth=1", "--branch=signed-off"),
    ("--depth=4", "--no-tags"),
    (f"--shallow-since={FIRST_COMMIT_AT + 20 * 60}",),
    ("--shallow-exclude=v1.0.0",),
    ("--shallow-exclude=release/1.0", "--no-single-branch"),
    ("--filter=blob:none", "--no-checkout"),
    ("--filter=blob:limit=1k", "--no-checkout"),
    # Without the tag that names a tree: git breaks off with that one, whoever serves it.
    ("--filter=tree:0", "--no-checkout", "--no-tags"),
    ("--filter=blob:none", "--no-checkout", "--depth=1"),
    ("--filter=tree:0", "--bare", "--depth=2"),
]


@pytest.mark.parametrize("args", CLONES, ids=lambda args: " ".join(args) or "full")
async def test_a_clone_is_what_a_clone_of_the_upstream_is(
    estate: Estate, client: GitClient, args: tuple[str, ...]
) -> None:
    through, direct = await asyncio.gather(
        client.clone(estate.through, *args), client.clone(estate.direct, *args)
    )
    await assert_same_repository(client, through, direct)


@pytest.mark.parametrize(
    "spec", ["blob:none", "blob:limit=1k", "tree:0", "combine:tree:3+blob:none"]
)
async def test_what_a_partial_clone_lacks_is_fetched_when_it_is_needed(
    estate: Estate, client: GitClient, spec: str
) -> None:
    clone = await client.clone(estate.through, f"--filter={spec}", "--no-tags")
    commit = estate.upstream.oid("release/1.0~3")
    await client.run("checkout", "--quiet", "--detach", commit, cwd=clone)
    assert await client.output("status", "--porcelain", cwd=clone) == ""
    history = ("log", "--patch", "--binary", "--full-index", "-3")
    shown = await client.output(*history, commit, cwd=clone)
    assert shown == await client.output(*history, commit, cwd=estate.upstream.path)
    await client.fsck(clone)


async def test_a_sparse_partial_clone_fetches_the_directories_it_shows(
    estate: Estate, client: GitClient
) -> None:
    clone = await client.clone(estate.through, "--filter=blob:none", "--sparse", "--depth=1")
    assert not (clone / "overlays").exists()
    await client.run("sparse-checkout", "set", "overlays/dev", cwd=clone)
    shown = await client.output("ls-tree", "--name-only", "HEAD:overlays/dev", cwd=clone)
    assert sorted(path.name for path in (clone / "overlays/dev").iterdir()) == shown.split()
    assert not (clone / "base").exists()
    assert await client.output("status", "--porcelain", cwd=clone) == ""


@pytest.mark.parametrize("revision", ["HEAD", "release/1.0", "v1.0.0", "main~5"])
async def test_a_kustomize_base_is_one_commit_of_any_ref(
    estate: Estate, client: GitClient, revision: str
) -> None:
    clone = client.workdir / "base"
    await client.run("init", "--quiet", str(clone))
    wanted = estate.upstream.oid(f"{revision}^{{commit}}")
    ref = wanted if "~" in revision else revision
    await client.run("fetch", "--depth=1", estate.through, ref, cwd=clone)
    await client.run("checkout", "--quiet", "FETCH_HEAD", cwd=clone)
    assert await client.rev_parse(clone, "HEAD") == wanted
    assert await client.output("rev-list", "--count", "HEAD", cwd=clone) == "1"
    await client.fsck(clone)


@pytest.mark.parametrize("depth", ["", "--depth=3"])
async def test_any_reachable_commit_can_be_fetched_by_its_id(
    estate: Estate, client: GitClient, depth: str
) -> None:
    clone = client.workdir / "own"
    await client.run("init", "--quiet", str(clone))
    commit = estate.upstream.oid("main~6")
    args = [depth] if depth else []
    await client.run("fetch", *args, estate.through, commit, cwd=clone)
    assert await client.rev_parse(clone, "FETCH_HEAD") == commit
    history = await client.output("rev-list", "FETCH_HEAD", cwd=clone)
    upstream_history = estate.upstream.git("rev-list", "main~6")
    if not depth:
        assert history == upstream_history
    await client.fsck(clone)


async def test_trees_blobs_and_tags_can_be_fetched_by_their_ids(
    estate: Estate, client: GitClient
) -> None:
    clone = client.workdir / "own"
    await client.run("init", "--quiet", str(clone))
    objects = [
        estate.upstream.oid(revision)
        for revision in ("main~3^{tree}", "main:base/app.yaml", "signed-off")
    ]
    await client.run("fetch", estate.through, *objects, cwd=clone)
    for oid in objects:
        await client.run("cat-file", "-e", oid, cwd=clone)


async def test_an_id_that_nobody_has_is_not_our_ref(estate: Estate, client: GitClient) -> None:
    clone = client.workdir / "own"
    await client.run("init", "--quiet", str(clone))
    unknown = "1234567890" * 4
    done = await client.run("fetch", estate.through, unknown, cwd=clone, check=False)
    assert done.returncode != 0
    assert f"upload-pack: not our ref {unknown}" in done.stderr


async def test_a_branch_that_does_not_exist_is_said_to_be_missing(
    estate: Estate, client: GitClient
) -> None:
    done = await client.run("clone", "--branch=none", estate.through, "x", check=False)
    assert "Remote branch none not found" in done.stderr


async def test_unknown_repositories_are_not_found(estate: Estate, client: GitClient) -> None:
    unknown = f"{estate.mirror.service.url}/acme/nothing.git"
    done = await client.run("clone", unknown, "x", check=False)
    assert "no repository 'acme/nothing' here" in done.stderr
    assert "not found" in done.stderr
