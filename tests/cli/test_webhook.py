import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mirror.cli import main
from tests.upstream.hook_server import TOKEN, HookServer, hook_server, refusal

PUBLIC = "https://mirror.example.com"
SECRET = "the-new-secret"


@pytest.fixture
async def server() -> AsyncIterator[HookServer]:
    async with hook_server() as running:
        yield running


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    return str(file)


Configure = Callable[[str], str]


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    def write(repositories: str) -> str:
        (tmp_path / "secrets").write_text(f"{SECRET}\nthe-old-secret\n")
        file = tmp_path / "mirror.yaml"
        file.write_text(
            f"defaults: {{webhook_secret_file: secrets}}\nrepositories:\n{repositories}"
        )
        return str(file)

    return write


def install(*args: str) -> Result:
    return CliRunner().invoke(main, ["webhook", "install", "--url", PUBLIC, *args])


@pytest.mark.parametrize(
    ("upstream", "expected"),
    [
        (
            "https://github.com/acme/a.git",
            [
                "at https://github.com/acme/a/settings/hooks/new",
                "Payload URL   https://mirror.example.com/webhooks/github\n",
                "Content type  application/json\n",
                "Which events  Just the push event\n",
                "Secret        the first line of ",
            ],
        ),
        (
            "https://gitlab.com/acme/a.git",
            ["/-/hooks", "https://mirror.example.com/webhooks/gitlab\n", "Secret token"],
        ),
        (
            "https://codeberg.org/acme/a.git",
            ["/hooks/gitea/new", "https://mirror.example.com/webhooks/gitea\n", "Create, Delete"],
        ),
        (
            "https://bitbucket.org/acme/a.git",
            ["/admin/webhooks", "https://mirror.example.com/webhooks/bitbucket\n", "Push"],
        ),
    ],
)
def test_without_a_token_the_webhook_to_make_is_shown(
    configure: Configure, tmp_path: Path, upstream: str, expected: list[str]
) -> None:
    file = configure(f"  acme/a: {{upstream: {upstream}}}\n")
    done = install("--config", file, "acme/a.git")
    assert done.exit_code == 0, done.output
    for words in expected:
        assert words in done.output
    assert str(tmp_path / "secrets") in done.output
    assert SECRET not in done.output


@pytest.mark.parametrize(
    ("forge", "path", "kind"),
    [("github", "acme/gitops-repo", "secret"), ("gitlab", "platform/clusters/gitops", "token")],
)
async def test_with_a_token_the_webhook_is_made_and_then_brought_up_to_date(
    configure: Configure, server: HookServer, token_file: str, forge: str, path: str, kind: str
) -> None:
    file = configure(f"  acme/a: {{upstream: '{server.url}/{path}', forge: {forge}}}\n")
    arguments = ("--config", file, "--token-file", token_file, "acme/a")
    dry = await asyncio.to_thread(install, "--dry-run", *arguments)
    assert (dry.exit_code, server.hooks) == (0, [])
    assert "would be made" in dry.output
    made = await asyncio.to_thread(install, *arguments)
    assert made.exit_code == 0, made.output
    assert f"the webhook 1001 to {PUBLIC}/webhooks/{forge} was made" in made.output
    assert server.secrets == {(1001, kind): SECRET}
    again = await asyncio.to_thread(install, *arguments)
    assert "the webhook 1001" in again.output
    assert "was brought up to date" in again.output
    assert len(server.hooks) == 1
    assert TOKEN not in made.output
    assert SECRET not in made.output


async def test_the_interface_may_be_named(
    configure: Configure, server: HookServer, token_file: str
) -> None:
    """GitLab below a path: what stands before /api/v4 is no part of the project's."""
    upstream = f"{server.url}/gitlab/platform/clusters/gitops"
    file = configure(f"  acme/a: {{upstream: '{upstream}', forge: gitlab}}\n")
    arguments = ("--config", file, "--token-file", token_file, "acme/a")
    derived = await asyncio.to_thread(install, *arguments)
    assert derived.exit_code == 1
    assert "--api" in derived.output
    named = await asyncio.to_thread(install, "--api", f"{server.url}/gitlab/api/v4/", *arguments)
    assert named.exit_code == 0, named.output


