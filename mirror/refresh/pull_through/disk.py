"""Mirrors below `upstreams` on disk: which there are, when they were read, and their end.

All of it blocks. That a mirror came by `upstreams`, and when it was last read, is told by an empty
file in it, whose time is what counts.
"""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from mirror.durable import fsync_directory
from mirror.errors import LocalError
from mirror.refresh.mirror import Mirror
from mirror.repository.config_file import upstream_url_of

_READ: Final = "git-mirror-read"


def sizes(mirrors: Iterable[Mirror]) -> dict[str, int]:
    """Return the bytes that mirrors take, by name; 0 where that can't be told."""
    found = {}
    for one in mirrors:
        found[one.name] = 0
        if one.repository is not None:
            with suppress(OSError):
                found[one.name] = one.repository.bytes_on_disk()
    return found


def mirrors_below(directory: Path) -> Iterator[tuple[str, Path]]:
    """Yield the mirrors on disk with their names; directories that hold none are removed."""
    waiting = [directory]
    seen = []
    while waiting:
        here = waiting.pop()
        seen.append(here)
        with os.scandir(here) as entries:
            below = [Path(one) for one in entries if one.is_dir(follow_symlinks=False)]
        for path in below:
            if path.suffix == ".git":
                yield str(path.relative_to(directory).with_suffix("")), path
            else:
                waiting.append(path)
    for here in reversed(seen[1:]):
        with suppress(OSError):  # mostly, there is something in it
            here.rmdir()


def read_at(path: Path) -> float | None:
    """Return when a mirror was last read; `None` if it did not come by `upstreams`."""
    try:
        return (path / _READ).stat().st_mtime
    except OSError:
        return None


def upstream_of(path: Path) -> str | None:
    """Return what a directory mirrors; `None` if that can't be told."""
    try:
        return upstream_url_of(path)
    except LocalError:
        return None


def note_read(path: Path, at: float) -> None:
    """Note when a mirror was last read (seconds since the epoch); a hint, as good as the disk."""
    with suppress(OSError):
        (path / _READ).touch()
        os.utime(path / _READ, (at, at))


def note_reads(times: Iterable[tuple[Path, float]]) -> None:
    """Do as `note_read` for many."""
    for path, at in times:
        note_read(path, at)


def forget_read(path: Path) -> None:
    """Make a mirror one that did not come by `upstreams`; on a read-only disk, at a later start."""
    with suppress(OSError):
        (path / _READ).unlink()


def throw_away(path: Path, trash: Path, name: str) -> None:
    """Take a mirror away in one step.

    Raises:
        OSError: It is still there.
    """
    path.rename(trash / f"{quote(name, safe='')}.{secrets.token_hex(4)}.git")
    fsync_directory(path.parent)


def empty(trash: Path) -> None:
    """Remove what was thrown away."""
    for path in trash.iterdir():
        shutil.rmtree(path, ignore_errors=True)
