"""The data directory: where everything lies, and the lock of the process that works on it.

data_dir/
version         of this layout; see `mirror/layout.py`
lock            held while a process uses the directory
tokens.json     hashes of the tokens of `git-mirror token`, with its .lock and at times a .new
control.sock    what `git-mirror sync` talks to
repositories/   the bare mirrors, by name
staging/        first clones under way; cleared at the start
packs/          packs that were made for readers, to be used again; may be removed at any time
lfs/            Git LFS objects, and which repository has them; as packs/
bundles/        bundles offered to clients, by repository; may be removed while nothing runs
relays.db       what each receiver of events has acknowledged, with its -wal and -shm
trash/          mirrors that were removed, until their files are; cleared at the start
set-aside/      what could not be used, never served; the last few are kept for a look
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

from mirror.durable import make_directories
from mirror.errors import LocalError
from mirror.layout import bring_up_to_date, check_same_version
from mirror.orphans import children_lock

SET_ASIDE_MAX: Final = 5
"""So many are kept at a start, the last ones: each may be as large as a mirror."""


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The places below `data_dir`."""

    root: Path

    @property
    def control(self) -> Path:
        """The control socket."""
        return self.root / "control.sock"

    @property
    def tokens(self) -> Path:
        """The hashes of tokens."""
        return self.root / "tokens.json"

    @property
    def staging(self) -> Path:
        """First clones under way."""
        return self.root / "staging"

    @property
    def packs(self) -> Path:
        """Packs made for readers."""
        return self.root / "packs"

    def bundles(self, name: str) -> Path:
        """The bundles of one repository."""
        return self.root / "bundles" / quote(name, safe="")

    def keep_bundles(self, wanted: Collection[str]) -> None:
        """Remove the bundles of repositories whose directory is not among `wanted`; blocking."""
        with suppress(FileNotFoundError):
            for directory in (self.root / "bundles").iterdir():
                if directory.name not in wanted:
                    shutil.rmtree(directory, ignore_errors=True)

    @property
    def lfs(self) -> Path:
        """Git LFS objects."""
        return self.root / "lfs"

    @property
    def relays(self) -> Path:
        """What receivers of events have acknowledged."""
        return self.root / "relays.db"

    @property
    def repositories(self) -> Path:
        """The bare mirrors, by name."""
        return self.root / "repositories"

    @property
    def trash(self) -> Path:
        """Mirrors that were removed."""
        return self.root / "trash"

    @property
    def set_aside(self) -> Path:
        """Mirrors that could not be used."""
        return self.root / "set-aside"

    def repository(self, name: str) -> Path:
        """The mirror of one repository."""
        return self.repositories / f"{name}.git"

    @contextmanager
    def held(self, *, inherited: int | None = None) -> Iterator["Hold"]:
        """Make the places, hold the lock, bring the layout up to date, clear what a crash left.

        Args:
            inherited: The descriptor of the lock, held by a process that hands it over; it may
                go on with the directory, so that this must be of today's layout already.

        Raises:
            LocalError: They can't be made, another process has the lock, or children that it has
                left work on; or the layout is newer.
        """
        try:
            make_directories(self.root)
            lock = _opened(self.root / "lock")
            if inherited is not None:
                lock = _taken_over(lock, inherited)
        except OSError as error:
            raise LocalError(f"can't use data_dir {self.root}: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataDirectoryInUse(
                    f"{self.root} is in use by another git-mirror; stop that one first"
                ) from None
            hold = Hold(lock.fileno())
            try:
                if inherited is not None:
                    check_same_version(self.root)
                with ExitStack() as stack:
                    if self.repositories.is_dir():
                        self._watch_children(stack, hold, ends_others=inherited is None)
                    self._prepare()
                    if hold.children is None:
                        self._watch_children(stack, hold, ends_others=False)
                    yield hold
            finally:
                # Not by closing alone: a child that a thread is starting at this very moment has
                # the file open too, until it has become another program.
                if not hold.handed_over:
                    fcntl.flock(lock, fcntl.LOCK_UN)

    def _watch_children(self, stack: ExitStack, hold: "Hold", *, ends_others: bool) -> None:
        try:
            lock = children_lock(self.repositories, ends_others=ends_others)
            hold.children = stack.enter_context(lock)
        except OSError as error:
            raise LocalError(f"can't use {self.repositories}: {error.strerror}") from error

    def _prepare(self) -> None:
        """Make the directory ready for use; only with the lock."""
        # Before anything is made: a directory with mirrors and no version is an old one.
        bring_up_to_date(self.root)
        try:
            for place in (self.repositories, self.packs, self.set_aside):
                make_directories(place)
            for place in (self.staging, self.trash):
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(exist_ok=True, mode=0o750)
            self._trim_set_aside()
            self._clear_tokens_draft()
        except OSError as error:
            raise LocalError(f"can't use data_dir {self.root}: {error.strerror}") from error

    def _trim_set_aside(self) -> None:
        """Remove all but the last few that were set aside."""
        found = sorted(
            self.set_aside.iterdir(), key=lambda path: (path.lstat().st_ctime_ns, path.name)
        )
        for path in found[:-SET_ASIDE_MAX]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):  # a read-only disk
                    path.unlink(missing_ok=True)

    def _clear_tokens_draft(self) -> None:
        """Remove what a `git-mirror token` that was killed left, unless one is at work now."""
        draft = self.tokens.with_name(self.tokens.name + ".new")
        if draft.exists():
            lock = self.tokens.with_name(self.tokens.name + ".lock")
            with suppress(OSError), lock.open("ab") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                draft.unlink(missing_ok=True)


@dataclass(slots=True)
class Hold:
    """The lock of a data directory, while it is held.

    Attributes:
        descriptor: Of the lock; a process that inherits it has the lock as well.
        handed_over: Another process has it now: it is not this one's to give back.
        children: What children that work on the directory inherit: see `mirror.orphans`.
    """

    descriptor: int
    handed_over: bool = False
    children: int | None = None

    def take_back(self) -> None:
        """Take the lock anew, in case a process that it was to be handed over to gave it back.

        Raises:
            DataDirectoryInUse: Yet another process was quicker.
        """
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataDirectoryInUse("another git-mirror has taken the data directory") from None


def _taken_over(lock: IO[bytes], inherited: int) -> IO[bytes]:
    """Return the inherited lock instead of `lock`, which was opened anew.

    Raises:
        LocalError: It is that of another directory.
    """
    with lock:
        if not os.path.sameopenfile(lock.fileno(), inherited):
            raise LocalError(
                "data_dir is another than the running git-mirror's: that takes a restart"
            )
    return os.fdopen(inherited, "ab")


def _opened(lock: Path) -> IO[bytes]:
    """Open the lock, for reading where its disk is read-only: what is there can be served."""
    try:
        return lock.open("ab")
    except OSError as error:
        if error.errno != errno.EROFS or not lock.exists():
            raise
        return lock.open("rb")


class DataDirectoryInUse(LocalError):
    """Another process works on the same data directory."""

    label = "data_dir_in_use"
