"""GET info/refs: what git http-backend would answer, or why not."""

import asyncio
import gzip
from pathlib import Path

import pytest

from mirror.demo.forge import Faults, HttpBackend
from mirror.web import protocol
from mirror.wire.pktline import Special, decode_all, text
from tests.git_client import Upstream
from tests.mirror_service import (
    UPLOAD_PACK_HEADERS,
    Answered,
    MirrorService,
    ask,
    configuration,
    serving,
)
from tests.web.asking import command

FROM_HTTP_BACKEND = ("Expires", "Pragma", "Cache-Control", "Content-Type")
INFO_REFS = "/acme/gitops-repo/info/refs"


async def ask_the_forge(mirror: MirrorService, git_protocol: str) -> Answered:
    url = f"{mirror.forge.url}/acme/gitops-repo.git/info/refs?service=git-upload-pack"
    return await ask(mirror.session, "GET", url, headers={"Git-Protocol": git_protocol})


def advertised(answer: Answered) -> list[bytes | Special]:
    """Return an advertisement's packets without the capabilities, which are each server's own."""
    return [
        packet if isinstance(packet, Special) else text(packet.partition(b"\0")[0])
        for packet in decode_all(answer.body)
    ]


@pytest.mark.parametrize(
    "git_protocol",
    ["", "version=0", "version=1", "version=3", "version=x", "key=value", "x", "a:version=1"],
)
async def test_v0_and_v1_are_answered_as_by_http_backend(
    mirror: MirrorService, upstream: Upstream, git_protocol: str
) -> None:
    upstream.tag("v1")
    await mirror.announce(upstream, "refs/tags/v1")
    answer = await mirror.info_refs(headers={"Git-Protocol": git_protocol})
    model = await ask_the_forge(mirror, git_protocol)
    assert (answer.status, model.status) == (200, 200)
    assert [name for name in answer.headers if name in FROM_HTTP_BACKEND] == [*FROM_HTTP_BACKEND]
    for name in FROM_HTTP_BACKEND:
        assert answer.headers[name] == model.headers[name]
    assert advertised(answer) == advertised(model)


@pytest.mark.parametrize("git_protocol", ["version=2", "version=1:version=2", "x=y:version=2"])
async def test_v2_answers_with_capabilities_alone(mirror: MirrorService, git_protocol: str) -> None:
    answer = await mirror.info_refs(headers={"Git-Protocol": git_protocol})
    model = await ask_the_forge(mirror, git_protocol)
    for name in FROM_HTTP_BACKEND:
        assert answer.headers[name] == model.headers[name]
    lines = [packet for packet in advertised(answer) if isinstance(packet, bytes)]
    assert lines[:2] == [b"# service=git-upload-pack", b"version 2"]
    assert b"ls-refs=unborn" in lines
    assert b"object-format=sha1" in lines


def lasting(answer: Answered) -> dict[str, str]:
    """Return the headers but for those that differ each time."""
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return {name: headers[name] for name in headers.keys() - {"date", "x-request-id"}}


async def test_head_is_answered_like_get_without_a_body(
    mirror: MirrorService, upstream: Upstream
) -> None:
    upstream.branches(dict.fromkeys((f"branch-{number}" for number in range(100)), upstream.oid()))
    await mirror.announce(upstream)
    asked: list[tuple[str, dict[str, str]]] = [
        (f"{INFO_REFS}?service=git-upload-pack", {}),
        (f"{INFO_REFS}?service=git-upload-pack", {"Git-Protocol": "version=1"}),
        (f"{INFO_REFS}?service=git-upload-pack", {"Git-Protocol": "version=2"}),
        (f"{INFO_REFS}?service=git-upload-pack", {"Accept-Encoding": "gzip"}),
        (f"{INFO_REFS}?service=git-receive-pack", {}),
        (INFO_REFS, {}),
        ("/acme/nothing/info/refs?service=git-upload-pack", {}),
        ("/healthz", {}),
    ]
    for path, headers in asked:
        get = await mirror.ask("GET", path, headers=headers)
        head = await mirror.ask("HEAD", path, headers=headers)
        assert (head.status, head.body) == (get.status, b"")
        assert head.headers["Content-Length"] == str(len(get.body))
        assert lasting(head) == lasting(get)


async def test_a_long_advertisement_is_compressed_for_whoever_takes_that(
    mirror: MirrorService, upstream: Upstream
) -> None:
    upstream.branches(dict.fromkeys((f"branch-{number}" for number in range(100)), upstream.oid()))
    await mirror.announce(upstream)
    plain = await mirror.info_refs()
    assert "Content-Encoding" not in plain.headers
    assert plain.headers["Vary"] == "Accept-Encoding"
    for accepted in ("gzip", "deflate, gzip, br, zstd", "GZIP;q=0.5", "*"):
        answer = await mirror.info_refs(headers={"Accept-Encoding": accepted})
        assert answer.headers["Content-Encoding"] == "gzip"
        assert answer.headers["Content-Length"] == str(len(answer.body))
        assert gzip.decompress(answer.body) == plain.body
    for refused in ("identity", "gzip;q=0", "gzip; q=0.000", "br", ""):
        answer = await mirror.info_refs(headers={"Accept-Encoding": refused})
        assert answer.body == plain.body


