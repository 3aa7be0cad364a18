"""The machine that crashes: `git-mirror serve` with the shim, one at a time, started again."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.crash.control import Control

STEP_SECONDS_MAX: Final = 90.0
"""A test fails after that instead of hanging; nothing is to take so long."""


@dataclass(frozen=True, slots=True)
class End:
    """How a run is to end.

    Attributes:
        after_calls: After so many file-system calls; 0 for not by that.
        half: Whether the last of them, if it writes, writes half.
        main_only: Whether the children of the service live on.
    """

    after_calls: int = 0
    half: bool = False
    main_only: bool = False


class Ended(Exception):
    """The service has ended, as it was to or not."""


class Machine:
    """Runs the service.

    Attributes:
        log: What the service of this run has logged.
        url: Where it listens.
        started_at: When it was started; seconds since the epoch.
    """

    def __init__(self, control: Control, channel: socket.socket, file: Path, data: Path) -> None:
        self.control = control
        self.data = data
        self.log: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.url = ""
        self.started_at = 0.0
        self.pid = 0
        self.ended: asyncio.Task[int] | None = None
        self._file = file
        self._channel = channel
        self._said = asyncio.Condition()
        self._reading: asyncio.Task[None] | None = None

    async def start(self, end: End | None = None, *, recording: bool = False) -> None:
        """Start it; it need not get as far as serving."""
        end = end or End()
        self.control.prepare(
            self.data,
            kill_at=end.after_calls,
            main_only=end.main_only,
            half=end.half,
            recording=recording,
        )
        self.log, self.lines, self.url = [], [], ""
        near, far = socket.socketpair()
        self.started_at = time.time()
        with far:
            message = json.dumps(["serve", "--config", str(self._file)]).encode()
            socket.send_fds(self._channel, [message], [far.fileno()])
        self.pid = (await self._hear())["pid"]
        self.ended = asyncio.create_task(self._end_heard())
        reader, writer = await asyncio.open_unix_connection(sock=near)
        self._reading = asyncio.create_task(self._read(reader, writer))

    async def serving(self) -> None:
        """Wait until it serves.

        Raises:
            Ended: It never will.
        """
        self.url = (await self.logged(lambda event: event["event"] == "serving"))["url"]

    async def logged(self, met: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Wait for an event in the log of this run.

        Raises:
            Ended: It ended without.
        """
        assert self.ended is not None
        async with asyncio.timeout(STEP_SECONDS_MAX), self._said:
            while True:
                for event in self.log:
                    if met(event):
                        return event
                if self.ended.done():
                    raise Ended("\n".join(self.lines[-30:]))
                await self._said.wait()

    def kill_now(self, *, main_only: bool = False) -> None:
        """Kill it, unless it has ended already."""
        assert self.ended is not None
        if not main_only:
            self.control.stop_all()
        if not self.ended.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def kill(self, *, main_only: bool = False) -> None:
        """Kill it and wait for its end."""
        self.kill_now(main_only=main_only)
        await self.over()

    async def stop(self) -> int:
        """Ask it to end, and return its status."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        return await self.over()

    async def over(self) -> int:
        """Wait for its end; returns its status."""
        assert self.ended is not None
        assert self._reading is not None
        async with asyncio.timeout(STEP_SECONDS_MAX):
            status = await asyncio.shield(self.ended)
        self._reading.cancel()
        await asyncio.wait((self._reading,))
        return status

    async def end_children(self) -> None:
        """Kill what the service has left running."""
        self._channel.send(b"[]")
        await self._hear()

    async def _hear(self) -> dict[str, Any]:
        message = await asyncio.to_thread(self._channel.recv, 1 << 16)
        assert message, "the zygote has ended"
        heard: dict[str, Any] = json.loads(message)
        return heard

    async def _end_heard(self) -> int:
        status: int = (await self._hear())["ended"]
        async with self._said:
            self._said.notify_all()
        return status

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                async with self._said:
                    self.lines.append(line.decode().rstrip())
                    if line.startswith(b"{"):
                        self.log.append(json.loads(line))
                    self._said.notify_all()
        finally:
            writer.close()


@asynccontextmanager
async def machine(control: Control, file: Path, data: Path) -> AsyncIterator[Machine]:
    """Provide a machine for the configuration in `file`, which names `data`."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near:
        with far:
            process = await asyncio.to_thread(
                subprocess.Popen,
                [sys.executable, "-m", "tests.crash.zygote", str(far.fileno())],
                env={**os.environ, **control.environment()},
                pass_fds=[far.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=Path(__file__).parents[2],
            )
        one = Machine(control, near, file, data)
        try:
            yield one
        finally:
            if one.ended is not None:  # it may have ended with its log not read to the end
                await one.kill()
            near.shutdown(socket.SHUT_RDWR)
            await asyncio.to_thread(process.wait, STEP_SECONDS_MAX)
