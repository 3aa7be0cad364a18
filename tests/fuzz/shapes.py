"""Inputs that would hurt a parser which copies, backtracks or collects more than it should.

Each is a function of a number of repeats, so that a test can compare one size with another.
"""

import gzip
import zlib
from collections.abc import Callable, Mapping
from typing import Final

from mirror.workers.frames import encode as encode_frame
from mirror.workers.messages import Envelope, Reply
from tests.wire.bodies import command, join, lines, oid

Shape = Callable[[int], bytes]

_OID: Final = oid(1)
_GITHUB_HEAD: Final = b"push\nsha256=0\napplication/json\n"
_GITLAB_HEAD: Final = b"System Hook\nx\n\n\n\n"


def repeated(unit: bytes, *, head: bytes = b"", tail: bytes = b"") -> Shape:
    """The same again and again, between a beginning and an end."""
    return lambda count: head + unit * count + tail


def _many(line: bytes) -> Callable[[int], list[bytes]]:
    return lambda count: [line % number for number in range(count)]


def _command(name: bytes, line: bytes) -> Shape:
    return lambda count: command(name, *_many(line)(count))


def _answer(line: bytes, *, first: bytes = b"") -> Shape:
    return lambda count: join(lines(*([first] if first else []), *_many(line)(count))) + b"0000"


_JSON: Final = (
    *((b"[", b""), (b"[],", b"0]"), (b'{"a":', b""), (b"1", b""), (b'"\\u0041",', b"0]")),
    *((b"\\", b""), (b" ", b"")),
)


def _json(head: bytes) -> list[Shape]:
    opened = head + b'{"ref": ['
    return [repeated(unit, head=opened, tail=tail) for unit, tail in _JSON]


SHAPES: Final[Mapping[str, list[Shape]]] = {
    "pkt_lines": [
        *(repeated(unit, head=b"\xff") for unit in (b"0000", b"0004", b"0005x", b"fff0")),
        repeated(b"0009hello", head=b"\0"),
        repeated(b"x", head=b"\x10fff0"),
    ],
    "v2_command": [
        repeated(b"0000", head=b"0014command=ls-refs\n0001"),
        repeated(b"0014command=ls-refs\n"),
        repeated(b"000bagent=x\n"),
        _command(b"ls-refs", b"ref-prefix refs/heads/%d"),
        *(_command(b"fetch", b"%b %%040x" % key) for key in (b"want", b"have", b"shallow")),
        _command(b"fetch", b"want-ref refs/heads/%d"),
        _command(b"fetch", b"deepen-not refs/heads/%d"),
        _command(b"object-info", b"oid %040x"),
    ],
    "v0_request": [
        lambda count: join(lines(*_many(b"want %040x side-band thin-pack")(count))) + b"0000",
        lambda count: (
            join(lines(b"want " + _OID)) + b"0000" + join(lines(*_many(b"have %040x")(count)))
        ),
        lambda count: join(lines(b"want " + _OID + b" x" * min(count, 30_000))) + b"0000",
    ],
    "filter_spec": [
        *(
            repeated(unit, head=b"combine:")
            for unit in (b"+", b"%2b", b"blob:none+", b"%", b"\xff")
        ),
        *(repeated(b"9", head=head) for head in (b"blob:limit=", b"tree:")),
        repeated(b"combine:"),
    ],
    "names": [
        *(repeated(unit, head=b"refs/heads/") for unit in (b"a", b"a/", b".", b"@", b"a.loc")),
        repeated(b"0"),
    ],
    "request_headers": [repeated(unit) for unit in (b":", b"version=2:", b"version=", b"\ngzip;,")],
    "content_encoding": [
        lambda count: b"\xfc" + gzip.compress(b"", mtime=0) * count,
        lambda count: b"\xfc" + gzip.compress(bytes(count * 1000), mtime=0),
        lambda count: b"\xfd" + zlib.compress(bytes(count * 1000)),
        lambda count: b"\x00" + gzip.compress(bytes(range(256)) * (count // 100), 0, mtime=0),
    ],
    "advertisement": [
        _answer(_OID + b" refs/heads/%d", first=_OID + b" HEAD\0multi_ack"),
        _answer(b"ref%d", first=b"version 2"),
        _answer(b"shallow " + _OID + b" %d"),
        lambda count: _answer(b"x%d", first=_OID + b" HEAD\0" + b" a=b" * min(count, 10_000))(1),
    ],
    "ls_refs_answer": [
        _answer(_OID + b" refs/heads/%d"),
        _answer(_OID + b" HEAD symref-target:refs/heads/%d"),
        lambda count: join(lines(_OID + b" refs/heads/x" + b" a:b" * min(count, 10_000))) + b"0000",
    ],
    "fetch_answer": [
        repeated(b"0006\x01P", head=b"\x02000dpackfile\n"),
        repeated(b"0006\x02P", head=b"\x02000dpackfile\n"),
        repeated(b"0005\x01", head=b"\x05000dpackfile\n"),
        repeated(b"PACK", head=b"\x000008NAK\n"),
        repeated(b"0008NAK\n", head=b"\x03"),
        repeated(b"0001", head=b"\xff"),
    ],
    "github_webhook": _json(_GITHUB_HEAD)
    + [
        repeated(unit, head=b"push\n\napplication/x-www-form-urlencoded\npayload=")
        for unit in (b"%5b", b"&", b"+", b"%")
    ],
    "gitlab_webhook": [*_json(_GITLAB_HEAD), repeated(b"v1,x ", head=b"x\n\nid\n1740000000\n")],
    "gitea_webhook": _json(b"push\n\n00\n"),
    "bitbucket_webhook": [*_json(b"repo:push\n\n\n"), *_json(b"repo:refs_changed\n\n\n")],
    "push_report": [
        lambda count: (
            b"\xff" + join(lines(*_many(b"%b %b refs/heads/%%d" % (_OID, oid(2)))(count))) + b"0000"
        ),
        lambda count: b"\xfe\xff\xff" + join(lines(*_many(b"ok refs/heads/%d")(count))) + b"0000",
        repeated(b"0005\x01", head=b"\xff\xff\xff"),
        repeated(b"0006\x01x", head=b"\x01\xff\xff"),
    ],
    "repository_url": [
        *(repeated(unit) for unit in (b"@", b":", b"a", b"[", b"/", b"%41")),
        *(repeated(unit, head=b"https://x/") for unit in (b"/", b"%2f", b".git", b"@:")),
        repeated(b"a@", head=b"https://"),
    ],
    "packed_refs": [
        lambda count: b"".join(b"%b refs/heads/%08d\n" % (_OID, one) for one in range(count)),
        repeated(b"^" + _OID + b"\n", head=_OID + b" refs/heads/x\n"),
        repeated(b"x", head=_OID + b" refs/heads/x"),
        repeated(b"\n"),
    ],
    "credential_file": [repeated(unit) for unit in (b"x", b"\n", b"\0\r\n")],
    "commit_graph": [
        repeated(unit, head=b"CGPH\x01\x01\xff\x00") for unit in (b"\0", b"OIDL", b"\xff")
    ],
    "worker_frames": [
        lambda count: b"\xff" + encode_frame(Envelope(0, Reply("x"))) * count,
        lambda count: b"\xff" + encode_frame(Envelope(0, Reply("x" * count * 8))),
        lambda count: b"\x10" + (count * 8).to_bytes(4, "big") + b"[" * count * 8,
    ],
    "pack_entry": [repeated(b"GMPACK01"), repeated(b"\0")],
}
