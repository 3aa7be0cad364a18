"""What each receiver has acknowledged, on disk (SQLite), so that a restart misses nothing.

A tip is written down after the receiver acknowledged it: a crash in between tells it once more, and
never loses a change. For the same reason nothing waits for the disk: what a power cut takes away is
told again. Every call blocks, and all of them must come from one thread.

The file has no checksums. What of a flipped bit the check at opening can't see (another tip or ref)
has a receiver told something once more, or of a ref that is not there: nothing is lost.
"""

import sqlite3
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import structlog

from mirror.errors import LocalError
from mirror.wire.names import ObjectId, Ref, RefName
from mirror.wire.ref_table import RefTable

_SCHEMA = """
CREATE TABLE IF NOT EXISTS backlogs (
    id INTEGER PRIMARY KEY, relay TEXT NOT NULL, repository TEXT NOT NULL,
    number INTEGER NOT NULL, UNIQUE (relay, repository)
);
CREATE TABLE IF NOT EXISTS tips (
    backlog INTEGER NOT NULL, ref BLOB NOT NULL, oid BLOB NOT NULL, PRIMARY KEY (backlog, ref)
) WITHOUT ROWID;
"""

_ODD: Final = """
SELECT EXISTS (
    SELECT 1 FROM tips WHERE typeof(oid) != 'blob' OR length(oid) NOT IN (20, 32)
    OR typeof(ref) != 'blob' OR substr(ref, 1, 5) != x'726566732f'
) OR EXISTS (
    SELECT 1 FROM backlogs WHERE typeof(number) != 'integer'
    OR typeof(relay) != 'text' OR typeof(repository) != 'text'
)
"""

_NOT_OF_DAMAGE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)
_VERSIONS_AT: Final = 18  # of the file format, to write and to read: 1 or 2 each; by them SQLite
# tells a file of the future, which it writes nothing into

