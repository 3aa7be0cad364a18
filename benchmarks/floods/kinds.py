"""The floods: what a process does that misbehaves.

Each is a method of `Flood`, named as `make flood` names it, and stays bounded in count and time.
"""

import gzip
import json
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

POLL: Final = (
    b"GET /%b/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: mirror\r\n"
    b"Git-Protocol: version=2\r\n\r\n"
)
_PIECE: Final = 64 * 1024


def _post(path: str, more: str = "") -> bytes:
    return (
        f"POST /{path} HTTP/1.1\r\nHost: mirror\r\nGit-Protocol: version=2\r\n"
        f"Content-Type: application/x-git-upload-pack-request\r\n{more}\r\n"
    ).encode()


def _packet(line: str) -> bytes:
    return f"{len(line) + 5:04x}{line}\n".encode()


def _fetch(name: str, tip: str, more: str = "") -> bytes:
    body = _packet("command=fetch") + b"0001" + _packet("ofs-delta") + _packet(f"want {tip}")
    body += (_packet(more) if more else b"") + _packet("done") + b"0000"
    return _post(f"{name}/git-upload-pack", f"Content-Length: {len(body)}\r\n") + body


@dataclass(frozen=True, slots=True)
class Target:
    """Where a service listens, and what of it is asked for.

    Attributes:
        port: On loopback.
        unix: The path of its Unix socket, or nothing.
        name: A repository that everybody may read.
        tip: What it has.
        closed: One for which a reader has to be known.
    """

    port: int
    unix: str
    name: str
    tip: str
    closed: str


