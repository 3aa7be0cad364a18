"""Clones that begin with bundles, by the git of this machine and by the newest that can be had.

The newest one is that of tests/clients/install-newest-git. git asks for the list of bundles from
2.40 on; before, it can only be told of a bundle by its address.
"""

import os
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from mirror.wire.bundles import BundleList
from tests.clients.git_cli import newest_git
from tests.clients.operations import Unavailable
from tests.git_client import FIRST_COMMIT_AT, GitClient, Upstream
from tests.mirror_service import NAME, MirrorService, mirroring

LISTED_FROM = (2, 40)
FILLING = os.urandom(100_000)


def _newest_git() -> str:
    try:
        return newest_git()
    except Unavailable:
        return "git"


def _knows_the_list() -> bool:
    printed = subprocess.run([_newest_git(), "version"], capture_output=True, check=True, text=True)
    return tuple(map(int, re.findall(r"\d+", printed.stdout)[:2])) >= LISTED_FROM


needs_the_list = pytest.mark.skipif(
    not _knows_the_list(),
    reason="git asks for a list of bundles from 2.40 on; run tests/clients/install-newest-git",
)

one_engine = pytest.mark.parametrize("engine", ["dulwich"])


@pytest.fixture(scope="module", params=["git", "dulwich"])
def engine(request: pytest.FixtureRequest) -> str:
    """Who makes the packs."""
    return str(request.param)


@pytest.fixture
def workers(engine: str) -> int:
    """How many processes serve: more with the one engine, for nothing may depend on either."""
    return 2 if engine == "git" else 1


@pytest.fixture
def client(tmp_path: Path) -> GitClient:
    """The newest git, as a user sets it up who wants bundles."""
    return GitClient(
        tmp_path / "client", config={"transfer.bundleURI": "true"}, program=_newest_git()
    )


@pytest.fixture
async def mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, engine: str, workers: int
) -> AsyncIterator[MirrorService]:
    """A service with a base, a bundle on top of it, and a commit that is in neither."""
    upstream.commit(files={"filling": FILLING})
    upstream.history(10)
    upstream.tag("v1")
    defaults = "bundle_interval: 300d\nbundle_bytes_min: 0"
    async with mirroring(
        forge, tmp_path / "mirror", engine=engine, workers=workers, defaults=defaults
    ) as running:
        await running.until(lambda one: one.bundles is not None)
        upstream.history(3)
        upstream.commit("feature", parents=["main~2"])
        for ref in ("refs/heads/main", "refs/heads/feature"):
            await running.announce(upstream, ref)
        await running.caught_up(upstream)
        assert running.service.bundler is not None
        assert await running.service.bundler.bundle(NAME)
        assert len(offered(running).bundles) == 2
        upstream.commit()
        await running.announce(upstream)
        await running.caught_up(upstream)
        yield running


def offered(mirror: MirrorService) -> BundleList:
    listed = mirror.mirror().bundles
    assert listed is not None
    return listed


async def taken(mirror: MirrorService) -> int:
    """Return how many bundles were asked for."""
    labels = {"operation": "bundle", "outcome": "ok"}
    return int(await mirror.metric("git_mirror_request_seconds_count", **labels) or 0)


async def refs_without_bundles(client: GitClient, clone: Path) -> dict[str, str]:
    """Return the refs, but for those by which git remembers what bundles brought."""
    refs = await client.refs(clone)
    return {name: oid for name, oid in refs.items() if not name.startswith("refs/bundles/")}


@needs_the_list
async def test_a_clone_takes_the_bundles_and_fetches_the_rest(
    mirror: MirrorService, upstream: Upstream, client: GitClient
) -> None:
    for number, end in enumerate(("", ".git", "/"), 1):
        clone = await client.clone(mirror.url() + end, "--mirror")
        assert await taken(mirror) == 2 * number
        assert await refs_without_bundles(client, clone) == upstream.refs()
        await client.fsck(clone)


@needs_the_list
@one_engine
async def test_a_client_that_was_given_the_list_asks_for_it_at_each_fetch(
    mirror: MirrorService, upstream: Upstream, client: GitClient
) -> None:
    clone = await client.clone(mirror.url(), f"--bundle-uri={mirror.url()}/bundles/list")
    assert await taken(mirror) == 2
    await client.fetch(clone)
    assert await taken(mirror) == 2, "it has them all"
    upstream.history(5)
    await mirror.announce(upstream)
    await mirror.caught_up(upstream)
    assert mirror.service.bundler is not None
    assert await mirror.service.bundler.bundle(NAME)
    await client.fetch(clone)
    assert await taken(mirror) == 3, "the new one alone"
    assert await client.rev_parse(clone, "origin/main") == upstream.oid()
    await client.fsck(clone)


@needs_the_list
@one_engine
async def test_a_damaged_bundle_is_refused_and_the_clone_is_whole_all_the_same(
    mirror: MirrorService, upstream: Upstream, client: GitClient, tmp_path: Path
) -> None:
    base = offered(mirror).bundles[0]
    file = tmp_path / "mirror/data/bundles" / NAME.replace("/", "%2F") / base.name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    clone = await client.clone(mirror.url(), "--mirror")
    assert await refs_without_bundles(client, clone) == upstream.refs()
    await client.fsck(clone)


@needs_the_list
@one_engine
async def test_clones_of_a_part_work_with_bundles_offered(
    mirror: MirrorService, upstream: Upstream, client: GitClient
) -> None:
    for args in (
        ("--depth=1",),
        (f"--shallow-since={FIRST_COMMIT_AT + 5 * 60}",),
        ("--filter=blob:none",),
        ("--single-branch", "--branch=feature"),
    ):
        clone = await client.clone(mirror.url(), *args)
        branch = "feature" if "--single-branch" in args else "main"
        assert await client.rev_parse(clone, "HEAD") == upstream.oid(branch)
        await client.fsck(clone)


@one_engine
async def test_any_git_can_be_told_of_the_base(
    mirror: MirrorService, upstream: Upstream, git_client: GitClient
) -> None:
    base = offered(mirror).bundles[0]
    clone = await git_client.clone(mirror.url(), f"--bundle-uri={mirror.url()}/bundles/{base.name}")
    assert await taken(mirror) == 1
    assert await git_client.rev_parse(clone, "origin/main") == upstream.oid()
    assert await git_client.rev_parse(clone, "origin/feature") == upstream.oid("feature")
    await git_client.fsck(clone)


@one_engine
async def test_who_does_not_want_bundles_sees_no_difference(
    mirror: MirrorService, upstream: Upstream, git_client: GitClient
) -> None:
    clone = await git_client.clone(mirror.url(), "--mirror")
    assert await taken(mirror) == 0
    assert await git_client.refs(clone) == upstream.refs()
