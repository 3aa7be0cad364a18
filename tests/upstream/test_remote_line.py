"""Lines that break, servers that fall silent, passwords and certificates that don't do."""

import asyncio
import base64
import shutil
import socket
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from mirror.demo.forge import HttpBackend
from mirror.errors import UpstreamRefused, UpstreamUnavailable
from mirror.upstream.credentials import BasicCredentials
from mirror.upstream.remote import Remote
from tests.git_client import Upstream
from tests.mirror_service import WAIT_SECONDS_MAX
from tests.ports import free_port
from tests.upstream.conftest import ALL, MakeRemote, failure
from tests.upstream.scripted import (
    MAIN,
    Scripted,
    a_v2_server,
    advertisement,
    always,
    raw_server,
    result,
    scripted,
    v0_listing,
    v2_capabilities,
)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\n"

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


async def silence(remote: Remote) -> Exception:
    """Return what is said of an upstream that takes connections, and then is silent.

    Where the machine has too much to do it takes longer than that to connect, which is another
    matter: then it is asked again.
    """
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while "can't be reached" in str(error := await failure(remote)):
            pass
    return error


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_silent_upstream_is_given_up(make_remote: MakeRemote, method: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == method:
            await server.released.wait()
        return await a_v2_server()(request)

    async with scripted(answer) as server:
        remote = make_remote(server.repository_url, silence_seconds_max=0.05)
        error = await silence(remote)
    assert isinstance(error, UpstreamUnavailable)
    assert str(error) == "127.0.0.1 was silent for 0.05 seconds"


async def test_one_that_falls_silent_between_two_looks_is_waited_for_once(
    make_remote: MakeRemote,
) -> None:
    async def stall(_: web.Request) -> web.StreamResponse:
        await server.released.wait()
        return web.Response()

    async with scripted(a_v2_server()) as server:
        remote = make_remote(server.repository_url)
        await remote.list_refs(ALL)
        server.requests.clear()
        server.answer = stall
        remote._limits = replace(remote._limits, silence_seconds_max=0.05)
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
        error = await silence(make_remote(server.repository_url, silence_seconds_max=0.05))
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
    port = free_port()
    async with HttpBackend(upstream_root, port=port) as before:
        remote = make_remote(before.repository_url(upstream.name))
        first = await remote.list_refs(ALL)
    async with HttpBackend(upstream_root, port=port):
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
        assert tuple((await remote.list_refs(ALL)).refs) == tuple(first.refs)


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
