"""HTTP as no Git client speaks it, or only some do: nothing breaks, hangs, or is given away."""

import asyncio
import itertools
from pathlib import Path
from unittest.mock import Mock

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from mirror.demo.forge import HttpBackend
from mirror.web import protocol
from tests.git_client import Upstream
from tests.mirror_service import WAIT_SECONDS_MAX, MirrorService, mirroring
from tests.web.asking import connected, fetch_v0, raw_request, read_to_end

QUERY = "service=git-upload-pack"
HOST = "Host: mirror.example\r\n"
REQUESTS = "git_mirror_request_seconds_count"


async def first_line(mirror: MirrorService, request: str) -> str:
    """Return the first line of the answer to a raw request."""
    async with connected(mirror, request.encode("latin-1")) as (reader, _):
        return (await reader.readline()).decode().strip()


def get(path: str, *, headers: str = HOST, version: str = "1.1") -> str:
    return f"GET {path} HTTP/{version}\r\n{headers}\r\n"


@pytest.mark.parametrize(
    "path",
    [
        "/acme/gitops-repo",
        "/acme/gitops-repo.git",
        "/acme/gitops-repo/",  # go-git joins paths with a slash, whatever there is
        "/acme/gitops-repo.git/",
        "//acme/gitops-repo",
        "///acme//gitops-repo.git//",
        "/acme/%2fgitops-repo",
        "/acme/gitops%2Drepo",
        "/acme%2fgitops-repo",
        "http://mirror.example/acme/gitops-repo",
    ],
)
async def test_the_same_repository_is_found_by_equal_paths(
    mirror: MirrorService, path: str
) -> None:
    assert await first_line(mirror, get(f"{path}/info/refs?{QUERY}")) == "HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    "path",
    [
        "/./acme/gitops-repo",
        "/acme/../acme/gitops-repo",
        "/acme/%2e%2e/acme/gitops-repo",
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/acme/gitops-repo%00",
        "/%ff%fe",
        "/%0d%0aX-Injected:%20yes",
        "//evil.example/acme/gitops-repo",
        "/webhooks/github",
        "/status.json",
        "/" + "x" * 8000,
        "/" + "x/" * 2000 + "x",
    ],
)
async def test_other_paths_are_404_whatever_they_hold(mirror: MirrorService, path: str) -> None:
    request = get(f"{path}/info/refs?{QUERY}").encode()
    async with connected(mirror, request) as (reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 404")
        assert b"X-Injected" not in head
        assert b"Location" not in head
        body = await reader.readuntil(b"\n")
        assert str(mirror.service.settings.data_dir).encode() not in body
        writer.write(get("/healthz").encode())  # the connection lives on
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "request_text",
    [
        get(f"/{'x' * 9000}/info/refs?{QUERY}"),
        get("/healthz", headers=f"{HOST}Authorization: Basic {'x' * 40_000}\r\n"),
        get("/healthz", headers=HOST + "X: 1\r\n" * 1000),
        get("/healthz", headers=""),
        get("/\xe6\xf8\xe5"),
        "nonsense\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        f"POST /x/git-upload-pack HTTP/1.1\r\n{HOST}Content-Length: x\r\n\r\n",
        f"POST /x HTTP/1.1\r\n{HOST}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=lambda text: text[:30],
)
async def test_what_is_not_http_as_we_know_it_is_400(
    mirror: MirrorService, request_text: str
) -> None:
    assert (await first_line(mirror, request_text)).startswith("HTTP/1.0 400")
    assert (await mirror.get("/healthz")).status == 200


async def test_a_version_that_is_not_spoken_is_not_answered_in(mirror: MirrorService) -> None:
    paths = ("/healthz", f"/acme/gitops-repo/info/refs?{QUERY}", "/nothing")
    headers = f"{HOST}Connection: keep-alive\r\n"
    for path, version in itertools.product(paths, ("0.9", "2.0")):
        request = get(path, version=version, headers=headers).encode()
        async with connected(mirror, request) as (reader, _):
            answer = await asyncio.wait_for(reader.read(), WAIT_SECONDS_MAX)
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n"), answer
        head, _, text = answer.partition(b"\r\n\r\n")
        assert b"Content-Length: %d" % len(text) in head
        assert text == b"expected HTTP/1.1 (or HTTP/1.0)\n"
    assert await mirror.metric(REQUESTS, operation="other", outcome="client_error")


async def test_what_is_nowhere_is_404(mirror: MirrorService) -> None:
    for method in ("GET", "OPTIONS", "HEAD", "TRACE", "CONNECT"):
        request = f"{method} / HTTP/1.1\r\n{HOST}\r\n"
        assert await first_line(mirror, request) == "HTTP/1.1 404 Not Found"


async def test_options_tells_what_else_may_be_asked(mirror: MirrorService) -> None:
    for target, allowed in [
        ("*", b"GET, HEAD, OPTIONS, POST"),
        (f"/acme/gitops-repo/info/refs?{QUERY}", b"GET, HEAD, OPTIONS"),
        ("/acme/gitops-repo.git/git-upload-pack", b"OPTIONS, POST"),
        ("/healthz", b"GET, HEAD, OPTIONS"),
        ("/webhooks/github", b"OPTIONS, POST"),
    ]:
        request = f"OPTIONS {target} HTTP/1.1\r\n{HOST}\r\n{get('/healthz')}"
        async with connected(mirror, request.encode()) as (reader, _):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 204 ")
            assert b"\r\nAllow: %b\r\n" % allowed in head
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    assert await mirror.metric(REQUESTS, operation="other", outcome="ok")


async def test_http_1_0_is_spoken(mirror: MirrorService, upstream: Upstream) -> None:
    path = f"/acme/gitops-repo/info/refs?{QUERY}"
    assert await first_line(mirror, get(path, headers="", version="1.0")) == "HTTP/1.0 200 OK"
    request = raw_request(fetch_v0(upstream.oid())).replace(b"HTTP/1.1", b"HTTP/1.0")
    async with connected(mirror, request) as (reader, _):
        answer = await reader.read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body.startswith(b"0008NAK\n")
    assert body.endswith(b"0000")


async def test_a_body_may_wait_for_100_continue(mirror: MirrorService, upstream: Upstream) -> None:
    request = raw_request(fetch_v0(upstream.oid()))
    head, _, body = request.partition(b"\r\n\r\n")
    async with connected(mirror, head + b"\r\nExpect: 100-continue\r\n\r\n") as (reader, writer):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await read_to_end(reader)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_body_that_is_refused_is_not_asked_for(mirror: MirrorService) -> None:
    head = raw_request(b"0000").removesuffix(b"\r\n0000") + b"Expect: 100-continue\r\n\r\n"
    nowhere = head.replace(b"gitops-repo", b"nothing")
    for request, status in [
        (nowhere, b"404"),
        (head.replace(b"upload-pack HTTP", b"receive-pack HTTP"), b"403"),
        (head.replace(b"Content-Type: ", b"Content-Type: x-"), b"415"),
        (head.replace(b"Expect:", b"Content-Encoding: br\r\nExpect:"), b"415"),
        (head.replace(b"git-upload-pack HTTP", b"info/lfs/locks HTTP"), b"403"),
        (head.replace(b"100-continue", b"miracles"), b"417"),
        (get("/healthz", headers=f"{HOST}Expect: miracles\r\n").encode(), b"417"),
    ]:
        async with connected(mirror, request) as (reader, _):
            answer = await read_to_end(reader)
            assert answer.startswith(b"HTTP/1.1 " + status)
            assert b"\r\nX-Request-Id: " in answer
            if b"Content-Length: 4" in request:
                # The client may or may not send the body now: only a new connection is safe.
                assert b"\r\nConnection: close\r\n" in answer


async def test_who_speaks_http_1_0_is_not_told_to_continue(mirror: MirrorService) -> None:
    request = raw_request(b"0000").replace(b"HTTP/1.1", b"HTTP/1.0")
    request = request.replace(b"Host: x\r\n", b"Expect: 100-continue\r\n")
    assert (await first_line(mirror, request.decode())).startswith("HTTP/1.0 200")


async def test_requests_in_a_row_are_answered_in_order(
    mirror: MirrorService, upstream: Upstream
) -> None:
    requests = [
        raw_request(fetch_v0(upstream.oid())),
        get("/healthz").encode(),
        raw_request(b"nonsense"),
        get(f"/acme/gitops-repo/info/refs?{QUERY}").encode(),
    ]
    async with connected(mirror, b"".join(requests)) as (reader, _):
        statuses: list[bytes] = []
        while len(statuses) < len(requests):
            line = await reader.readline()
            if b"HTTP/1.1 " in line:
                statuses.append(line.partition(b"HTTP/1.1 ")[2][:3])
    assert statuses == [b"200", b"200", b"400", b"200"]


async def test_a_body_in_single_bytes_is_read(mirror: MirrorService, upstream: Upstream) -> None:
    head, _, body = raw_request(fetch_v0(upstream.oid())).partition(b"\r\n\r\n")
    head = head.partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n"
    async with connected(mirror, head) as (reader, writer):
        for byte in body:
            writer.write(b"1\r\n%c\r\n" % byte)
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        assert (await read_to_end(reader)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_client_that_left_before_its_body_was_read_is_gone_which_is_no_mistake() -> None:
    content = StreamReader(BaseProtocol(asyncio.get_running_loop()), 2**16)
    transport = Mock()
    transport.is_closing.return_value = True
    request = make_mocked_request("POST", "/", payload=content, transport=transport)
    with pytest.raises(ConnectionError):
        await protocol.read_body(request, bytes_max=100, hint="")
    # One that came whole is read all the same: webhooks are sent so.
    content.feed_data(b"all of it")
    content.feed_eof()
    assert await protocol.read_body(request, bytes_max=100, hint="") == b"all of it"


CHUNK = b"1\r\nx\r\n"


async def test_who_reads_a_body_whose_chunks_make_no_sense_does_not_wait_for_more(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, fast_lane: bool
) -> None:
    async with mirroring(
        forge, tmp_path, names=[upstream.name], fast_lane=fast_lane, repository="push: proxy"
    ) as mirror:
        # Few chunks, and more than are read ahead: the mistake is found when there is room again.
        for service in ("git-upload-pack", "git-receive-pack"):
            for chunks in (1, 20_000):
                await _breaks_while_it_is_read(mirror, service, chunks)
        assert (await mirror.get("/healthz")).status == 200


async def _breaks_while_it_is_read(mirror: MirrorService, service: str, chunks: int) -> None:
    head = (
        f"POST /acme/gitops-repo/{service} HTTP/1.1\r\n{HOST}Expect: 100-continue\r\n"
        f"Content-Type: application/x-{service}-request\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()
    async with connected(mirror, head) as (reader, writer):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(CHUNK * chunks + b"no chunk\r\n")
        answer = await asyncio.wait_for(reader.read(), WAIT_SECONDS_MAX)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answer
    assert answer.endswith(b"its chunks make no sense\n"), answer
    assert b"\r\nConnection: close\r\n" in answer


async def test_a_body_that_does_not_end_is_given_up(
    mirror: MirrorService, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "BODY_SECONDS_MAX", 0.01)
    request = raw_request(fetch_v0(upstream.oid()))
    async with connected(mirror, request[:-10]) as (reader, _):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert b"Connection: close" in head
        assert b"took more than" in await reader.readline()


async def test_a_client_that_leaves_in_its_body_is_no_error(
    mirror: MirrorService, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    request = raw_request(fetch_v0(upstream.oid()))
    async with connected(mirror, request[:-10]):
        pass
    gone = {"operation": "other", "outcome": "client_gone"}
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while not await mirror.metric(REQUESTS, **gone):
            pass
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
