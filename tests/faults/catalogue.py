"""The faults, by name: what an upstream does, and what the mirror is to say of it."""

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from mirror.errors import Trouble
from mirror.wire.pktline import FLUSH_PKT, encode, encode_lines
from tests.faults.proxy import Answer, Line, Play
from tests.repository.packs import Kind, blob_id, make_pack, ref_delta, whole

PACK_BYTES_MAX = 1 << 20
"""What the mirrors of these tests take, and the longest listing."""

BUFFERED_BYTES_MAX = 24 << 20
"""What the system's buffers for both ends of a connection may hold that the mirror never read."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Attributes:
        play: How.
        reason: The label of the failures.
        says: What the log says, a regular expression.
        only: The operations whose answers are spoilt; all of them by default.
        limits: More keys of `limits:`.
        is_about_packs: Whether the engines see it.
        ticks: Seconds that go by, on the clock for the pace, with every look at it.
    """

    play: Play
    reason: Trouble
    says: str
    only: tuple[str, ...] = ()
    limits: str = ""
    is_about_packs: bool = False
    ticks: float = 0.0


def cut(at: Callable[[Answer], int]) -> Play:
    """Send all headers, and the connection ends after some of the body."""

    async def play(answer: Answer, line: Line) -> None:
        await line.send(answer.head() + answer.body[: at(answer)])

    return play


def status(number: int, *headers: str) -> Play:
    async def play(answer: Answer, line: Line) -> None:
        error = replace(answer, status=number, content_type="text/plain", body=b"no, sorry\n")
        await line.send(error.head(*headers) + error.body)

    return play


def instead(make: Callable[[Answer], bytes]) -> Play:
    """Send another body."""

    async def play(answer: Answer, line: Line) -> None:
        other = replace(answer, body=make(answer))
        await line.send(other.head() + other.body)

    return play


def endless(start: Callable[[Answer], bytes], piece: bytes) -> Play:
    """Send a beginning, and then the same for ever."""

    async def play(answer: Answer, line: Line) -> None:
        await line.send(answer.head(length=-1) + start(answer))
        while True:
            await line.send(piece)

    return play


async def stall_at_once(answer: Answer, line: Line) -> None:
    del answer
    await line.stall()


async def stall_in_the_middle(answer: Answer, line: Line) -> None:
    await line.send(answer.head() + answer.body[:-5])
    await line.stall()


async def trickle_headers(answer: Answer, line: Line) -> None:
    """Header lines without end, each in time."""
    del answer
    await line.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not await line.is_over(0.05):
        await line.send(b"x")


async def progress_now_and_then(answer: Answer, line: Line) -> None:
    """Never silent for long, and never done."""
    await line.send(answer.head(length=-1) + before_pack(answer))
    while not await line.is_over(0.05):
        await line.send(encode(b"\2Counting objects: 1\r"))


async def many_headers(answer: Answer, line: Line) -> None:
    await line.send(answer.head(*(f"X-Header-{n}: of no use" for n in range(2000))) + answer.body)


async def long_header(answer: Answer, line: Line) -> None:
    await line.send(answer.head("X-Long: " + "x" * 100_000) + answer.body)


async def garbage(answer: Answer, line: Line) -> None:
    del answer
    await line.send(b"220 mail.example.com ESMTP\r\n\r\n")


async def html(answer: Answer, line: Line) -> None:
    page = replace(answer, content_type="text/html", body=b"<html>Please sign in</html>")
    await line.send(page.head() + page.body)


async def circle(answer: Answer, line: Line) -> None:
    """Redirect the repository to itself."""
    moved = replace(answer, status=302, body=b"")
    await line.send(moved.head("Location: ?service=git-upload-pack"))


async def elsewhere(answer: Answer, line: Line) -> None:
    moved = replace(answer, status=301, body=b"")
    await line.send(moved.head("Location: http://elsewhere.example/acme/x.git/info/refs"))


@cache
def bomb() -> bytes:
    """Return 256 MiB of zeros, a thousandth of that long."""
    packer = zlib.compressobj(1, wbits=31)
    zeros = bytes(1 << 20)
    return b"".join([*(packer.compress(zeros) for _ in range(256)), packer.flush()])


