"""Answers that may be given again: what handlers offer, and the bytes that are kept of it.

Owns the store of prepared answers, its bounds, and the arithmetic of where a request ends. It knows
no connection and never writes. An answer is looked up by the bytes of the whole request, so all
that a request says (path, protocol version, credentials, encodings) is part of the question.

Framing: RFC 9112, 6 (Message Body); the header fields that differ each time are Date (RFC 9110,
6.6.1) and X-Request-Id.
"""

import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import hdrs, web

ANSWERS_MAX: Final = 4096
"""Clients of one kind send the same bytes: that is a few per repository and version."""

ANSWERS_BYTES_MAX: Final = 32 * 1024**2
"""Of requests and answers together. Bodies mostly are the snapshots' own, but outlive them here."""

ANSWER_BYTES_MAX: Final = 1024**2
"""A longer body is better sent in slices, with others' requests in between."""

REQUEST_BYTES_MAX: Final = 16 * 1024
"""A longer request is no poll; it is neither kept nor looked up."""

REQUEST_ID: Final = "X-Request-Id"

_HEAD_END: Final = b"\r\n\r\n"
_LENGTH_DIGITS_MAX: Final = 9
_FRAMED_OTHERWISE: Final = (hdrs.TRANSFER_ENCODING, hdrs.EXPECT, hdrs.UPGRADE)
_METHODS: Final = (hdrs.METH_GET, hdrs.METH_POST)


@dataclass(frozen=True, slots=True)
class Repeatable:
    """What a handler puts into a request: its answer may be given again to an equal request.

    Attributes:
        body: The whole body.
        is_valid: Whether the handler would give this answer now, at once and with outcome `ok`.
            Asked before each repeat, on the event loop: it must not block, wait or raise. What it
            refers to is kept as long as the answer: no snapshot but by a weak reference.
        on_repeat: Called after each repeat, with the request's log context bound; not where the
            handler itself answers. It must not block, wait or raise.
    """

    body: bytes
    is_valid: Callable[[], bool]
    on_repeat: Callable[[], None] | None = None


REPEATABLE: Final = web.RequestKey("repeatable", Repeatable)


class Prepared:
    """One answer as bytes, but for its date and request id.

    Attributes:
        body: The whole body.
        is_valid: See `Repeatable`.
        on_repeat: See `Repeatable`.
        record: Tells the metrics the seconds that an answer took.
        context: For the log: which repository, who read, and where they are if a proxy says that.
        closes: Whether the connection ends after this answer.
    """

    __slots__ = (
        *("body", "is_valid", "on_repeat", "record", "context", "closes"),
        *("_before_date", "_after_date", "_date", "_head", "_file", "__weakref__"),
    )

    def __init__(
        self,
        offered: Repeatable,
        *,
        before_date: bytes,
        after_date: bytes,
        record: Callable[[float], None],
        context: Mapping[str, str | None],
        closes: bool,
    ) -> None:
        self.body = offered.body
        self.is_valid = offered.is_valid
        self.on_repeat = offered.on_repeat
        self.record = record
        self.context = context
        self.closes = closes
        self._before_date = before_date
        self._after_date = after_date
        self._date = b""
        self._head = b""
        self._file: int | None = None

    def file(self) -> int:
        """Return the descriptor of a file in memory that holds the body.

        It is closed when nobody refers to this answer any longer.
        """
        if self._file is None:
            self._file = os.memfd_create("answer")
            weakref.finalize(self, os.close, self._file)
            with open(self._file, "wb", closefd=False) as file:
                file.write(self.body)
        return self._file

    def head(self, date: bytes) -> bytes:
        """Return the status line and the header fields, up to the value of X-Request-Id."""
        if date is not self._date:
            self._date = date
            self._head = self._before_date + date + self._after_date
        return self._head

    @property
    def size(self) -> int:
        """Its bytes in memory, or nearly; the body may be there twice, see `file`."""
        return 2 * len(self.body) + 2 * (len(self._before_date) + len(self._after_date))


