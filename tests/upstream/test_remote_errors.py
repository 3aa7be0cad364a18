"""What an upstream may do wrong, and what we say then: to a person, and without the secrets."""

import asyncio
import base64
import shutil
import socket
import ssl
import subprocess
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path

import pytest
from aiohttp import web

from mirror.demo.forge import Faults, HttpBackend
from mirror.errors import UpstreamError, UpstreamRefused, UpstreamUnavailable
from mirror.upstream.credentials import BasicCredentials
from mirror.upstream.remote import RETRY_AFTER_SECONDS_MAX, Remote
from mirror.wire.pktline import FLUSH_PKT, encode, encode_lines
from tests.git_client import Upstream
from tests.upstream.conftest import SECRET, MakeRemote
from tests.upstream.scripted import (
    MAIN,
    OID,
    Answer,
    Scripted,
    a_v2_server,
    advertisement,
    result,
    scripted,
    v0_listing,
    v2_capabilities,
    v2_listing,
)

ALL = [b"refs/"]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\n"
BASIC = base64.b64encode(f"ci:{SECRET}".encode()).decode()


async def failure(remote: Remote) -> UpstreamError:
    """List the refs, which must fail; nothing that it says may hold a secret."""
    with pytest.raises(UpstreamError) as caught:
        await remote.list_refs(ALL)
    for word in (SECRET, BASIC):
        assert word not in "".join(traceback.format_exception(caught.value))
        assert word not in repr(caught.value)
    return caught.value


def always(
    status: int, text: str = "", *, headers: dict[str, str] | None = None, kind: str = "text/plain"
) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text, headers=headers, content_type=kind)

    return answer


