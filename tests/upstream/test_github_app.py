"""A GitHub App: one token for all who need it, renewed before it ends, and words for what fails."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from mirror.config import GithubAppSettings, LimitSettings, RepositorySettings
from mirror.errors import UpstreamError, UpstreamRefused, UpstreamUnavailable
from mirror.upstream.connect import remote_for
from mirror.upstream.credentials import Credentials
from mirror.upstream.github_app import PAUSE_SECONDS, RENEWED_AHEAD_SECONDS, YOUNG_SECONDS
from mirror.upstream.keyring import Keyring
from mirror.upstream.remote import Remote
from tests.git_client import Upstream
from tests.github_server import APP_ID, TOKEN_SECONDS, Clock, GithubSite, github_site, pem
from tests.upstream.conftest import AGENT, ALL
from tests.upstream.scripted import scripted

NEW_TOKEN = "POST /app/installations/7/access_tokens"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def site(upstream_root: Path, clock: Clock) -> AsyncIterator[GithubSite]:
    async with github_site(upstream_root, clock) as running:
        yield running


class Client:
    """The mirror's side: a keyring, and clients of repositories."""

    def __init__(
        self, session: aiohttp.ClientSession, site: GithubSite, clock: Clock, key_file: Path
    ) -> None:
        self.key_file = key_file
        self.clock = clock
        self._session = session
        self._site = site
        self.keyring = Keyring(session, agent=AGENT, clock=clock, monotonic=clock)

    def settings(self, name: str, **app: Any) -> RepositorySettings:
        credentials = GithubAppSettings(
            **{"app_id": APP_ID, "private_key_file": self.key_file, **app}
        )
        return RepositorySettings(
            name=name, upstream=self._site.forge.repository_url(name), credentials=credentials
        )

    def credentials(self, name: str = "acme/gitops-repo", **app: Any) -> Credentials:
        found = self.keyring.credentials(self.settings(name, **app))
        assert found is not None
        return found

    def remote(self, name: str = "acme/gitops-repo", **app: Any) -> Remote:
        settings = self.settings(name, **app)
        return remote_for(self._session, self.keyring, settings, LimitSettings(), agent=AGENT)

    async def settled(self) -> None:
        """Wait for the renewals under way."""
        for app in self.keyring._apps.values():
            for one in list(app._installations.values()):
                if one._renewing is not None:
                    await asyncio.wait((one._renewing,))

    async def failure(self, name: str = "acme/gitops-repo", **app: Any) -> UpstreamError:
        with pytest.raises(UpstreamError) as caught:
            await self.credentials(name, **app).authorization()
        return caught.value


@pytest.fixture
async def client(
    session: aiohttp.ClientSession, site: GithubSite, clock: Clock, tmp_path: Path
) -> AsyncIterator[Client]:
    key_file = tmp_path / "app.pem"
    key_file.write_bytes(pem())
    own = Client(session, site, clock, key_file)
    yield own
    await own.keyring.close()


async def test_an_app_fetches_with_a_token_of_its_installation(
    client: Client, site: GithubSite, upstream: Upstream
) -> None:
    listing = await client.remote().list_refs(ALL)
    assert {ref.name.decode() for ref in listing.refs} == upstream.refs().keys()
    assert site.github.asked == {"GET /orgs/acme/installation": 1, NEW_TOKEN: 1}
    assert site.github.permissions == {"contents": "read", "metadata": "read"}


async def test_repositories_of_one_organisation_share_a_token_that_is_asked_for_once(
    client: Client, site: GithubSite, upstream_root: Path, upstream: Upstream
) -> None:
    Upstream(upstream_root, "acme/other").commit()
    remotes = [client.remote(name) for name in ("acme/gitops-repo", "acme/other", "Acme/other")]
    listings = await asyncio.gather(*(remotes[n % 2].list_refs(ALL) for n in range(6)))
    assert all(listing.refs for listing in listings)
    assert site.github.asked[NEW_TOKEN] == 1
    await client.credentials("ACME/gitops-repo").authorization()
    assert site.github.asked[NEW_TOKEN] == 1, "GitHub's names are the same in any case"


