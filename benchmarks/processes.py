"""Servers under measurement: started, waited for, ended by their process id, whatever happens."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

START_SECONDS_MAX: Final = 30.0
STOP_SECONDS_MAX: Final = 30.0
CHECK_EVERY_SECONDS: Final = 0.02
OPEN_FILES_MAX: Final = 65_536
"""Of each server: what systemd/git-mirror.service allows."""


class NotStarted(Exception):
    """A server ended, or did not answer in time; a note has the end of its log."""


def allow_open_files() -> None:
    """Let what is started from now on open so many files, or as many as a user may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError):  # only root may go beyond
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES_MAX, max(hard, OPEN_FILES_MAX)))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def running(
    arguments: Sequence[str | Path], *, log: Path, environment: dict[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server in a process group of its own, until the end of the block."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*map(str, arguments)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):  # children that it left behind
            os.killpg(process.pid, signal.SIGKILL)


def wait_until(
    met: Callable[[], bool],
    *,
    process: "subprocess.Popen[bytes]",
    log: Path,
    seconds_max: float = START_SECONDS_MAX,
) -> None:
    """Look again and again until `met`.

    Raises:
        NotStarted: The process ended, or time is up.
    """
    began_at = asked_at = time.monotonic()
    while not met():
        answered_at = time.monotonic()
        if process.poll() is not None or answered_at > began_at + seconds_max:
            raise _not_started(process, log.read_text(errors="replace").strip())
        # A question that is work for the server is asked less often.
        time.sleep(max(CHECK_EVERY_SECONDS, 3 * (answered_at - asked_at)))
        asked_at = time.monotonic()


def _not_started(process: "subprocess.Popen[bytes]", said: str) -> NotStarted:
    state = "is not ready in time" if process.poll() is None else "ended"
    error = NotStarted(said.rpartition("\n")[2] or "it said nothing")
    error.add_note(f"{process.args} {state}; it said:\n{said[-2000:]}")
    return error


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