async def gzip_bomb(answer: Answer, line: Line) -> None:
    inflating = replace(answer, body=bomb())
    await line.send(inflating.head("Content-Encoding: gzip") + inflating.body)


async def broken_gzip(answer: Answer, line: Line) -> None:
    spoilt = replace(answer, body=gzip.compress(answer.body)[:-8] + b"nonsense")
    await line.send(spoilt.head("Content-Encoding: gzip") + spoilt.body)


def before_pack(answer: Answer) -> bytes:
    """Return what comes before the pack's first packet."""
    return answer.body[: answer.body.index(b"packfile\n") + len(b"packfile\n")]


def in_place_of_the_pack(pack: bytes) -> Callable[[Answer], bytes]:
    return lambda answer: before_pack(answer) + encode(b"\1" + pack) + FLUSH_PKT


def one_bit_flipped(answer: Answer) -> bytes:
    at = answer.pack_at() + 30
    return answer.body[:at] + bytes([answer.body[at] ^ 4]) + answer.body[at + 1 :]


def tips_of_nothing(answer: Answer) -> bytes:
    """Let every ref that is listed point to an object that is not there."""
    lines = answer.body.split(b"\n")
    return b"\n".join(
        line[:4] + b"1" * 40 + line[44:] if len(line) > 44 else line for line in lines
    )


def lying_length(answer: Answer) -> bytes:
    """Let the first packet say that it is longer than it is."""
    return b"%04x" % (int(answer.body[:4], 16) + 3) + answer.body[4:]


def huge_delta() -> bytes:
    base = b"x" * (1 << 16)
    claim = b"\x80\x80\x04" + b"\x80\x80\x80\x80\x0c" + b"\x80" * 49_152
    return make_pack([whole(Kind.BLOB, base), ref_delta(blob_id(base), claim)])


WAITS = "upstream_timeout: 1s"
LISTS = ("info/refs", "ls-refs")
FETCH = ("fetch",)
BROKE_OFF = "broke off|cut off"

