"""One bare mirror on disk: an ordinary Git repository, opened with dulwich.

Refs live in one file (`refs`), objects in packs alone; new ones are received in a `quarantine`
below `objects/` and join the others only when all that they reach is there. Each step is durable
before the next: objects, then refs, then HEAD.

What is read is checked: refs by `refs`, objects by `objects`, the configuration by `config_file`.
What can be made anew from the rest (HEAD, the configuration, one of the two files of refs) is, at
the next start or by `mend`; the rest is for the refresher, which fetches it again.
"""

import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from dulwich.config import StackedConfig
from dulwich.repo import Repo

from mirror.durable import fsync_directory, fsync_file, write_durably
from mirror.errors import Damaged, LocalError
from mirror.repository.clearing import (
    QUARANTINE_PREFIX,
    clear_leftovers,
    remove_packs,
    unfinished,
)
from mirror.repository.config_file import config_content, upstream_url_of
from mirror.repository.graph import CommitGraph
from mirror.repository.integrity import CHECKED_SECONDS, Damage, Kind, OnRead, Soundness, pass_over
from mirror.repository.leftovers import Leftovers
from mirror.repository.objects import ObjectSource
from mirror.repository.quarantine import Quarantine
from mirror.repository.refs import RefFiles, StoredRefs

_CONFIRMED: Final = "git-mirror-confirmed"  # an empty file: its time is what counts
_SCRUBBED: Final = "git-mirror-scrubbed"  # as well