logger = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What a receiver knows of a repository; as in `Backlog`."""

    refs: RefTable
    number: int


class Ledger:
    """The file.

    Attributes:
        is_anew: Whether there was one that was damaged: what receivers know was lost with it.
    """

    def __init__(self, database: sqlite3.Connection, *, is_anew: bool = False) -> None:
        self._database = database
        self.is_anew = is_anew

    @classmethod
    def open(cls, path: Path, *, set_aside: Path) -> Self:
        """Open the file at `path`, made when there is none.

        One that is damaged goes into the directory `set_aside`, and the new one `is_anew`.

        Raises:
            LocalError: It can't be opened.
        """
        try:
            return cls(_connect(path))
        except sqlite3.DatabaseError as error:
            if not _is_damage(error, path):
                raise LocalError(f"{path} can't be opened: {error}") from error
            aside = set_aside / f"{path.name}.{time.time_ns()}"
            logger.exception("relay_ledger_set_aside", reason=str(error), path=str(aside))
            # First: a new database would take what is in them for its own.
            for end in ("-wal", "-shm"):
                path.with_name(path.name + end).unlink(missing_ok=True)
            path.rename(aside)
            return cls(_connect(path), is_anew=True)

    @classmethod
    def open_copy(cls, path: Path) -> Self:
        """Open what the file at `path` says, in memory: for a disk that takes nothing.

        What is noted there is lost at the end, and told once more by the next. What was not yet
        moved from the log to the file itself is not seen, to the same end.

        Raises:
            sqlite3.Error: It can't be read.
        """
        database = sqlite3.connect(":memory:")
        try:
            if path.exists():
                place = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
                with closing(sqlite3.connect(place, uri=True)) as source:
                    source.backup(database)
            database.executescript(_SCHEMA)
            _check(database)
        except BaseException:
            database.close()
            raise
        return cls(database)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def keep_only(self, backlogs: Collection[tuple[str, str]]) -> None:
        """Forget what is neither of these, each a relay and a repository."""
        with self._database as database:
            found = database.execute("SELECT id, relay, repository FROM backlogs").fetchall()
            gone = [(one,) for one, *names in found if tuple(names) not in backlogs]
            database.executemany("DELETE FROM tips WHERE backlog = ?", gone)
            database.executemany("DELETE FROM backlogs WHERE id = ?", gone)

    def load(self, relay: str, repository: str) -> Acknowledged | None:
        """Return what a receiver knows of a repository; `None` when it was told nothing yet."""
        found = self._database.execute(
            "SELECT id, number FROM backlogs WHERE relay = ? AND repository = ?",
            (relay, repository),
        ).fetchone()
        if found is None:
            return None
        rows = self._database.execute("SELECT ref, oid FROM tips WHERE backlog = ?", found[:1])
        refs = RefTable.of(Ref(RefName(ref), ObjectId(oid.hex().encode())) for ref, oid in rows)
        return Acknowledged(refs, found[1])

    def begin(self, relay: str, repository: str, refs: Iterable[Ref]) -> None:
        """Note what a receiver counts as knowing of a repository from the start."""
        with self._database as database:
            cursor = database.execute(
                "INSERT INTO backlogs (relay, repository, number) VALUES (?, ?, 0)",
                (relay, repository),
            )
            rows = ((cursor.lastrowid, ref.name, bytes.fromhex(ref.oid.decode())) for ref in refs)
            database.executemany("INSERT INTO tips VALUES (?, ?, ?)", rows)

    def record(
        self,
        relay: str,
        repository: str,
        tips: Mapping[RefName, ObjectId | None],
        number: int | None = None,
    ) -> None:
        """Note what a receiver knows now.

        Does nothing where `begin` has failed: without the beginning, all the rest would look new.

        Args:
            relay: The receiver.
            repository: The repository.
            tips: What it knows of some refs; `None` for not there.
            number: How many deliveries it has acknowledged; `None` for as many as before.
        """
        with self._database as database:
            found = database.execute(
                "SELECT id, number FROM backlogs WHERE relay = ? AND repository = ?",
                (relay, repository),
            ).fetchone()
            if found is None:
                return
            backlog = found[0]
            if number is not None:
                database.execute("UPDATE backlogs SET number = ? WHERE id = ?", (number, backlog))
            for ref, oid in tips.items():
                if oid is None:
                    database.execute(
                        "DELETE FROM tips WHERE backlog = ? AND ref = ?", (backlog, ref)
                    )
                else:
                    database.execute(
                        "INSERT OR REPLACE INTO tips VALUES (?, ?, ?)",
                        (backlog, ref, bytes.fromhex(oid.decode())),
                    )


def _connect(path: Path) -> sqlite3.Connection:
    """Open the database and look whether it is one.

    Raises:
        sqlite3.DatabaseError: It is damaged, or can't be opened.
    """
    database = sqlite3.connect(path)
    try:
        path.chmod(0o600)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.executescript(_SCHEMA)
        _check(database)
    except BaseException:
        database.close()
        raise
    return database


def _check(database: sqlite3.Connection) -> None:
    # Not the quick one: only this compares an index with its table.
    with closing(database.execute("PRAGMA integrity_check(1)")) as cursor:
        verdict = cursor.fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    with closing(database.execute(_ODD)) as cursor:
        if cursor.fetchone()[0]:
            raise sqlite3.DatabaseError("it says what was never written")


def _is_damage(error: sqlite3.DatabaseError, path: Path) -> bool:
    """Tell whether it is the file that is not right, and not the disk or who may write there."""
    code = getattr(error, "sqlite_errorcode", None)  # not where we have raised it
    if code is None or code & 0xFF not in _NOT_OF_DAMAGE:
        return True
    try:
        with path.open("rb") as file:
            file.seek(_VERSIONS_AT)
            versions = file.read(2)
    except OSError:
        return False
    return len(versions) == 2 and not set(versions) <= {1, 2}
