"""POST git-upload-pack: bodies that are read, and bodies that are refused."""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from mirror.demo.forge import HttpBackend
from tests.git_client import Upstream
from tests.mirror_service import MirrorService, mirroring
from tests.web.asking import command, fetch_v0, read_lines

UPLOAD_PACK = "/acme/gitops-repo/git-upload-pack"
UNKNOWN = "1234567890" * 4


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/json", "x", "\xff"])
async def test_a_wrong_content_type_is_told_the_right_one(
    mirror: MirrorService, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = await mirror.ask("POST", UPLOAD_PACK, body=b"0000", headers=headers)
    assert answer.status == 415
    assert "expected Content-Type application/x-git-upload-pack-request" in answer.text


async def test_a_content_type_may_have_parameters(mirror: MirrorService) -> None:
    headers = {"Content-Type": "application/x-git-upload-pack-request; charset=utf-8"}
    answer = await mirror.ask("POST", UPLOAD_PACK, body=b"0000", headers=headers)
    assert answer.status == 200


@pytest.mark.parametrize(
    "encoding", ["br", "zstd", "br, gzip", "compress", "gzip, gzip", "x-deflate", "\xff"]
)
async def test_an_encoding_that_is_not_undone_here_is_refused(
    mirror: MirrorService, encoding: str
) -> None:
    headers = {"Content-Encoding": encoding}
    answer = await mirror.upload_pack(gzip.compress(b"0000"), headers=headers)
    assert answer.status == 415
    assert "expected Content-Encoding gzip" in answer.text


@pytest.mark.parametrize(
    ("version", "body", "expected"),
    [
        (0, b"xyz", "pkt-line"),
        (0, b"-001", "four hex digits"),
        (0, b"0009want", "ends within a pkt-line"),
        (2, b"fff0", "ends within a pkt-line"),
        (2, b"0014command=ls-refs\n", "flush-pkt"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
async def test_a_body_that_can_not_be_read_is_a_bad_request(
    mirror: MirrorService, version: int, body: bytes, expected: str
) -> None:
    answer = await mirror.upload_pack(body, version=version)
    assert answer.status == 400
    assert expected in answer.text


NOT_SERVED: Final = [
    (0, command("ls-refs"), "git upload-pack: protocol error, expected to get object ID, not"),
    (0, fetch_v0(UNKNOWN, more=["deepen x"]), "Invalid deepen: deepen x"),
    (
        0,
        fetch_v0(UNKNOWN, capabilities="filter", more=["filter sparse:oid=main:x"]),
        "filter 'sparse:oid' not supported; use blob:none and a sparse checkout",
    ),
    (2, b"0013agent=git/2.39\n0000", "no command requested"),
    (2, command("destroy"), "invalid command 'destroy'"),
    (2, command("ls-refs", "unheard-of"), "unexpected line: 'unheard-of'"),
    (2, command("fetch", "filter sparse:oid=main"), "filter 'sparse:oid' not supported; use"),
    (2, command("fetch", "filter sparse:path=x"), "sparse:path filters support has been"),
    (2, command("fetch", "filter tree:x"), "expected 'tree:<depth>'"),
    (2, command("fetch", "want-ref ../../etc/passwd"), "unknown ref ../../etc/passwd"),
    (2, command("object-info", "type"), "object-info: unexpected line: 'type'"),
    (2, fetch_v0(UNKNOWN), "unknown capability 'want 1"),
    (
        2,
        command("ls-refs").replace(b"0017object-format=sha1\n", b"0019object-format=sha256\n"),
        "mismatched object format: server sha1; client sha256",
    ),
]


async def test_a_request_for_what_is_not_served_is_answered_with_an_err(
    mirror: MirrorService,
) -> None:
    for version, body, expected in NOT_SERVED:
        answer = await mirror.upload_pack(body, version=version)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/x-git-upload-pack-result"
        (line,) = read_lines(answer.body)
        assert line.startswith(f"ERR {expected}")
    labels = {"operation": "other", "outcome": "protocol_error"}
    counted = await mirror.metric("git_mirror_request_seconds_count", **labels)
    assert counted == len(NOT_SERVED)


@pytest.mark.parametrize(
    "body",
    [
        b"not gzip at all",
        gzip.compress(b"0000")[:-9] + bytes(9),
        gzip.compress(b"0014command=ls-refs\n0001" + bytes(5000))[:-12],
    ],
    ids=["not gzip", "wrong checksum", "cut off"],
)
async def test_a_broken_gzip_body_is_a_bad_request(mirror: MirrorService, body: bytes) -> None:
    headers = {"Content-Encoding": "gzip"}
    answer = await mirror.upload_pack(body, version=2, headers=headers)
    assert answer.status == 400
    assert (await mirror.get("/healthz")).status == 200


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress), ("", bytes)],
)
async def test_compressed_bodies_are_read(
    mirror: MirrorService, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    body = compress(command("ls-refs", "ref-prefix refs/heads/"))
    answer = await mirror.upload_pack(body, version=2, headers={"Content-Encoding": encoding})
    assert answer.status == 200
    assert read_lines(answer.body)[0].endswith("refs/heads/main")


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("body", [b"0000", b""])
async def test_a_probe_is_answered_with_nothing(
    mirror: MirrorService, version: int, body: bytes
) -> None:
    answer = await mirror.upload_pack(body, version=version)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Type"] == "application/x-git-upload-pack-result"


async def test_a_body_over_the_limit_is_refused_however_it_is_encoded(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    limits = "limits: {request_bytes_max: 512KiB}"
    names = [upstream.name]
    async with mirroring(forge, tmp_path, names=names, sections=limits) as mirror:
        fits = command("ls-refs", *["ref-prefix refs/heads/main"] * 15_000)
        assert 400_000 < len(fits) < 512 << 10
        too_long = bytes(64 << 20)
        for encoding, body in [
            ("identity", fits * 2),
            ("gzip", gzip.compress(fits * 2)),
            ("gzip", gzip.compress(too_long)),
            ("deflate", zlib.compress(too_long)),
        ]:
            headers = {"Content-Encoding": encoding}
            answer = await mirror.upload_pack(body, version=2, headers=headers)
            assert answer.status == 413
            assert "over 524288 bytes" in answer.text
        assert (await mirror.upload_pack(fits, version=2)).status == 200


async def test_a_body_that_nobody_reads_is_not_inflated_either(mirror: MirrorService) -> None:
    headers = {"Content-Encoding": "gzip"}
    bomb = gzip.compress(bytes(512 << 20), 1)
    assert len(bomb) > 2 << 20  # so that it does not arrive at once
    answer = await mirror.ask("POST", "/acme/nothing/git-upload-pack", body=bomb, headers=headers)
    assert answer.status == 404
    assert answer.headers["Connection"] == "close"
