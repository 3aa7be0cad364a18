"""A real file system that is small, or becomes read-only: only root can have one."""

import os
import subprocess
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20


class NotMounted(Exception):
    """No file system can be mounted here; the message says why."""


class SmallDisk:
    """A tmpfs at `path`."""

    def __init__(self, path: Path, size: int) -> None:
        """Raises:
        NotMounted: It can't be had.
        """
        self.path = path
        self._filler = path / "filler"
        path.mkdir(parents=True)
        self._mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
        self._mounts = 1

    def _mount(self, *words: str) -> None:
        if os.geteuid() != 0:
            raise NotMounted("only root mounts file systems")
        done = subprocess.run(["mount", *words], capture_output=True, check=False, text=True)
        if done.returncode != 0:
            raise NotMounted(f"no file systems can be mounted here: {done.stderr.strip()}")

    def fill(self, *, leave: int = 0) -> None:
        """Let another program fill the disk, but for some bytes."""
        with self._filler.open("ab", buffering=0) as file:
            size = self.free_bytes() - leave
            while size > 0:
                try:
                    size -= file.write(bytes(min(size, MIB)))
                except OSError:
                    return

    def free(self, *, keep: int = 0) -> None:
        """Let it remove what it wrote, but for some bytes."""
        if keep:
            os.truncate(self._filler, keep)
        else:
            self._filler.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def become_read_only(self) -> None:
        """Refuse every change from now on; what is open for writing stays so."""
        self._mount("--bind", str(self.path), str(self.path))
        self._mounts += 1
        self._mount("-o", "remount,bind,ro", str(self.path))

    def become_writable(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)
        self._mounts -= 1

    def close(self) -> None:
        while self._mounts:
            self.become_writable()
