"""`git ls-remote` through the mirror says what it says to the upstream itself."""

import pytest

from tests.e2e.conftest import Estate
from tests.git_client import GitClient

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("options", "patterns"),
    [
        ([], []),
        (["--heads"], []),
        (["--tags"], []),
        (["--heads", "--tags"], []),
        (["--refs"], []),
        (["--symref"], []),
        (["--symref"], ["HEAD"]),
        ([], ["HEAD"]),
        ([], ["main"]),
        ([], ["refs/heads/release/1.0"]),
        ([], ["v1.*", "feature/*/y"]),
        (["--exit-code"], ["signed-off"]),
    ],
    ids=str,
)
async def test_it_lists_what_the_upstream_lists(
    estate: Estate, client: GitClient, options: list[str], patterns: list[str]
) -> None:
    through = await client.output("ls-remote", *options, estate.through, *patterns)
    assert through
    assert through == await client.output("ls-remote", *options, estate.direct, *patterns)


async def test_a_ref_that_does_not_exist_is_exit_code_2(estate: Estate, client: GitClient) -> None:
    done = await client.run("ls-remote", "--exit-code", estate.through, "none", check=False)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("suffix", ["", ".git", "/", ".git/"])
async def test_it_answers_with_and_without_the_suffix_and_never_redirects(
    estate: Estate, client: GitClient, suffix: str
) -> None:
    config = ["-c", "http.followRedirects=false"]
    listed = await client.output(*config, "ls-remote", estate.through + suffix)
    assert listed == await client.output("ls-remote", estate.direct)