def prepare(
    request: web.Request,
    response: web.StreamResponse,
    offered: Repeatable,
    *,
    record: Callable[[float], None],
    context: Mapping[str, str | None],
) -> Prepared | None:
    """Return a response, whose headers are complete, as bytes; `None` where that can't be done."""
    headers = response.headers
    if (
        response.status != 200
        or request.method not in _METHODS
        or (request.method == hdrs.METH_GET and request.body_exists)
        or len(offered.body) > ANSWER_BYTES_MAX
        or hdrs.TRANSFER_ENCODING in headers
        or headers.get(hdrs.CONTENT_LENGTH) != str(len(offered.body))
    ):
        return None
    version = request.version
    status_line = f"HTTP/{version[0]}.{version[1]} {response.status} {response.reason}"
    parts = _split_head(status_line, headers)
    if parts is None:
        return None
    return Prepared(
        offered,
        before_date=parts[0],
        after_date=parts[1],
        record=record,
        context=context,
        closes=not response.keep_alive,
    )


def _split_head(status_line: str, headers: Mapping[str, str]) -> tuple[bytes, bytes] | None:
    """Return the head before the value of Date, and from there to the value of X-Request-Id."""
    lines = [status_line, *(f"{name}: {value}" for name, value in headers.items())]
    names = list(headers)
    if not all(line.isprintable() for line in lines) or names.count(hdrs.DATE) != 1:
        return None
    if names[-1] != REQUEST_ID:
        return None
    at = 1 + names.index(hdrs.DATE)
    before = "\r\n".join([*lines[:at], f"{hdrs.DATE}: "])
    after = "\r\n".join(["", *lines[at + 1 : -1], f"{REQUEST_ID}: "])
    return before.encode(), after.encode()


def request_length(data: bytes, request: web.BaseRequest) -> int | None:
    """Return how many bytes at the start of `data` are `request`, as aiohttp has parsed it.

    `None` where that is not beyond doubt: then nobody may take the next byte for the start of a
    request but aiohttp.
    """
    head = data[: data.find(_HEAD_END) + len(_HEAD_END)]
    lengths = request.headers.getall(hdrs.CONTENT_LENGTH, ["0"])
    if (
        len(head) <= len(_HEAD_END)
        or not head[:1].isupper()  # a parser may skip what stands before the method
        or head.count(b"\n") != head.count(b"\r\n")  # or take a bare LF for the end of a line
        or request.method == hdrs.METH_CONNECT
        or any(name in request.headers for name in _FRAMED_OTHERWISE)
        or len(lengths) != 1
        or not (lengths[0].isascii() and lengths[0].isdigit())
        or len(lengths[0]) > _LENGTH_DIGITS_MAX
    ):
        return None
    length = len(head) + int(lengths[0])
    return length if length <= len(data) else None


class Answers:
    """Prepared answers by who asks and what; bounded, the least recently used leave first."""

    def __init__(self, *, count_max: int = ANSWERS_MAX, bytes_max: int = ANSWERS_BYTES_MAX) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[tuple[Hashable, bytes], Prepared] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> int:
        """The bytes of all that is kept."""
        return self._bytes

    def find(self, identity: Hashable, data: bytes) -> Prepared | None:
        """Return the answer to the request `data`, if it may still be given."""
        key = (identity, data)
        prepared = self._kept.get(key)
        if prepared is None:
            return None
        if not prepared.is_valid():
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return prepared

    def keep(self, identity: Hashable, data: bytes, prepared: Prepared) -> None:
        """Keep the answer to the request `data`, instead of the one there was."""
        key = (identity, data)
        if key in self._kept:
            self._drop(key)
        self._kept[key] = prepared
        self._bytes += len(data) + prepared.size
        while len(self._kept) > self._count_max or self._bytes > self._bytes_max:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: tuple[Hashable, bytes]) -> None:
        self._bytes -= len(key[1]) + self._kept.pop(key).size


class NoAnswers(Answers):
    """Knows nothing by heart, and learns nothing."""

    def keep(self, identity: Hashable, data: bytes, prepared: Prepared) -> None:
        """Keep nothing."""