class BareRepository:
    """A bare repository on disk. Objects may be read from any thread; refs have one writer."""

    def __init__(self, path: Path, source: ObjectSource, upstream_url: str) -> None:
        self.path = path
        self.objects = path / "objects"
        self.upstream_url = upstream_url
        self.source = source
        self.graph = CommitGraph(source, index=self.objects / "info" / "commit-graph")
        self._leftovers = Leftovers()
        self.soundness = Soundness(self.objects)
        self._refs = RefFiles(path, upstream_url)
        self.confirmed_before = _modified_at(path / _CONFIRMED)
        """When the upstream had confirmed the refs, as far as was known when this was opened."""
        self.scrubbed_before = _modified_at(path / _SCRUBBED) or _modified_at(path / "config")
        """When all files had been checked, or cloned, as far as was known when this was opened."""
        self._place = _inode(path)
        self.found: tuple[Damage, ...] = ()
        """What was damaged when this was opened, and could be made anew from the rest."""
        self.not_mended: str | None = None
        """Why it could not be written anew; what is sound is served all the same."""

    @classmethod
    def create(cls, path: Path, *, upstream_url: str) -> Self:
        """Make a new, empty repository at `path`, whose parents are made too.

        Raises:
            LocalError: The directory can't be made.
        """
        try:
            path.mkdir(parents=True, mode=0o750)
            Repo.init_bare(path, default_branch=b"main", config=StackedConfig([])).close()
            (path / "config").write_bytes(config_content(upstream_url))
            RefFiles(path, upstream_url).begin()
        except OSError as error:
            raise LocalError(f"can't create the repository {path}: {error.strerror}") from error
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, *, upstream_url: str | None = None) -> Self:
        """Open the repository at `path`, clear away what a crash may have left, and `mend` it.

        Packs that are damaged are passed over. Where nothing can be written, what is to be mended
        is noted in `not_mended`.

        Args:
            path: Where it is.
            upstream_url: What it should mirror, by which a damaged configuration is made anew.

        Raises:
            Damaged: It can't be read, and can't be mended here.
            LocalError: It is not a repository.
        """
        leftovers = Leftovers()
        url = _upstream_url(path, upstream_url)
        try:
            clear_leftovers(path, leftovers)
        except OSError as error:
            raise LocalError(f"{path} can't be tidied up: {error}") from error
        repository = cls(path, ObjectSource(path / "objects", passes_over=True), url)
        repository._leftovers = leftovers
        try:
            repository.read_refs()
            try:
                repository.found = repository.mend()
            except LocalError as error:
                repository.not_mended = str(error)
        except BaseException:
            repository.close()
            raise
        return repository

    @classmethod
    def open_beside(cls, path: Path, *, upstream_url: str | None = None) -> Self:
        """Open the repository at `path` to read it, while another process writes to it.

        What looks like a leftover may be that process's work of this moment, and stays.

        Args:
            path: Where it is.
            upstream_url: What it should mirror, which counts where its configuration is damaged.

        Raises:
            LocalError: It is not a repository that can be read.
        """
        url = _upstream_url(path, upstream_url)
        return cls(path, ObjectSource(path / "objects", passes_over=True), url)

    def close(self) -> None:
        """Release the mapped packs."""
        self.source.close()

    # --- refs ----------------------------------------------------------------------------------

    def read_refs(self) -> StoredRefs:
        """Read all refs from disk; where they are damaged, from their copy.

        Raises:
            Damaged: Both are not what was written.
            LocalError: They can't be read.
        """
        return self._refs.read()

    def write_refs(self, stored: StoredRefs) -> None:
        """Replace all refs, durably and in one step; HEAD, which names one of them, follows.

        Raises:
            LocalError: They could not be written; those on disk are as before.
        """
        self._refs.write(stored)

    def write_known_refs(self) -> None:
        """Write the refs that were read or written last, in the place of damaged ones.

        Raises:
            Damaged: None were.
            LocalError: They could not be written.
        """
        self._refs.write_known()

    def note_confirmed(self, at: float) -> None:
        """Keep for the next start when the upstream confirmed the refs (seconds since the epoch).

        A hint for people: lost in a crash, and not written where the disk has no room.
        """
        _note_time(self.path / _CONFIRMED, at)

    def note_scrubbed(self, at: float) -> None:
        """Keep for the next start when all files were found right (seconds since the epoch)."""
        _note_time(self.path / _SCRUBBED, at)

    def was_replaced(self) -> bool:
        """Tell whether another repository is in its place now; what was opened is still read."""
        return _inode(self.path) != self._place

    # --- damage --------------------------------------------------------------------------------

    def check(
        self,
        on_read: OnRead = pass_over,
        *,
        since: float = CHECKED_SECONDS,
        soundness: Soundness | None = None,
    ) -> list[Damage]:
        """Read all files and return what is damaged. Blocking; from any thread.

        Args:
            on_read: Told of the bytes that are read.
            since: Packs that were found right in the last so many seconds are not read again.
            soundness: Findings of one's own; by default the repository's.
        """
        found = self._refs.check()
        try:
            upstream_url_of(self.path)
        except LocalError as error:
            found.append(Damage(Kind.CONFIG, self.path / "config", str(error)))
        found += (soundness or self.soundness).check(on_read, since=since)
        passed_over = self.source.damaged.items()
        known = {one.path.stem for one in found}
        found += [
            Damage(Kind.PACK, self.objects / "pack" / name, reason)
            for name, reason in passed_over
            if Path(name).stem not in known
        ]
        return found

    def mend(self) -> tuple[Damage, ...]:
        """Make anew what can be from the rest: HEAD, the configuration, a file of refs.

        Returns:
            What was damaged. A copy of the refs that is not there, or is of before a crash, is not.

        Raises:
            Damaged: The refs are, and their copy.
            LocalError: They can't be read, or nothing can be written.
        """
        anew: dict[str, bytes] = {}
        try:
            refs, found = self._refs.to_mend()
            try:
                upstream_url_of(self.path)
            except Damaged as error:
                anew["config"] = config_content(self.upstream_url)
                found.insert(0, Damage(Kind.CONFIG, self.path / "config", str(error)))
            anew |= refs
            for name, content in anew.items():
                write_durably(self.path / f"{name}.tmp", content)
                (self.path / f"{name}.tmp").rename(self.path / name)
                fsync_directory(self.path)
        except OSError as error:
            for name in anew:  # a full disk needs the room
                with suppress(OSError):
                    (self.path / f"{name}.tmp").unlink(missing_ok=True)
            raise LocalError(f"can't mend {self.path}: {error.strerror}") from error
        return tuple(found)

    def drop(self, auxiliary: Path) -> None:
        """Remove a damaged file that only makes things quicker; git does without, or makes it anew.

        Raises:
            LocalError: It can't be removed.
        """
        try:
            auxiliary.unlink(missing_ok=True)
            if auxiliary.name == "multi-pack-index":  # its bitmap is of no use without it
                for beside in auxiliary.parent.glob("multi-pack-index-*"):
                    beside.unlink(missing_ok=True)
        except OSError as error:
            raise LocalError(f"can't remove {auxiliary}: {error.strerror}") from error
        self.graph.forget()

    # --- objects -------------------------------------------------------------------------------

    @contextmanager
    def quarantine(self) -> Iterator[Quarantine]:
        """Make a quarantine; what is still in it at the end is removed.

        Raises:
            LocalError: It can't be made.
        """
        objects = self.objects / (QUARANTINE_PREFIX + secrets.token_hex(6))
        self._leftovers.try_again()
        try:
            try:
                (objects / "pack").mkdir(parents=True)
                (objects / "info").mkdir()
                (objects / "info" / "alternates").write_bytes(os.fsencode(self.objects) + b"\n")
            except OSError as error:
                message = f"can't receive objects in {self.objects}: {error.strerror}"
                raise LocalError(message) from error
            yield Quarantine(self, objects)
        finally:
            self._leftovers.remove(objects)

    def pack_files(self) -> list[Path]:
        """Return the packs on disk."""
        with suppress(FileNotFoundError):
            return sorted((self.objects / "pack").glob("pack-*.pack"))
        return []

    def bytes_on_disk(self) -> int:
        """Return the size of the packs and their indexes."""
        total = 0
        for file in (self.objects / "pack").iterdir():
            with suppress(FileNotFoundError):  # a repack may end meanwhile
                total += file.stat().st_size
        return total

    def remove_packs(self, names: Collection[str]) -> None:
        """Remove packs of which all that counts is in others: see `clearing.remove_packs`.

        Raises:
            LocalError: One can't be removed, or another repository is in the place of this one,
                which may have a pack of the same name.
        """
        if self.was_replaced():
            raise LocalError(f"{self.path} was cloned anew meanwhile")
        try:
            remove_packs(self.objects / "pack", names)
        except OSError as error:
            raise LocalError(f"can't remove packs of {self.path}: {error.strerror}") from error
        finally:
            self.source.rescan()

    def clear_unfinished(self) -> None:
        """Remove what a repack that was ended left; for when none is under way. Blocking."""
        for file in unfinished(self.objects):
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def make_durable(self) -> None:
        """Flush every file and directory of a repository that was made from scratch."""
        for directory, _, files in os.walk(self.path):
            for name in files:
                fsync_file(Path(directory, name))
            fsync_directory(Path(directory))


def _upstream_url(path: Path, should_be: str | None) -> str:
    """Return what the repository there mirrors; where its configuration is damaged, `should_be`.

    Raises:
        Damaged: It is, and nobody says what it should be.
        LocalError: It is not a repository.
    """
    try:
        return upstream_url_of(path)
    except Damaged:
        if should_be is None:
            raise
        return should_be


def _modified_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _note_time(path: Path, at: float) -> None:
    with suppress(OSError):
        path.touch()
        os.utime(path, (at, at))


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None
