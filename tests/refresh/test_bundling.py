"""Bundles of a running service: made on time, kept up with the refs, given up when they must be."""

import asyncio
import os
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from mirror.refresh.bundle_plan import INCREMENTS_MAX
from mirror.repository import bundles
from tests.git_client import GitClient, Upstream
from tests.mirror_service import WAIT_SECONDS_MAX, mirroring
from tests.refresh.bundles import (
    LIST,
    bundled,
    bundling,
    files,
    offered,
    push,
    remake,
    unbundled,
)


@pytest.fixture(params=["git", "dulwich"])
def engine(request: pytest.FixtureRequest) -> str:
    """Who makes the packs."""
    return str(request.param)


# --- what is made ------------------------------------------------------------------------------


async def test_bundles_follow_the_refs_and_git_takes_them_one_after_another(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, git_client: GitClient, engine: str
) -> None:
    upstream.history(20)
    upstream.tag("v1.0.0")
    upstream.tag("the-tree", "main^{tree}", annotated=False)
    upstream.branches({"release/1": upstream.oid("main~5")})
    async with bundling(forge, tmp_path, engine=engine) as mirror:
        clone = await unbundled(mirror, tmp_path, git_client)
        assert await git_client.refs(clone) == upstream.refs()

        upstream.history(3)
        upstream.commit("feature", parents=["main~1"])
        upstream.tag("v1.1.0")
        await push(mirror, upstream)
        assert await remake(mirror)
        base, more = offered(mirror)
        assert more.token > base.token
        assert more.size < base.size / 2
        clone = await unbundled(mirror, tmp_path, git_client)
        assert await git_client.refs(clone) == upstream.refs()


async def test_nothing_new_makes_no_bundle_but_says_that_they_are_up_to_date(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with bundling(forge, tmp_path) as mirror:
        before = mirror.mirror().bundles
        assert await remake(mirror)
        after = mirror.mirror().bundles
        assert before is not None
        assert after is not None
        assert after.bundles == before.bundles
        assert after.built_at > before.built_at


async def test_a_branch_at_a_commit_that_all_have_needs_no_bundle(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.history(3)
    async with bundling(forge, tmp_path) as mirror:
        before = offered(mirror)
        upstream.branches({"old": upstream.oid("main~2")})
        await push(mirror, upstream, "refs/heads/old")
        assert await remake(mirror)
        assert offered(mirror) == before


async def test_many_increments_are_put_together(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, git_client: GitClient
) -> None:
    async with bundling(forge, tmp_path) as mirror:
        tokens = [offered(mirror)[0].token]
        for _ in range(INCREMENTS_MAX + 1):
            upstream.commit()
            await push(mirror, upstream)
            assert await remake(mirror)
            tokens.append(offered(mirror)[-1].token)
        assert tokens == sorted(set(tokens))
        # Who has the last token but one takes the last bundle alone.
        assert [bundle.token for bundle in offered(mirror)] == tokens[-2:]
        clone = await unbundled(mirror, tmp_path, git_client)
        assert await git_client.refs(clone) == upstream.refs()


async def test_small_repositories_get_none(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with mirroring(forge, tmp_path, defaults="bundle_interval: 1s") as mirror:
        assert await remake(mirror)
        assert offered(mirror) == ()
        assert (await mirror.get(LIST)).status == 404


async def test_the_schedule_makes_them_again_and_again(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    defaults = "bundle_interval: 1s\nbundle_bytes_min: 0"
    async with mirroring(forge, tmp_path, defaults=defaults) as mirror:
        await bundled(mirror)
        upstream.commit()
        await push(mirror, upstream)
        await mirror.until(lambda one: one.bundles is not None and len(one.bundles.bundles) == 2)


# --- what is not offered any longer ------------------------------------------------------------


@pytest.mark.parametrize("taken_back", ["force-push", "deleted branch", "deleted tag"])
async def test_what_was_taken_back_upstream_is_not_in_the_next_bundles(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    git_client: GitClient,
    taken_back: str,
) -> None:
    main = upstream.oid()
    secret = upstream.commit("main" if taken_back == "force-push" else "secret", {"key": "secret"})
    tag = upstream.tag("v1") if taken_back == "deleted tag" else secret
    async with bundling(forge, tmp_path) as mirror:
        (before,) = offered(mirror)
        match taken_back:
            case "force-push":
                upstream.force("main", main)
                ref = "refs/heads/main"
            case "deleted branch":
                upstream.delete_ref("secret")
                ref = "refs/heads/secret"
            case _:
                upstream.delete_ref("refs/tags/v1")
                ref = "refs/tags/v1"
        await push(mirror, upstream, ref)
        assert await remake(mirror)
        (after,) = offered(mirror)
        assert after.token > before.token
        clone = await unbundled(mirror, tmp_path, git_client)
        assert await git_client.refs(clone) == upstream.refs()
        there = await git_client.run("cat-file", "-e", tag, cwd=clone, check=False)
        assert there.returncode != 0


async def test_what_was_taken_back_is_not_offered_even_where_nothing_can_be_put_in_its_place(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.commit("secret", {"key": "secret"})
    sections = "limits: {bundle_bytes_max: 20000}"
    async with bundling(forge, tmp_path, sections=sections) as mirror:
        upstream.delete_ref("secret")
        upstream.commit(files={"noise": os.urandom(30_000)})
        await push(mirror, upstream, "refs/heads/secret", "refs/heads/main")
        assert not await remake(mirror)
        assert offered(mirror) == ()
        assert files(tmp_path) == set()
        assert (await mirror.get(LIST)).status == 404


async def test_a_branch_that_was_merged_may_go(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.commit("feature", parents=["main"])
    upstream.commit(parents=["main", "feature"])
    async with bundling(forge, tmp_path) as mirror:
        before = offered(mirror)
        upstream.delete_ref("feature")
        await push(mirror, upstream, "refs/heads/feature")
        assert await remake(mirror)
        assert offered(mirror) == before


async def test_an_upstream_without_refs_has_no_bundles(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with bundling(forge, tmp_path) as mirror:
        upstream.delete_ref("main")
        await push(mirror, upstream)
        assert await remake(mirror)
        assert offered(mirror) == ()


async def test_what_was_offered_before_is_removed_in_its_time(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "KEPT_SECONDS", 0.2)
    removed = asyncio.Event()
    sweep = bundles.BundleShelf.sweep
    loop = asyncio.get_running_loop()

    async with bundling(forge, tmp_path) as mirror:
        (before,) = offered(mirror)

        def note(shelf: bundles.BundleShelf, now: float) -> None:
            sweep(shelf, now)
            if before.name not in files(tmp_path):
                loop.call_soon_threadsafe(removed.set)

        monkeypatch.setattr(bundles.BundleShelf, "sweep", note)
        upstream.force("main", upstream.commit("other", parents=[]))
        await push(mirror, upstream)
        assert await remake(mirror)
        upstream.commit()
        await push(mirror, upstream)
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await removed.wait()
        assert before.name not in files(tmp_path)
        assert {bundle.name for bundle in offered(mirror)} < files(tmp_path)
