"""The LFS client: where its credentials go, where it goes, and what it makes of answers."""

import ipaddress
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from mirror.errors import UpstreamError, UpstreamRefused, UpstreamUnavailable
from mirror.upstream.credentials import BasicCredentials
from mirror.upstream.lfs import LfsRemote, endpoint
from mirror.upstream.line import Line
from mirror.upstream.storage import Reach, Storage, reach_of
from mirror.wire.lfs import Action, Pointer, Refusal
from tests.upstream.conftest import AGENT, BASIC, SECRET
from tests.upstream.scripted import Answer, Scripted, always, scripted

OBJECT = Pointer("a" * 64, 5)
REPOSITORY = "/acme/gitops-repo.git"

MakeRemote = Callable[..., LfsRemote]


@pytest.fixture
async def storage(session: aiohttp.ClientSession) -> AsyncIterator[Storage]:
    async with AsyncExitStack() as stack:
        yield Storage(stack)


@pytest.fixture
def make_remote(session: aiohttp.ClientSession, storage: Storage) -> MakeRemote:
    def make(url: str, credentials: BasicCredentials | None = None) -> LfsRemote:
        return LfsRemote(
            Line(session),
            storage,
            url,
            credentials=credentials,
            silence_seconds_max=20,
            agent=AGENT,
        )

    return make


def offers(**action: object) -> Answer:
    """Answer a batch with one object; the action's href is a function of the server's URL."""

    async def answer(request: web.Request) -> web.Response:
        download = {"href": f"http://{request.host}/storage/1", **action}
        described = {"oid": OBJECT.oid, "size": 5, "actions": {"download": download}}
        return web.json_response({"objects": [described]})

    return answer


async def received(remote: LfsRemote, action: Action, offset: int = 0) -> bytes:
    async with aclosing(remote.download(action, OBJECT, offset=offset)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def failure(remote: LfsRemote, action: Action) -> UpstreamError:
    """Download, which must fail; nothing that it says may hold a secret."""
    with pytest.raises(UpstreamError) as caught:
        await received(remote, action)
    assert SECRET not in str(caught.value)
    return caught.value


def test_the_lfs_server_is_found_from_the_url_as_git_lfs_does() -> None:
    expected = URL("https://x.example/a/b.git/info/lfs")
    assert endpoint("https://x.example/a/b") == endpoint("https://x.example/a/b.git") == expected


async def test_a_batch_is_asked_for_with_our_credentials_in_the_words_of_git_lfs(
    make_remote: MakeRemote, credentials: BasicCredentials
) -> None:
    async with scripted(offers()) as server:
        remote = make_remote(f"{server.url}/acme/gitops-repo", credentials)
        found = await remote.batch([OBJECT])
    assert found == {OBJECT.oid: Action(f"{server.url}/storage/1")}
    (seen,) = server.requests
    assert (seen.method, seen.path) == ("POST", f"{REPOSITORY}/info/lfs/objects/batch")
    assert seen.headers["Accept"] == "application/vnd.git-lfs+json"
    assert seen.headers["Content-Type"] == "application/vnd.git-lfs+json"
    assert seen.headers["Authorization"] == f"Basic {BASIC}"
    assert json.loads(seen.body)["objects"] == [{"oid": OBJECT.oid, "size": 5}]


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (404, UpstreamRefused, "the upstream has no LFS for this repository"),
        (501, UpstreamRefused, "the upstream has no LFS for this repository"),
        (403, UpstreamRefused, "may not read the repository"),
        (503, UpstreamUnavailable, "answered 503"),
    ],
)
async def test_a_refused_batch_says_what_to_do(
    make_remote: MakeRemote,
    credentials: BasicCredentials,
    status: int,
    kind: type[UpstreamError],
    words: str,
) -> None:
    async with scripted(always(status, "no")) as server:
        with pytest.raises(kind, match=words):
            await make_remote(server.repository_url, credentials).batch([OBJECT])


async def test_a_batch_follows_a_rename_but_takes_no_credentials_elsewhere(
    make_remote: MakeRemote, credentials: BasicCredentials
) -> None:
    async def renamed(request: web.Request) -> web.Response:
        if "old" in request.path:
            raise web.HTTPPermanentRedirect(request.path.replace("old", "new"))
        return web.json_response({"objects": []})

    async with scripted(renamed) as server:
        found = await make_remote(f"{server.url}/old.git", credentials).batch([OBJECT])
        assert isinstance(found[OBJECT.oid], Refusal)
        assert [seen.path[:4] for seen in server.requests] == ["/old", "/new"]

    async def away(request: web.Request) -> web.Response:
        raise web.HTTPPermanentRedirect(f"http://localhost:{request.url.port}/elsewhere")

    async with scripted(away) as server:
        with pytest.raises(UpstreamRefused, match="which is another place"):
            await make_remote(server.repository_url, credentials).batch([OBJECT])
        assert len(server.requests) == 1


async def test_our_credentials_go_with_a_download_at_the_upstreams_own_place_alone(
    make_remote: MakeRemote, credentials: BasicCredentials
) -> None:
    body = always(200, "12345")
    async with scripted(body) as own, scripted(body) as other:
        remote = make_remote(own.repository_url, credentials)
        for server, action, expected in (
            (own, Action(f"{own.url}/o"), f"Basic {BASIC}"),
            (own, Action(f"{own.url}/o", {"authorization": "Bearer x"}), "Bearer x"),
            (own, Action(f"{own.url}/o", is_authenticated=True), None),
            (other, Action(f"{other.url}/o"), None),
            (other, Action(f"{other.url}/o", {"X-Key": "k"}), None),
        ):
            assert await received(remote, action) == b"12345"
            headers = {name.lower(): value for name, value in server.requests[-1].headers.items()}
            assert headers.get("authorization") == expected
            assert headers["accept-encoding"] == "identity"
        assert other.requests[-1].headers["X-Key"] == "k"