FAULTS: dict[str, Fault] = {
    "the connection ends before an answer": Fault(cut(lambda _: 0), Trouble.BROKE_OFF, "broke off"),
    "a listing is cut off": Fault(
        cut(lambda answer: len(answer.body) // 2), Trouble.BROKE_OFF, BROKE_OFF, LISTS
    ),
    "it never answers": Fault(stall_at_once, Trouble.SILENT, "was silent", limits=WAITS),
    "it falls silent in a listing": Fault(
        stall_in_the_middle, Trouble.SILENT, "was silent", LISTS, WAITS
    ),
    "it falls silent in a pack": Fault(
        stall_in_the_middle, Trouble.SILENT, "was silent", FETCH, WAITS, is_about_packs=True
    ),
    "a pack trickles": Fault(
        endless(lambda a: before_pack(a) + encode(b"\1PACK"), encode(b"\1x")),
        Trouble.SLOW,
        "upstream_bytes_per_second_min",
        FETCH,
        "upstream_timeout: 10s",
        ticks=1.0,
    ),
    "a listing trickles": Fault(
        endless(lambda _: b"", b"0"),
        Trouble.SLOW,
        "upstream_bytes_per_second_min",
        LISTS,
        "upstream_timeout: 10s",
        ticks=1.0,
    ),
    "headers trickle": Fault(
        trickle_headers, Trouble.SLOW, "headers of the answer", limits="upstream_timeout: 500ms"
    ),
    "progress without end": Fault(
        endless(before_pack, encode(b"\2Counting objects: 1\r") * 1000),
        Trouble.NO_PACK,
        "does not come to the point",
        FETCH,
    ),
    "a line of progress now and then": Fault(
        progress_now_and_then,
        Trouble.TOOK_TOO_LONG,
        r"limits\.refresh_timeout",
        FETCH,
        "refresh_timeout: 1s",
    ),
    "a web page": Fault(html, Trouble.NOT_GIT, "not a smart-HTTP Git server"),
    "something else than HTTP": Fault(garbage, Trouble.BROKE_OFF, "broke off"),
    "very many headers": Fault(many_headers, Trouble.BROKE_OFF, "broke off"),
    "a very long header": Fault(long_header, Trouble.BROKE_OFF, "broke off"),
    "a pkt-line that lies": Fault(
        instead(lying_length), Trouble.MALFORMED, "pkt-line|expected|advertisement", LISTS
    ),
    "a listing without its end": Fault(
        instead(lambda answer: answer.body[:-4]), Trouble.MALFORMED, "cut off", LISTS
    ),
    "a listing that never ends": Fault(
        endless(lambda _: b"", encode(b"1" * 40 + b" refs/heads/again\n") * 200),
        Trouble.TOO_LARGE,
        "over 1048576 bytes",
        LISTS,
    ),
    "a listing that inflates without end": Fault(
        gzip_bomb, Trouble.TOO_LARGE, "over 1048576 bytes", LISTS
    ),
    "compression that is broken": Fault(broken_gzip, Trouble.BROKE_OFF, "broke off", LISTS),
    "refs to objects that are not there": Fault(
        instead(tips_of_nothing), Trouble.MALFORMED, "reports: .*not our ref", ("ls-refs",)
    ),
    "redirects in a circle": Fault(circle, Trouble.REDIRECTED, "more than 3 times"),
    "a redirect to another host": Fault(
        elsewhere, Trouble.REDIRECTED, "put it into the configuration"
    ),
    "401": Fault(status(401), Trouble.CREDENTIALS, "set `credentials`"),
    "403": Fault(status(403), Trouble.CREDENTIALS, "set `credentials`"),
    "404": Fault(status(404), Trouble.NOT_FOUND, "no such repository"),
    "429 with seconds": Fault(
        status(429, "Retry-After: 7"), Trouble.RATE_LIMITED, "asks us to slow down"
    ),
    "503 with an absurd date": Fault(
        status(
            503,
            "Retry-After: Fri, 31 Dec 2199 23:59:59 GMT",
            "Date: Fri, 01 Jan 2021 00:00:00 GMT",
        ),
        Trouble.RATE_LIMITED,
        "asks us to slow down",
    ),
    "500": Fault(status(500), Trouble.SERVER_ERROR, "answered 500: no, sorry"),
    "a pack is cut off at its start": Fault(
        cut(lambda a: a.pack_at() + 4), Trouble.BROKE_OFF, BROKE_OFF, FETCH, is_about_packs=True
    ),
    "a pack is cut off at its end": Fault(
        cut(lambda a: len(a.body) - 6), Trouble.BROKE_OFF, BROKE_OFF, FETCH, is_about_packs=True
    ),
    "a pack ends early": Fault(
        instead(lambda a: a.body[: a.pack_at() - 5] + encode(b"\1" + b"PACK") + FLUSH_PKT),
        Trouble.BAD_PACK,
        "",
        FETCH,
        is_about_packs=True,
    ),
    "a pack with a flipped bit": Fault(
        instead(one_bit_flipped), Trouble.BAD_PACK, "", FETCH, is_about_packs=True
    ),
    "a pack of something else": Fault(
        instead(in_place_of_the_pack(make_pack([whole(Kind.BLOB, b"another thing")]))),
        Trouble.BAD_PACK,
        "",
        FETCH,
        is_about_packs=True,
    ),
    "a pack whose bases are missing": Fault(
        instead(
            in_place_of_the_pack(make_pack([ref_delta(blob_id(b"nobody has it"), b"\1\1\1x")]))
        ),
        Trouble.BAD_PACK,
        "",
        FETCH,
        is_about_packs=True,
    ),
    "a pack with a delta that claims gigabytes": Fault(
        instead(in_place_of_the_pack(huge_delta())),
        Trouble.BAD_PACK,
        "",
        FETCH,
        is_about_packs=True,
    ),
    "a pack without end": Fault(
        endless(before_pack, encode(b"\1" + bytes(60_000))),
        Trouble.TOO_LARGE,
        r"over limits\.pack_bytes_max",
        FETCH,
        is_about_packs=True,
    ),
    "an error instead of a pack": Fault(
        instead(lambda a: before_pack(a) + encode(b"\3fatal: disk full\n") + FLUSH_PKT),
        Trouble.MALFORMED,
        "reports: fatal: disk full",
        FETCH,
    ),
    "an error instead of a listing": Fault(
        instead(lambda _: encode_lines([b"ERR we are moving house"])),
        Trouble.MALFORMED,
        "reports: we are moving house",
        LISTS,
    ),
}
