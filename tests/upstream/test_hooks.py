import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from mirror.config import PasswordSettings, RouteSettings
from mirror.errors import UpstreamError, UpstreamRefused, UpstreamUnavailable
from mirror.upstream import hooks
from mirror.upstream.credentials import Secret
from mirror.upstream.forges.hook_api import HOOK_APIS, HookApi, api_base
from mirror.upstream.hooks import HookInstaller, Installed
from mirror.upstream.line import Line
from mirror.upstream.route import Route
from tests.upstream.hook_server import TOKEN, HookServer, hook_server, refusal
from tests.ways import forward_proxy

URL = "https://mirror.example.com/webhooks/github"
SECRET = "s3cret of the hook"
SIGNING_TOKEN = "whsec_" + base64.b64encode(bytes(range(32))).decode()
PATHS = {"github": "acme/gitops-repo", "gitlab": "platform/clusters/gitops"}
each_forge = pytest.mark.parametrize("forge", list(PATHS))


@pytest.fixture
async def server() -> AsyncIterator[HookServer]:
    async with hook_server() as running:
        yield running


def api(server: HookServer, forge: str) -> HookApi:
    return HOOK_APIS[forge].of(f"{server.url}/{PATHS[forge]}.git")


class Install:
    """Installs the hook of one forge at the server."""

    def __init__(self, session: aiohttp.ClientSession, server: HookServer) -> None:
        self._session = session
        self._server = server

    async def __call__(
        self,
        forge: str,
        *,
        secret: str = SECRET,
        token: str = TOKEN,
        url: str = URL,
        is_dry_run: bool = False,
    ) -> Installed:
        installer = HookInstaller(
            Line(self._session), api(self._server, forge), Secret(token.encode("latin-1"))
        )
        return await installer.install(
            url=url, secret=Secret(secret.encode("latin-1")), is_dry_run=is_dry_run
        )


@pytest.fixture
def install(session: aiohttp.ClientSession, server: HookServer) -> Install:
    return Install(session, server)


async def test_a_hook_is_made_at_github_once_and_then_brought_up_to_date(
    server: HookServer, install: Install
) -> None:
    assert await install("github") == Installed(is_new=True, hook_id=1001)
    again = await install("github", secret="a new one")
    assert again == Installed(is_new=False, hook_id=1001)
    [hook] = server.hooks
    assert (hook["active"], hook["events"]) == (True, ["push"])
    assert hook["config"]["url"] == URL
    assert (hook["config"]["content_type"], hook["config"]["insecure_ssl"]) == ("json", "0")
    assert server.secrets == {(1001, "secret"): "a new one"}


async def test_a_hook_is_made_at_gitlab_once_and_then_brought_up_to_date(
    server: HookServer, install: Install
) -> None:
    assert await install("gitlab") == Installed(is_new=True, hook_id=1001)
    assert await install("gitlab") == Installed(is_new=False, hook_id=1001)
    [hook] = server.hooks
    assert hook["url"] == URL
    assert hook["push_events"]
    assert hook["tag_push_events"]
    assert hook["enable_ssl_verification"]
    assert server.secrets == {(1001, "token"): SECRET}


async def test_a_signing_token_is_given_to_gitlab_as_one(
    server: HookServer, install: Install
) -> None:
    await install("gitlab", secret=SIGNING_TOKEN)
    assert server.secrets == {(1001, "signing_token"): SIGNING_TOKEN}


@pytest.mark.parametrize("secret", ["whsec_", "whsec_short", "whsec_AAAA", SIGNING_TOKEN[:-1]])
async def test_what_is_no_signing_token_is_given_to_gitlab_as_a_token(
    server: HookServer, install: Install, secret: str
) -> None:
    await install("gitlab", secret=secret)
    assert server.secrets == {(1001, "token"): secret}


