"""`make flood`: what a well-behaved client's polls take while others misbehave.

The mirror, the flood and the prober are processes of their own. The prober polls over one
connection, which it opens anew when the mirror has closed it, as HTTP clients do; a poll that gets
no answer even so counts as lost. All stays on 127.0.0.1, bounded in count and time.
"""

import argparse
import asyncio
import gzip
import random
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from benchmarks.git import git
from benchmarks.repositories import Repositories
from benchmarks.service import Service, open_service
from mirror.demo.forge import HttpBackend

POLL_SECONDS: Final = 0.005
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


class Flood:
    """A process that misbehaves at `port`, against the repository `name`, until `until`."""

    def __init__(self, port: int, name: str, tip: str, seconds: float) -> None:
        self.port, self.name, self.tip = port, name, tip
        self.until = time.monotonic() + seconds
        self.count = 0
        self.ended = 0

    def connect(self, buffer: int = 0) -> socket.socket:
        """Connect from one of several loopback addresses, which have ports of their own."""
        one = socket.socket()
        if buffer:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        one.settimeout(5)
        one.connect(("127.0.0.1", self.port))
        self.count += 1
        return one

    def hold(self, count: int, first: Callable[[int], bytes], each: bytes = b"") -> None:
        """Open so many connections, say `first` on each, `each` every second; read nothing."""
        held: list[socket.socket] = []
        for number in range(count):
            if time.monotonic() > self.until:
                break
            with suppress(OSError):
                one = self.connect(4096)
                held.append(one)
                one.sendall(first(number))
        while time.monotonic() < self.until:
            if each:
                for one in held:
                    try:
                        one.send(each)
                    except OSError:
                        self.ended += 1
            time.sleep(1)

    def repeat(self, request: Callable[[int], Iterator[bytes]]) -> None:
        """Send one request after the other, each over a connection of its own; read what comes."""
        while time.monotonic() < self.until:
            with suppress(OSError), self.connect() as one:
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
        chance = random.Random(1)
        lines = [
            _packet(f"{kind} {chance.randbytes(20).hex()}")
            for kind in ("want", "have")
            for _ in range(500_000)
        ]
        body = _packet("command=fetch") + b"0001" + b"".join(lines) + b"0000"
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


FLOODS: Final = (
    *("peace", "idle", "kept_alive", "slow_heads", "slow_bodies", "stalled", "stalled_builds"),
    *("pipelining", "bombs", "wants", "haves", "endless", "headers", "garbage", "webhooks"),
    "vanishing",
)


class Prober:
    """A client that polls as it should."""

    def __init__(self, port: int, name: str) -> None:
        self._port = port
        self._poll = POLL % name.encode()
        self._line: socket.socket | None = None
        self.lost = 0
        self.reconnected = 0

    def poll(self) -> float:
        """Poll once; returns the seconds it took, a new connection included."""
        began_at = time.perf_counter()
        for _ in range(2):
            try:
                if self._line is None:
                    self._line = socket.create_connection(("127.0.0.1", self._port), timeout=10)
                    self.reconnected += 1
                self._line.sendall(self._poll)
                answer = b""
                while b"\r\n\r\n" not in answer or not answer.endswith(b"0000"):
                    piece = self._line.recv(_PIECE)
                    if not piece:
                        raise ConnectionResetError
                    answer += piece
                if answer.startswith(b"HTTP/1.1 200"):
                    return time.perf_counter() - began_at
            except OSError:
                if self._line is not None:
                    self._line.close()
                    self._line = None
        self.lost += 1
        return time.perf_counter() - began_at


@contextmanager
def _forge(root: Path) -> Iterator[HttpBackend]:
    """Serve bare repositories from a thread."""
    ready = threading.Event()
    found: list[HttpBackend] = []
    stops: list[Callable[[], object]] = []

    async def serve() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        stops.append(lambda: loop.call_soon_threadsafe(stop.set))
        async with HttpBackend(root) as backend:
            found.append(backend)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait()
    try:
        yield found[0]
    finally:
        stops[0]()
        thread.join()


def _measure(service: Service, flood: str, name: str, tip: str, seconds: float) -> str:
    before = service.memory_mb(), service.open_files()
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "benchmarks.floods", "--child", flood),
            *("--port", str(service.port), "--name", name, "--tip", tip),
            *("--seconds", str(seconds)),
        ],
        stdout=subprocess.PIPE,
    )
    prober = Prober(service.port, name)
    taken: list[float] = []
    memory, files, look_at = 0.0, 0, 0.0
    while child.poll() is None:
        taken.append(prober.poll())
        if time.monotonic() > look_at:  # a look takes milliseconds of this process only
            memory, files = max(memory, service.memory_mb()), max(files, service.open_files())
            look_at = time.monotonic() + 0.5
        time.sleep(POLL_SECONDS)
    said = child.communicate()[0].decode().strip()
    time.sleep(2)
    after = service.memory_mb(), service.open_files()
    taken.sort()
    p50, p99 = taken[len(taken) // 2] * 1000, taken[len(taken) * 99 // 100] * 1000
    return (
        f"| {flood} | {said} | {len(taken)} | {prober.lost} | {p50:.2f} | {p99:.2f} |"
        f" {before[0]:.0f} / {memory:.0f} / {after[0]:.0f} |"
        f" {before[1]} / {files} / {after[1]} |"
    )


def main() -> None:
    """Run all floods, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("floods", nargs="*", default=FLOODS)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--no-fast-lane", action="store_true")
    parser.add_argument("--child", choices=FLOODS)
    parser.add_argument("--port", type=int)
    parser.add_argument("--name")
    parser.add_argument("--tip")
    chosen = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if chosen.child:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        flood = Flood(chosen.port, chosen.name, chosen.tip, chosen.seconds)
        getattr(flood, chosen.child)()
        print(f"{flood.count} connections")
        return
    overrides = {"server.workers": chosen.workers, "server.fast_lane": not chosen.no_fast_lane}
    print(
        "| flood | of | polls | lost | p50 ms | p99 ms | MB before / during / after | open files |"
    )
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "forge"
        root.mkdir()
        repository = Repositories(Path(".bench").resolve(), root).pack_20_mb()
        tip = git("rev-parse", "main", cwd=repository.bare)
        with _forge(root) as forge:
            upstreams = {repository.name: forge.repository_url(repository.name)}
            with open_service(Path(scratch) / "mirror", upstreams, overrides=overrides) as service:
                for flood in chosen.floods:
                    line = _measure(service, flood, repository.name, tip, chosen.seconds)
                    print(line, flush=True)
                print(Path(service.log).read_text()[-3000:], file=sys.stderr)


if __name__ == "__main__":
    main()
