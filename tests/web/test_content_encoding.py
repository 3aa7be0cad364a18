"""Compressed bodies: whole ones are read, whatever they are made of; all others are refused.

git http-backend takes `gzip` and `x-gzip`, refuses what is cut off, and overlooks what follows the
first gzip member; here that is either another member or an error.
"""

import gzip
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.demo.forge import HttpBackend
from mirror.errors import ProtocolError
from mirror.web.content_encoding import MEMBERS_MAX, BodyDecoder, UnsupportedEncoding
from tests.git_client import Upstream
from tests.mirror_service import MirrorService, mirroring
from tests.web.asking import command, connected, raw_request, read_to_end
from tests.wire.strategies import cut, cuts

BODY = command("ls-refs", "ref-prefix refs/heads/")
EMPTY_MEMBER = gzip.compress(b"")


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def decode(encoding: str, *pieces: bytes) -> bytes:
    decoder = BodyDecoder(encoding)
    decoded = b"".join(part for piece in pieces for part in decoder.feed(piece))
    decoder.finish()
    return decoded


COMPRESS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "gzip": gzip.compress,
    "x-gzip": lambda data: gzip.compress(data[:10]) + gzip.compress(data[10:]),
    "GZIP ": lambda data: EMPTY_MEMBER + gzip.compress(data, 0) + EMPTY_MEMBER,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "identity": bytes,
    "": bytes,
}


@given(st.sampled_from(sorted(COMPRESS)), st.binary(max_size=200) | st.just(bytes(300_000)), cuts)
def test_what_was_compressed_is_read_in_any_slices(
    encoding: str, data: bytes, places: list[int]
) -> None:
    assert decode(encoding, *cut(COMPRESS[encoding](data), places)) == data


@given(st.sampled_from(["gzip", "deflate"]), st.binary(max_size=50), st.data())
def test_what_is_cut_off_anywhere_is_refused(
    encoding: str, data: bytes, draw: st.DataObject
) -> None:
    whole = COMPRESS[encoding](data)
    kept = draw.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(ProtocolError, match="in the middle of its"):
        decode(encoding, whole[:kept])


def test_a_body_without_a_byte_is_empty() -> None:
    assert decode("gzip") == decode("deflate", b"") == b""


def test_a_bomb_comes_in_pieces_that_can_be_added_up() -> None:
    pieces = BodyDecoder("gzip").feed(gzip.compress(bytes(8 << 20)))
    assert max(map(len, pieces)) == BodyDecoder.PIECE_BYTES_MAX


def test_only_so_many_members_are_taken() -> None:
    assert decode("gzip", EMPTY_MEMBER * MEMBERS_MAX) == b""
    with pytest.raises(ProtocolError, match="more than 1000 gzip members"):
        decode("gzip", EMPTY_MEMBER * (MEMBERS_MAX + 1))


def test_another_encoding_is_named() -> None:
    with pytest.raises(UnsupportedEncoding, match="got 'br'"):
        BodyDecoder("br")


async def test_the_service_reads_what_clients_compress(
    mirror: MirrorService, upstream: Upstream
) -> None:
    for encoding in ("x-gzip", "deflate"):
        compressed = COMPRESS[encoding](BODY)
        head = raw_request(compressed, version=2).removesuffix(b"\r\n" + compressed)
        head += b"Content-Encoding: %b\r\n" % encoding.encode()
        length = b"Content-Length: %d" % len(compressed)
        chunks = b"\r\n%x;x=y\r\n%b\r\n0\r\nX-Trailer: z\r\n\r\n" % (len(compressed), compressed)
        for request in (
            head + b"\r\n" + compressed,
            head.replace(length, b"Transfer-Encoding: chunked") + chunks,
        ):
            async with connected(mirror, request) as (reader, _):
                answer = await read_to_end(reader)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert upstream.oid().encode() in answer


async def test_the_service_says_what_is_wrong_with_a_body(mirror: MirrorService) -> None:
    for encoding, body, expected in [
        ("gzip", gzip.compress(BODY)[:-1], "ends in the middle"),
        ("gzip", gzip.compress(BODY)[:5], "ends in the middle"),
        ("gzip", gzip.compress(BODY) + b"and more", "can't be decoded as gzip"),
        ("gzip", BODY, "can't be decoded as gzip"),
        ("gzip", zlib.compress(BODY), "can't be decoded as gzip"),
        ("deflate", gzip.compress(BODY), "can't be decoded as deflate"),
        ("deflate", zlib.compress(BODY)[:-2], "ends in the middle"),
        ("deflate", zlib.compress(BODY) + b"x", "goes on after the end"),
        ("identity", gzip.compress(BODY), "four hex digits"),
    ]:
        answer = await mirror.upload_pack(body, version=2, headers={"Content-Encoding": encoding})
        assert answer.status == 400
        assert expected in answer.text


async def test_encodings_in_several_headers_are_several_encodings(mirror: MirrorService) -> None:
    compressed = gzip.compress(BODY)
    headers = b"\r\nContent-Encoding: gzip\r\nContent-Encoding: br\r\n\r\n"
    request = raw_request(compressed, version=2).replace(b"\r\n\r\n", headers, 1)
    async with connected(mirror, request) as (reader, _):
        assert (await reader.readline()).startswith(b"HTTP/1.1 415 ")


async def test_a_stream_of_nothing_is_not_read_for_ever(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    """Stored blocks without a byte in them decode to nothing, however many there are."""
    compressor = zlib.compressobj(0, wbits=zlib.MAX_WBITS | 16)
    empty = compressor.flush(zlib.Z_FULL_FLUSH) + b"\0\0\0\xff\xff" * 200_000
    limits = "limits: {request_bytes_max: 512KiB}"
    async with mirroring(forge, tmp_path, names=[upstream.name], sections=limits) as mirror:
        answer = await mirror.upload_pack(empty, headers={"Content-Encoding": "gzip"})
        assert answer.status == 413