async def test_what_an_action_says_to_send_is_not_taken_along_to_another_place(
    make_remote: MakeRemote, credentials: BasicCredentials
) -> None:
    async with scripted(always(200, "12345")) as last:

        async def redirect(_: web.Request) -> web.Response:
            raise web.HTTPFound(f"{last.url}/o")

        async with scripted(redirect) as first:
            # The last place is the upstream's own: who sends us there gets nothing of ours used.
            remote = make_remote(last.repository_url, credentials)
            action = Action(f"{first.url}/o", {"X-Token": SECRET})
            assert await received(remote, action) == b"12345"
            assert first.requests[0].headers["X-Token"] == SECRET
        assert not {"X-Token", "Authorization"} & set(last.requests[0].headers)


async def test_a_download_is_continued_where_the_server_can_and_skipped_to_where_not(
    make_remote: MakeRemote,
) -> None:
    async def part(request: web.Request) -> web.Response:
        assert request.headers["Range"] == "bytes=2-4"
        return web.Response(status=206, body=b"345", headers={"Content-Range": "bytes 2-4/5"})

    async with scripted(part) as server:
        action = Action(f"{server.url}/o")
        assert await received(make_remote(server.repository_url), action, 2) == b"345"
        server.answer = always(200, "12345")
        assert await received(make_remote(server.repository_url), action, 2) == b"345"

        async def other(_: web.Request) -> web.Response:
            return web.Response(status=206, body=b"1", headers={"Content-Range": "bytes 0-0/5"})

        server.answer = other
        with pytest.raises(UpstreamUnavailable, match="another part"):
            await received(make_remote(server.repository_url), action, 2)


@pytest.mark.parametrize(
    ("upstream", "href", "words"),
    [
        ("https://forge.example/a.git", f"http://x.example/{SECRET}", "from https to plain http"),
        ("https://forge.example/a.git", f"ftp://x.example/{SECRET}", "no http or https URL"),
        ("https://forge.example/a.git", f"/{SECRET}", "no http or https URL"),
        ("https://forge.example/a.git", f"https://u:{SECRET}@x.example/", "no http or https URL"),
        ("https://forge.example/a.git", f"https://[{SECRET}/", "no http or https URL"),
        ("http://127.0.0.1:9/a.git", f"http://169.254.169.254/{SECRET}", "link-local address"),
        ("http://127.0.0.1:9/a.git", f"http://10.0.0.1/{SECRET}", "private address"),
        ("http://8.8.8.8/a.git", f"http://127.0.0.1:9/{SECRET}", "loopback address"),
        ("http://8.8.8.8/a.git", f"http://[::ffff:10.0.0.1]/{SECRET}", "private address"),
        ("http://8.8.8.8/a.git", f"http://localhost:9/{SECRET}", "loopback address"),
        ("http://8.8.8.8/a.git", f"http://0x7f.1:9/{SECRET}", "loopback address"),
    ],
)
async def test_a_download_does_not_lead_where_it_must_not(
    make_remote: MakeRemote, upstream: str, href: str, words: str
) -> None:
    assert words in str(await failure(make_remote(upstream), Action(href)))


async def test_a_forge_on_this_machine_may_keep_its_objects_on_this_machine(
    make_remote: MakeRemote,
) -> None:
    async with scripted(always(200, "12345")) as server:
        port = URL(server.url).port
        remote = make_remote(server.repository_url)
        assert await received(remote, Action(f"http://localhost:{port}/o")) == b"12345"


async def test_an_answer_that_is_not_http_does_not_show_the_url(make_remote: MakeRemote) -> None:
    async def odd(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(b"HTTP/9 hello\r\n\r\n")
        request.transport.close()
        return web.Response()

    async with scripted(odd) as server:
        error = await failure(make_remote(server.repository_url), _signed(server))
    assert isinstance(error, UpstreamUnavailable)


def _signed(server: Scripted) -> Action:
    return Action(f"{server.url}/o?signature={SECRET}")


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("8.8.8.8", Reach.PUBLIC),
        ("2606:4700::1", Reach.PUBLIC),
        ("127.0.0.1", Reach.MACHINE),
        ("64:ff9b::8.8.8.8", Reach.PUBLIC),
        ("64:ff9b::10.0.0.1", Reach.PRIVATE),
        ("::1", Reach.MACHINE),
        ("::", Reach.MACHINE),
        ("::ffff:127.0.0.1", Reach.MACHINE),
        ("169.254.169.254", Reach.LINK),
        ("fe80::1", Reach.LINK),
        ("10.1.2.3", Reach.PRIVATE),
        ("192.168.0.1", Reach.PRIVATE),
        ("100.64.0.1", Reach.PRIVATE),
        ("fd00::1", Reach.PRIVATE),
        ("2002:a00:1::", Reach.PRIVATE),
        ("224.0.0.1", Reach.PRIVATE),
        ("240.0.0.1", Reach.PRIVATE),
    ],
)
def test_addresses_are_told_apart_by_the_network_that_they_reach(
    address: str, reach: Reach
) -> None:
    assert reach_of(ipaddress.ip_address(address)) is reach
