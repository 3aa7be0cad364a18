"""Fetches through the mirror after the upstream has changed, each announced by a webhook.

No test waits for the mirror: a reader that comes while the announced refresh runs is held.
"""

from pathlib import Path

from mirror.demo.forge import Faults
from tests.e2e.comparing import assert_same_repository
from tests.git_client import GitClient, Upstream
from tests.mirror_service import MirrorService

ARGO_CD = ("origin", "--tags", "--force", "--prune")
"""How Argo CD fetches."""


async def assert_in_step(client: GitClient, through: str, direct: str) -> None:
    """Assert that mirror and upstream list the same."""
    listed = await client.output("ls-remote", "--symref", through)
    assert listed == await client.output("ls-remote", "--symref", direct)


async def test_a_new_commit_is_fetched_right_after_its_webhook(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str, direct: str
) -> None:
    clone = await client.clone(through)
    before = upstream.oid()
    commit = upstream.commit(files={"base/app.yaml": "image: web:1.0.1\n"})
    await mirror.announce(upstream, before=before)
    await client.fetch(clone)
    assert await client.rev_parse(clone, "origin/main") == commit
    await client.fsck(clone)
    await assert_in_step(client, through, direct)


async def test_an_announced_commit_is_fetched_by_its_id(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str
) -> None:
    clone = await client.clone(through)
    commit = upstream.commit()
    await mirror.announce(upstream)
    await client.fetch(clone, "origin", commit)
    await client.fetch(clone, "--depth=1", "origin", commit)
    assert await client.rev_parse(clone, "FETCH_HEAD") == commit


async def test_a_commit_that_no_webhook_announced_is_fetched_by_its_id(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str
) -> None:
    clone = await client.clone(through)
    commit = upstream.commit()
    await client.fetch(clone, "origin", commit)
    assert await client.rev_parse(clone, "FETCH_HEAD") == commit
    assert await mirror.metric(
        "git_mirror_refresh_seconds_count", trigger="want", outcome="changed"
    )


async def test_a_clone_follows_its_upstream_through_every_kind_of_change(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str, direct: str
) -> None:
    upstream.branches({"old": upstream.oid(), "gone": upstream.oid()})
    upstream.tag("v1")
    await mirror.announce(upstream, "refs/heads/old")
    followed = await client.clone(through)
    bare = await client.clone(through, "--mirror")
    upstream.history(3)
    upstream.force("old", upstream.commit("main", parents=["main~2"]))
    upstream.commit("new", parents=["main"])
    upstream.delete_ref("gone")
    upstream.tag("v1", "new", message="Moved")
    upstream.tag("v2", "v1", message="A tag of a tag")
    upstream.tag("light", "old", annotated=False)
    await mirror.announce(upstream)
    await client.fetch(followed, *ARGO_CD)
    await client.fetch(bare, "--prune")
    assert await client.refs(bare) == upstream.refs()
    again = await client.clone(direct)
    for ref in ("main", "old", "new"):
        expected = await client.rev_parse(again, f"origin/{ref}")
        assert await client.rev_parse(followed, f"origin/{ref}") == expected
    gone = await client.run("rev-parse", "--verify", "origin/gone", cwd=followed, check=False)
    assert gone.returncode != 0
    for tag in ("v1", "v2", "light"):
        assert await client.rev_parse(followed, tag) == upstream.oid(tag)
    await client.fsck(followed)
    await client.fsck(bare)
    await assert_in_step(client, through, direct)


async def test_a_deleted_tag_is_pruned(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str
) -> None:
    upstream.tag("v1")
    upstream.tag("v2")
    await mirror.announce(upstream, "refs/tags/v1")
    clone = await client.clone(through, "--mirror")
    upstream.delete_ref("refs/tags/v1")
    await mirror.announce(upstream, "refs/tags/v1")
    await client.fetch(clone, "--prune")
    assert await client.refs(clone) == upstream.refs()