@pytest.mark.parametrize("bytes_max", [10, 100, 1000])
async def test_an_answer_in_slices_is_the_same(
    mirror: MirrorService, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, bytes_max: int
) -> None:
    upstream.branches(dict.fromkeys((f"branch-{number}" for number in range(50)), upstream.oid()))
    await mirror.announce(upstream)
    whole = [await mirror.info_refs(), await mirror.upload_pack(command("ls-refs"), version=2)]
    monkeypatch.setattr(protocol, "ANSWER_SLICE_BYTES", bytes_max)
    sliced = [await mirror.info_refs(), await mirror.upload_pack(command("ls-refs"), version=2)]
    assert [answer.body for answer in sliced] == [answer.body for answer in whole]
    assert sliced[0].headers["Content-Length"] == str(len(whole[0].body))
    head = await mirror.ask("HEAD", f"{INFO_REFS}?service=git-upload-pack")
    assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize("query", ["", "?service=", "?service=git-upload-archive", "?x=y"])
async def test_other_services_are_refused_with_what_was_expected(
    mirror: MirrorService, query: str
) -> None:
    answer = await mirror.get(INFO_REFS + query)
    assert answer.status == 400
    assert "expected ?service=git-upload-pack" in answer.text


async def test_a_push_is_refused_with_the_upstreams_url(
    mirror: MirrorService, upstream: Upstream
) -> None:
    listed = await mirror.get(f"{INFO_REFS}?service=git-receive-pack")
    pushed = await mirror.ask("POST", "/acme/gitops-repo.git/git-receive-pack", body=b"0000")
    for answer in (listed, pushed):
        assert answer.status == 403
        assert mirror.forge.repository_url(upstream.name) in answer.text
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    "path",
    [
        "/acme/nothing/info/refs?service=git-upload-pack",
        "/acme/nothing/info/refs?service=git-receive-pack",
        "/acme/gitops-repo.git.git/info/refs?service=git-upload-pack",
        "/acme/gitops-repo/HEAD",
        "/acme/gitops-repo/objects/info/packs",
        "/acme/gitops-repo",
        "/",
    ],
)
async def test_what_is_not_here_is_404(mirror: MirrorService, path: str) -> None:
    answer = await mirror.get(path)
    assert answer.status == 404
    assert "here" in answer.text


@pytest.mark.parametrize("version", [0, 1, 2])
async def test_before_the_first_clone_is_done_nobody_is_told_of_an_empty_repository(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, version: int
) -> None:
    forge.faults.stall = asyncio.Event()
    async with serving(configuration(forge, tmp_path, names=[upstream.name]), forge) as mirror:
        await forge.wait_for_requests(1)
        bodies = (command("ls-refs"), b"0000", b"")
        posts = [await mirror.upload_pack(body, version=version) for body in bodies]
        for answer in [await mirror.info_refs(version=version), *posts]:
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert "not mirrored yet" in answer.text
        forge.faults.stall.set()
        await mirror.mirrored()
        assert (await mirror.info_refs(version=version)).status == 200


async def test_a_first_clone_that_fails_is_told_with_its_reason(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    forge.faults = Faults(status=403)
    async with serving(configuration(forge, tmp_path, names=[upstream.name]), forge) as mirror:
        await mirror.until(lambda one: one.last.error is not None)
        answer = await mirror.info_refs()
        assert answer.status == 503
        assert "answered 403" in answer.text


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", f"{INFO_REFS}?service=git-upload-pack", {"GET", "HEAD"}),
        ("PUT", "/acme/gitops-repo/git-upload-pack", {"POST"}),
        ("GET", "/acme/gitops-repo/git-upload-pack", {"POST"}),
        ("GET", "/acme/gitops-repo/git-receive-pack", {"POST"}),
        ("GET", "/webhooks/github", {"POST"}),
        ("DELETE", "/healthz", {"GET", "HEAD"}),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    mirror: MirrorService, method: str, path: str, allowed: set[str]
) -> None:
    answer = await mirror.ask(method, path)
    assert answer.status == 405
    assert {name.strip() for name in answer.headers["Allow"].split(",")} == allowed
    assert "expected" in answer.text


async def test_every_answer_has_a_request_id_of_its_own(
    mirror: MirrorService, upstream: Upstream
) -> None:
    answers = [
        await mirror.info_refs(),
        await mirror.info_refs("acme/nothing"),
        await mirror.get("/nothing/at/all"),
        await mirror.ask("PUT", "/healthz"),
        await mirror.get("/metrics"),
        await mirror.upload_pack(b"nonsense"),
        await mirror.ask(
            "POST",
            "/acme/gitops-repo/git-upload-pack",
            body=b"0032want " + upstream.oid().encode() + b"\n00000009done\n",
            headers=UPLOAD_PACK_HEADERS,
        ),
    ]
    assert answers[-1].body.startswith(b"0008NAK\nPACK")
    assert len({answer.headers["X-Request-Id"] for answer in answers}) == len(answers)
