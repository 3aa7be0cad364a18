"""Running `receivers`: the libraries that real receivers of events use."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.clients import builds
from tests.clients.operations import Unavailable
from tests.mirror_service import WAIT_SECONDS_MAX


class RealReceivers:
    """The running program.

    Attributes:
        url: Where it listens.
        records: What it wrote of each request, the oldest first.
    """

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.url = ""
        self.records: list[dict[str, Any]] = []
        self._process = process

    async def read(self, seconds_max: float = WAIT_SECONDS_MAX) -> dict[str, Any]:
        """Wait for the next line, and return it."""
        assert self._process.stdout is not None
        async with asyncio.timeout(seconds_max):
            line = await asyncio.to_thread(self._process.stdout.readline)
        found: dict[str, Any] = json.loads(line)
        return found

    async def next(self, path: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until so many requests came to a path, and return what became of them."""
        while len(found := [one for one in self.records if one["path"].startswith(path)]) < count:
            self.records.append(await self.read())
        return found


@asynccontextmanager
async def real_receivers(setup: dict[str, Any]) -> AsyncIterator[RealReceivers]:
    """Run the program with what it is to know; the test is skipped where it can't be built."""
    try:
        built = await asyncio.to_thread(builds.program, "receivers")
    except Unavailable as error:
        pytest.skip(str(error))
    process = await asyncio.to_thread(
        subprocess.Popen, [built], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(setup).encode() + b"\n")
        process.stdin.close()
        running = RealReceivers(process)
        running.url = f"http://127.0.0.1:{(await running.read())['port']}"
        yield running
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
        process.stdout.close()