async def test_a_refusal_of_the_forge_is_one_line_and_exit_code_1(
    configure: Configure, server: HookServer, token_file: str
) -> None:
    file = configure(f"  acme/a: {{upstream: '{server.url}/acme/gitops-repo', forge: github}}\n")
    server.refusal = refusal(403, "Resource not accessible by integration")
    done = await asyncio.to_thread(install, "--config", file, "--token-file", token_file, "acme/a")
    assert done.exit_code == 1
    assert done.output.count("\n") == 1
    assert "Webhooks: read and write" in done.output


async def test_webhooks_that_deliver_twice_are_pointed_out(
    configure: Configure, server: HookServer, token_file: str
) -> None:
    file = configure(f"  acme/a: {{upstream: '{server.url}/acme/gitops-repo', forge: github}}\n")
    hook = {"events": ["push"], "config": {"url": f"{PUBLIC}/webhooks/github"}}
    server.hooks = [{"id": 1, **hook}, {"id": 2, **hook}]
    done = await asyncio.to_thread(install, "--config", file, "--token-file", token_file, "acme/a")
    assert done.exit_code == 0
    assert "1 more webhook of the repository to the same URL" in done.output


@pytest.mark.parametrize(
    ("repository", "arguments", "complaint"),
    [
        ("acme/b", (), "no repository 'acme/b'"),
        ("acme/none", (), "openssl rand -hex 32"),
        ("acme/a", ("--dry-run",), "need --token-file"),
        ("acme/a", ("--api", "https://x"), "need --token-file"),
        ("acme/a", ("--url", "mirror"), "--url must be a URL"),
        ("acme/a", ("--token-file", "/nonexistent"), "the token file can't be used"),
        ("acme/bucket", ("--token-file", "/nonexistent"), "can't be made from here"),
    ],
)
def test_what_can_not_be_done_is_told_with_what_to_do(
    configure: Configure, repository: str, arguments: tuple[str, ...], complaint: str
) -> None:
    file = configure(
        "  acme/a: {upstream: 'https://github.com/acme/a'}\n"
        "  acme/bucket: {upstream: 'https://bitbucket.org/acme/a'}\n"
        "  acme/none: {upstream: 'https://github.com/acme/a', webhook_secret_file: none}\n"
    )
    done = install("--config", file, repository, *arguments)
    assert done.exit_code == 1
    assert complaint in done.output


def test_a_missing_secret_is_named(configure: Configure, tmp_path: Path, token_file: str) -> None:
    file = configure("  acme/a: {upstream: 'https://github.com/acme/a'}\n")
    (tmp_path / "secrets").write_text("\n")
    done = install("--config", file, "--token-file", token_file, "acme/a")
    assert done.exit_code == 1
    assert "the webhook_secret_file can't be used" in done.output


@pytest.mark.parametrize(("forge", "warns_of_token"), [("github", False), ("gitlab", True)])
def test_deliveries_in_the_clear_are_warned_of(
    configure: Configure, forge: str, warns_of_token: bool
) -> None:
    file = configure(f"  acme/a: {{upstream: 'https://git.acme.no/a', forge: {forge}}}\n")
    done = install("--config", file, "--url", "http://10.20.0.5:8470", "acme/a")
    assert done.exit_code == 0
    assert "everybody on the way" in done.output
    assert ("the secret token too" in done.output) is warns_of_token


def test_without_a_url_the_public_one_is_meant(configure: Configure) -> None:
    file = configure("  a: {upstream: 'https://github.com/acme/a'}\n")
    command = ["webhook", "install", "--config", file, "a"]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 1
    assert "set server.public_url" in refused.output
    written = Path(file).read_text()
    Path(file).write_text("server: {public_url: 'https://git.example.com/m'}\n" + written)
    shown = CliRunner().invoke(main, command)
    assert "https://git.example.com/m/webhooks/github\n" in shown.output