async def test_an_old_gitlab_that_knows_no_signing_token_is_told_apart(
    server: HookServer, install: Install
) -> None:
    server.takes_signing_tokens = False
    with pytest.raises(UpstreamRefused, match="takes no signing token"):
        await install("gitlab", secret=SIGNING_TOKEN)
    assert (await install("gitlab")).hook_id == 1001


@each_forge
async def test_the_hook_is_found_on_whichever_page_it_stands(
    server: HookServer, install: Install, forge: str
) -> None:
    for number in range(7):
        url = URL + "/" if number == 5 else f"https://other.example.com/{number}"
        server.hooks.append({"id": number, "events": [], "url": url, "config": {"url": url}})
    server.page_length_max = 2
    assert await install(forge) == Installed(is_new=False, hook_id=5)
    listed = [request for request in server.requests if request.startswith("GET")]
    assert [request.partition("?")[2] for request in listed] == [
        f"per_page=100&page={page}" for page in (1, 2, 3, 4)
    ]
    assert len(server.hooks) == 7


async def test_what_else_a_hook_of_github_is_for_stays(
    server: HookServer, install: Install
) -> None:
    for events, kept in (
        (["release"], ["push", "release"]),
        (["*"], ["*"]),
        ([{}, None], ["push"]),
        (None, ["push"]),
    ):
        server.hooks = [{"id": 7, "events": events, "config": {"url": URL}}]
        await install("github")
        assert server.hooks[0]["events"] == kept


@each_forge
async def test_hooks_that_deliver_twice_are_counted(
    server: HookServer, install: Install, forge: str
) -> None:
    server.hooks = [
        {"id": number, "events": [], "url": URL, "config": {"url": URL}} for number in (1, 2, 3)
    ]
    assert await install(forge) == Installed(is_new=False, hook_id=1, others=2)


@each_forge
async def test_a_dry_run_only_looks(server: HookServer, install: Install, forge: str) -> None:
    assert await install(forge, is_dry_run=True) == Installed(is_new=True, hook_id=None)
    server.hooks = [{"id": 3, "events": [], "url": URL, "config": {"url": URL}}]
    assert await install(forge, is_dry_run=True) == Installed(is_new=False, hook_id=3)
    assert {request.split(" ")[0] for request in server.requests} == {"GET"}
    assert server.secrets == {}


GITHUB_NEEDS = "admin:repo_hook"
GITLAB_NEEDS = "scope api, of a Maintainer"


@pytest.mark.parametrize(
    ("forge", "status", "message", "words"),
    [
        ("github", 401, "Bad credentials", ("wrong or has expired", GITHUB_NEEDS)),
        ("github", 403, "Resource not accessible", ("may not set webhooks", "Webhooks: read and")),
        ("github", 404, "Not Found", ("may not see", GITHUB_NEEDS)),
        ("github", 422, "Validation Failed", ("Validation Failed", "does not take this webhook")),
        ("gitlab", 401, "401 Unauthorized", ("wrong or has expired", GITLAB_NEEDS)),
        ("gitlab", 403, "403 Forbidden", ("may not set webhooks", GITLAB_NEEDS)),
        ("gitlab", 404, "404 Project Not Found", ("may not see", GITLAB_NEEDS)),
        ("github", 422, ["one", {"message": "two"}], ("one", "two")),
        ("gitlab", 422, {"url": ["is blocked"]}, ("is blocked", "does not take this webhook")),
        ("gitlab", 302, "", ("redirects", "--api")),
        ("github", 301, "Moved Permanently", ("redirects", "`upstream`")),
    ],
)
async def test_a_refusal_says_what_to_do(
    server: HookServer,
    install: Install,
    forge: str,
    status: int,
    message: object,
    words: tuple[str, ...],
) -> None:
    server.refusal = refusal(status, message, Location="https://elsewhere.invalid/")
    with pytest.raises(UpstreamRefused) as refused:
        await install(forge)
    assert f"answered {status}" in str(refused.value)
    for expected in words:
        assert expected in str(refused.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (403, {"X_RateLimit_Remaining": "0"}, "slow down"),
        (403, {"Retry_After": "60"}, "slow down"),
        (429, {}, "slow down"),
        (500, {}, "try again later"),
        (502, {}, "try again later"),
    ],
)
async def test_passing_trouble_is_told_as_such(
    server: HookServer, install: Install, status: int, headers: dict[str, str], words: str
) -> None:
    server.refusal = refusal(status, "no", **headers)
    with pytest.raises(UpstreamUnavailable, match=words):
        await install("github")


