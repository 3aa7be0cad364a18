"""Which processors a server and its only client run on.

Left alone, the scheduler puts two processes that wait for each other now on one processor (a
switch takes about 10 us), now on two (waking the other takes about 60 us in a virtual machine),
and which of the two it was decides a ratio of small times. A client in life is never on the
server's own processor: so it gets one of its own.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


@contextlib.contextmanager
def apart(servers: Iterable[int]) -> Iterator[list[str]]:
    """Keep these processes off the last processor until the end of the block.

    Gives the words with which to start a client that stays there. Does nothing on a machine with
    one processor.
    """
    ours = sorted(os.sched_getaffinity(0))
    if len(ours) < 2:
        yield []
        return
    threads = [thread for server in servers for thread in _threads(server)]
    _place(threads, set(ours[:-1]))
    try:
        yield ["taskset", "--cpu-list", str(ours[-1])]
    finally:
        _place(threads, set(ours))


def _threads(process: int) -> list[int]:
    return [int(task.name) for task in Path(f"/proc/{process}/task").iterdir()]


def _place(threads: list[int], processors: set[int]) -> None:
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(thread, processors)
