"""Children of a git-mirror that was killed alone, and that work on: ended by the next start.

Every git that works on the data directory inherits a descriptor of `repositories/` with a shared
lock (flock(2)): it lasts as long as the last who has it. A start that can't have that lock for
itself looks in /proc for who has it, and ends those that are git. A service manager and a container
end them by themselves; the kernel that kills the largest process for its memory does not.

Blocking.
"""

import errno
import fcntl
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

from mirror.errors import LocalError

END_SECONDS_MAX: Final = 10.0
"""For those that were killed to be gone; a disk that hangs may hold them up."""

_BUSY: Final = frozenset({errno.EWOULDBLOCK, errno.EACCES})

logger = structlog.stdlib.get_logger()


class OrphansLeft(LocalError):
    """Somebody works on the data directory who should not, and can't be ended."""

    label = "orphans_left"


@contextmanager
def children_lock(place: Path, *, ends_others: bool) -> Iterator[int]:
    """Hold what children are to inherit.

    Args:
        place: The directory that they work in.
        ends_others: Whether nobody else may work there now; those of a process that hands over may.

    Raises:
        OrphansLeft: Somebody does, and can't be ended.
        OSError: The directory can't be opened.
    """
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ends_others:
            _end_others(descriptor, place)
        with suppress(OSError):  # a file system without locks: nobody is found then
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def _end_others(descriptor: int, place: Path) -> None:
    if _is_alone(descriptor):
        return
    deadline = time.monotonic() + END_SECONDS_MAX
    others = _who_has(descriptor)
    poll = select.poll()
    for pid, name, process in others:
        if name == "git":
            logger.warning("orphan_ended", pid=pid, path=str(place))
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
            poll.register(process, select.POLLIN)
    try:
        left = sum(name == "git" for _, name, _ in others)
        while left and (seconds := deadline - time.monotonic()) > 0:
            for ended, _ in poll.poll(seconds * 1000):
                poll.unregister(ended)
                left -= 1
    finally:
        for _, _, process in others:
            os.close(process)
    if not _is_alone(descriptor):
        words = ", ".join(f"{name} ({pid})" for pid, name, _ in _closed(_who_has(descriptor)))
        raise OrphansLeft(
            f"what a git-mirror that was killed has left running still works in {place}"
            f" ({words or 'not found in /proc'}); end it, and start again"
        )


def _is_alone(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _BUSY
    return True


def _who_has(descriptor: int) -> list[tuple[int, str, int]]:
    """Return the other processes that have the directory open: number, name, and a pidfd."""
    wanted, found = os.fstat(descriptor), []
    for place in Path("/proc").glob("[0-9]*"):
        pid = int(place.name)
        if pid == os.getpid():
            continue
        with suppress(OSError):  # gone meanwhile, or somebody else's
            process = os.pidfd_open(pid)  # first: by then the number is this one's for sure
            name = _name_if_open(place, wanted)
            if name is None:
                os.close(process)
            else:
                found.append((pid, name, process))
    return found


def _name_if_open(place: Path, wanted: os.stat_result) -> str | None:
    """Return the name of the process of a place in /proc, if it has the directory open."""
    try:
        has_it = any(_is_same(link, wanted) for link in (place / "fd").iterdir())
        return (place / "comm").read_text().strip() if has_it else None
    except OSError:
        return None


def _is_same(link: Path, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(link.stat(), wanted)
    except OSError:
        return False


def _closed(found: list[tuple[int, str, int]]) -> list[tuple[int, str, int]]:
    for _, _, process in found:
        os.close(process)
    return found