async def test_a_wrong_token_is_refused_by_the_forge(server: HookServer, install: Install) -> None:
    with pytest.raises(UpstreamRefused, match=r"answered 401 \(Bad credentials\)"):
        await install("github", token="wrong")
    assert server.hooks == []


async def test_an_answer_that_echoes_secrets_is_repeated_without_them(
    server: HookServer, install: Install
) -> None:
    server.refusal = refusal(422, f"bad {SECRET} for {TOKEN}\n\x1b[31m")
    with pytest.raises(UpstreamError) as refused:
        await install("github")
    assert "bad *** for ***" in str(refused.value)
    assert str(refused.value).isprintable()
    assert SECRET not in str(refused.value)
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("text", ["", "<html>", "[]", "null", '{"message": null, "errors": 7}'])
async def test_a_refusal_without_words_is_told_by_its_status(
    server: HookServer, install: Install, text: str
) -> None:
    server.refusal = (403, text, {})
    with pytest.raises(UpstreamRefused, match="answered 403: the token may not"):
        await install("github")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<html>Sign in</html>", "did not answer with JSON"),
        ("[" * 100_000, "did not answer with JSON"),
        ('{"hooks": []}', "did not answer with a list"),
        ("[1]", "did not answer with a webhook"),
        (json.dumps([{"config": {"url": URL}}]), "did not tell the number"),
    ],
)
async def test_an_answer_of_something_else_is_told_as_such(
    server: HookServer, install: Install, text: str, complaint: str
) -> None:
    server.refusal = (200, text, {})
    with pytest.raises(UpstreamRefused, match=complaint):
        await install("github")


async def test_an_answer_without_end_is_given_up(
    server: HookServer, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "ANSWER_BYTES_MAX", 1 << 20)
    server.refusal = (200, "[" + " " * (2 << 20) + "]", {})
    with pytest.raises(UpstreamRefused, match="longer than 1 MiB"):
        await install("github")


async def test_more_pages_than_any_forge_has_are_given_up(
    server: HookServer, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "PAGES_MAX", 3)
    server.hooks = [{"id": number, "config": {}} for number in range(4)]
    server.page_length_max = 1
    with pytest.raises(UpstreamRefused, match="over 300 webhooks"):
        await install("github")


async def test_a_forge_that_is_not_there_is_named(session: aiohttp.ClientSession) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        there = HOOK_APIS["github"].of(f"http://127.0.0.1:{taken.getsockname()[1]}/acme/a")
        with pytest.raises(UpstreamUnavailable, match="can't be reached"):
            await HookInstaller(Line(session), there, Secret(b"t")).install(
                url=URL, secret=Secret(b"s"), is_dry_run=True
            )


