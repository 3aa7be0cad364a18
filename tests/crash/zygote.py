"""A process that has the program loaded and becomes `git-mirror serve` by a fork, in milliseconds.

`python -m tests.crash.zygote FD`, with the shim loaded; FD is a socket of whole messages. It takes
the arguments of a command with a descriptor for its stderr, answers with the process id, and says
when that process has ended. On an empty message it kills all that processes have left behind.
"""

import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from mirror.cli import main as git_mirror
from tests.crash.control import arm, attached

_PR_SET_CHILD_SUBREAPER = 36


def serve(channel: socket.socket) -> None:
    """Do what is asked for until the other side is gone."""
    # Whatever outlives its parent becomes a child of this process.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    page = attached(Path(os.environ["CRASH_CONTROL"]))
    gc.collect()
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 1)
        if not message:
            kill_children()
            return
        arguments = json.loads(message)
        if not arguments:
            kill_children()
            channel.send(b'{"clean": true}')
            continue
        child = os.fork()
        if child == 0:
            channel.close()
            os.setsid()
            os.dup2(descriptors[0], 2)
            os.close(descriptors[0])
            arm(page, os.getpid())
            sys.argv = ["git-mirror", *arguments]
            git_mirror(arguments)  # ends the process
        os.close(descriptors[0])
        channel.send(json.dumps({"pid": child}).encode())
        if not outlived(child, channel):
            kill_children()
            return
        _, status = os.waitpid(child, 0)
        channel.send(json.dumps({"ended": os.waitstatus_to_exitcode(status)}).encode())


def outlived(child: int, channel: socket.socket) -> bool:
    """Wait for the end of a child; `False` when the other side is gone before."""
    descriptor = os.pidfd_open(child)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(channel, 0)  # that it is gone is told all the same
    found = [ready for ready, _ in poll.poll()]
    os.close(descriptor)
    return channel.fileno() not in found


def kill_children() -> None:
    """Kill and reap until there are none."""
    own = os.getpid()
    while True:
        for child in Path(f"/proc/{own}/task/{own}/children").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
