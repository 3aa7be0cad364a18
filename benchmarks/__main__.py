"""`make bench`: what an answer of the mirror costs beside git's own http-backend.

Both serve the same repository on this machine, each in a process of its own, with no line between:
server-side cost only, one client, kept-alive connections, the two in turn. http-backend stands
behind the smallest CGI server we have, not behind nginx, which costs it about a millisecond per
request. Every answer is checked: the advertised tip, the pack by git.
"""

import argparse
import http.client
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from mirror.demo import gitops_repo
from mirror.wire.client import FetchAnswerDecoder, UpstreamFeatures
from mirror.wire.pktline import DELIM_PKT, FLUSH_PKT, encode_lines

AGENT: Final = b"benchmark"
REPOSITORY: Final = f"/{gitops_repo.NAME}.git"
V2: Final = {"Git-Protocol": "version=2"}
POST: Final = {
    **V2,
    "Content-Type": "application/x-git-upload-pack-request",
    "Accept": "application/x-git-upload-pack-result",
}

_PEER: Final = """
import asyncio, sys, pathlib, uvloop
from mirror.demo.forge import HttpBackend
async def main():
    async with HttpBackend(pathlib.Path(sys.argv[1])) as forge:
        print(forge.port, flush=True)
        await asyncio.Event().wait()
uvloop.run(main())
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One request and how to tell a right answer."""

    name: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    is_right: Callable[[bytes], bool]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...")
    parser.add_argument("--requests", type=int, default=200, help="of each kind (10 to 10,000)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    requests = max(10, min(arguments.requests, 10_000))
    with tempfile.TemporaryDirectory(prefix="git-mirror-bench-") as name:
        rows = measure(Path(name), requests)
    table = Table(box=None, title=f"{platform.machine()}, Python {platform.python_version()}")
    for heading in ("request", "mirror p50", "p99", "http-backend p50", "p99", "p50 ratio"):
        table.add_column(heading, justify="left" if heading == "request" else "right")
    for row in rows:
        figures = [row[key] for key in ("mirror_p50", "mirror_p99", "peer_p50", "peer_p99")]
        ratio = row["peer_p50"] / row["mirror_p50"]
        table.add_row(row["name"], *(f"{ms:.2f} ms" for ms in figures), f"{ratio:.1f}x")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(directory: Path, requests: int) -> list[dict]:
    """Return a row per case: medians and 99th percentiles in milliseconds."""
    root = directory / "upstream"
    bare = root / f"{gitops_repo.NAME}.git"
    old = gitops_repo.create(bare)
    new = gitops_repo.bump_image_tag(bare, "1.13.0").commit
    peer = subprocess.Popen([sys.executable, "-c", _PEER, root], stdout=subprocess.PIPE, text=True)
    peer_port = int(peer.stdout.readline())
    config = directory / "mirror.yaml"
    config.write_text(
        f"server: {{listen: '127.0.0.1:0'}}\ndata_dir: data\nlog: {{format: json}}\n"
        f"repositories: {{{gitops_repo.NAME}: {{upstream: 'http://127.0.0.1:{peer_port}{REPOSITORY}'}}}}\n"
    )
    log = directory / "serve.log"
    with log.open("w") as output:
        mirror = subprocess.Popen(
            [sys.executable, "-m", "mirror", "serve", "--config", config], stderr=output
        )
    try:
        mirror_port = _port_once_published(log)
        return [
            compare(case, mirror_port, peer_port, requests, directory) for case in cases(old, new)
        ]
    finally:
        for process in (mirror, peer):
            process.terminate()
            process.wait(30)
        peer.stdout.close()


def _port_once_published(log: Path) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        events = [json.loads(line) for line in log.read_text().splitlines()]
        if any(event["event"] == "published" for event in events):
            serving = next(event for event in events if event["event"] == "serving")
            return int(serving["url"].rpartition(":")[2])
        time.sleep(0.05)
    raise SystemExit(f"the mirror did not start: {log.read_text()}")


def cases(old: str, new: str) -> list[Case]:
    """Return what is measured: what controllers ask most."""
    tip, before = new.encode(), old.encode()

    def command(name: bytes, arguments: list[bytes]) -> bytes:
        head = encode_lines([b"command=" + name, b"object-format=sha1"])
        return head + DELIM_PKT + encode_lines(arguments) + FLUSH_PKT

    def lists_tip(answer: bytes) -> bool:
        return tip + b" refs/heads/main" in answer

    listing = command(b"ls-refs", [b"peel", b"symrefs", b"ref-prefix refs/heads/"])
    common = [b"thin-pack", b"ofs-delta", b"want " + tip]
    return [
        Case("poll v0", "GET", "/info/refs?service=git-upload-pack", {}, b"", lists_tip),
        Case("poll v2", "POST", "/git-upload-pack", POST, listing, lists_tip),
        _fetch_case("fetch of 1 commit", command(b"fetch", [*common, b"have " + before, b"done"])),
        _fetch_case("clone --depth 1", command(b"fetch", [*common, b"deepen 1", b"done"])),
        _fetch_case("full clone", command(b"fetch", [*common, b"done"])),
    ]


def _fetch_case(name: str, body: bytes) -> Case:
    def holds_a_pack(answer: bytes) -> bool:
        return pack_of(answer).startswith(b"PACK")

    return Case(name, "POST", "/git-upload-pack", POST, body, holds_a_pack)


def pack_of(answer: bytes) -> bytes:
    """Return the pack in a v2 answer."""
    at = answer.index(b"000dpackfile\n")
    decoder = FetchAnswerDecoder(UpstreamFeatures(2))
    pack = b"".join(decoder.feed(answer[at:]))
    decoder.finish()
    return pack


def compare(case: Case, mirror_port: int, peer_port: int, requests: int, directory: Path) -> dict:
    """Ask both in turn."""
    sides = {
        "mirror": http.client.HTTPConnection("127.0.0.1", mirror_port),
        "peer": http.client.HTTPConnection("127.0.0.1", peer_port),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    for side, connection in sides.items():
        bare = directory / "upstream" / f"{gitops_repo.NAME}.git"
        _check_pack(ask(connection, case), bare, directory / f"check-{side}")
    for _ in range(requests):
        for side, connection in sides.items():
            began_at = time.perf_counter()
            answer = ask(connection, case)
            times[side].append((time.perf_counter() - began_at) * 1000)
            if not case.is_right(answer):
                raise SystemExit(f"{case.name}: {side} gave a wrong answer: {answer[:200]!r}")
    for connection in sides.values():
        connection.close()
    row: dict = {"name": case.name, "requests": requests}
    for side, taken in times.items():
        row[f"{side}_p50"] = statistics.median(taken)
        row[f"{side}_p99"] = statistics.quantiles(taken, n=100)[98]
    return row


def ask(connection: http.client.HTTPConnection, case: Case) -> bytes:
    """Send one request and read the whole answer."""
    connection.request(case.method, REPOSITORY + case.path, case.body or None, case.headers)
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise SystemExit(f"{case.name}: {response.status} {answer[:200]!r}")
    return answer


def _check_pack(answer: bytes, bare: Path, place: Path) -> None:
    """Have git resolve the pack of an answer, where there is one, beside the thin pack's bases."""
    if b"000dpackfile\n" not in answer:
        return
    if not place.exists():
        subprocess.run(["git", "clone", "--quiet", "--bare", bare, place], check=True)
    subprocess.run(
        ["git", "index-pack", "--stdin", "--fix-thin"],
        cwd=place,
        input=pack_of(answer),
        stdout=subprocess.DEVNULL,
        check=True,
    )


if __name__ == "__main__":
    main()
