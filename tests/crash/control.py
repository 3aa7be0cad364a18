"""The shim: how it is built, told what to do, and what it has recorded. The layout is shim.c's."""

import enum
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("shim.c")
RECORD_BYTES_MAX: Final = 256 << 20
"""Of a sparse file: most of it is never written."""

_RECORD_AT: Final = 8192
_HEAD: Final = struct.Struct("=4I2Q")
_ARMED, _DEAD, _MAIN, _KIND, _HALF, _RECORDING, _OVERFLOWN = 4, 8, 12, 16, 20, 24, 28
_COUNT, _KILL_AT, _BYTES = 32, 40, 48
_ROOT, _PRELOAD, _PATH_BYTES_MAX = 64, 1088, 1024


class Op(enum.IntEnum):
    """What a call does."""

    CREATE = 1
    WRITE = 2
    TRUNCATE = 3
    RENAME = 4
    UNLINK = 5
    RMDIR = 6
    MKDIR = 7
    LINK = 8
    SYMLINK = 9
    FSYNC = 10
    MAPPED = 11
    UNKNOWN = 12


@dataclass(frozen=True, slots=True)
class Call:
    """One call that changed something below the root, or flushed it.

    Attributes:
        path: What it was about, relative to the root.
        to: The other path of RENAME and LINK; what a SYMLINK points to.
        inode: Of the file, in CREATE, WRITE, TRUNCATE and FSYNC.
        offset: Where WRITE began; the new size of TRUNCATE; 1 for the FSYNC of a directory.
        data: What was written.
    """

    op: Op
    path: str
    to: str = ""
    inode: int = 0
    offset: int = 0
    data: bytes = b""


def compiled(directory: Path) -> Path | None:
    """Build the shim into `directory`; `None` where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    library = directory / "shim.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", "-o", library, SOURCE, "-ldl", "-lpthread"],
        check=True,
        capture_output=True,
    )
    return library


class Control:
    """The page that the shim looks at, and the record behind it."""

    def __init__(self, file: Path, library: Path) -> None:
        self.file = file
        self.library = library
        with file.open("w+b") as opened:
            opened.truncate(RECORD_BYTES_MAX)
            self._page = mmap.mmap(opened.fileno(), RECORD_BYTES_MAX)
        self._text(_PRELOAD, os.fspath(library))

    def close(self) -> None:
        self._page.close()

    def environment(self) -> dict[str, str]:
        """Return what a process needs to have the shim."""
        return {"LD_PRELOAD": os.fspath(self.library), "CRASH_CONTROL": os.fspath(self.file)}

    def prepare(
        self, root: Path, *, kill_at: int, main_only: bool, half: bool, recording: bool
    ) -> None:
        """Say what is to happen in the next run; it counts from 0.

        Args:
            root: What is looked after.
            kill_at: The number of the last call; 0 for no end.
            main_only: Whether the children live on.
            half: Whether the last call, if it writes, writes half.
            recording: Whether to record all calls.
        """
        self._text(_ROOT, os.fspath(root))
        for at, value in (
            (_ARMED, 0),
            (_DEAD, 0),
            (_KIND, int(main_only)),
            (_HALF, int(half)),
            (_RECORDING, int(recording)),
            (_OVERFLOWN, 0),
        ):
            self._word(at, value)
        for at, value in ((_COUNT, 0), (_KILL_AT, kill_at), (_BYTES, 0)):
            self._page[at : at + 8] = struct.pack("=Q", value)

    def arm(self, main: int) -> None:
        """Begin to count; `main` is the process to be killed."""
        self._word(_MAIN, main)
        self._word(_ARMED, 1)

    def stop_all(self) -> None:
        """Let nothing happen any more."""
        self._word(_DEAD, 1)

    @property
    def count(self) -> int:
        """How many calls there were."""
        return int(struct.unpack_from("=Q", self._page, _COUNT)[0])

    def calls(self) -> Iterator[Call]:
        """Yield what was recorded, in order."""
        assert not struct.unpack_from("=I", self._page, _OVERFLOWN)[0], "the record is too short"
        root = bytes(self._page[_ROOT:_PRELOAD]).split(b"\0", 1)[0].decode()
        at, end = _RECORD_AT, _RECORD_AT + struct.unpack_from("=Q", self._page, _BYTES)[0]
        while at < end:
            op, _, a_bytes, b_bytes, inode, offset = _HEAD.unpack_from(self._page, at)
            at += _HEAD.size
            path = self._page[at : at + a_bytes].decode("utf-8", "surrogateescape")
            data = self._page[at + a_bytes : at + a_bytes + b_bytes]
            at += a_bytes + b_bytes
            kind, to = Op(op), ""
            if kind in {Op.RENAME, Op.LINK}:
                to, data = data.decode("utf-8", "surrogateescape")[len(root) + 1 :], b""
            elif kind is Op.SYMLINK:
                to, data = data.decode(), b""
            yield Call(kind, path[len(root) + 1 :], to, inode, offset, data)

    def _word(self, at: int, value: int) -> None:
        self._page[at : at + 4] = struct.pack("=I", value)

    def _text(self, at: int, text: str) -> None:
        encoded = text.encode()
        assert len(encoded) < _PATH_BYTES_MAX, text
        self._page[at : at + _PATH_BYTES_MAX] = encoded.ljust(_PATH_BYTES_MAX, b"\0")


def attached(file: Path) -> mmap.mmap:
    """Map the page of another process, to arm it there."""
    with file.open("r+b") as opened:
        return mmap.mmap(opened.fileno(), _RECORD_AT)


def arm(page: mmap.mmap, main: int) -> None:
    """See `Control.arm`."""
    page[_MAIN : _MAIN + 4] = struct.pack("=I", main)
    page[_ARMED : _ARMED + 4] = struct.pack("=I", 1)
