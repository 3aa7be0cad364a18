"""Starting a worker's process, and its end: the one place beside the spawner that has children.

A worker is this program again, not a fork of a running event loop. It is not the spawner's, for it
has no output to read and no time limit, and it lives as long as we do.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence


class WorkerProcess:
    """A running worker.

    Attributes:
        pid: Its number.
        ended: Set when it has ended and is reaped.
    """

    def __init__(self, child: "subprocess.Popen[bytes]") -> None:
        self.pid = child.pid
        self.ended = asyncio.Event()
        self._child = child
        # Nobody else reaps it, so the number is its own until `_reap`.
        self._descriptor = os.pidfd_open(child.pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._reap)

    @classmethod
    async def start(
        cls, listeners: Sequence[socket.socket] = ()
    ) -> "tuple[WorkerProcess, socket.socket]":
        """Start a worker, which inherits `listeners`; returns it and our end of its channel.

        Raises:
            OSError: It can't be started.
        """
        near, far = socket.socketpair()
        starting = asyncio.create_task(asyncio.to_thread(_start, far, listeners))
        try:
            child = await asyncio.shield(starting)
        except asyncio.CancelledError:
            near.close()
            await asyncio.wait((starting,))
            if starting.exception() is None:
                starting.result().kill()
                starting.result().wait()
            raise
        except BaseException:
            near.close()
            raise
        return cls(child), near

    async def end(self) -> None:
        """Kill it, unless it has ended already, and wait for the end."""
        if not self.ended.is_set():
            self._child.send_signal(signal.SIGKILL)
        await self.ended.wait()

    @property
    def exit_code(self) -> int | None:
        """How it ended, as `subprocess` says it; `None` while it runs."""
        return self._child.returncode

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._child.wait()
        self.ended.set()


def _start(channel: socket.socket, listeners: Sequence[socket.socket]) -> "subprocess.Popen[bytes]":
    """Start the process; in a thread."""
    with channel:
        numbers = [one.fileno() for one in listeners]
        options = [f"--channel={channel.fileno()}", *(f"--listener={one}" for one in numbers)]
        return subprocess.Popen(
            [sys.executable, "-m", "mirror", "worker", *options],
            stdin=subprocess.DEVNULL,
            pass_fds=[channel.fileno(), *numbers],
            start_new_session=True,  # a terminal's Ctrl-C is for the main process
        )
