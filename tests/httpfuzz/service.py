"""The service that is fuzzed, as a process of its own, and what it takes, seen from outside."""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.e2e.day.process import MirrorProcess
from tests.httpfuzz.answers import WrongAnswer
from tests.httpfuzz.estate import FORGES, Estate, Known, set_up
from tests.httpfuzz.sending import Poll, bundles_of, good_polls, one_answer
from tests.ports import free_port
from tests.soak.resources import Sample, sample_of, tree_of

CALM_SECONDS_MAX: Final = 60.0
"""From the last stream until nothing is under way any more."""

READY_SECONDS_MAX: Final = 60.0
LOOK_SECONDS: Final = 0.2

DESCRIPTORS_SLACK: Final = 6
"""Per process: connections to the forge that are kept for the next refresh."""

TASKS_SLACK: Final = 3
"""Of one kind: a refresh that a webhook of the last moment began."""

MEMORY_BYTES_SLACK: Final = 64 << 20
"""Over the first calm, which comes after a warm-up of some hundred streams."""

LINES_KEPT_MAX: Final = 5000


@dataclass(frozen=True, slots=True)
class Calm:
    """What the service takes while nobody asks for anything."""

    tasks: Counter[str]
    descriptors: int
    memory_bytes: int
    processes: int

    def __str__(self) -> str:
        return (
            f"{self.tasks.total()} tasks, {self.descriptors} descriptors,"
            f" {self.memory_bytes / 1e6:.0f} MB"
        )


def leaks(before: Calm, after: Calm) -> Iterator[str]:
    """Say what there is more of than before."""
    for kind, count in after.tasks.items():
        if count > before.tasks[kind] + TASKS_SLACK:
            yield f"tasks of {kind} rose from {before.tasks[kind]} to {count}"
    if after.descriptors > before.descriptors + DESCRIPTORS_SLACK * before.processes:
        yield f"descriptors rose from {before.descriptors} to {after.descriptors}"
    if after.memory_bytes > before.memory_bytes + MEMORY_BYTES_SLACK * before.processes:
        yield f"memory rose from {before.memory_bytes:,} to {after.memory_bytes:,} bytes"


class Fuzzed:
    """The running service.

    Attributes:
        polls: Good ones, with their answers.
        bundles: The paths of the bundles that are offered.
        lines: How many lines of the log were looked at.
        wrong_lines: Those of them that are no line of a log, or of level `error`.
        peak_bytes: The most memory that was seen.
    """

    def __init__(self, process: MirrorProcess, port: int, known: Known, tasks: int) -> None:
        self.known = known
        self.host, self.port = "127.0.0.1", port
        self.polls: list[Poll] = []
        self.bundles: list[str] = []
        self.lines = 0
        self.wrong_lines: list[str] = []
        self.peak_bytes = 0
        self._process = process
        self._tasks = os.fdopen(tasks, "rb")
        process.on_line = self._look_at

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def has_ended(self) -> bool:
        return self._process.pid is None

    def _look_at(self, line: str) -> None:
        self.lines += 1
        if line.startswith("{"):
            said = json.loads(line)
            if said.get("level") not in ("error", "critical"):
                return
        self.wrong_lines.append(line)

    async def ready(self) -> None:
        """Wait until all is mirrored, and learn what is right."""
        async with asyncio.timeout(READY_SECONDS_MAX):
            while True:
                status = await self.status()
                states = {one["state"] for one in status["repositories"].values()}
                self.bundles = await bundles_of(self.host, self.port, next(iter(FORGES)))
                if states == {"fresh"} and self.bundles:
                    break
                await asyncio.sleep(LOOK_SECONDS)
            self.polls = await good_polls(self.host, self.port, self.known)

    async def status(self) -> dict[str, dict[str, dict[str, object]]]:
        """Return /status.json."""
        found: dict[str, dict[str, dict[str, object]]] = json.loads(await self._get("/status.json"))
        return found

    async def watch(self) -> None:
        """Look at the memory now and then, for ever."""
        while True:
            sample = self._sample()
            self.peak_bytes = max(self.peak_bytes, sample.memory_bytes)
            await asyncio.sleep(1.0)

    async def calm(self) -> Calm:
        """Wait until no connection is open but our own, and nothing is refreshed; then look.

        Raises:
            WrongAnswer: It does not become calm.
        """
        until = time.monotonic() + CALM_SECONDS_MAX
        while True:
            connections = await self._metric("git_mirror_connections")
            status = await self.status()
            busy = [
                name
                for name, one in status["repositories"].items()
                if one["state"] in ("cloning", "stale")
            ]
            sample = self._sample()
            if connections <= 1 and not busy and not sample.children:
                break
            if time.monotonic() > until:
                raise WrongAnswer(
                    f"not calm after {CALM_SECONDS_MAX:.0f} s: {connections:.0f} connections,"
                    f" {busy} busy, {sample.children} gits"
                )
            await asyncio.sleep(LOOK_SECONDS)
        await asyncio.sleep(1.0)  # the end of what the last look itself has begun
        sample = self._sample()
        return Calm(
            await self._count_tasks(), sample.descriptors, sample.memory_bytes, sample.processes
        )

    def _sample(self) -> Sample:
        pid = self._process.pid
        assert pid is not None, "the service has ended"
        return sample_of(tree_of(pid), 0.0)

    async def _count_tasks(self) -> Counter[str]:
        self._process.send(signal.SIGUSR1)
        async with asyncio.timeout(READY_SECONDS_MAX):
            line = await asyncio.to_thread(self._tasks.readline)
        return Counter(json.loads(line))

    async def _metric(self, name: str) -> float:
        lines = (await self._get("/metrics")).decode().splitlines()
        return next(float(one.split(" ")[1]) for one in lines if one.startswith(f"{name} "))

    async def _get(self, path: str) -> bytes:
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 24)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return (await one_answer(reader)).body
        finally:
            writer.transport.abort()


@asynccontextmanager
async def running(directory: Path, *, workers: int = 1) -> AsyncIterator[tuple[Estate, Fuzzed]]:
    """Run the service with everything that it has, and end it."""
    port = free_port()
    theirs, ours = os.pipe()
    async with set_up(directory, listen=f"127.0.0.1:{port}", workers=workers) as estate:
        process = MirrorProcess(
            estate.file,
            f"http://127.0.0.1:{port}",
            lines_kept_max=LINES_KEPT_MAX,
            environment={"WATCHED_FD": str(ours)},
            prefix=[sys.executable, "-m", "tests.httpfuzz.watched"],
            inherits=[ours],
        )
        fuzzed = Fuzzed(process, port, estate.known, theirs)
        try:
            await process.start()
            os.close(ours)
            await fuzzed.ready()
            yield estate, fuzzed
            if not fuzzed.has_ended:
                await process.stop()
        finally:
            await process.close()