class Flood:
    """A process that misbehaves for so many seconds."""

    def __init__(self, target: Target, seconds: float) -> None:
        self.port, self.name, self.tip = target.port, target.name, target.tip
        self.target = target
        self.until = time.monotonic() + seconds
        self.count = 0
        self.ended = 0

    def connect(self, buffer: int = 0, *, unix: bool = False) -> socket.socket:
        """Connect, with so small a buffer for what comes."""
        one = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        if buffer:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        one.settimeout(5)
        one.connect(self.target.unix if unix else ("127.0.0.1", self.port))
        self.count += 1
        return one

    def hold(
        self,
        count: int,
        first: Callable[[int], bytes],
        each: bytes = b"",
        *,
        unix: bool = False,
    ) -> None:
        """Open so many connections, say `first` on each, `each` every second; read nothing."""
        held: list[socket.socket] = []
        for number in range(count):
            if time.monotonic() > self.until:
                break
            with suppress(OSError):
                one = self.connect(4096, unix=unix)
                held.append(one)
                one.settimeout(0)
                one.send(first(number))
        while time.monotonic() < self.until:
            if each:
                for one in held:
                    try:
                        one.send(each)
                    except OSError:
                        self.ended += 1
            time.sleep(1)

    def repeat(self, request: Callable[[int], Iterator[bytes]], *, unix: bool = False) -> None:
        """Send one request after the other, each over a connection of its own; read what comes."""
        while time.monotonic() < self.until:
            with suppress(OSError), self.connect(unix=unix) as one:
                try:
                    for piece in request(self.count):
                        one.sendall(piece)
                        if time.monotonic() > self.until:
                            break
                    one.settimeout(2)
                    while one.recv(_PIECE) and time.monotonic() < self.until:
                        pass
                except OSError:
                    self.ended += 1

    # --- floods --------------------------------------------------------------------------------

    def peace(self) -> None:
        """Nobody else."""
        time.sleep(max(0.0, self.until - time.monotonic()))

    def hog(self) -> None:
        """A process that keeps a processor busy, and leaves the mirror alone."""
        here, there = socket.socketpair()
        with here, there:
            while time.monotonic() < self.until:
                here.send(bytes(_PIECE))
                there.recv(_PIECE)

    def idle(self) -> None:
        """10,000 connections that never speak."""
        self.hold(10_000, lambda _: b"")

    def kept_alive(self) -> None:
        """10,000 connections that poll once."""
        self.hold(10_000, lambda _: POLL % self.name.encode())

    def slow_heads(self) -> None:
        """2,000 heads that come a byte a second."""
        self.hold(2_000, lambda _: b"GET /x HTTP/1.1\r\nX: ", b"x")

    def slow_bodies(self) -> None:
        """2,000 bodies that come a byte a second."""
        head = _post(f"{self.name}/git-upload-pack", "Content-Length: 60000\r\n")
        self.hold(2_000, lambda _: head, b"0")

    def stalled(self) -> None:
        """1,000 readers of one mapped pack that take nothing."""
        self.hold(1_000, lambda _: _fetch(self.name, self.tip))

    def stalled_builds(self) -> None:
        """1,000 readers that take nothing, of 100 packs under build."""
        self.hold(
            1_000, lambda n: _fetch(self.name, self.tip, f"filter blob:limit={200 + n % 100}k")
        )

    def pipelining(self) -> None:
        """200 connections that pipeline polls of another word each and read nothing."""
        polls = (POLL % self.name.encode()) * 200 + b"GET /status.json HTTP/1.1\r\nHost: x\r\n\r\n"
        self.hold(200, lambda _: polls, polls)

    def bombs(self) -> None:
        """Gzip bombs of 1 GB."""
        inflated = gzip.compress(bytes(1 << 26), 9)
        head = _post(
            f"{self.name}/git-upload-pack",
            f"Content-Encoding: gzip\r\nContent-Length: {len(inflated) * 16}\r\n",
        )
        self.repeat(lambda _: iter((head, *[inflated] * 16)))

    def wants(self) -> None:
        """Fetches of 1,000,000 wants and haves each."""
        digits = random.Random(1).randbytes(1_000_000 * 20).hex()
        ids = [digits[at : at + 40] for at in range(0, len(digits), 40)]
        lines = [f"0032want {oid}\n" for oid in ids[::2]] + [
            f"0032have {oid}\n" for oid in ids[1::2]
        ]
        body = _packet("command=fetch") + b"0001" + "".join(lines).encode() + b"0000"
        head = _post(f"{self.name}/git-upload-pack", f"Content-Length: {len(body)}\r\n")
        pieces = [body[at : at + (1 << 20)] for at in range(0, len(body), 1 << 20)]
        self.repeat(lambda _: iter((head, *pieces)))

    def haves(self) -> None:
        """Fetches of 15,000 haves each, which nobody here knows."""
        chance = random.Random(2)
        lines = [_packet(f"have {chance.randbytes(20).hex()}") for _ in range(15_000)]
        body = _packet("command=fetch") + b"0001" + _packet(f"want {self.tip}")
        body += b"".join(lines) + b"0000"
        head = _post(f"{self.name}/git-upload-pack", f"Content-Length: {len(body)}\r\n")
        self.repeat(lambda _: iter((head + body,)))

    def endless(self) -> None:
        """Chunked bodies without an end."""
        head = _post(f"{self.name}/git-upload-pack", "Transfer-Encoding: chunked\r\n")
        chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
        self.repeat(lambda _: iter((head, *[chunk] * 2000)))

    def headers(self) -> None:
        """Heads of a megabyte, in one field and in 20,000."""
        long = b"GET / HTTP/1.1\r\nX: " + b"x" * (1 << 20) + b"\r\n\r\n"
        many = b"GET / HTTP/1.1\r\n" + b"X-Y: 1\r\n" * 20_000 + b"\r\n"
        self.repeat(lambda n: iter((many if n % 2 else long,)))

    def garbage(self) -> None:
        """2,000 connections of seeded garbage, and on from there."""
        chance = random.Random(6)
        starts = (b"", b"GET ", POLL[:40], _post("x/git-upload-pack", "Content-Length: 9\r\n"))
        self.repeat(
            lambda _: iter((chance.choice(starts) + chance.randbytes(chance.randrange(9000)),))
        )

    def webhooks(self) -> None:
        """Webhooks of 1 MB with a wrong signature."""
        body = b'{"a":"' + b"x" * (1 << 20) + b'"}'
        head = (
            "POST /webhooks/github HTTP/1.1\r\nHost: x\r\nX-GitHub-Event: push\r\n"
            f"X-Hub-Signature-256: sha256={'0' * 64}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        self.repeat(lambda _: iter((head, body)))

    def vanishing(self) -> None:
        """Clients that leave in the middle of a pack, with a reset."""
        while time.monotonic() < self.until:
            with suppress(OSError), self.connect(4096) as one:
                one.sendall(_fetch(self.name, self.tip, f"filter blob:limit={self.count % 999}k"))
                one.recv(100)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def logins(self) -> None:
        """Clients that try one password after another."""
        head = (
            f"GET /{self.target.closed}/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\n"
            "Connection: close\r\nAuthorization: Bearer gm_"
        ).encode()
        self.repeat(lambda n: iter((head + b"%040d\r\n\r\n" % n,)))

    def lfs_batches(self) -> None:
        """Batches of 100 objects that are nowhere."""
        chance = random.Random(7)

        def batch(_: int) -> Iterator[bytes]:
            oids = [chance.randbytes(32).hex() for _ in range(100)]
            asked = {"operation": "download", "objects": [{"oid": o, "size": 9} for o in oids]}
            body = json.dumps(asked).encode()
            yield (
                f"POST /{self.name}/info/lfs/objects/batch HTTP/1.1\r\nHost: x\r\n"
                "Accept: application/vnd.git-lfs+json\r\nConnection: close\r\n"
                f"Content-Type: application/vnd.git-lfs+json\r\nContent-Length: {len(body)}\r\n\r\n"
            ).encode() + body

        self.repeat(batch)

    def unix_pipelining(self) -> None:
        """The same as `pipelining`, over the Unix socket."""
        polls = (POLL % self.name.encode()) * 200
        self.hold(200, lambda _: polls, polls, unix=True)

    def unix_stalled(self) -> None:
        """The same as `stalled`, over the Unix socket."""
        self.hold(1_000, lambda _: _fetch(self.name, self.tip), unix=True)

    def handshakes(self) -> None:
        """300 TLS handshakes that begin at the same moment, again and again."""
        hello = _client_hello()
        while time.monotonic() < self.until:
            began: list[socket.socket] = []
            for _ in range(300):
                with suppress(OSError):
                    began.append(self.connect())
            for one in began:
                with suppress(OSError):
                    one.send(hello)
            for one in began:  # the answer costs the mirror a signature; nobody reads it
                with suppress(OSError):
                    one.recv(1)
                one.close()

    def silent_handshakes(self) -> None:
        """10,000 connections that never begin their TLS handshake."""
        self.hold(10_000, lambda _: b"")


def _client_hello() -> bytes:
    """Return what a TLS client says first."""
    said = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), said, server_hostname="localhost"
    )
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return said.read()


CONTROLS: Final = ("peace", "hog")
OVER_TLS: Final = ("handshakes", "silent_handshakes")
OVER_UNIX: Final = ("unix_pipelining", "unix_stalled")
FLOODS: Final = (
    *("idle", "kept_alive", "slow_heads", "slow_bodies", "stalled", "stalled_builds"),
    *("pipelining", "bombs", "wants", "haves", "endless", "headers", "garbage", "webhooks"),
    *("vanishing", "logins", "lfs_batches", *OVER_UNIX, *OVER_TLS),
)
