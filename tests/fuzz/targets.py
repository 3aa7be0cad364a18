"""What is fuzzed: each parser of bytes that another process, or an accident, may have made.

A target takes any bytes and returns; an exception that leaves it is a finding. It lets pass only
the error that its parser declares, and checks by assertion what the parser promises besides. Where
a parser takes more than bytes (headers, a version, where the input was cut) these come from the
first bytes or lines of the input, so that a fuzzer can vary them too.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Final, cast

from aiohttp import web
from multidict import CIMultiDict

from mirror.errors import ProtocolError, Unauthenticated, UpstreamRefused
from mirror.repository.commit_graph_file import CommitGraphFile
from mirror.repository.packing.pack_store import _checked
from mirror.upstream.credentials import SECRET_BYTES_MAX, BasicCredentials, basic
from mirror.upstream.forges import RECEIVERS, Ignored, repository_key
from mirror.web.content_encoding import BodyDecoder, UnsupportedEncoding
from mirror.web.protocol import accepts_gzip, protocol_version
from mirror.wire.client import (
    FetchAnswerDecoder,
    Listing,
    UpstreamFeatures,
    parse_info_refs,
    parse_ls_refs,
)
from mirror.wire.filters import parse_filter
from mirror.wire.names import is_ref_name, object_id, ref_name
from mirror.wire.pktline import PacketDecoder, Special, decode_all, encode
from mirror.wire.push import CommandsReader, ReportReader, changes_of
from mirror.wire.ref_table import RefTable, packed_lines, parse_packed_lines
from mirror.wire.requests import UploadPackRequest, parse_command, parse_upload_pack
from mirror.workers.frames import ChannelError, Decoder
from mirror.workers.frames import encode as encode_frame

Target = Callable[[bytes], None]

DECODED_BYTES_MAX: Final = 1 << 20
"""What a target lets a compressed body become."""

SECRET: Final = b"It's a Secret to Everybody"
NOW: Final = 1_740_000_000.5
_COMMIT_IDS: Final = (bytes(20), b"\x80" * 20, b"\xff" * 20)


def _in_slices(data: bytes, size: int) -> Iterable[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def _split_first(data: bytes) -> tuple[int, bytes]:
    return (data[0], data[1:]) if data else (0, b"")


def _lines_and_rest(data: bytes, count: int) -> tuple[list[str], bytes]:
    """Return so many lines as header values, as aiohttp decodes them, and what follows."""
    *lines, rest = [*data.split(b"\n", count), *[b""] * (count + 1)][: count + 1]
    return [line.decode("utf-8", "surrogateescape") for line in lines], rest


# --- what readers send -------------------------------------------------------------------------


def pkt_lines(data: bytes) -> None:
    """A slicing and the whole give the same packets, which give the same bytes."""
    size, body = _split_first(data)
    try:
        packets = decode_all(body)
    except ProtocolError:
        packets = None
    decoder = PacketDecoder()
    found = []
    try:
        for piece in _in_slices(body, size + 1):
            decoder.feed(piece)
            found += list(decoder)
    except ProtocolError:
        assert packets is None
        return
    if packets is None:
        assert decoder.remainder()
        return
    assert found == packets
    joined = b"".join(
        b"%04x" % one.value if isinstance(one, Special) else encode(one) for one in packets
    )
    assert joined.lower() == body.lower()


def v2_command(data: bytes) -> None:
    """The body of a v2 POST."""
    with suppress(ProtocolError):
        parse_command(data)


def v0_request(data: bytes) -> None:
    """The body of a v0 or v1 POST."""
    with suppress(ProtocolError):
        request = parse_upload_pack(data)
        assert request is None or isinstance(request, UploadPackRequest)
        assert request is None or request.fetch.wants


def filter_spec(data: bytes) -> None:
    """A filter that was understood is written in one way, which is understood as the same."""
    with suppress(ProtocolError):
        parsed = parse_filter(data)
        assert parse_filter(parsed.spec()) == parsed


def names(data: bytes) -> None:
    """Ref names and object ids."""
    with suppress(ProtocolError):
        assert ref_name(data) == data
        assert data == b"HEAD" or is_ref_name(data)
        assert not set(data) & set(b" \n\0\x7f~^:?*[\\")
    with suppress(ProtocolError):
        assert len(object_id(data)) == 40


def request_headers(data: bytes) -> None:
    """Git-Protocol and Accept-Encoding."""
    (git_protocol, accepted), _ = _lines_and_rest(data, 2)
    headers = CIMultiDict({"Git-Protocol": git_protocol, "Accept-Encoding": accepted})
    request = cast("web.Request", SimpleNamespace(headers=headers))
    assert protocol_version(request) in {0, 1, 2}
    accepts_gzip(request)


def content_encoding(data: bytes) -> None:
    """A compressed body, in slices: bounded whatever it would become."""
    choice, rest = _split_first(data)
    encoding = ("gzip", "deflate", "", "x-gzip", "identity", "br")[choice % 6]
    decoded = 0
    with suppress(ProtocolError, UnsupportedEncoding):
        decoder = BodyDecoder(encoding)
        for piece in _in_slices(rest, choice + 1):
            for decoded_piece in decoder.feed(piece):
                decoded += len(decoded_piece)
                assert len(decoded_piece) <= BodyDecoder.PIECE_BYTES_MAX
                if decoded > DECODED_BYTES_MAX:
                    return
        decoder.finish()


# --- what upstreams send -----------------------------------------------------------------------


def _usable(listing: Listing | None) -> None:
    """A listing that was accepted can be published."""
    if listing is not None:
        assert len(RefTable.of(listing.refs)) == len(listing.refs)


def advertisement(data: bytes) -> None:
    """The answer to info/refs, of any version."""
    with suppress(ProtocolError):
        _usable(parse_info_refs(decode_all(data)).listing)


def ls_refs_answer(data: bytes) -> None:
    """The answer to ls-refs."""
    with suppress(ProtocolError):
        _usable(parse_ls_refs(decode_all(data)))


def fetch_answer(data: bytes) -> None:
    """The answer to a fetch, in slices: never more pack than bytes."""
    choice, body = _split_first(data)
    bands = ({}, {b"side-band": b""}, {b"side-band-64k": b""})[choice // 3 % 3]
    decoder = FetchAnswerDecoder(UpstreamFeatures(choice % 3, bands))
    pack_bytes = 0
    with suppress(ProtocolError):
        for piece in _in_slices(body, choice + 1):
            pack_bytes += sum(map(len, decoder.feed(piece)))
        decoder.finish()
    assert pack_bytes <= len(body)


def github_webhook(data: bytes) -> None:
    """GitHub's headers and payload."""
    _webhook("github", ("X-GitHub-Event", "X-Hub-Signature-256", "Content-Type"), data)


