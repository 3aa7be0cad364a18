"""Tokens of our own: made by `git-mirror token`, kept as hashes in one file of the data directory.

A token is 256 random bits, so its SHA-256 tells nothing about it and is quick to compare; a slow
password hash would protect nothing more, and cost every first request. The file is read again when
it changes: a revoked token is refused within a second.
"""

import fcntl
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import structlog

from mirror.access.reader import Reader
from mirror.durable import fsync_directory
from mirror.errors import LocalError
from mirror.upstream.credentials import Stamp, stamp_of

PREFIX: Final = "gmt_"
"""So that people, and scanners for leaked secrets, know one when they see it."""

TOKENS_MAX: Final = 10_000
FILE_BYTES_MAX: Final = 16 << 20
LOOK_SECONDS: Final = 1.0

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_TOKEN: Final = re.compile(rb"gmt_[A-Za-z0-9_-]{43}")

logger = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What is kept of a token; times in seconds since the epoch."""

    name: str
    sha256: str
    repositories: tuple[str, ...]
    created_at: float
    expires_at: float | None = None

    def is_expired(self, now: float) -> bool:
        """Tell whether its time is over."""
        return self.expires_at is not None and now >= self.expires_at


class Tokens:
    """The tokens of a service, as the file has them at the moment.

    Attributes:
        generation: Raised whenever the file has changed: what was proven before may not hold.
    """

    def __init__(
        self,
        file: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.generation = 0
        self._file = file
        self._clock = clock
        self._wall_clock = wall_clock
        self._stamp: Stamp | None = None
        self._look_at = 0.0
        self._by_hash: dict[str, Token] = {}

    def find(self, secret: bytes) -> tuple[Reader, float | None] | None:
        """Return the reader that a token proves, and until when; `None` if it proves none."""
        self.look()
        if not _TOKEN.fullmatch(secret):
            return None
        token = self._by_hash.get(hashlib.sha256(secret).hexdigest())
        if token is None or token.is_expired(self._wall_clock()):
            return None
        return Reader(f"token {token.name}", token.repositories), token.expires_at

    def look(self) -> int:
        """Read the file again if it changed, a second ago or longer; returns the generation."""
        now = self._clock()
        if now < self._look_at:
            return self.generation
        self._look_at = now + LOOK_SECONDS
        stamp = _stamp_of(self._file)
        if stamp == self._stamp:
            return self.generation
        try:
            self._by_hash = {one.sha256: one for one in read_tokens(self._file)}
        except LocalError as error:
            # Nobody is let in by a file that can't be read; who was, isn't any more.
            self._by_hash = {}
            logger.warning("tokens_unreadable", error=str(error))
        self._stamp = stamp
        self.generation += 1
        return self.generation


def read_tokens(file: Path) -> list[Token]:
    """Return what is in the file; nothing where there is none.

    Raises:
        LocalError: It can't be read.
    """
    try:
        with file.open("rb") as opened:
            found = json.loads(opened.read(FILE_BYTES_MAX))  # what is longer breaks off
        if "sum" in found and found["sum"] != _sum_of(found["tokens"]):
            raise ValueError("it is damaged: its checksum is not right; put a copy in its place")  # noqa: TRY301
        return [
            Token(**{**entry, "repositories": tuple(entry["repositories"])})
            for entry in found["tokens"]
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LocalError(f"{file} can't be read: {error}") from error


def create_token(
    file: Path, name: str, *, repositories: tuple[str, ...], expires_at: float | None
) -> str:
    """Make a token and keep its hash; the token itself is returned, and nowhere else.

    Raises:
        LocalError: The name is taken or not usable, or the file can't be written.
    """
    if not _NAME.fullmatch(name):
        raise LocalError(
            f"{name!r} is no name for a token: write lower-case letters, digits, `.`, `_` and `-`"
        )
    secret = PREFIX + secrets.token_urlsafe(32)
    with _changing(file) as tokens:
        if any(one.name == name for one in tokens):
            raise LocalError(f"there is a token {name!r} already; revoke it first, or name another")
        if len(tokens) >= TOKENS_MAX:
            raise LocalError(f"there are {TOKENS_MAX} tokens already; revoke some")
        tokens.append(
            Token(
                name=name,
                sha256=hashlib.sha256(secret.encode()).hexdigest(),
                repositories=repositories,
                created_at=time.time(),
                expires_at=expires_at,
            )
        )
    return secret


def revoke_token(file: Path, name: str) -> None:
    """Take a token away.

    Raises:
        LocalError: There is none of that name, or the file can't be written.
    """
    with _changing(file) as tokens:
        kept = [one for one in tokens if one.name != name]
        if len(kept) == len(tokens):
            raise LocalError(f"there is no token {name!r}; `git-mirror token list` has all")
        tokens[:] = kept


@contextmanager
def _changing(file: Path) -> Iterator[list[Token]]:
    """Let one process at a time change the tokens; what is left in the list is written, whole.

    Raises:
        LocalError: The file can't be read or written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        with file.with_name(file.name + ".lock").open("wb") as lock:
            os.fchmod(lock.fileno(), 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            tokens = read_tokens(file)
            yield tokens
            _write(file, tokens)
    except OSError as error:
        raise LocalError(f"{file} can't be changed: {error.strerror or error}") from error


def _write(file: Path, tokens: list[Token]) -> None:
    entries = [asdict(one) for one in tokens]
    document = {"version": 1, "sum": _sum_of(entries), "tokens": entries}
    fresh = file.with_name(file.name + ".new")
    with open(fresh, "w", opener=_private, encoding="utf-8") as opened:
        json.dump(document, opened, indent=1)
        opened.flush()
        os.fsync(opened.fileno())
    # The service may run as another user than who makes a token: it keeps its file.
    if file.exists():
        owner = file.stat()
        if os.geteuid() == 0:
            os.chown(fresh, owner.st_uid, owner.st_gid)
    elif os.geteuid() == 0:
        owner = file.parent.stat()
        os.chown(fresh, owner.st_uid, owner.st_gid)
    fresh.replace(file)
    fsync_directory(file.parent)


def _sum_of(entries: list[dict[str, object]]) -> str:
    """Return a checksum of all entries: a flipped bit must not let anybody in, or in elsewhere."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _stamp_of(file: Path) -> Stamp | None:
    try:
        return stamp_of(file.stat())
    except OSError:
        return None
