"""Changes a request as those do who look for a way in: its line, its fields, its framing, its body.

What is tried is in tables; chance picks from them.
"""

import gzip
import random
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.httpfuzz.requests import Request

CORPUS: Final = Path(__file__).parents[1] / "fuzz" / "corpus"
DICTIONARY: Final = Path(__file__).parent / "dictionary"
_BODIES: Final = ("v2_command", "v0_request", "pkt_lines", "content_encoding", "push_report")
_WEBHOOKS: Final = ("github_webhook", "gitlab_webhook", "gitea_webhook", "bitbucket_webhook")


def _table(name: str, *more: bytes) -> tuple[bytes, ...]:
    """Return the lines of a file of the dictionary, escapes undone, and what is too long for it."""
    lines = (DICTIONARY / f"{name}.txt").read_text("ascii").split("\n")[:-1]
    return (*(line.encode().decode("unicode_escape").encode("latin-1") for line in lines), *more)


METHODS: Final = _table("methods", b"A" * 300)
VERSIONS: Final = _table("versions")
TARGETS: Final = _table("targets", b"/" + b"a/" * 2000)
FIELDS: Final = _table(
    "fields",
    b"Git-Protocol: " + b"version=2:" * 500,
    b"Authorization: Basic " + b"QUFB" * 3000,
    b"X-GitHub-Delivery: " + b"d" * 300,
    b"X: " + b"y" * 9000,
)
CHUNKED: Final = _table(
    "chunked",
    b"0\r\n" + b"X: y\r\n" * 300,
    b"5;" + b"x" * 5000 + b"\r\nhello\r\n0\r\n\r\n",
    b"1\r\nx\r\n" * 400,
)
TOKENS: Final = _table("tokens", b"[" * 2000)


def _read(*names: str) -> tuple[bytes, ...]:
    files = sorted(one for name in names for one in (CORPUS / name).iterdir())
    return tuple(one.read_bytes() for one in files)


_PACKETS: Final = _read(*_BODIES)
_EVENTS: Final = tuple(one.split(b"\n", 5)[-1] for one in _read(*_WEBHOOKS))


def changed(chance: random.Random, request: Request, others: Sequence[Request]) -> bytes:
    """Change a request in up to four ways, and encode it."""
    if chance.random() < 0.4 and request.signed_for is not None:
        request.signed_for = chance.choice((None, "github", "gitlab", "gitea", "bitbucket"))
    extra: list[bytes] = []
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        chance.choices(_CHANGES, weights=_WEIGHTS)[0](chance, request, others, extra)
    data = request.encode()
    if extra:
        line, _, rest = data.partition(b"\r\n")
        chance.shuffle(extra)
        data = b"\r\n".join([line, *extra, rest])
    return data


def damaged(chance: random.Random, data: bytes) -> bytes:
    """Damage bytes: some turned, cut out, doubled, or put in."""
    work = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at = chance.randrange(len(work) + 1)
        length = chance.choice((1, 1, 2, 4, 16, 100))
        match chance.randrange(5):
            case 0 if at < len(work):
                work[at] ^= 1 << chance.randrange(8)
            case 1:
                del work[at : at + length]
            case 2:
                work[at:at] = work[at : at + length] * chance.choice((1, 2, 50))
            case 3:
                work[at:at] = chance.choice(TOKENS)
            case _:
                work[at : at + length] = chance.randbytes(length)
    return bytes(work)


# --- one change each ---------------------------------------------------------------------------


def _method(chance: random.Random, request: Request, _: Sequence[Request], __: list[bytes]) -> None:
    request.method = chance.choice(METHODS)


def _version(
    chance: random.Random, request: Request, _: Sequence[Request], __: list[bytes]
) -> None:
    request.version = chance.choice(VERSIONS)


