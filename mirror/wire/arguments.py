"""The lines of a request, read as git's own server reads them, whichever protocol they came in.

What git takes, it takes with C's string functions: a line ends at its first NUL, an object id may
be in upper case and have something behind it, and numbers may be octal or hexadecimal. What it
refuses is refused here in its words.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from mirror.errors import ProtocolError, RequestRefused
from mirror.wire.filters import ObjectFilter, parse_filter
from mirror.wire.names import ObjectId
from mirror.wire.numbers import parse_unsigned
from mirror.wire.object_ids import Gathered
from mirror.wire.pktline import Packet, Special, packet_at, text

INFINITE_DEPTH: Final = 0x7FFFFFFF
"""What clients send as depth to unshallow."""

SINCE_MAX: Final = (1 << 63) - 1

EXCLUDED_MAX: Final = 65536
"""No client excludes so many refs; git's own server has no limit."""

SHOWN_BYTES_MAX: Final = 200

_SHOWN_REST_BYTES: Final = 16

_LEADING_ID: Final = re.compile(rb"[0-9a-fA-F]{40}")

_RUNS: Final = {
    key: re.compile(rb"(?:0032%b [0-9a-f]{40}\n){1,1000}" % key) for key in (b"want", b"have")
}
"""Not more at once: nobody else runs meanwhile, which is for a tenth of a millisecond."""


@dataclass(frozen=True, slots=True)
class Deepen:
    """How much history a shallow fetch asks for; all unset means none of it."""

    depth: int | None = None
    relative: bool = False
    since: int | None = None
    exclude: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return self.depth is not None or self.since is not None or bool(self.exclude)


class Packets:
    """The packets of a body, as they are asked for: what follows a request is not looked at."""

    def __init__(self, body: bytes, more: Iterable[bytes] = ()) -> None:
        """Take a body, or its first piece and those that follow, which are asked for in turn."""
        self._body = body
        self._more = iter(more)
        self._position = 0

    def __iter__(self) -> "Packets":
        return self

    def __next__(self) -> Packet:
        """Return the next one.

        Raises:
            ProtocolError: It is malformed, or the body ends within it.
        """
        while (found := packet_at(self._body, self._position)) is None:
            rest = self._body[self._position :]
            piece = next(self._more, None)
            if piece is not None:
                self._body, self._position = rest + piece, 0
            elif rest:
                rest = rest[:_SHOWN_REST_BYTES]
                raise ProtocolError(f"the body ends within a pkt-line: {rest!r}")
            else:
                raise StopIteration
        packet, self._position = found
        return packet

    def run(self, key: bytes) -> bytes:
        """Pass over lines of an object id that follow one another, as many clients write them.

        They are what a long request is long by: a thousand at once take a fiftieth of the time that
        they take one by one. What is written in another way, if right, is left to be read so.

        Args:
            key: What stands before each id: ``want`` or ``have``.

        Returns:
            The digits of all of them, or nothing.
        """
        found = _RUNS[key].match(self._body, self._position)
        if found is None:
            return b""
        self._position = found.end()
        return found[0].replace(b"0032%b " % key, b"").replace(b"\n", b"")


def line_of(packet: bytes) -> bytes:
    """Return a line without its newline, up to the first NUL."""
    return text(packet).partition(b"\0")[0]


def lines_until_flush(packets: Iterable[Packet]) -> Iterator[bytes]:
    """Yield the lines before the flush-pkt.

    Raises:
        ProtocolError: There is none.
        RequestRefused: Another special packet comes first.
    """
    for packet in packets:
        if packet is Special.FLUSH:
            return
        if isinstance(packet, Special):
            raise RequestRefused("expected flush after arguments")
        yield line_of(packet)
    raise ProtocolError("the request ends before its flush-pkt")


def leading_id(value: bytes) -> ObjectId | None:
    """Return the object id that `value` begins with, whatever follows it."""
    found = _LEADING_ID.match(value)
    return ObjectId(found[0].lower()) if found else None


def shown(line: bytes) -> str:
    """Return a line of a client's for a message to it."""
    return line[:SHOWN_BYTES_MAX].decode("utf-8", "backslashreplace")


def quoted(line: bytes) -> str:
    """Return it in quotes."""
    return f"'{shown(line)}'"


@dataclass(slots=True)
class LimitArguments:
    """The arguments that v0 and v2 share: shallow, deepen*, filter."""

    shallow: Gathered = field(default_factory=Gathered)
    depth: int | None = None
    relative: bool = False
    since: int | None = None
    exclude: list[bytes] = field(default_factory=list)
    filter: ObjectFilter | None = None

    def take(self, line: bytes) -> bool:
        """Take one line; tell whether it was one of these.

        Raises:
            RequestRefused: It was, and makes no sense.
        """
        key, space, value = line.partition(b" ")
        if not space:
            return False
        match key:
            case b"shallow":
                oid = leading_id(value)
                if oid is None:
                    raise RequestRefused(f"invalid shallow line: {shown(line)}")
                self.shallow.add(oid)
            case b"deepen":
                depth = parse_unsigned(value)
                if not depth:
                    raise RequestRefused(f"Invalid deepen: {shown(line)}")
                self.depth = min(depth, INFINITE_DEPTH)
            case b"deepen-since":
                since = parse_unsigned(value)
                if since is None or since > SINCE_MAX:
                    raise RequestRefused(f"Invalid deepen-since: {shown(line)}")
                self.since = since
            case b"deepen-not":
                if len(self.exclude) >= EXCLUDED_MAX:
                    raise RequestRefused(f"more than {EXCLUDED_MAX} deepen-not in one request")
                self.exclude.append(value)
            case b"filter":
                if self.filter is not None:
                    raise RequestRefused("multiple filter-specs cannot be combined")
                self.filter = parse_filter(value)
            case _:
                return False
        return True

    def checked_deepen(self) -> Deepen:
        """Return what was asked for.

        Raises:
            RequestRefused: A depth together with a date or an excluded ref.
        """
        if self.depth is not None and (self.since is not None or self.exclude):
            raise RequestRefused(
                "git upload-pack: deepen and deepen-since (or deepen-not) cannot be used together"
            )
        return Deepen(self.depth, self.relative, self.since, tuple(self.exclude))
