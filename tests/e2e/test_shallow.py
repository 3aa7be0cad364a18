"""Shallow clones that live on: fetched again, deepened, unshallowed, followed."""

import asyncio
from pathlib import Path

import pytest

from tests.e2e.comparing import assert_same_repository
from tests.git_client import FIRST_COMMIT_AT, GitClient, Upstream
from tests.mirror_service import MirrorService


@pytest.fixture
def upstream(upstream: Upstream) -> Upstream:
    """A history with a merge: main has 12 commits of its own, side has 4."""
    upstream.history(4)
    upstream.branches({"side": upstream.oid()})
    upstream.history(4, "side")
    upstream.tag("fork")
    upstream.history(3)
    upstream.commit(parents=["main", "side"], message="Merge side")
    upstream.history(3)
    return upstream


class Pair:
    """Two clones that go the same way: one through the mirror, one straight to the upstream."""

    def __init__(self, client: GitClient, through: Path, direct: Path) -> None:
        self._client = client
        self._clones = (through, direct)

    async def fetch(self, *args: str) -> None:
        """Fetch the same into both and assert that they are the same."""
        for clone in self._clones:
            await self._client.fetch(clone, *args)
        await assert_same_repository(self._client, *self._clones)


async def clone_pair(client: GitClient, through: str, direct: str, *args: str) -> Pair:
    clones = await asyncio.gather(client.clone(through, *args), client.clone(direct, *args))
    await assert_same_repository(client, *clones)
    return Pair(client, *clones)


async def test_a_depth_of_1_follows_new_commits_with_full_history_from_there(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str, direct: str
) -> None:
    pair = await clone_pair(client, through, direct, "--depth=1")
    upstream.history(3)
    await mirror.announce(upstream)
    await pair.fetch("origin")


async def test_a_depth_of_1_is_fetched_again_at_depth_1(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str, direct: str
) -> None:
    pair = await clone_pair(client, through, direct, "--depth=1")
    await pair.fetch("--depth=1")
    upstream.history(2)
    await mirror.announce(upstream)
    await pair.fetch("--depth=1")


@pytest.mark.parametrize(
    "steps",
    [
        [["--deepen=1"], ["--deepen=3"], ["--unshallow"]],
        [["--depth=3"], ["--depth=8"], ["--depth=2"]],
        [["--unshallow"]],
        [["--unshallow", "--tags"]],
        [[f"--shallow-since={FIRST_COMMIT_AT + 800}"], ["--unshallow"]],  # the last three
        [["--shallow-exclude=fork"], ["--deepen=2"]],
        [["--depth=2147483647"]],
        [["--update-shallow", "origin", "side"], ["--deepen=1", "origin", "side"]],
    ],
    ids=lambda steps: " then ".join(" ".join(step) for step in steps),
)
async def test_history_is_deepened_as_the_upstream_would(
    client: GitClient, through: str, direct: str, steps: list[list[str]]
) -> None:
    pair = await clone_pair(client, through, direct, "--depth=1")
    for step in steps:
        await pair.fetch(*step)


async def test_all_branches_at_depth_1_follow_a_force_push(
    mirror: MirrorService, upstream: Upstream, client: GitClient, through: str, direct: str
) -> None:
    pair = await clone_pair(client, through, direct, "--depth=1", "--no-single-branch")
    upstream.force("side", upstream.commit("side", parents=["fork"]))
    upstream.commit("new", parents=["main"])
    await mirror.announce(upstream, "refs/heads/side")
    await pair.fetch("--depth=1", "origin", "--tags", "--force", "--prune")


async def test_a_partial_and_shallow_clone_is_deepened(
    client: GitClient, through: str, direct: str
) -> None:
    args = ("--depth=2", "--filter=blob:none", "--no-checkout")
    pair = await clone_pair(client, through, direct, *args)
    await pair.fetch("--deepen=2")
    await pair.fetch("--unshallow")


async def test_a_date_that_selects_nothing_is_an_error_that_says_so(
    client: GitClient, through: str
) -> None:
    done = await client.run("clone", "--shallow-since=2100-01-01", through, "x", check=False)
    assert "no commits selected for shallow requests" in done.stderr