async def test_an_owner_may_be_a_user_and_each_owner_has_its_own_token(
    client: Client, site: GithubSite
) -> None:
    site.github.users = {"jane": 8}
    ours, hers = client.credentials(), client.credentials("jane/app")
    assert await ours.authorization() != await hers.authorization()
    assert site.github.asked["GET /orgs/jane/installation"] == 1
    assert site.github.asked["POST /app/installations/8/access_tokens"] == 1


async def test_an_installation_that_is_named_is_not_looked_for(
    client: Client, site: GithubSite
) -> None:
    await client.credentials(installation_id=7).authorization()
    assert site.github.asked == {NEW_TOKEN: 1}


async def test_another_place_of_the_interface_can_be_named(
    client: Client, site: GithubSite
) -> None:
    api = f"{site.forge.url}/api/v3"
    await client.credentials("elsewhere/app", installation_id=7, api=api).authorization()
    assert site.github.tokens_made == 1


async def test_a_token_is_renewed_ahead_of_its_end_and_nobody_waits(
    client: Client, site: GithubSite, clock: Clock
) -> None:
    credentials = client.credentials()
    first = await credentials.authorization()
    assert credentials.standing.renewed_at == clock.now
    clock.now += TOKEN_SECONDS - RENEWED_AHEAD_SECONDS - 1
    assert await credentials.authorization() == first
    assert site.github.tokens_made == 1
    clock.now += 2
    assert await credentials.authorization() == first, "the old one is good for ten minutes more"
    await client.settled()
    assert await credentials.authorization() != first
    assert site.github.tokens_made == 2
    assert credentials.standing.renewed_at == clock.now


async def test_a_token_is_renewed_though_nobody_asks_for_it(
    client: Client, site: GithubSite, clock: Clock
) -> None:
    """A webhook after an hour without polls is not to wait for a token."""
    credentials = client.credentials()
    await credentials.authorization()
    clock.now += TOKEN_SECONDS - RENEWED_AHEAD_SECONDS + 1
    await client.keyring.look()
    await client.settled()
    assert site.github.tokens_made == 2


async def test_while_the_interface_is_down_the_old_token_serves_to_its_end(
    client: Client, site: GithubSite, clock: Clock, upstream: Upstream
) -> None:
    remote, credentials = client.remote(), client.credentials()
    await remote.list_refs(ALL)
    site.github.status = 502
    clock.now += TOKEN_SECONDS - RENEWED_AHEAD_SECONDS + 1
    for _ in range(5):
        await remote.list_refs(ALL)
    await client.settled()
    await remote.list_refs(ALL)
    assert site.github.asked[NEW_TOKEN] == 2, "it is left alone for a while"
    assert not credentials.standing.failing_since
    clock.now += RENEWED_AHEAD_SECONDS
    with pytest.raises(UpstreamUnavailable, match="answered 502"):
        await remote.list_refs(ALL)
    assert credentials.standing.failing_since == clock.now
    site.github.status = None
    clock.now += PAUSE_SECONDS + 1
    await remote.list_refs(ALL)
    assert not credentials.standing.failing_since


async def test_a_token_that_was_revoked_is_renewed_and_the_request_repeated_at_once(
    client: Client, site: GithubSite, clock: Clock, upstream: Upstream
) -> None:
    remotes = [client.remote() for _ in range(3)]
    await asyncio.gather(*(remote.list_refs(ALL) for remote in remotes))
    clock.now += YOUNG_SECONDS + 1
    site.github.revoke()
    listings = await asyncio.gather(*(remote.list_refs(ALL) for remote in remotes))
    assert all(listing.refs for listing in listings)
    assert site.github.tokens_made == 2, "one for all"


async def test_a_new_token_that_is_refused_is_not_renewed_again_and_again(
    client: Client, site: GithubSite, upstream: Upstream
) -> None:
    remote = client.remote()
    await remote.list_refs(ALL)
    site.github.revoke()
    with pytest.raises(UpstreamRefused, match=r"refuses a new token of GitHub App 123456 \(key "):
        await remote.list_refs(ALL)
    assert site.github.tokens_made == 1


async def test_an_app_that_is_installed_anew_has_another_number(
    client: Client, site: GithubSite, clock: Clock
) -> None:
    credentials = client.credentials()
    await credentials.authorization()
    site.github.organisations = {"acme": 9}
    clock.now += TOKEN_SECONDS
    await credentials.authorization()
    assert site.github.asked["POST /app/installations/9/access_tokens"] == 1


