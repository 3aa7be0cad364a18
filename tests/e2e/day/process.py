"""`git-mirror serve` as a process of its own, that can be killed and started again."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

STEP_SECONDS_MAX: Final = 90.0
"""A day fails after that instead of waiting for ever; nothing is to take so long."""


class MirrorProcess:
    """The service.

    Attributes:
        url: Where it listens, at each start.
        up: Set while it serves.
        kills: How often it was killed.
        log: The lines that it wrote, all starts together.
    """

    def __init__(self, file: Path, url: str) -> None:
        self.url = url
        self.up = asyncio.Event()
        self.kills = 0
        self.log: list[str] = []
        self._file = file
        self._said = asyncio.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it, and wait until it serves."""
        self._process = await asyncio.to_thread(
            subprocess.Popen,
            [sys.executable, "-m", "mirror", "serve", "--config", str(self._file)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self._reading = asyncio.create_task(self._read(self._process))
        await self.logged(len(self.log), lambda event: event["event"] == "serving")
        self.up.set()

    async def kill(self) -> None:
        """Kill it as the kernel would."""
        self.up.clear()
        self.kills += 1
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """Ask it to end, and return its status."""
        self.up.clear()
        return await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        assert self._reading is not None
        self._process.send_signal(number)
        async with asyncio.timeout(STEP_SECONDS_MAX):
            status = await asyncio.to_thread(self._process.wait)
            await self._reading  # its workers have the same stderr, and are to end as well
        return status

    async def logged(self, since: int, met: Callable[[dict[str, Any]], bool]) -> None:
        """Wait for an event of the log, after so many lines."""
        async with asyncio.timeout(STEP_SECONDS_MAX), self._said:
            while True:
                lines, since = self.log[since:], len(self.log)
                if any(met(json.loads(line)) for line in lines if line.startswith("{")):
                    return
                assert not self._has_ended(), f"it ended:\n{''.join(self.log[-20:])}"
                await self._said.wait()

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    async def _read(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stderr is not None
        with process.stderr:
            while line := await asyncio.to_thread(process.stderr.readline):
                async with self._said:
                    self.log.append(line.decode())
                    self._said.notify_all()
        async with self._said:
            self._said.notify_all()

    async def close(self) -> None:
        """End it, whatever state it is in."""
        self.up.clear()
        if self._process is not None and self._process.poll() is None:
            await self._end(signal.SIGKILL)


@asynccontextmanager
async def running(file: Path, url: str) -> AsyncIterator[MirrorProcess]:
    """Run the service with a configuration that has it listen at `url`."""
    process = MirrorProcess(file, url)
    try:
        await process.start()
        yield process
    finally:
        await process.close()