@asynccontextmanager
async def raw_server(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """Serve something that is hardly HTTP; returns the repository's URL."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/acme/gitops-repo.git"


# --- statuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "with_credentials", "without"),
    [
        (401, "wrong or expired", "wants credentials; set `credentials`"),
        (403, "these credentials may not read", "set `credentials`"),
        (404, "these credentials may not see it", "can't be seen without `credentials`"),
        (410, "is gone", "is gone"),
        (418, "418: short and stout", "418: short and stout"),
    ],
)
async def test_a_refusal_says_what_to_do(
    make_remote: MakeRemote,
    credentials: BasicCredentials,
    status: int,
    with_credentials: str,
    without: str,
) -> None:
    async with scripted(always(status, "short\n and stout")) as server:
        for known, expected in ((credentials, with_credentials), (None, without)):
            error = await failure(make_remote(server.repository_url, credentials=known))
            assert isinstance(error, UpstreamRefused)
            assert expected in str(error)
            assert f"{server.repository_url} answered {status}" in str(error)


async def test_wrong_credentials_of_a_real_forge_are_refused(
    upstream: Upstream,
    upstream_root: Path,
    make_remote: MakeRemote,
    credentials: BasicCredentials,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("DEBUG"):
        async with HttpBackend(upstream_root, basic_auth=("ci", "another")) as forge:
            url = forge.repository_url(upstream.name)
            error = await failure(make_remote(url, credentials=credentials))
    assert "401" in str(error)
    assert len(forge.requests) == 1, "a failed login is not repeated: forges count them"
    assert SECRET not in caplog.text
    assert BASIC not in caplog.text


async def test_an_unknown_repository_is_refused(
    forge: HttpBackend, make_remote: MakeRemote
) -> None:
    error = await failure(make_remote(forge.repository_url("acme/nothing")))
    assert isinstance(error, UpstreamRefused)
    assert "404: there is no such repository" in str(error)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_trouble_on_their_side_is_passing_and_quoted(
    make_remote: MakeRemote, status: int
) -> None:
    page = "<html>\n the disk   is on fire\n" + "x" * 100_000
    async with scripted(always(status, page, kind="text/html")) as server:
        error = await failure(make_remote(server.repository_url))
    assert isinstance(error, UpstreamUnavailable)
    assert f"{status}: <html> the disk is on fire x" in str(error)
    assert len(str(error)) < 1000
    assert error.retry_after_seconds is None


@pytest.mark.parametrize("length", [0, 100])
async def test_an_error_page_that_can_not_be_read_is_no_further_trouble(
    make_remote: MakeRemote, length: int
) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 On fire\r\nContent-Length: %d\r\n\r\n" % length)
        await writer.drain()

    async with raw_server(talk) as url:
        error = await failure(make_remote(url))
    assert "answered 500: On fire" in str(error)


@pytest.mark.parametrize("status", [403, 429, 503])
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 120 ", 120.0),
        ("0", 0.0),
        ("99999999999999999999", RETRY_AFTER_SECONDS_MAX),
        ("date+90", 90.0),
        ("date-90", 0.0),
        ("date+864000", RETRY_AFTER_SECONDS_MAX),
    ],
)
async def test_retry_after_is_read_in_seconds_and_as_a_date(
    make_remote: MakeRemote, status: int, value: str, seconds: float
) -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"

    async def answer(_: web.Request) -> web.StreamResponse:
        at = value
        if value.startswith("date"):
            # By their clock, whatever ours says.
            moment = parsedate_to_datetime(date).timestamp() + float(value.removeprefix("date"))
            at = format_datetime(parsedate_to_datetime(date).fromtimestamp(moment).astimezone())
        return web.Response(status=status, headers={"Retry-After": at, "Date": date})

    async with scripted(answer) as server:
        error = await failure(make_remote(server.repository_url))
    assert isinstance(error, UpstreamUnavailable)
    assert error.retry_after_seconds == seconds
    assert "slow down" in str(error)


@pytest.mark.parametrize("value", ["", "soon", "-1", "1.5", "Wed, 99 Oct 2015 07:28:00 GMT", "²"])
async def test_a_retry_after_that_makes_no_sense_is_none(
    make_remote: MakeRemote, value: str
) -> None:
    async with scripted(always(429, headers={"Retry-After": value})) as server:
        error = await failure(make_remote(server.repository_url))
    assert isinstance(error, UpstreamUnavailable)
    assert error.retry_after_seconds is None


async def test_a_forge_that_asks_to_slow_down_is_not_asked_again_at_once(
    forge: HttpBackend, upstream: Upstream, make_remote: MakeRemote
) -> None:
    remote = make_remote(forge.repository_url(upstream.name))
    await remote.list_refs(ALL)
    forge.requests.clear()
    forge.faults = Faults(status=429, retry_after="30")
    error = await failure(remote)
    assert isinstance(error, UpstreamUnavailable)
    assert error.retry_after_seconds == 30
    assert len(forge.requests) == 1


# --- not a Git server --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("text/html", "<html>Please sign in</html>"),
        ("text/plain", f"{OID.decode()}\trefs/heads/main\n"),  # a dumb server's info/refs
        ("application/octet-stream", ""),
    ],
)
async def test_another_content_type_is_no_git_server(
    make_remote: MakeRemote, kind: str, text: str
) -> None:
    async with scripted(always(200, text, kind=kind)) as server:
        error = await failure(make_remote(server.repository_url))
    assert isinstance(error, UpstreamRefused)
    assert f"{kind!r} instead of" in str(error)
    assert "not a smart-HTTP Git server" in str(error)


async def test_the_content_type_of_a_post_counts_too(
    forge: HttpBackend, upstream: Upstream, make_remote: MakeRemote
) -> None:
    forge.faults = Faults(content_type="text/html", only=lambda request: request.is_post())
    error = await failure(make_remote(forge.repository_url(upstream.name)))
    assert "'text/html' instead of 'application/x-git-upload-pack-result'" in str(error)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the ref advertisement is empty"),
        (b"what is this", "pkt-line length"),
        (b"00", "ends within a pkt-line"),
        (encode(b"ERR the project was moved\n"), "the upstream reports: the project was moved"),
        (
            encode(b"# service=git-upload-pack\n") + FLUSH_PKT + encode(b"ERR quota exceeded"),
            "the upstream reports: quota exceeded",
        ),
        (encode_lines([b"version 2", b"ls-refs"]) + FLUSH_PKT, "protocol v2 without fetch"),
        (encode_lines([b"version 2", b"fetch"]) + FLUSH_PKT, "protocol v2 without ls-refs"),
        (encode_lines([b"version 2", b"ls-refs"]), "cut off"),
        (v0_listing([b"xyz refs/heads/main"]), "expected an object id"),
        (v0_listing([OID + b" refs/heads/.."]), "not a valid ref name"),
        (v0_listing([OID + b" refs/heads/main"])[:-4], "cut off"),
    ],
)
async def test_an_advertisement_that_makes_no_sense_is_their_fault(
    make_remote: MakeRemote, body: bytes, message: str
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return advertisement(body)

    async with scripted(answer) as server:
        error = await failure(make_remote(server.repository_url))
    assert isinstance(error, UpstreamUnavailable)
    assert message in str(error)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "cut off"),
        (b"nonsense", "pkt-line length"),
        (v2_listing(MAIN)[:-4], "cut off"),
        (v2_listing(MAIN)[:-6], "ends within a pkt-line"),
        (v2_listing(b"unborn refs/heads/main"), "expected an object id"),
        (v2_listing(OID + b" main"), "not a valid ref name"),
        (v2_listing(OID + b" HEAD symref-target:../x"), "b'../x', which is not a"),
        (v2_listing(MAIN + b" peeled:123"), "expected an object id"),
        (v2_listing(b"ERR access denied"), "the upstream reports: access denied"),
        (b"0001" + v2_listing(MAIN), "expected a line or a flush-pkt"),
    ],
)
async def test_a_listing_that_makes_no_sense_is_their_fault(
    make_remote: MakeRemote, body: bytes, message: str
) -> None:
    async with scripted(a_v2_server(body)) as server:
        error = await failure(make_remote(server.repository_url))
    assert isinstance(error, UpstreamUnavailable)
    assert message in str(error)


async def test_a_message_of_theirs_can_not_flood_ours(make_remote: MakeRemote) -> None:
    async with scripted(a_v2_server(encode(b"ERR " + b"\x1b[31m" * 5000))) as server:
        error = await failure(make_remote(server.repository_url))
    assert len(str(error)) < 2000


async def test_a_listing_over_the_limit_is_refused(
    make_remote: MakeRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirror.upstream.remote.ANSWER_BYTES_MAX", 10_000)
    lines = [b"%040x refs/heads/b%d" % (number, number) for number in range(1000)]
    async with scripted(a_v2_server(v2_listing(*lines))) as server:
        error = await failure(make_remote(server.repository_url))
    assert "over 10000 bytes" in str(error)


async def test_a_sha256_repository_is_refused_in_one_clear_sentence(
    forge: HttpBackend, upstream_root: Path, make_remote: MakeRemote
) -> None:
    modern = Upstream(upstream_root, "acme/modern")
    modern.git(
        "init", "--quiet", "--bare", "--object-format=sha256", "--template=", "../sha256.git"
    )
    error = await failure(make_remote(forge.repository_url("acme/sha256")))
    assert isinstance(error, UpstreamRefused)
    assert str(error) == (
        "the upstream uses sha256 object ids; only SHA-1 repositories can be mirrored"
    )


async def test_a_shallow_upstream_is_refused_by_v0_already_when_it_lists(
    forge: HttpBackend, upstream: Upstream, make_remote: MakeRemote
) -> None:
    (upstream.path / "shallow").write_text(f"{upstream.history(3)[1]}\n", encoding="ascii")
    forge.faults = Faults(force_protocol_v0=True)
    error = await failure(make_remote(forge.repository_url(upstream.name)))
    assert isinstance(error, UpstreamRefused)
    assert "shallow repository; unshallow it" in str(error)


# --- the line ----------------------------------------------------------------------------------


async def test_nobody_listening_is_passing_trouble(make_remote: MakeRemote) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        port = taken.getsockname()[1]
        error = await failure(make_remote(f"http://127.0.0.1:{port}/acme/gitops-repo.git"))
    assert isinstance(error, UpstreamUnavailable)
    assert "127.0.0.1 can't be reached" in str(error)


async def test_an_unknown_host_is_passing_trouble(make_remote: MakeRemote) -> None:
    error = await failure(make_remote("http://forge.invalid/acme/gitops-repo.git"))
    assert isinstance(error, UpstreamUnavailable)
    assert "forge.invalid can't be reached" in str(error)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_silent_upstream_is_given_up(make_remote: MakeRemote, method: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == method:
            await server.released.wait()
        return await a_v2_server()(request)

    async with scripted(answer) as server:
        remote = make_remote(server.repository_url, silence_seconds_max=0.05)
        error = await failure(remote)
    assert isinstance(error, UpstreamUnavailable)
    assert str(error) == "127.0.0.1 was silent for 0.05 seconds"


async def test_one_that_falls_silent_between_two_looks_is_waited_for_once(
    make_remote: MakeRemote,
) -> None:
    async def stall(_: web.Request) -> web.StreamResponse:
        await server.released.wait()
        return web.Response()

    async with scripted(a_v2_server()) as server:
        remote = make_remote(server.repository_url, silence_seconds_max=0.05)
        await remote.list_refs(ALL)
        server.requests.clear()
        server.answer = stall
        error = await failure(remote)
        assert "silent" in str(error)
        assert len(server.requests) == 1


async def test_an_answer_that_stalls_half_way_is_given_up(make_remote: MakeRemote) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "application/x-git-upload-pack-advertisement"}
        )
        await response.prepare(request)
        await response.write(v2_capabilities()[:20])
        await server.released.wait()
        return response

    async with scripted(answer) as server:
        error = await failure(make_remote(server.repository_url, silence_seconds_max=0.05))
    assert "silent for 0.05 seconds" in str(error)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        HEAD + b"Content-Length: 100\r\n\r\n000eversion 2\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n000ev\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 8\r\n\r\nnot gzip",
    ],
    ids=["nothing", "half a head", "half a body", "half a chunk", "ssh", "not gzip"],
)
async def test_an_answer_cut_off_or_garbled_is_passing_trouble(
    make_remote: MakeRemote, said: bytes
) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await writer.drain()

    async with raw_server(talk) as url:
        error = await failure(make_remote(url))
    assert isinstance(error, UpstreamUnavailable)
    assert "127.0.0.1 broke off" in str(error)


async def test_a_kept_alive_connection_that_died_costs_no_look(make_remote: MakeRemote) -> None:
    """The server closes it at the very moment that we use it again: no answer, just the end."""
    healthy = a_v2_server()

    async def hang_up_once(request: web.Request) -> web.StreamResponse:
        server.answer = healthy
        if request.transport is not None:
            request.transport.close()
        return web.Response()

    async with scripted(healthy) as server:
        remote = make_remote(server.repository_url)
        first = await remote.list_refs(ALL)
        server.answer = hang_up_once
        assert await remote.list_refs(ALL) == first
        assert server.asked[2:] == ["POST git-upload-pack", "GET refs", "POST git-upload-pack"]


async def test_an_upstream_that_restarts_between_two_looks_is_no_trouble(
    upstream: Upstream, upstream_root: Path, make_remote: MakeRemote
) -> None:
    async with HttpBackend(upstream_root) as before:
        remote = make_remote(before.repository_url(upstream.name))
        first = await remote.list_refs(ALL)
    async with HttpBackend(upstream_root, port=before.port):
        assert await remote.list_refs(ALL) == first


async def test_a_server_that_speaks_v0_only_all_of_a_sudden_is_no_trouble(
    make_remote: MakeRemote,
) -> None:
    async def old(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return advertisement(v0_listing([MAIN]))
        return web.Response(status=400)

    async with scripted(a_v2_server()) as server:
        remote = make_remote(server.repository_url)
        first = await remote.list_refs(ALL)
        server.answer = old
        assert (await remote.list_refs(ALL)).refs == first.refs


async def test_an_error_while_starting_over_stands(make_remote: MakeRemote) -> None:
    async with scripted(a_v2_server()) as server:
        remote = make_remote(server.repository_url)
        await remote.list_refs(ALL)
        server.answer = always(404)
        assert "404" in str(await failure(remote))
        assert server.asked[2:] == ["POST git-upload-pack", "GET refs"]


# --- TLS and passwords -------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
async def test_a_certificate_that_nobody_vouches_for_is_refused(
    make_remote: MakeRemote, tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    options = "-x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    await asyncio.to_thread(
        subprocess.run,
        ["openssl", "req", *options.split(), "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        error = await failure(make_remote(f"https://localhost:{port}/acme/gitops-repo.git"))
    assert isinstance(error, UpstreamRefused)
    assert "the certificate of localhost is not accepted" in str(error)


async def test_a_server_without_tls_can_not_be_reached_by_https(make_remote: MakeRemote) -> None:
    async with scripted(a_v2_server()) as server:
        url = server.repository_url.replace("http://", "https://")
        error = await failure(make_remote(url))
    assert isinstance(error, UpstreamUnavailable)


@pytest.mark.parametrize("trouble", ["missing", "empty", "too long"])
async def test_a_password_file_that_can_not_be_used_asks_nothing(
    make_remote: MakeRemote, tmp_path: Path, trouble: str
) -> None:
    file = tmp_path / "password"
    if trouble != "missing":
        file.write_bytes(b"\n" if trouble == "empty" else b"x" * 100_000)
    async with scripted(a_v2_server()) as server:
        remote = make_remote(server.repository_url, credentials=BasicCredentials("ci", file))
        error = await failure(remote)
        assert str(file) in str(error)
        assert server.requests == []


async def test_a_rotated_password_is_used_with_the_next_request(
    make_remote: MakeRemote, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("first", encoding="utf-8")

    def sent(server: Scripted) -> list[bytes]:
        headers = [seen.headers["Authorization"] for seen in server.requests]
        return [base64.b64decode(header.removeprefix("Basic ")) for header in headers]

    async with scripted(a_v2_server()) as server:
        remote = make_remote(server.repository_url, credentials=BasicCredentials("ci", file))
        await remote.list_refs(ALL)
        file.with_name("new").write_text("the second", encoding="utf-8")
        file.with_name("new").rename(file)
        await remote.list_refs(ALL)
        assert sent(server) == [b"ci:first", b"ci:first", b"ci:the second"]


async def test_a_caller_that_leaves_frees_the_connection(make_remote: MakeRemote) -> None:
    async def stall(_: web.Request) -> web.StreamResponse:
        arrived.set()
        await server.released.wait()
        return result(b"")

    arrived = asyncio.Event()
    async with scripted(stall) as server:
        remote = make_remote(server.repository_url)
        asking = asyncio.create_task(remote.list_refs(ALL))
        await arrived.wait()
        asking.cancel()
        await asyncio.wait((asking,))
        assert asking.cancelled()
        server.answer = a_v2_server()
        assert (await remote.list_refs(ALL)).refs
