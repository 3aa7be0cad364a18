"""The version of what lies in the data directory, and how an older one becomes today's.

`version` in the data directory holds one line, `git-mirror data 1`. It is written durably: when the
directory is made, before anything else is, and after each step of a migration. What has no such
file, and has mirrors, is of the time before there was one: version 0.

1: the file is there, and every directory down to a mirror is durable. Before, a power cut could
   take away a directory in which mirrors lie, with all of them.

A newer version than ours is refused: what it means is not known here. Each step of `MIGRATIONS`
leads from its version to the next one. It can be cut off anywhere and is then done again from its
beginning, so it must come to the same when parts of it are done already. All of it blocks.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from mirror.durable import fsync_directory, write_durably
from mirror.errors import LocalError

LAYOUT_VERSION: Final = 1
"""What this program reads and writes."""

VERSION_FILE: Final = "version"
_DRAFT: Final = "version.new"
_LINE: Final = re.compile(rb"git-mirror data ([1-9][0-9]{0,8})\n")
_BYTES_MAX: Final = 64

Migration = Callable[[Path], None]


class LayoutRefused(LocalError):
    """The data directory is of another version, or doesn't say of which."""

    label = "layout_refused"


def read_version(data_dir: Path) -> int | None:
    """Return the version of a data directory: 0 where it is from before versions, `None` if new.

    Raises:
        LocalError: The file that tells is damaged or can't be read.
    """
    path = data_dir / VERSION_FILE
    try:
        with path.open("rb") as file:
            content = file.read(_BYTES_MAX)
    except FileNotFoundError:
        return 0 if (data_dir / "repositories").exists() else None
    except OSError as error:
        raise LocalError(f"can't read {path}: {error.strerror}") from error
    found = _LINE.fullmatch(content)
    if found is None:
        raise LayoutRefused(
            f"{path} is damaged: it should say 'git-mirror data {LAYOUT_VERSION}' or what the"
            f" version that last ran wrote; restore it from a backup of {data_dir}, or move"
            f" {data_dir} away to have everything mirrored anew"
        )
    return int(found[1])


def check_version(data_dir: Path, *, known: int = LAYOUT_VERSION) -> int | None:
    """Do as `read_version`, and refuse what is newer than `known`.

    Raises:
        LocalError: It is, or can't be read.
    """
    version = read_version(data_dir)
    if version is not None and version > known:
        raise LayoutRefused(
            f"{data_dir} is of data version {version}, and this git-mirror knows {known}"
            f" and older ones: upgrade git-mirror, or restore {data_dir} from a backup of version"
            f" {known}, or move it away to have everything mirrored anew"
        )
    return version


def check_same_version(data_dir: Path) -> None:
    """See that a directory in use by another process needs no migration to be used by this one.

    That process could not go on with a migrated one, if this one did not come to serve.

    Raises:
        LocalError: It does, is newer, or can't be read.
    """
    version = check_version(data_dir)
    if version != LAYOUT_VERSION:
        raise LayoutRefused(
            f"{data_dir} is of data version {version or 0}, and this git-mirror works with"
            f" {LAYOUT_VERSION}: bringing it up to date takes a stop of the running version and a"
            " start of this one (`systemctl restart git-mirror`), not an upgrade beside it"
        )


def bring_up_to_date(
    data_dir: Path, migrations: Mapping[int, Migration] | None = None
) -> tuple[int | None, int]:
    """Make the data directory one of today's version; returns what it was, and what it is.

    Only while the directory's lock is held.

    Args:
        data_dir: The directory, which is there.
        migrations: The steps, by the version that each begins with; `MIGRATIONS` unless a test has
            others.

    Raises:
        LocalError: It is newer, damaged, or the disk refuses.
    """
    migrations = MIGRATIONS if migrations is None else migrations
    newest = max(migrations) + 1
    before = check_version(data_dir, known=newest)
    try:
        if (data_dir / _DRAFT).exists():  # to remove nothing is refused by a read-only disk, too
            (data_dir / _DRAFT).unlink(missing_ok=True)
        if before is None:
            _write_version(data_dir, newest)
            return None, newest
        for version in range(before, newest):
            migrations[version](data_dir)
            _write_version(data_dir, version + 1)
    except OSError as error:
        raise LocalError(f"can't bring {data_dir} up to date: {error}") from error
    return before, newest


def _write_version(data_dir: Path, version: int) -> None:
    draft = data_dir / _DRAFT
    write_durably(draft, b"git-mirror data %d\n" % version)
    draft.rename(data_dir / VERSION_FILE)
    fsync_directory(data_dir)


def _make_directories_durable(data_dir: Path) -> None:
    """0 to 1: the names of all mirrors, and of what they lie in."""
    waiting = [data_dir / "repositories"]
    while waiting:
        here = waiting.pop()
        with os.scandir(here) as entries:
            below = [Path(one) for one in entries if one.is_dir(follow_symlinks=False)]
        fsync_directory(here)
        waiting += [path for path in below if path.suffix != ".git"]
    fsync_directory(data_dir)


MIGRATIONS: Final[Mapping[int, Migration]] = {0: _make_directories_durable}
