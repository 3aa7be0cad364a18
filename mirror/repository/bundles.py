"""The bundles of one repository on disk, and which of them are offered.

<directory>/list.json                which are offered, and until when those before are kept
<directory>/<token>-<sha256>.bundle  a bundle, never changed; its name is its checksum
<directory>/draft                    one that is being written

A bundle is durable under its name before a list names it, and the list is replaced in one step; so
a crash leaves the list of before and perhaps files that nobody lists, which the next start removes.
There is one writer. Readers in other processes open files by their names and need no list for it.
All of it is blocking work.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Final

from mirror.durable import fsync_directory, make_directories
from mirror.errors import LocalError, ProtocolError
from mirror.repository.integrity import OnRead, in_slices, pass_over
from mirror.wire.bundles import (
    BUNDLE_NAME,
    Bundle,
    BundleList,
    bundle_name,
    parse_header_refs,
)
from mirror.wire.names import ObjectId, RefName

KEPT_SECONDS: Final = 3 * 3600.0
"""A bundle that is no longer offered stays for clients that read the list before: they fetch its
bundles one after another, over lines of any kind."""

_LIST: Final = "list.json"
_LIST_VERSION: Final = 1
_DRAFT: Final = "draft"
_READ_BYTES: Final = 1 << 20
_HEADER_LINE_BYTES_MAX: Final = 8192


class BundleDraft:
    """A bundle while it is written."""

    def __init__(self, file: BinaryIO, path: Path, *, bytes_max: int) -> None:
        self.size = 0
        self._file = file
        self._path = path
        self._bytes_max = bytes_max
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Append to it.

        Raises:
            LocalError: The disk is full, or it would be longer than it may.
        """
        self.size += len(data)
        if self.size > self._bytes_max:
            raise LocalError(
                f"a bundle would take more than the {self._bytes_max} bytes that are left of"
                " limits.bundle_bytes_max; raise that, or set bundle_interval: never"
            )
        self._digest.update(data)
        with _explained(self._path):
            self._file.write(data)

    def finish(self, token: int) -> Bundle:
        """Make it durable, under its own name.

        Raises:
            LocalError: The disk is full.
        """
        name = bundle_name(token, self._digest.hexdigest())
        with _explained(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._path.rename(self._path.with_name(name))
            fsync_directory(self._path.parent)
        return Bundle(name, token, self.size)


class BundleShelf:
    """The directory of one repository's bundles.

    Attributes:
        listed: What is offered.
        last_token: The largest token that was found there when it was opened.
    """

    def __init__(self, directory: Path, *, source: str) -> None:
        """Take a directory, which may not be there yet.

        Args:
            directory: Of this repository alone.
            source: What the bundles are made of: those made of something else are never offered.
        """
        self._directory = directory
        self.source = source
        self._retired: dict[str, float] = {}  # by name: until when
        self.listed: BundleList | None = None
        self.last_token = 0

    def open(self) -> BundleList | None:
        """Return what is offered, after clearing away what a crash or another source left.

        Raises:
            LocalError: The directory can't be tidied up.
        """
        with suppress(FileNotFoundError):
            names = [file.name for file in self._directory.iterdir()]
            tokens = [int(name.partition("-")[0]) for name in names if BUNDLE_NAME.fullmatch(name)]
            self.last_token = max(tokens, default=0)
        try:
            self._read(json.loads((self._directory / _LIST).read_bytes()))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.listed, self._retired = None, {}
        if self.listed is None:
            self.clear()
        else:
            self.sweep(time.time())
        return self.listed

    def _read(self, stored: dict[str, object]) -> None:
        """Take what a list says.

        Raises:
            ValueError: It can't be used.
        """
        bundles = stored["bundles"]
        if (
            stored["version"] != _LIST_VERSION
            or stored["source"] != self.source
            or not isinstance(bundles, list)
            or not bundles
        ):
            raise ValueError("another list")
        listed = BundleList(tuple(Bundle(**one) for one in bundles), float(str(stored["built_at"])))
        for bundle in listed.bundles:
            path = self.path(bundle.name)
            if path is None or path.stat().st_size != bundle.size:
                raise ValueError("a bundle is not as it was")
        retired = stored["retired"]
        if not isinstance(retired, dict):
            raise TypeError("no retired bundles")
        self._retired = {str(name): float(until) for name, until in retired.items()}
        self.listed = listed

    @property
    def expires_at(self) -> float | None:
        """When the next of those that are no longer offered may go; seconds since the epoch."""
        return min(self._retired.values(), default=None)

    def path(self, name: str) -> Path | None:
        """Return where the bundle `name` is; `None` where that is no name of a bundle."""
        return self._directory / name if BUNDLE_NAME.fullmatch(name) else None

    # --- reading -------------------------------------------------------------------------------

    def tips(self) -> dict[RefName, ObjectId]:
        """Return what a client has that took all bundles.

        Raises:
            LocalError: One can't be read.
        """
        tips: dict[RefName, ObjectId] = {}
        for bundle in self.listed.bundles if self.listed is not None else ():
            try:
                with (self._directory / bundle.name).open("rb") as file:
                    tips |= parse_header_refs(_lines(file))
            except (OSError, ProtocolError) as error:
                raise LocalError(f"bundle {bundle.name} can't be read: {error}") from error
        return tips

    def damaged(self, on_read: OnRead = pass_over) -> str | None:
        """Read all that is offered; return the name of a bundle that is not as it was made."""
        for bundle in self.listed.bundles if self.listed is not None else ():
            try:
                digest = hashlib.sha256()
                with (self._directory / bundle.name).open("rb", buffering=0) as file:
                    for piece in in_slices(file):
                        digest.update(piece)
                        on_read(len(piece))
            except OSError:
                return bundle.name
            if digest.hexdigest() != bundle.digest:
                return bundle.name
        return None

    def bytes_on_disk(self) -> int:
        """Return what all files take, those that are no longer offered too."""
        total = 0
        with suppress(FileNotFoundError):
            for file in self._directory.iterdir():
                with suppress(FileNotFoundError):
                    total += file.stat().st_size
        return total

    # --- writing -------------------------------------------------------------------------------

    @contextmanager
    def draft(self, *, bytes_max: int) -> Iterator[BundleDraft]:
        """Begin a bundle; what is not finished at the end is removed.

        Raises:
            LocalError: There is no place for it.
        """
        path = self._directory / _DRAFT
        try:
            with _explained(path):
                make_directories(self._directory)
                file = path.open("wb", buffering=_READ_BYTES)
            try:
                yield BundleDraft(file, path, bytes_max=bytes_max)
            finally:
                with suppress(OSError):  # what a full disk refused once, it refuses again
                    file.close()
        finally:
            _give_up(path)

    def publish(self, listed: BundleList, now: float) -> None:
        """Offer these from now on; those offered before are kept for a while.

        Raises:
            LocalError: The disk is full; what was offered still is.
        """
        names = {bundle.name for bundle in listed.bundles}
        before = self.listed.bundles if self.listed is not None else ()
        retired = {name: until for name, until in self._retired.items() if name not in names}
        for bundle in before:
            if bundle.name not in names:
                retired[bundle.name] = now + KEPT_SECONDS
        stored = {
            "version": _LIST_VERSION,
            "source": self.source,
            "built_at": listed.built_at,
            "bundles": [asdict(bundle) for bundle in listed.bundles],
            "retired": retired,
        }
        draft = self._directory / _DRAFT
        try:
            with _explained(draft):
                with draft.open("wb") as file:
                    file.write(json.dumps(stored, indent=1).encode())
                    file.flush()
                    os.fsync(file.fileno())
                draft.rename(self._directory / _LIST)
                fsync_directory(self._directory)
        finally:
            _give_up(draft)
        self.listed, self._retired = listed, retired

    def sweep(self, now: float) -> None:
        """Remove the files that nobody needs any more.

        Raises:
            LocalError: One can't be removed.
        """
        # A clock that was put back keeps nothing for longer than it was to be kept.
        self._retired = {
            name: min(until, now + KEPT_SECONDS)
            for name, until in self._retired.items()
            if until > now
        }
        names = {bundle.name for bundle in self.listed.bundles} if self.listed else set()
        keep = {_LIST, *names, *self._retired}
        with _explained(self._directory), suppress(FileNotFoundError):
            for file in self._directory.iterdir():
                if file.name not in keep:
                    file.unlink(missing_ok=True)

    def clear(self) -> None:
        """Offer nothing any more, and keep nothing: this takes no room on a full disk.

        Raises:
            LocalError: A file can't be removed.
        """
        self.listed, self._retired = None, {}
        with _explained(self._directory), suppress(FileNotFoundError):
            (self._directory / _LIST).unlink(missing_ok=True)
            fsync_directory(self._directory)
            shutil.rmtree(self._directory)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines; not by iterating, for what follows the header is no text."""
    while line := file.readline(_HEADER_LINE_BYTES_MAX):
        yield line


def _give_up(draft: Path) -> None:
    """Remove a draft, if there is one; what a disk that takes no change keeps, `sweep` removes."""
    with suppress(OSError):
        draft.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LocalError(f"can't write {path}: {error.strerror}") from error
