"""The next process, as the one that it takes over from sees it: started, told, waited for.

It is the installed program, started as this process was: where that is a script, the script, so
that a link that leads to another version now is followed. Not the spawner's: it outlives us.

It is nobody's child but the service manager's (or init's), from the start: systemd does not wait
for the end of a main process that is another's child, not even once that other has gone, and kills
it at once where it is to stop.
"""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from mirror.config import successors_environment
from mirror.handover.messages import PROTOCOL, Channel, HandOverFailed

PREPARE_SECONDS_MAX: Final = 60.0
"""To import everything and read the configuration; meanwhile all goes on as ever."""

TAKE_OVER_SECONDS_MAX: Final = 60.0
"""To open all mirrors and start the workers; meanwhile nothing is refreshed."""

ANNOUNCE_SECONDS_MAX: Final = 8.0
"""The new process takes none before we show no refs any more, which is up to 5 seconds later.
Forges give up at 10 s."""

LAUNCH_SECONDS_MAX: Final = 30.0
"""An interpreter without any module starts in 20 ms."""

_LAUNCHER: Final = """
import os, sys
pid = os.fork()
if pid == 0:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execv(sys.argv[1], sys.argv[1:])
os.write(0, b"%d" % pid)
os.read(0, 1)
"""
"""Starts a program, tells its number on descriptor 0, and ends when that is closed: until then the
number can't be another's."""

logger = structlog.stdlib.get_logger()


class Successor:
    """The next process.

    Attributes:
        pid: Its number.
    """

    def __init__(self, pid: int, pidfd: int, channel: Channel) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._channel = channel
        self._announced: dict[int, asyncio.Future[None]] = {}
        self._last_number = 0
        self._hearing: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, sockets: Iterable[socket.socket], lock: int, *, by_manager: bool
    ) -> "Successor":
        """Start the installed program, which inherits the sockets and the lock.

        With `by_manager`, systemd bound the sockets: they are not the program's to remove.

        Raises:
            HandOverFailed: It can't be started.
        """
        near, far = socket.socketpair()
        inherited = [one.fileno() for one in sockets]
        try:
            with far:
                pid, pidfd = await asyncio.to_thread(_start, far, [*inherited, lock])
        except OSError as error:
            near.close()
            raise HandOverFailed(f"it can't be started: {error}") from error
        channel = await Channel.open(near)
        channel.tell(
            "hello", protocol=PROTOCOL, listeners=inherited, lock=lock, by_manager=by_manager
        )
        return cls(pid, pidfd, channel)

    async def prepared(self) -> None:
        """Wait until it has read its configuration.

        Raises:
            HandOverFailed: It never will have.
        """
        await self._expect("prepared", PREPARE_SECONDS_MAX)

    async def take_over(self, repositories: Mapping[str, Any]) -> None:
        """Give it the data directory, and wait until it serves.

        Raises:
            HandOverFailed: It never will.
        """
        self._channel.tell("yours", repositories=dict(repositories))
        await self._expect("serving", TAKE_OVER_SECONDS_MAX)
        self._hearing = asyncio.create_task(self._hear(), name="successor")

    async def _expect(self, what: str, seconds_max: float) -> None:
        try:
            async with asyncio.timeout(seconds_max):
                await self._channel.expect(what)
        except TimeoutError:
            raise HandOverFailed(f"the new process is not {what} in {seconds_max:.0f} s") from None
        except HandOverFailed as error:
            ended = "; its own last words say why" if self._has_ended(0) else ""
            raise HandOverFailed(f"the new process is not {what}: {error}{ended}") from None

    def tell(self, what: str, **more: Any) -> None:
        """Say what needs no answer.

        `main`: it is the service now, with the repositories that were `announced` to us only.
        `silent`: we show no refs any more. `reload`: it is to read the configuration again.
        """
        self._channel.tell(what, **more)

    async def announce(self, repositories: Sequence[str]) -> None:
        """Hand over a webhook; returns when no reader is served what was before it.

        Raises:
            HandOverFailed: It is not taken: the forge is to send it again.
        """
        self._last_number += 1
        number, answer = self._last_number, asyncio.get_running_loop().create_future()
        self._announced[number] = answer
        self._channel.tell("announce", number=number, repositories=list(repositories))
        try:
            async with asyncio.timeout(ANNOUNCE_SECONDS_MAX):
                await answer
        except TimeoutError:
            raise HandOverFailed("the new process does not take a webhook") from None
        finally:
            self._announced.pop(number, None)

    async def _hear(self) -> None:
        while (message := await self._channel.hear()) is not None:
            answer = self._announced.get(message.get("number", 0))
            if message["what"] == "announced" and answer is not None and not answer.done():
                answer.set_result(None)

    async def end(self) -> None:
        """Kill it, with what it started, and wait for its end."""
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await asyncio.to_thread(self._has_ended, None)
        os.close(self._pidfd)

    async def let_go(self) -> None:
        """Leave it to itself."""
        if self._hearing is not None:
            self._hearing.cancel()
            await asyncio.gather(self._hearing, return_exceptions=True)
        self._channel.close()
        os.close(self._pidfd)

    def _has_ended(self, milliseconds: int | None) -> bool:
        """Tell whether it ends within that time; `None` waits for it."""
        ending = select.poll()
        ending.register(self._pidfd, select.POLLIN)
        return bool(ending.poll(milliseconds))


def command() -> list[str]:
    """Return the command that starts the installed program as this process was started."""
    script = Path(sys.orig_argv[1]) if len(sys.orig_argv) > 1 else Path()
    if script.is_file() and os.access(script, os.X_OK):
        return sys.orig_argv[1:]
    return [sys.executable, *sys.orig_argv[1:]]


def _start(channel: socket.socket, inherited: list[int]) -> tuple[int, int]:
    """Start the process, and return its number and a descriptor of it; in a thread.

    Raises:
        OSError: It can't be started.
    """
    near, far = socket.socketpair()
    with near:
        with far:
            launcher = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command()],
                stdin=far.fileno(),
                pass_fds=[channel.fileno(), *inherited],
                env=successors_environment(channel.fileno()),
            )
        try:
            near.settimeout(LAUNCH_SECONDS_MAX)
            pid = int(near.recv(20) or -1)  # of a launcher that ended: no process has that
            pidfd = os.pidfd_open(pid)
        except BaseException:
            launcher.kill()
            raise
        finally:
            near.close()
            launcher.wait()
    return pid, pidfd