async def test_a_renewal_outlives_the_caller_that_began_it(
    client: Client, site: GithubSite
) -> None:
    asking = asyncio.create_task(client.credentials().authorization())
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await client.credentials().authorization()
    assert site.github.tokens_made == 1


@pytest.mark.parametrize(
    ("hurt", "kind", "words"),
    [
        (lambda github: github.suspended.add(7), UpstreamRefused, "for acme is suspended"),
        (lambda github: github.organisations.clear(), UpstreamRefused, "not installed for acme"),
        (
            lambda github: setattr(github, "lacks_contents", True),
            UpstreamRefused,
            "lacks the repository permission Contents: read-only",
        ),
        (lambda github: setattr(github, "status", 500), UpstreamUnavailable, "answered 500"),
        (lambda github: setattr(github, "status", 429), UpstreamUnavailable, "to slow down"),
        (lambda github: setattr(github, "status", 301), UpstreamRefused, "acme has moved"),
        (lambda github: setattr(github, "status", 418), UpstreamRefused, "no token for acme"),
    ],
)
async def test_what_fails_names_the_app_and_says_what_to_do(
    client: Client,
    site: GithubSite,
    hurt: Callable[[Any], None],
    kind: type[UpstreamError],
    words: str,
) -> None:
    hurt(site.github)
    error = await client.failure()
    assert isinstance(error, kind)
    assert words in str(error)
    assert "failing since 2026-" in str(error)
    if kind is UpstreamRefused and "moved" not in words:
        assert f"GitHub App {APP_ID} (key {client.key_file})" in str(error)


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1200, "1200 s behind GitHub's"), (1200, "1200 s ahead of GitHub's")]
)
async def test_a_clock_that_is_wrong_is_told_by_how_much(
    client: Client, site: GithubSite, seconds: float, words: str
) -> None:
    site.github.clock = Clock()
    client.clock.now += seconds
    error = await client.failure()
    assert words in str(error)
    assert "chrony" in str(error)


@pytest.mark.parametrize("seconds", [-60.0, 45.0])
async def test_a_clock_that_is_a_little_wrong_does_no_harm(
    client: Client, site: GithubSite, seconds: float
) -> None:
    """And how long a token lasts is reckoned by GitHub's clock."""
    site.github.clock = Clock()
    client.clock.now += seconds
    credentials = client.credentials()
    first = await credentials.authorization()
    client.clock.now += TOKEN_SECONDS - RENEWED_AHEAD_SECONDS - 5
    assert await credentials.authorization() == first
    assert site.github.tokens_made == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "can't be read: No such file"),
        (b"", "is empty"),
        (
            b"-----BEGIN RSA PRIVATE KEY-----\nc2VjcmV0\n-----END RSA PRIVATE KEY-----\n",
            "no private",
        ),
        (b"a secret that is no key", "holds no private RSA key in PEM form"),
        (pem(rsa.generate_private_key(65537, 2048)), "is `app_id` right, and the key not deleted"),
    ],
    ids=["missing", "empty", "broken", "another", "foreign"],
)
async def test_a_key_that_can_not_be_used_is_named_and_not_shown(
    client: Client, content: bytes | None, words: str
) -> None:
    client.key_file.unlink()
    if content is not None:
        client.key_file.write_bytes(content)
    error = await client.failure()
    assert isinstance(error, UpstreamRefused)
    assert words in str(error)
    assert str(client.key_file) in str(error)
    assert "c2VjcmV0" not in str(error)
    assert "a secret" not in str(error)


async def test_what_the_interface_repeats_of_a_request_is_concealed(client: Client) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.json_response({"message": request.headers["Authorization"]}, status=400)

    async with scripted(echo) as server:
        error = await client.failure(installation_id=1, api=server.url)
    assert "answered 400 (***): it gives GitHub App" in str(error)


async def test_a_key_that_is_put_right_is_used_with_the_next_request(
    client: Client, clock: Clock
) -> None:
    client.key_file.write_bytes(b"nothing of use")
    await client.failure()
    clock.now += PAUSE_SECONDS
    client.key_file.write_bytes(pem())
    assert await client.credentials().authorization()
