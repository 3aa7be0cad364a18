"""Two directories that change places in one step: renameat2(2) with RENAME_EXCHANGE.

Whoever opens the path finds the one or the other, and a power cut leaves the one or the other. File
systems that can't do it (some network ones) get two renames: a crash in between leaves the path
empty, and the next start clones anew.
"""

import ctypes
import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from mirror.durable import fsync_directory
from mirror.errors import LocalError

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_NOT_HERE: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})


def exchange(new: Path, old: Path) -> None:
    """Let two directories change places, durably.

    Raises:
        LocalError: They could not; both are where they were.
    """
    try:
        if not _exchanged(new, old):
            aside = new.with_name(new.name + ".old")
            old.rename(aside)
            try:
                new.rename(old)
            except OSError:
                with suppress(OSError):
                    aside.rename(old)
                raise
            aside.rename(new)
        fsync_directory(old.parent)
        fsync_directory(new.parent)
    except OSError as error:
        raise LocalError(f"can't put {new} in the place of {old}: {error.strerror}") from error


def _exchanged(new: Path, old: Path) -> bool:
    """Tell whether it was done: `False` where it can't be done here at all."""
    library = ctypes.CDLL(None, use_errno=True)
    rename = getattr(library, "renameat2", None)
    if rename is None:  # an old C library
        return False
    done = rename(
        _AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), ctypes.c_uint(_RENAME_EXCHANGE)
    )
    if done == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_HERE:
        return False
    raise OSError(number, os.strerror(number))
