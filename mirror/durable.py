"""What a power cut must not take away: names of files and directories are flushed as well."""

import os
from pathlib import Path


def fsync_directory(path: Path) -> None:
    """Make what was created, renamed or removed in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(path: Path) -> None:
    """Make a directory and those above it that are missing, each durably.

    Raises:
        OSError: One can't be made.
    """
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for one in reversed(missing):
        one.mkdir(exist_ok=True, mode=0o750)
        fsync_directory(one.parent)