async def test_a_forge_that_hangs_up_is_told_as_such(
    session: aiohttp.ClientSession,
) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[")
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        there = HOOK_APIS["github"].of(f"http://127.0.0.1:{port}/acme/a")
        with pytest.raises(UpstreamUnavailable, match="can't be reached"):
            await HookInstaller(Line(session), there, Secret(b"t")).install(
                url=URL, secret=Secret(b"s"), is_dry_run=True
            )


async def test_over_plain_http_to_another_machine_nothing_is_sent(
    session: aiohttp.ClientSession,
) -> None:
    there = HOOK_APIS["gitlab"].of("http://gitlab.invalid/platform/clusters/gitops")
    with pytest.raises(UpstreamRefused, match="plain http"):
        await HookInstaller(Line(session), there, Secret(b"t")).install(
            url=URL, secret=Secret(b"s"), is_dry_run=True
        )


@pytest.mark.parametrize("bad", ["two\nlines", " s", "s ", "\xff", "\t", "a\x00b"])
async def test_a_token_or_secret_that_can_not_be_sent_is_refused_before_anything_is(
    server: HookServer, install: Install, bad: str
) -> None:
    with pytest.raises(UpstreamRefused, match="secret must be one line"):
        await install("github", secret=bad)
    with pytest.raises(UpstreamRefused, match="token must be one line"):
        await install("github", token=bad)
    assert server.requests == []


async def test_the_headers_are_those_the_forges_document(
    server: HookServer, install: Install
) -> None:
    await install("github", is_dry_run=True)
    [headers] = server.headers
    assert headers["Accept"] == "application/vnd.github+json"
    assert headers["X-GitHub-Api-Version"] == "2022-11-28"
    assert headers["User-Agent"]  # GitHub refuses a request without one


@pytest.mark.parametrize(
    ("forge", "upstream", "base"),
    [
        ("github", "https://github.com/acme/a", "https://api.github.com"),
        ("github", "https://www.github.com/acme/a", "https://api.github.com"),
        ("github", "https://acme.ghe.com/acme/a", "https://api.acme.ghe.com"),
        ("github", "https://github.acme.no:8443/acme/a", "https://github.acme.no:8443/api/v3"),
        ("gitlab", "https://gitlab.com/acme/a", "https://gitlab.com/api/v4"),
        ("gitlab", "http://[::1]:8080/acme/a", "http://[::1]:8080/api/v4"),
    ],
)
def test_where_the_interface_is_follows_from_the_upstream(
    forge: str, upstream: str, base: str
) -> None:
    assert api_base(forge, upstream) == base
    assert HOOK_APIS[forge].of(upstream).hooks_url.startswith(base + "/")


@pytest.mark.parametrize(
    ("forge", "upstream", "base", "hooks_url"),
    [
        (
            "github",
            "https://git.acme.no/acme/a.b.git",
            "https://api.acme.no",
            "https://api.acme.no/repos/acme/a.b/hooks",
        ),
        (
            "gitlab",
            "https://acme.no/gitlab/platform/clusters/gitops.git",
            "https://acme.no/gitlab/api/v4",
            "https://acme.no/gitlab/api/v4/projects/platform%2Fclusters%2Fgitops/hooks",
        ),
        (
            "gitlab",
            "https://gitlab.acme.no/gitlab/gitops",
            "https://internal.acme.no/gitlab/api/v4",
            "https://internal.acme.no/gitlab/api/v4/projects/gitlab%2Fgitops/hooks",
        ),
    ],
)
def test_a_named_interface_outdoes_the_derived_one(
    forge: str, upstream: str, base: str, hooks_url: str
) -> None:
    assert HOOK_APIS[forge].of(upstream, base).hooks_url == hooks_url


async def test_the_interface_is_reached_by_the_upstreams_own_route(
    session: aiohttp.ClientSession, server: HookServer, tmp_path: Path
) -> None:
    password_file = tmp_path / "password"
    password_file.write_text("pr0xy-p4ss")
    account = PasswordSettings(username="mirror", password_file=password_file)
    async with forward_proxy() as proxy:
        route = Route(RouteSettings(proxy=proxy.url, proxy_credentials=account))
        installer = HookInstaller(
            Line(session, route), api(server, "github"), Secret(TOKEN.encode())
        )
        assert (await installer.install(url=URL, secret=Secret(b"s"), is_dry_run=False)).is_new
        assert len(proxy.seen) == len(server.requests) == 2