async def test_an_old_tip_stays_fetchable_by_its_id_after_a_force_push(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str
) -> None:
    root = upstream.oid()
    old = upstream.history(3)[-1]
    await mirror.announce(upstream)
    clone = await client.clone(through)
    new = upstream.commit(parents=[root])
    upstream.git("reflog", "expire", "--expire=now", "--all")
    upstream.git("gc", "--quiet", "--prune=now")
    await mirror.announce(upstream)
    await client.fetch(clone)
    assert await client.rev_parse(clone, "origin/main") == new
    late = client.workdir / "late"
    await client.run("init", "--quiet", str(late))
    await client.fetch(late, through, old)
    assert await client.rev_parse(late, "FETCH_HEAD") == old
    await client.fetch(late, "--depth=1", through, old)
    assert old not in (await client.ls_remote(through)).values()
    await client.fsck(late)


async def test_a_renamed_default_branch_becomes_head(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str, direct: str
) -> None:
    upstream.branches({"trunk": upstream.oid()})
    upstream.set_head("trunk")
    upstream.delete_ref("main")
    await mirror.announce(upstream, "refs/heads/trunk")
    assert await client.default_branch(through) == "refs/heads/trunk"
    clone = await client.clone(through)
    assert await client.output("symbolic-ref", "HEAD", cwd=clone) == "refs/heads/trunk"
    await assert_in_step(client, through, direct)


async def test_a_head_without_its_branch_is_unborn_here_too(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str, direct: str
) -> None:
    upstream.set_head("not-yet")
    await mirror.announce(upstream)
    await assert_in_step(client, through, direct)
    clone = await client.clone(through, "--no-checkout")
    same = await client.clone(direct, "--no-checkout")
    await assert_same_repository(client, clone, same)


async def test_hidden_refs_of_the_forge_are_not_mirrored(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str
) -> None:
    upstream.commit("refs/pull/1/head", parents=["main"])
    upstream.commit("refs/merge-requests/1/head", parents=["main"])
    commit = upstream.commit()
    await mirror.announce(upstream)
    expected = {"HEAD": commit, "refs/heads/main": commit}
    assert await client.ls_remote(through) == expected


async def test_a_fetch_without_news_sends_no_pack(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str
) -> None:
    clone = await client.clone(through)
    built = await mirror.metric(
        "git_mirror_pack_build_seconds_count",
        engine=mirror.service.settings.engine.value,
        outcome="ok",
    )
    await client.fetch(clone)
    await client.fetch(clone, *ARGO_CD)
    assert built == await mirror.metric(
        "git_mirror_pack_build_seconds_count",
        engine=mirror.service.settings.engine.value,
        outcome="ok",
    )


async def test_what_is_common_can_be_negotiated_without_a_fetch(
    mirror: MirrorService, upstream: Upstream, tmp_path: Path
) -> None:
    client = GitClient(tmp_path / "client", 2)  # the older protocols don't know it
    clone = await client.clone(mirror.url())
    await client.commit_file(clone, "own.txt", "own", "Own")
    args = ("fetch", "--negotiate-only", "--negotiation-tip=HEAD", "origin")
    assert await client.output(*args, cwd=clone) == upstream.oid()


async def test_server_options_are_taken_and_passed_over(
    mirror: MirrorService, tmp_path: Path
) -> None:
    client = GitClient(tmp_path / "client", 2)
    options = ["--server-option=a=b", "--server-option=c"]
    assert await client.output("ls-remote", *options, mirror.url())
    clone = await client.clone(mirror.url(), *options)
    await client.fsck(clone)


async def test_everything_is_fetched_again_where_that_is_asked_for(
    mirror: MirrorService, client: GitClient, through: str
) -> None:
    clone = await client.clone(through, "--filter=blob:none", "--no-checkout")
    await client.fetch(clone, "--refetch", "--no-filter", "origin")
    listed = await client.output("rev-list", "--objects", "--all", "--missing=print", cwd=clone)
    assert "?" not in listed


async def test_an_outage_of_the_upstream_is_not_one_of_the_mirror(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str
) -> None:
    mirror.forge.faults = Faults(status=500)
    await mirror.announce(upstream)
    clone = await client.clone(through, "--mirror")
    assert await client.refs(clone) == upstream.refs()
    await client.fetch(clone, "--prune")
    assert await client.refs(clone) == upstream.refs()
