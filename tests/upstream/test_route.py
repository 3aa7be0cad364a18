"""The way to an upstream, for all that goes there: authorities of its own, and a proxy."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from mirror.config import (
    LimitSettings,
    PasswordSettings,
    RepositorySettings,
    RouteSettings,
)
from mirror.errors import UpstreamError, UpstreamRefused, UpstreamUnavailable
from mirror.upstream.connect import lfs_remote_for, remote_for
from mirror.upstream.keyring import Keyring
from mirror.upstream.line import Line
from mirror.upstream.push import PushLine
from mirror.upstream.route import Route
from mirror.upstream.storage import Storage
from mirror.wire.lfs import Action, Pointer
from tests.certificates import Authority
from tests.upstream.conftest import AGENT, ALL, BASIC, SECRET
from tests.upstream.scripted import Scripted, a_v2_server, raw_server, scripted
from tests.ways import ForwardProxy, forward_proxy, tls_front

PATH = "acme/gitops-repo.git"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path)


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    async with scripted(a_v2_server()) as running:
        yield running


@pytest.fixture
async def tls_port(server: Scripted, authority: Authority, tmp_path: Path) -> AsyncIterator[int]:
    """The server over TLS, with a certificate of the test's authority."""
    port = int(server.url.rpartition(":")[2])
    async with tls_front(port, authority.server_context(tmp_path)) as front:
        yield front


@pytest.fixture
async def proxy() -> AsyncIterator[ForwardProxy]:
    async with forward_proxy() as running:
        yield running


@pytest.fixture
def password_file(tmp_path: Path, proxy: ForwardProxy) -> Path:
    """The password for the proxy."""
    file = tmp_path / "proxy-password"
    file.write_text(proxy.account.partition(":")[2])
    return file


def through(proxy: ForwardProxy, password_file: Path, ca_file: Path | None = None) -> RouteSettings:
    account = PasswordSettings(username="mirror", password_file=password_file)
    return RouteSettings(proxy=proxy.url, proxy_credentials=account, ca_file=ca_file)


class Asker:
    """Looks at upstreams by given routes."""

    def __init__(self, session: aiohttp.ClientSession, token_file: Path) -> None:
        self.session = session
        self.keyring = Keyring(session, agent=AGENT)
        self.token_file = token_file

    def settings(self, url: str, route: RouteSettings) -> RepositorySettings:
        credentials = PasswordSettings(username="ci", password_file=self.token_file)
        return RepositorySettings(name="a", upstream=url, route=route, credentials=credentials)

    async def look(self, url: str, route: RouteSettings) -> None:
        settings = self.settings(url, route)
        remote = remote_for(self.session, self.keyring, settings, LimitSettings(), agent=AGENT)
        assert (await remote.list_refs(ALL)).refs

    async def failure(self, url: str, route: RouteSettings) -> UpstreamError:
        with pytest.raises(UpstreamError) as caught:
            await self.look(url, route)
        for secret in (SECRET, BASIC, "pr0xy-p4ss", "bWlycm9yOnByMHh5LXA0c3M="):
            assert secret not in f"{caught.value} {caught.value!r}"
        return caught.value


@pytest.fixture
def asker(session: aiohttp.ClientSession, tmp_path: Path) -> Asker:
    file = tmp_path / "token"
    file.write_text(SECRET)
    return Asker(session, file)


# --- authorities -------------------------------------------------------------------------------


async def test_an_upstream_with_a_private_authority_is_trusted_where_that_is_named(
    asker: Asker, authority: Authority, tls_port: int
) -> None:
    url = f"https://localhost:{tls_port}/{PATH}"
    error = await asker.failure(url, RouteSettings())
    assert isinstance(error, UpstreamRefused)
    assert "certificate of localhost is not accepted" in str(error)
    await asker.look(url, RouteSettings(ca_file=authority.file))