def _target(chance: random.Random, request: Request, _: Sequence[Request], __: list[bytes]) -> None:
    path, mark, query = request.target.partition(b"?")
    match chance.randrange(7):
        case 0:
            request.target = chance.choice(TARGETS)
        case 1:
            request.target = damaged(chance, request.target)
        case 2:
            request.target = re.sub(
                rb".",
                lambda one: b"%%%02x" % one[0][0] if chance.random() < 0.3 else one[0],
                path,
                flags=re.DOTALL,
            ) + (mark + query)
        case 3:
            request.target = path.replace(b"/", chance.choice((b"//", b"/./", b"/x/../", b"%2f")))
            request.target += mark + query
        case 4:
            request.target = path + b"?" + damaged(chance, query or b"service=git-upload-pack")
        case 5:
            request.target = b"http://" + chance.choice((b"x", b"a@b:1", b"[::1]")) + request.target
        case _:
            request.target = path + chance.choice((b"/", b".git", b".git/", b"%00", b";x", b"#"))
            request.target += mark + query


def _field(
    chance: random.Random, request: Request, _: Sequence[Request], extra: list[bytes]
) -> None:
    extra += chance.choices(FIELDS, k=chance.choice((1, 1, 2, 5)))
    if chance.random() < 0.02:
        extra += [b"X-%d: y" % number for number in range(200)]
    if request.headers and chance.random() < 0.3:
        extra.append(b"%b: %b" % chance.choice(request.headers))


def _without_field(
    chance: random.Random, request: Request, _: Sequence[Request], __: list[bytes]
) -> None:
    if request.headers:
        del request.headers[chance.randrange(len(request.headers))]


def _field_value(
    chance: random.Random, request: Request, _: Sequence[Request], __: list[bytes]
) -> None:
    if request.headers:
        at = chance.randrange(len(request.headers))
        name, value = request.headers[at]
        request.headers[at] = (name.swapcase(), damaged(chance, value))


def _body(chance: random.Random, request: Request, _: Sequence[Request], __: list[bytes]) -> None:
    request.body = damaged(chance, request.body or b"")


def _other_body(
    chance: random.Random, request: Request, others: Sequence[Request], _: list[bytes]
) -> None:
    match chance.randrange(4):
        case 0:
            request.body = chance.choice(_PACKETS)
        case 1:
            request.body = chance.choice(_EVENTS)
        case 2:
            request.body = chance.choice(others).body or b""
        case _:
            mine, other = request.body or b"", chance.choice(_PACKETS)
            request.body = mine[: chance.randrange(len(mine) + 1)] + other


def _encoded_body(
    chance: random.Random, request: Request, _: Sequence[Request], extra: list[bytes]
) -> None:
    body, name = request.body or b"", b"gzip"
    match chance.randrange(5):
        case 0:
            body = gzip.compress(body, mtime=0)
        case 1:
            body, name = zlib.compress(body), b"deflate"
        case 2:
            body = damaged(chance, gzip.compress(body, mtime=0))
        case 3:
            body = gzip.compress(body, mtime=0)[: chance.randrange(30)]
        case _:
            body = gzip.compress(b"0000" * chance.choice((1, 100_000)), mtime=0)
    request.body = body
    extra.append(b"Content-Encoding: " + name)


def _chunked(
    chance: random.Random, request: Request, _: Sequence[Request], __: list[bytes]
) -> None:
    if chance.random() < 0.5:
        request.body = request.body or b""
        request.chunked = tuple(chance.choices((1, 2, 7, 100, 4096), k=3))
        return
    request.framed = chance.choice(CHUNKED)


def _length(chance: random.Random, request: Request, _: Sequence[Request], __: list[bytes]) -> None:
    length = len(request.body or b"") + chance.choice((-5, -1, 1, 4, 1000, 1 << 20, 1 << 40))
    request.headers.append((b"Content-Length", b"%d" % max(0, length)))
    request.body = request.body or b""


_Change = Callable[[random.Random, Request, Sequence[Request], list[bytes]], None]
_CHANGES: Final[tuple[_Change, ...]] = (
    *(_method, _version, _target, _field, _without_field, _field_value),
    *(_body, _other_body, _encoded_body, _chunked, _length),
)
_WEIGHTS: Final = (4, 3, 8, 12, 4, 6, 14, 8, 5, 6, 4)
