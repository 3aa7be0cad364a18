"""Runs `git-mirror` so that its tasks can be counted: `python -m tests.httpfuzz.watched ... serve`.

On SIGUSR1 it writes a line of JSON to the descriptor in `WATCHED_FD`: how many tasks there are, by
the coroutine that they run. Nothing else is different.
"""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from types import FrameType

from mirror.cli import main


def _tell(_: int, __: FrameType | None) -> None:
    # Python runs this on the main thread, whose event loop is the running one even while it waits.
    found = Counter(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())
    os.write(int(os.environ["WATCHED_FD"]), json.dumps(found).encode() + b"\n")


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _tell)
    # Whatever stands before the command is how it would be run otherwise.
    main(sys.argv[sys.argv.index("serve") :])