async def test_the_systems_authorities_stay_trusted(authority: Authority) -> None:
    context = await Route(RouteSettings(ca_file=authority.file)).tls()
    assert context is not None
    system = ssl.create_default_context().cert_store_stats()["x509_ca"]
    assert context.cert_store_stats()["x509_ca"] == system + 1
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


async def test_an_authority_that_is_renewed_is_trusted_without_a_restart(
    asker: Asker, authority: Authority, tls_port: int, tmp_path: Path
) -> None:
    url, elsewhere = f"https://localhost:{tls_port}/{PATH}", tmp_path / "elsewhere"
    elsewhere.mkdir()
    ca_file = Authority.make(elsewhere).file
    route = RouteSettings(ca_file=ca_file)
    assert "not accepted" in str(await asker.failure(url, route))
    ca_file.write_bytes(authority.file.read_bytes())
    await asker.look(url, route)
    assert len(asker.keyring._routes) == 1
    first = await asker.keyring.route(asker.settings(url, route)).tls()
    assert await asker.keyring.route(asker.settings("https://x.example/a", route)).tls() is first


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "can't be read: No such file"), ("no certificate", "holds no certificate in PEM form")],
)
async def test_a_file_without_authorities_is_named(
    asker: Asker, tmp_path: Path, tls_port: int, content: str | None, words: str
) -> None:
    ca_file = tmp_path / "other.pem"
    if content is not None:
        ca_file.write_text(content)
    route = RouteSettings(ca_file=ca_file)
    error = await asker.failure(f"https://localhost:{tls_port}/{PATH}", route)
    assert isinstance(error, UpstreamRefused)
    assert f"the ca_file {ca_file} {words}" in str(error)


async def test_pushes_trust_the_same_authorities(
    session: aiohttp.ClientSession, authority: Authority, tls_port: int
) -> None:
    url = f"https://localhost:{tls_port}/{PATH}"
    with pytest.raises(UpstreamRefused, match="not accepted"):
        async with PushLine(Line(session), url).info_refs({}):
            pass
    line = Line(session, Route(RouteSettings(ca_file=authority.file)))
    async with PushLine(line, url).info_refs({}) as answer:
        assert answer.status == 200


async def test_storage_of_lfs_objects_trusts_the_same_authorities(
    asker: Asker, server: Scripted, authority: Authority, tls_port: int
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=b"large")

    server.answer = answer
    action = Action(f"https://localhost:{tls_port}/storage/1")
    async with AsyncExitStack() as stack:
        remote = lfs_remote_for(
            asker.session,
            asker.keyring,
            Storage(stack),
            asker.settings(
                f"https://127.0.0.1:{tls_port}/{PATH}", RouteSettings(ca_file=authority.file)
            ),
            LimitSettings(),
            agent=AGENT,
        )
        download = remote.download(action, Pointer("a" * 64, 5), offset=0)
        async with aclosing(download) as chunks:
            assert b"".join([chunk async for chunk in chunks]) == b"large"
    assert "Authorization" not in server.requests[-1].headers, "another host"


# --- proxies -----------------------------------------------------------------------------------


async def test_an_https_upstream_is_reached_through_a_tunnel(
    asker: Asker,
    server: Scripted,
    authority: Authority,
    tls_port: int,
    proxy: ForwardProxy,
    password_file: Path,
) -> None:
    route = through(proxy, password_file, authority.file)
    await asker.look(f"https://localhost:{tls_port}/{PATH}", route)
    assert set(proxy.asked) == {f"CONNECT localhost:{tls_port}"}
    assert all(seen.headers["Authorization"] == f"Basic {BASIC}" for seen in server.requests)
    assert not any("Proxy-Authorization" in seen.headers for seen in server.requests)
    assert BASIC not in "".join(proxy.seen), "what the proxy may know"


