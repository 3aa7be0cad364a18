"""Renamed repositories: followed within a host, and credentials never leave it."""

import pytest
from aiohttp import web

from mirror.demo.forge import Faults, HttpBackend
from mirror.errors import UpstreamRefused, UpstreamUnavailable
from mirror.upstream.credentials import BasicCredentials
from mirror.upstream.remote import REDIRECTS_MAX
from mirror.wire.names import object_id
from tests.git_client import Upstream
from tests.upstream.conftest import ALL, SECRET, MakeRemote
from tests.upstream.scripted import Answer, a_v2_server, scripted

OLD, NEW = "acme/old-name", "acme/gitops-repo"


def redirecting(location: str, status: int = 301) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": location})

    return answer


async def test_a_renamed_repository_is_followed_and_remembered(
    forge: HttpBackend, upstream: Upstream, make_remote: MakeRemote
) -> None:
    forge.faults = Faults(redirect=(OLD, NEW))
    remote = make_remote(forge.repository_url(OLD))
    listing = await remote.list_refs(ALL)
    assert listing.head == upstream.oid().encode()
    assert remote.moved_to == forge.repository_url(NEW)
    assert [(one.operation, one.path) for one in forge.requests] == [
        ("info/refs", f"/{OLD}.git/info/refs"),
        ("info/refs", f"/{NEW}.git/info/refs"),
        ("ls-refs", f"/{NEW}.git/git-upload-pack"),
    ]
    await remote.list_refs(ALL)
    assert forge.requests[3].path == f"/{NEW}.git/git-upload-pack"
    wants = [object_id(upstream.oid().encode())]
    chunks = [chunk async for chunk in remote.fetch_pack(wants, [])]
    assert b"".join(chunks).startswith(b"PACK")
    assert forge.requests[4].path == f"/{NEW}.git/git-upload-pack"


async def test_a_repository_renamed_between_two_looks_is_found_in_the_same_call(
    forge: HttpBackend, upstream: Upstream, make_remote: MakeRemote
) -> None:
    remote = make_remote(forge.repository_url(NEW))
    await remote.list_refs(ALL)
    (upstream.path.parent / "newer.git").symlink_to(upstream.path)
    forge.faults = Faults(redirect=(NEW, "acme/newer"))
    forge.requests.clear()
    listing = await remote.list_refs(ALL)
    assert listing.head == upstream.oid().encode()
    assert remote.moved_to == forge.repository_url("acme/newer")
    assert forge.operations == ["ls-refs", "info/refs", "info/refs", "ls-refs"]


async def test_a_name_that_is_taken_back_is_no_longer_moved(
    forge: HttpBackend, upstream: Upstream, make_remote: MakeRemote
) -> None:
    forge.faults = Faults(redirect=(OLD, NEW))
    remote = make_remote(forge.repository_url(OLD))
    await remote.list_refs(ALL)
    forge.faults = Faults()
    (upstream.path.parent / "old-name.git").symlink_to(upstream.path)
    remote.forget()
    await remote.list_refs(ALL)
    assert remote.moved_to is None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_every_kind_of_redirect_is_followed(make_remote: MakeRemote, status: int) -> None:
    healthy = a_v2_server()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/acme/gitops-repo.git/"):
            return await redirecting("/acme/a%2Fb%20c.git/info/refs?x=1", status)(request)
        return await healthy(request)

    async with scripted(answer) as server:
        remote = make_remote(server.repository_url)
        assert (await remote.list_refs(ALL)).refs
        assert remote.moved_to == f"{server.url}/acme/a%2Fb%20c.git"
        assert server.requests[-1].path == "/acme/a%2Fb%20c.git/git-upload-pack"


async def test_a_path_with_escapes_is_kept_as_it_is(make_remote: MakeRemote) -> None:
    async with scripted(a_v2_server()) as server:
        await make_remote(f"{server.url}/a%2Fb/c%20d.git").list_refs(ALL)
        assert [seen.path for seen in server.requests] == [
            "/a%2Fb/c%20d.git/info/refs",
            "/a%2Fb/c%20d.git/git-upload-pack",
        ]


async def test_credentials_never_go_to_another_host(
    make_remote: MakeRemote, credentials: BasicCredentials
) -> None:
    async with scripted(a_v2_server()) as other:
        location = f"{other.repository_url}/info/refs?service=git-upload-pack"
        async with scripted(redirecting(location)) as server:
            remote = make_remote(server.repository_url, credentials=credentials)
            with pytest.raises(UpstreamRefused, match="another place") as caught:
                await remote.list_refs(ALL)
            assert server.requests[0].headers["Authorization"]
        assert other.requests == []
    assert f"redirects to {other.repository_url}/info/refs, which" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert remote.moved_to is None


