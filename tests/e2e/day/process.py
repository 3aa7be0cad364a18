"""`git-mirror serve` as a process of its own, that can be killed and started again."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

STEP_SECONDS_MAX: Final = 90.0
"""A day fails after that instead of waiting for ever; nothing is to take so long."""


class Adopted:
    """A process that another one started, which ended since: looked after by a descriptor of it."""

    def __init__(self, pid: int) -> None:
        """Raises:
        ProcessLookupError: There is none.
        """
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Return 0 where it has ended: its status is told to nobody but its parent."""
        return 0 if select.select([self._descriptor], [], [], 0)[0] else None

    def wait(self) -> int:
        """Wait until it has ended."""
        select.select([self._descriptor], [], [])
        return 0

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._descriptor, number)


class MirrorProcess:
    """The service.

    Attributes:
        url: Where it listens, at each start.
        up: Set while it serves.
        kills: How often it was killed.
        pid: Of the main process, while there is one.
        successor: The process that took over, where one did; it ends with this one.
        log: The lines that it wrote, all starts together.
        on_line: Called with each of them.
    """

    def __init__(
        self,
        file: Path,
        url: str,
        *,
        lines_kept_max: int | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        inherits: Sequence[int] = (),
        module: str = "mirror",
    ) -> None:
        """Args:
        file: The configuration.
        url: Where it has it listen.
        lines_kept_max: How many lines of the log are kept at least; beyond twice as many the oldest
            go. `None` keeps all.
        environment: More variables.
        prefix: A command that runs the service's.
        inherits: Descriptors that it gets.
        module: What is run, with the command line of `mirror`.
        """
        self._module = module
        self._prefix = prefix
        self._inherits = inherits
        self._environment = {**os.environ, **(environment or {})}
        self.url = url
        self.up = asyncio.Event()
        self.kills = 0
        self.log: list[str] = []
        self.on_line: Callable[[str], None] = lambda _: None
        self.successor: int | None = None
        self._file = file
        self._lines_kept_max = lines_kept_max
        self._forgotten = 0
        self._said = asyncio.Condition()
        self._process: subprocess.Popen[bytes] | Adopted | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None or self._has_ended() else self._process.pid

    @property
    def lines(self) -> int:
        """How many lines it wrote so far."""
        return self._forgotten + len(self.log)

    async def start(self) -> None:
        """Start it, and wait until it serves."""
        serve = [sys.executable, "-m", self._module, "serve", "--config", str(self._file)]
        process = await asyncio.to_thread(
            subprocess.Popen,
            [*self._prefix, *serve],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self._environment,
            pass_fds=self._inherits,
        )
        self._process = process
        self._reading = asyncio.create_task(self._read(process))
        await self.logged(self.lines, lambda event: event["event"] == "serving")
        self.up.set()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started last."""
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it logged."""
        return [json.loads(line) for line in self.log if line.startswith("{")]

    async def ended(self) -> int:
        """Wait until the process that was started last has ended, and return its status."""
        assert self._process is not None
        async with asyncio.timeout(STEP_SECONDS_MAX):
            return await asyncio.to_thread(self._process.wait)

    async def adopt(self, pid: int) -> int:
        """Take the process that took over as the service, once the old one has ended.

        Returns:
            The old one's status.
        """
        successor = Adopted(pid)
        status = await self.ended()
        self._process = successor
        return status

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
            async with self._said:  # while another thread waits for it, it does not seem to be over
                self._said.notify_all()
        return status

    async def logged(self, since: int, met: Callable[[dict[str, Any]], bool]) -> None:
        """Wait for an event of the log, after so many lines."""
        async with asyncio.timeout(STEP_SECONDS_MAX), self._said:
            while True:
                lines, since = self.log[max(0, since - self._forgotten) :], self.lines
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
                    self._keep(line.decode())
                    self._said.notify_all()
        async with self._said:
            self._said.notify_all()

    def _keep(self, line: str) -> None:
        self.log.append(line)
        if self._lines_kept_max is not None and len(self.log) > 2 * self._lines_kept_max:
            self._forgotten += self._lines_kept_max
            del self.log[: self._lines_kept_max]
        self.on_line(line)

    async def close(self) -> None:
        """End it, whatever state it is in, with who took over from it."""
        self.up.clear()
        # Who took over has the same stderr: without its end there is none to read.
        self.on_line = lambda _: self._end_successors()
        self._end_successors()
        if self._process is not None and self._process.poll() is None:
            await self._end(signal.SIGKILL)
        if self._reading is not None:
            await self._reading

    def _end_successors(self) -> None:
        """Kill the one that a test knows of, and those that it failed too early to know of."""
        lines = [line for line in self.log if '"handed_over"' in line]
        pids = [int(json.loads(line)["to"]) for line in lines]
        if self.successor is not None:
            pids.append(self.successor)
        self.successor = None
        for pid in pids:
            with suppress(OSError):  # it has ended
                if os.fsencode(self._file) in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def running(file: Path, url: str) -> AsyncIterator[MirrorProcess]:
    """Run the service with a configuration that has it listen at `url`."""
    process = MirrorProcess(file, url)
    try:
        await process.start()
        yield process
    finally:
        await process.close()
