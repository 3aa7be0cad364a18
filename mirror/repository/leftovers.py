"""What could not be removed, because the disk took no change: removed later.

A process that goes on after its disk was read-only for a while would else keep it until the next
start, and a full disk would be kept full. All of it blocks.
"""

import errno
import shutil
from contextlib import suppress
from pathlib import Path


class Leftovers:
    """What one owner has left behind."""

    def __init__(self) -> None:
        self._left: set[Path] = set()

    def remove(self, path: Path) -> None:
        """Remove a directory with all that is in it, now or when `try_again` can."""
        shutil.rmtree(path, ignore_errors=True)
        self._look_after(path)

    def remove_file(self, path: Path) -> None:
        """Remove a file, now or when `try_again` can.

        Raises:
            OSError: It can't be removed for another reason than that the disk is read-only.
        """
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        self._look_after(path)

    def try_again(self) -> None:
        """Remove what could not be removed before."""
        for path in tuple(self._left):
            with suppress(OSError):
                path.unlink()
            self.remove(path)

    def _look_after(self, path: Path) -> None:
        if path.exists():
            self._left.add(path)
        else:
            self._left.discard(path)