async def test_a_plain_upstream_is_asked_for_by_the_proxy_which_looks_up_the_name(
    asker: Asker, server: Scripted, proxy: ForwardProxy, password_file: Path
) -> None:
    proxy.places["git.example"] = int(server.url.rpartition(":")[2])
    await asker.look(f"http://git.example/{PATH}", through(proxy, password_file))
    assert proxy.asked[0] == f"GET http://git.example/{PATH}/info/refs?service=git-upload-pack"
    assert len(server.requests) == len(proxy.seen) == 2


@pytest.mark.parametrize("is_tls", [False, True])
async def test_a_proxy_that_refuses_us_is_told_from_the_upstream(
    asker: Asker,
    server: Scripted,
    tls_port: int,
    authority: Authority,
    proxy: ForwardProxy,
    password_file: Path,
    is_tls: bool,
) -> None:
    url = f"https://localhost:{tls_port}/{PATH}" if is_tls else server.repository_url
    route = through(proxy, password_file, authority.file)
    right = password_file.read_text()
    password_file.write_text("wrong")
    error = await asker.failure(url, route)
    assert isinstance(error, UpstreamRefused)
    assert "the proxy wants other credentials (407): look at `proxy`" in str(error)
    assert server.requests == []
    password_file.write_text(right)
    await asker.look(url, route)


async def test_a_proxy_that_is_not_there_is_told_from_the_upstream(
    asker: Asker, server: Scripted, password_file: Path
) -> None:
    async with forward_proxy() as gone:
        route = through(gone, password_file)
    error = await asker.failure(server.repository_url, route)
    assert isinstance(error, UpstreamUnavailable)
    assert f"the proxy 127.0.0.1:{gone.port} can't be reached" in str(error)


async def test_a_proxy_that_can_not_reach_the_upstream_is_passing_trouble(
    asker: Asker, password_file: Path
) -> None:
    async with raw_server(_no_way) as url:
        account = PasswordSettings(username="mirror", password_file=password_file)
        route = RouteSettings(proxy=url[: url.index("/", 8)], proxy_credentials=account)
        error = await asker.failure(f"https://git.example/{PATH}", route)
    assert isinstance(error, UpstreamUnavailable)
    assert "on the way to git.example the proxy answered 502: No way" in str(error)


async def _no_way(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 502 No way\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


async def test_a_password_for_the_proxy_that_can_not_be_read_is_named(
    asker: Asker, server: Scripted, proxy: ForwardProxy, password_file: Path
) -> None:
    password_file.unlink()
    error = await asker.failure(server.repository_url, through(proxy, password_file))
    assert f"`proxy_credentials`, {password_file}, can't be read" in str(error)
    assert proxy.seen == []


async def test_what_the_environment_says_of_proxies_is_not_heeded(
    asker: Asker, server: Scripted, proxy: ForwardProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    await asker.look(server.repository_url, RouteSettings())
    assert proxy.seen == []


async def test_lfs_objects_come_through_the_proxy_but_from_no_private_address(
    asker: Asker, server: Scripted, proxy: ForwardProxy, password_file: Path
) -> None:
    """The names are the proxy's to look up; an address is refused as it is without a proxy."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=b"large")

    server.answer = answer
    proxy.places["storage.example"] = int(server.url.rpartition(":")[2])
    async with AsyncExitStack() as stack:
        remote = lfs_remote_for(
            asker.session,
            asker.keyring,
            Storage(stack),
            asker.settings(f"http://git.example/{PATH}", through(proxy, password_file)),
            LimitSettings(),
            agent=AGENT,
        )

        async def downloaded(href: str) -> bytes:
            download = remote.download(Action(href), Pointer("a" * 64, 5), offset=0)
            async with aclosing(download) as chunks:
                return b"".join([chunk async for chunk in chunks])

        assert await downloaded("http://storage.example/1") == b"large"
        for host in ("10.0.0.1", "127.0.0.1", "169.254.169.254", "localhost", "[::1]"):
            with pytest.raises(UpstreamRefused, match="that is not followed"):
                await downloaded(f"http://{host}/1")
    assert proxy.asked == ["GET http://storage.example/1"]