def gitlab_webhook(data: bytes) -> None:
    """GitLab's headers and payload."""
    names_of_headers = (
        *("X-Gitlab-Event", "X-Gitlab-Token", "webhook-id", "webhook-timestamp"),
        "webhook-signature",
    )
    _webhook("gitlab", names_of_headers, data)


def gitea_webhook(data: bytes) -> None:
    """Gitea's and Forgejo's headers and payload."""
    _webhook("gitea", ("X-Gitea-Event", "X-Forgejo-Event", "X-Gitea-Signature"), data)


def bitbucket_webhook(data: bytes) -> None:
    """Bitbucket's headers and payload."""
    _webhook("bitbucket", ("X-Event-Key", "X-Hub-Signature", "X-Request-UUID"), data)


def _webhook(forge: str, header_names: tuple[str, ...], data: bytes) -> None:
    values, body = _lines_and_rest(data, len(header_names))
    headers = CIMultiDict(zip(header_names, values, strict=True))
    for name in header_names:
        if not headers[name]:
            del headers[name]
    receiver = RECEIVERS[forge]
    with suppress(Unauthenticated):
        receiver.verify(headers, body, secrets=[SECRET, b"whsec_c2VjcmV0", b""], now=NOW)
    with suppress(ProtocolError):
        event = receiver.parse(headers, body)
        assert event.delivery
        for url in () if isinstance(event, Ignored) else event.repository_urls:
            repository_key(url)


def push_report(data: bytes) -> None:
    """A push that is passed on, and the answer to it, in slices: looked at, never refused."""
    choice, rest = _split_first(data)
    commands, report = CommandsReader(), ReportReader(has_side_band=bool(choice % 2))
    sent, _, answered = rest.partition(b"\xff\xff")
    for piece in _in_slices(sent, choice + 1):
        commands.feed(piece)
    for piece in _in_slices(answered, choice + 1):
        report.feed(piece)
    changes = changes_of(commands, report)
    assert changes is None or {one.ref for one in changes} <= {*commands.updates()}


def repository_url(data: bytes) -> None:
    """A URL that a webhook names its repository by."""
    key = repository_key(data.decode("utf-8", "replace"))
    assert key is None or (key.host and key.path)


# --- what is on disk, and between our own processes --------------------------------------------


def packed_refs(data: bytes) -> None:
    """Lines of packed-refs: what was accepted is written as it was read."""
    with suppress(ValueError):
        chunks = list(parse_packed_lines(data))
        assert b"".join(packed_lines(chunk.lines) for chunk in chunks) == data
        table = RefTable(chunks)
        assert all(table[ref.name] == ref for ref in table.values())


def credential_file(data: bytes) -> None:
    """A password file: one header line comes of it, whatever it holds."""
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        path.write_bytes(data)
        with suppress(UpstreamRefused):
            line = basic("git", BasicCredentials("git", path).secret())
            assert line.isprintable()
            assert len(line) < 2 * SECRET_BYTES_MAX


def commit_graph(data: bytes) -> None:
    """A commit-graph file whose checksum is right, whatever else: ids are whole."""
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        path.write_bytes(data + hashlib.sha1(data, usedforsecurity=False).digest())
        try:
            graph = CommitGraphFile(path)
        except ValueError:
            return
        first = data.find(b"OIDL") + 12
        for oid in (*_COMMIT_IDS, data[first : first + 20].ljust(20, b"\0")):
            with suppress(ValueError):
                record = graph.get(oid)
                if record is not None:
                    assert {len(one) for one in (record.tree, *record.parents)} == {20}


def worker_frames(data: bytes) -> None:
    """Frames between our processes, in slices: what was read can be written again."""
    size, body = _split_first(data)
    decoder = Decoder()
    with suppress(ChannelError):
        for piece in _in_slices(body, size + 1):
            for envelope in decoder.feed(piece):
                assert Decoder().feed(encode_frame(envelope)) == [envelope]


def pack_entry(data: bytes) -> None:
    """A file of the pack cache."""
    pack_bytes = _checked(memoryview(data))
    assert pack_bytes is None or pack_bytes >= 0


TARGETS: Final[Mapping[str, Target]] = {
    target.__name__: target
    for target in (
        *(pkt_lines, v2_command, v0_request, filter_spec, names, request_headers),
        *(content_encoding, advertisement, ls_refs_answer, fetch_answer, github_webhook),
        *(gitea_webhook, bitbucket_webhook, push_report),
        *(gitlab_webhook, repository_url, packed_refs, credential_file, commit_graph),
        *(worker_frames, pack_entry),
    )
}