async def test_an_upgrade_to_tls_on_the_same_host_is_followed(make_remote: MakeRemote) -> None:
    async with scripted(a_v2_server()) as server:
        upgraded = server.repository_url.replace("http://", "https://")
        server.answer = redirecting(f"{upgraded}/info/refs")
        remote = make_remote(server.repository_url)
        with pytest.raises(UpstreamUnavailable, match="can't be reached"):  # it has no TLS
            await remote.list_refs(ALL)
        assert remote.moved_to == upgraded


@pytest.mark.parametrize(
    "location",
    [
        "http://{host}:1/acme/gitops-repo.git/info/refs",  # another port
        "http://localhost:{port}/acme/gitops-repo.git/info/refs",  # another name of this machine
        "//forge.invalid/acme/gitops-repo.git/info/refs",
        "ftp://{host}:{port}/acme/gitops-repo.git/info/refs",
        "http://{host}.evil.invalid:{port}/acme/gitops-repo.git/info/refs",
        "http://{host}:{port}@evil.invalid/acme/gitops-repo.git/info/refs",
    ],
)
async def test_another_place_is_refused_whatever_its_disguise(
    make_remote: MakeRemote, credentials: BasicCredentials, location: str
) -> None:
    async with scripted(a_v2_server()) as server:
        port = server.url.rpartition(":")[2]
        server.answer = redirecting(location.format(host="127.0.0.1", port=port))
        with pytest.raises(UpstreamRefused, match="which is another place; if that is right"):
            await make_remote(server.repository_url, credentials=credentials).list_refs(ALL)
        assert len(server.requests) == 1


async def test_a_downgrade_from_tls_is_refused(make_remote: MakeRemote) -> None:
    """Decided by the rule alone: a redirect from https to http on the very same host."""
    async with scripted(a_v2_server()) as server:
        remote = make_remote(server.repository_url)
        server.answer = redirecting(f"{server.repository_url}/info/refs")
        remote._configured = remote._configured.with_scheme("https")
        session = remote._line.session
        original = session.request
        session.request = (  # type: ignore[method-assign]  # speak plain HTTP to the server
            lambda method, url, **rest: original(method, url.with_scheme("http"), **rest)
        )
        with pytest.raises(UpstreamRefused, match="another place"):
            await remote.list_refs(ALL)
        assert len(server.requests) == 1


async def test_user_names_in_a_redirect_are_dropped(
    make_remote: MakeRemote, credentials: BasicCredentials
) -> None:
    healthy = a_v2_server()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/acme/gitops-repo.git/"):
            place = server.url.replace("http://", "http://someone:else@")
            return await redirecting(f"{place}/new.git/info/refs")(request)
        return await healthy(request)

    async with scripted(answer) as server:
        remote = make_remote(server.repository_url, credentials=credentials)
        assert (await remote.list_refs(ALL)).refs
        assert remote.moved_to == f"{server.url}/new.git"
        sent = {seen.headers["Authorization"] for seen in server.requests}
        assert len(sent) == 1, "our own credentials with every request"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("/users/sign_in", "is no repository: is the URL right, and does it want credentials?"),
        ("http://[broken/info/refs", "no URL"),
        ("http://forge.invalid:99999/x/info/refs", "no URL"),
        ("", "redirects more than 3 times"),
    ],
)
async def test_a_redirect_that_leads_nowhere_is_refused(
    make_remote: MakeRemote, location: str, message: str
) -> None:
    async with scripted(redirecting(location)) as server:
        with pytest.raises(UpstreamRefused) as caught:
            await make_remote(server.repository_url).list_refs(ALL)
    assert message in str(caught.value)


async def test_a_loop_of_redirects_ends(make_remote: MakeRemote) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        there = "/b.git/info/refs" if request.path.startswith("/acme") else "/acme/x.git/info/refs"
        return await redirecting(there)(request)

    async with scripted(answer) as server:
        with pytest.raises(UpstreamRefused, match="redirects more than 3 times"):
            await make_remote(server.repository_url).list_refs(ALL)
        assert len(server.requests) == REDIRECTS_MAX + 1


async def test_a_chain_of_a_few_redirects_is_followed(make_remote: MakeRemote) -> None:
    healthy = a_v2_server()

    async def answer(request: web.Request) -> web.StreamResponse:
        number = len(server.requests)
        if number <= REDIRECTS_MAX:
            return await redirecting(f"/step-{number}.git/info/refs")(request)
        return await healthy(request)

    async with scripted(answer) as server:
        remote = make_remote(server.repository_url)
        assert (await remote.list_refs(ALL)).refs
        assert remote.moved_to == f"{server.url}/step-{REDIRECTS_MAX}.git"
