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


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and flush it; its name is for `fsync_directory`. Blocking.

    Raises:
        OSError: It can't be written, or is a symbolic link.
    """
    with open(path, "wb", opener=_not_through_a_link) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _not_through_a_link(path: str, flags: int) -> int:
    """Open what we write under a name that can be foreseen; a link there is not ours."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o640)


def fsync_file(path: Path) -> None:
    """Flush a file's content; blocking."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
