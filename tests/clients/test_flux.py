"""Flux reconciles a GitRepository through the mirror, by every kind of `ref`."""

from pathlib import Path

import pytest
import pytest_asyncio

from tests.clients.builds import program
from tests.clients.conftest import Direct, Estate, Through
from tests.clients.operations import ClientFailed, Unavailable
from tests.clients.programs import Flux
from tests.git_client import GitClient

ODD_TAGS = {"signed-off": "v1.1.0", "the-tree": "main^{tree}", "the-key": "main:base/app.yaml"}
"""Tags of no commit, by what they point to."""

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]


@pytest.fixture
def flux(tmp_path: Path) -> Flux:
    try:
        return Flux(program("flux"), tmp_path / "home")
    except Unavailable as error:
        pytest.skip(str(error))


@pytest_asyncio.fixture(loop_scope="module")
async def plain_tags(estate: Estate) -> None:
    """Every tag points to a commit."""
    odd = {f"refs/tags/{name}" for name in ODD_TAGS} & set(estate.upstream.refs())
    for ref in sorted(odd):
        estate.upstream.delete_ref(ref)
        await Through(estate).announce(ref, "1" * 40)


@pytest.mark.usefixtures("plain_tags")
@pytest.mark.parametrize("depth", ["shallow", "full"])
@pytest.mark.parametrize(
    ("kind", "value", "revision"),
    [
        ("branch", "main", "main"),
        ("branch", "release/1.0", "release/1.0"),
        ("tag", "v1.0.1", "v1.0.1"),
        ("tag", "light", "light"),
        ("semver", ">=1.0.0 <1.1.0", "v1.0.1"),
        ("semver", "1.x", "v1.1.0"),
        ("name", "refs/heads/gh-pages", "gh-pages"),
        ("name", "refs/tags/v1.0.0", "v1.0.0"),
        ("commit", "main~4", "main~4"),
    ],
)
async def test_it_checks_out_what_the_reference_names(
    estate: Estate, flux: Flux, tmp_path: Path, kind: str, value: str, revision: str, depth: str
) -> None:
    wanted = estate.upstream.oid(f"{revision}^{{commit}}")
    value = wanted if kind == "commit" else value
    path = tmp_path / "artifact"
    commit = await flux.reconcile(Through(estate).url, path, kind, value, depth)
    assert commit == wanted
    judge = GitClient(tmp_path / "judge")
    assert await judge.rev_parse(path, "HEAD^{commit}") == wanted
    assert await judge.output("status", "--porcelain", cwd=path) == ""
    await judge.fsck(path)


@pytest.mark.usefixtures("plain_tags")
@pytest.mark.parametrize("tag", ODD_TAGS)
async def test_a_tag_of_no_commit_is_too_much_for_its_semver_in_front_of_git_as_well(
    estate: Estate, flux: Flux, tmp_path: Path, tag: str
) -> None:
    estate.upstream.tag(tag, ODD_TAGS[tag])
    await Through(estate).announce(f"refs/tags/{tag}", "0" * 40)
    for url in (Direct(estate).url, Through(estate).url):
        with pytest.raises(ClientFailed, match="unable to resolve"):
            await flux.reconcile(url, tmp_path / "artifact", "semver", "1.x")


async def test_an_interval_without_a_push_is_a_poll_and_one_after_a_push_a_clone(
    estate: Estate, flux: Flux
) -> None:
    through, upstream = Through(estate), estate.upstream
    before = upstream.oid()
    assert await flux.poll(through.url, before) == "unchanged"
    upstream.commit()
    await through.announce("refs/heads/main", before)
    assert await flux.poll(through.url, before) == "changed"
    assert await flux.poll(through.url, upstream.oid()) == "unchanged"


async def test_a_reference_that_is_not_there_is_no_empty_repository(
    estate: Estate, flux: Flux, tmp_path: Path
) -> None:
    for kind, value in (("branch", "nowhere"), ("tag", "v9"), ("commit", "1" * 40)):
        with pytest.raises(ClientFailed):
            await flux.reconcile(Through(estate).url, tmp_path / "artifact", kind, value)
