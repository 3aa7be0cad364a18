"""Upgrades of one service under 500 polls a second, with clones under way: what was dropped.

    .venv/bin/python -m tests.lifecycle.under_load --upgrades 3 --rate 500

Lean on purpose, for a machine that has to run all of it: one process asks, on kept connections, a
fixed number of times a second; it looks at the status and the length of each answer. A connection
that the service closes between two answers is opened anew, and a request that got not one byte of
an answer on a kept connection is sent once more on a new one, as git, curl and Go's client do:
such are counted apart. Anything else is a failure: a refused connection, a status, a cut in an
answer, a clone that git does not finish.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from mirror.demo.forge import HttpBackend
from tests.git_client import GitClient, GitFailed, Upstream
from tests.lifecycle.load import POLL_V0, POLL_V2, Connect, Streams, by_port
from tests.lifecycle.manager import fake_manager
from tests.lifecycle.serving import managed, mirrored, run
from tests.mirror_service import NAME, configuration
from tests.ports import free_port

CONNECTIONS = 16
CLONERS = 2
BIG = 8 << 20
BEFORE_SECONDS, AFTER_SECONDS = 5.0, 5.0


@dataclass
class Counts:
    """What came of it."""

    requests: int = 0
    reopened: int = 0
    sent_again: int = 0
    late: int = 0
    clones: int = 0
    failures: list[str] = field(default_factory=list)
    by_second: Counter[int] = field(default_factory=Counter)
    slowest_ms: float = 0.0


class Asker:
    """Asks on one connection at a pace of its own."""

    def __init__(self, connect: Connect, request: bytes, counts: Counts) -> None:
        self._connect = connect
        self._request = request
        self._counts = counts
        self._streams: Streams | None = None

    async def run(self, pause_seconds: float, is_over: asyncio.Event) -> None:
        due = time.monotonic()
        while not is_over.is_set():
            began = time.monotonic()
            try:
                await self._ask()
            except (OSError, EOFError, ValueError) as error:
                self._counts.failures.append(f"{type(error).__name__}: {error}")
                self._streams = None
            took = time.monotonic() - began
            self._counts.slowest_ms = max(self._counts.slowest_ms, took * 1000)
            self._counts.by_second[int(began)] += 1
            due += pause_seconds
            wait = due - time.monotonic()
            if wait < -1.0:
                self._counts.late += 1  # behind by more than a second: the machine can't
                due = time.monotonic()
            await asyncio.sleep(max(0.0, wait))
        if self._streams is not None:
            self._streams[1].close()

    async def _ask(self) -> None:
        is_kept = self._streams is not None
        if self._streams is None:
            self._streams = await self._connect()
        reader, writer = self._streams
        try:
            writer.write(self._request)
            first = await reader.read(1)
        except ConnectionError:
            first = b""
        if not first:
            writer.close()
            self._streams = None
            if not is_kept:
                raise EOFError("a new connection ended without an answer")
            self._counts.sent_again += 1
            await self._ask()
            return
        head = (first + await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200 "):
            raise ValueError(head.splitlines()[0].decode())
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        self._counts.requests += 1
        if b"connection: close" in head:
            writer.close()
            self._streams = None
            self._counts.reopened += 1


async def keep_cloning(
    url: str, directory: Path, number: int, counts: Counts, is_over: asyncio.Event
) -> None:
    client = GitClient(directory / f"cloner-{number}")
    turn = 0
    while not is_over.is_set():
        turn += 1
        try:
            await client.clone(url, "--quiet", "--bare", name=f"c{turn}")
        except GitFailed as error:
            counts.failures.append(f"clone: {error}")
        counts.clones += 1


async def play(arguments: argparse.Namespace, directory: Path) -> Counts:
    root = directory / "forge"
    root.mkdir()
    upstream = Upstream(root)
    upstream.commit(files={"big": os.urandom(BIG)})
    port, counts, is_over = free_port(), Counts(), asyncio.Event()
    async with HttpBackend(root) as forge:
        file = configuration(
            forge, directory / "m", listen=f"127.0.0.1:{port}", workers=arguments.workers
        )
        with fake_manager() as manager:
            async with managed(file, manager) as process, asyncio.TaskGroup() as tasks:
                await mirrored(process)
                pause = CONNECTIONS / arguments.rate
                for number in range(CONNECTIONS):
                    request = (POLL_V0, POLL_V2)[number % 2].format(name=NAME).encode()
                    asker = Asker(by_port(port), request, counts)
                    tasks.create_task(asker.run(pause, is_over))
                for number in range(arguments.clones):
                    url = f"http://127.0.0.1:{port}/{NAME}"
                    tasks.create_task(keep_cloning(url, directory, number, counts, is_over))
                await asyncio.sleep(BEFORE_SECONDS)
                for _ in range(arguments.upgrades):
                    since = len(process.log)
                    began = time.monotonic()
                    done = await run(
                        sys.executable, "-m", "mirror", "upgrade", "--config", str(file)
                    )
                    if done.returncode:
                        counts.failures.append(f"upgrade: {done.stderr}")
                        break
                    process.successor = int(done.stdout.split()[1])
                    await process.logged(since, lambda event: event["event"] == "took_over")
                    say(f"upgrade took {time.monotonic() - began:.1f} s")
                    await asyncio.sleep(AFTER_SECONDS)
                is_over.set()
    return counts


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrades", type=int, default=1)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--clones", type=int, default=CLONERS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        counts = uvloop.run(play(arguments, Path(directory)))
    seconds = sorted(counts.by_second)[1:-1]
    rates = [counts.by_second[one] for one in seconds]
    say(
        json.dumps(
            {
                "requests": counts.requests,
                "failures": len(counts.failures),
                "reopened_after_close": counts.reopened,
                "sent_again_on_a_new_connection": counts.sent_again,
                "clones": counts.clones,
                "requests_per_second": {
                    "mean": round(sum(rates) / len(rates)),
                    "least": min(rates),
                },
                "behind_the_pace": counts.late,
                "slowest_ms": round(counts.slowest_ms, 1),
            }
        )
    )
    for one in counts.failures[:10]:
        say(one)
    sys.exit(1 if counts.failures else 0)


if __name__ == "__main__":
    main()
