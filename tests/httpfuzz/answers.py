"""Reads what a server sent as a client that believes nothing, and says what is wrong with it."""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

STATUSES: Final = frozenset(
    {
        *(100, 200, 202, 204, 206, 304),
        *(400, 401, 403, 404, 405, 408, 409, 413, 415, 416, 417, 422, 429, 503),
    }
)
"""All that the service may say while its upstream is well: 500, 502 and 507 are not among them."""

NAMES: Final = frozenset(
    name.encode()
    for name in (
        *("accept-ranges", "allow", "cache-control", "connection", "content-encoding"),
        *("content-length", "content-range", "content-security-policy", "content-type", "date"),
        *("etag", "expires", "git-mirror-stale", "pragma", "retry-after", "server"),
        *("transfer-encoding", "vary", "www-authenticate", "x-accel-buffering"),
        *("x-content-type-options", "x-request-id"),
    )
)
"""All header fields there are: any other was smuggled in by somebody."""

INFLATED_BYTES_MAX: Final = 4 << 20

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) [ -~]*")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([\t -~\x80-\xff]*)")
_WITHOUT_BODY: Final = frozenset({100, 204, 304})


class WrongAnswer(Exception):
    """What no server may send."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `is_whole` tells that its end came, as far as its head says where that is."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    is_whole: bool = True

    @property
    def content(self) -> bytes:
        """The body, as far as it can be inflated where it is compressed."""
        if self.headers.get(b"content-encoding") != b"gzip":
            return self.body
        try:
            return zlib.decompressobj(31).decompress(self.body, INFLATED_BYTES_MAX)
        except zlib.error as error:
            raise WrongAnswer(f"a body that is not gzip: {error}") from error


def read_answers(data: bytes) -> Iterator[Answer]:
    """Read all answers of a connection; the last may be cut off.

    What a HEAD asked for can't be told from a body that is missing, but by what follows it: another
    answer, or nothing.

    Raises:
        WrongAnswer: It is none.
    """
    while data:
        head, ended, rest = data.partition(b"\r\n\r\n")
        if not ended:
            if not re.match(rb"H(T(T(P(/(1(\.[^\n]*\r?(\n|$))?)?)?)?)?)?", data):
                raise WrongAnswer(f"no beginning of an answer: {data[:80]!r}")
            return
        status, headers = _read_head(head)
        if status in _WITHOUT_BODY:
            yield Answer(status, headers, b"")
            data = rest
        elif headers.get(b"transfer-encoding") == b"chunked":
            if not rest or _begins_answer(rest):  # to a HEAD
                yield Answer(status, headers, b"", is_whole=False)
                data = rest
                continue
            body, data, is_whole = _read_chunks(rest)
            yield Answer(status, headers, body, is_whole)
        elif b"content-length" in headers:
            length = int(headers[b"content-length"])
            if length and _begins_answer(rest):
                length = 0
            yield Answer(status, headers, rest[:length], len(rest) >= length)
            data = rest[length:]
        else:
            yield Answer(status, headers, rest)
            return


def _begins_answer(data: bytes) -> bool:
    return data.startswith(b"HTTP/1.")


def _read_head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    line, *fields = head.split(b"\r\n")
    found = _STATUS_LINE.fullmatch(line)
    if found is None:
        raise WrongAnswer(f"no status line: {line[:80]!r}")
    status = int(found[1])
    if status not in STATUSES:
        raise WrongAnswer(f"status {status}")
    headers: dict[bytes, bytes] = {}
    for field in fields:
        parts = _FIELD.fullmatch(field)
        if parts is None:
            raise WrongAnswer(f"no header field: {field[:80]!r}")
        name = parts[1].lower()
        if name not in NAMES:
            raise WrongAnswer(f"a header field {name!r}")
        if name in headers and name != b"www-authenticate":
            raise WrongAnswer(f"{name!r} twice")
        headers[name] = parts[2]
    if b"transfer-encoding" in headers and b"content-length" in headers:
        raise WrongAnswer("two lengths")
    return status, headers


def _read_chunks(data: bytes) -> tuple[bytes, bytes, bool]:
    """Return the body, what follows it, and whether its end came."""
    body = b""
    while True:
        line, ended, rest = data.partition(b"\r\n")
        if not ended:
            return body, b"", False
        if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", line):
            raise WrongAnswer(f"no chunk: {line[:80]!r}")
        size = int(line, 16)
        if len(rest) < size + 2:
            return body + rest[:size], b"", False
        if rest[size : size + 2] != b"\r\n":
            raise WrongAnswer("a chunk that is longer than it says")
        body, data = body + rest[:size], rest[size + 2 :]
        if size == 0:
            return body, data, True
