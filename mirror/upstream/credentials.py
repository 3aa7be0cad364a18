"""Credentials for an upstream: read from their file, never shown.

A file is read again whenever it changed, so that a rotated token is used with the next request:
rewritten, replaced, or a symbolic link that leads elsewhere, as Kubernetes and agents of a vault
swap a mounted secret.

`Credentials` is what all ways to sign in have in common: a password file and a netrc file here,
GitHub Apps in `github_app`. Which one, and since when it is refused, is its `Standing`.
"""

import base64
import enum
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

from mirror.config import find_entry, parse_netrc
from mirror.errors import Trouble, UpstreamRefused

SECRET_BYTES_MAX: Final = 64 * 1024
"""A longer "token" is some other file."""

Stamp = tuple[int, ...]


class Secret:
    """Bytes that never show themselves in a log or a traceback."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    def reveal(self) -> bytes:
        """Return the bytes, for the one line that sends or compares them."""
        return self._value

    def __repr__(self) -> str:
        return "***"


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what differs when a file, behind its symbolic links, has another content."""
    times = status.st_mtime_ns, status.st_ctime_ns
    return (*times, status.st_size, status.st_ino, status.st_dev)


@dataclass(slots=True)
class SecretFile:
    """A secret in a file, read anew when the file changes."""

    path: Path
    _stamp: Stamp | None = None
    _secret: Secret | None = None

    def read(self) -> Secret:
        """Return the secret without the newline that editors put at its end.

        Raises:
            OSError: The file can't be read.
            ValueError: It is empty or too long.
        """
        status = self.path.stat()
        stamp = stamp_of(status)
        if self._secret is None or stamp != self._stamp:
            if status.st_size > SECRET_BYTES_MAX:
                raise ValueError(f"{self.path} is too long to be a secret")
            value = self.path.read_bytes().rstrip(b"\r\n")
            if not value:
                raise ValueError(f"{self.path} is empty")
            self._stamp, self._secret = stamp, Secret(value)
        return self._secret


class CredentialKind(enum.StrEnum):
    """The ways to sign in, by their keys in the configuration."""

    PASSWORD_FILE = "password_file"  # noqa: S105 - a key, not a password
    GITHUB_APP = "github_app"
    NETRC_FILE = "netrc_file"


@dataclass(slots=True)
class Standing:
    """What is known of one repository's credentials, for operators; never a secret.

    Attributes:
        kind: The way to sign in.
        words: Which credentials, in a sentence: "the password of bot in /etc/token".
        mend: What to do where they are refused with 401, with 403, and with 404.
        accepted_at: When the upstream last took them; seconds since the epoch, as the others.
        failing_since: When they were first refused, or could not be had, after they last worked.
        expires_at: When they end, where the forge tells.
        renewed_at: When they were last renewed, where they are short-lived.
    """

    kind: CredentialKind
    words: str
    mend: dict[int, str]
    clock: Callable[[], float] = field(default=time.time, repr=False)
    accepted_at: float | None = None
    failing_since: float | None = None
    expires_at: float | None = None
    renewed_at: float | None = None

    def answered(self, status: int) -> None:
        """Take note of the upstream's answer to a request that was signed with these.

        What 403 and 404 mean depends on what was asked for: see `failed`.
        """
        if status == 401:
            self._fail()
        elif status < 400:
            self.accepted_at, self.failing_since = self.clock(), None

    def failed(self, words: str) -> UpstreamRefused:
        """Take note that they are of no use; returns the error that says so, and since when."""
        self._fail()
        return UpstreamRefused(f"{words} ({self.since()})", trouble=Trouble.CREDENTIALS)

    def since(self) -> str:
        """Return since when they fail, in words."""
        at = datetime.fromtimestamp(self.failing_since or self.clock(), UTC)
        return f"failing since {at:%Y-%m-%d %H:%M:%S} UTC"

    def _fail(self) -> None:
        if self.failing_since is None:
            self.failing_since = self.clock()


class Credentials(Protocol):
    """How one repository signs in to its upstream."""

    @property
    def standing(self) -> Standing:
        """What is known of them."""
        ...

    async def authorization(self) -> str:
        """Return the value of the Authorization header (RFC 7617), sent with every request.

        Raises:
            UpstreamError: It can't be had; says which, since when, and what to do.
        """
        ...

    async def renewed(self, refused: str) -> str | None:
        """Return what to send in the place of what the upstream refused with 401.

        `None` where there is nothing newer: forges count failed logins.

        Raises:
            UpstreamError: It can't be had.
        """
        ...


def password_standing(words: str, place: str) -> Standing:
    """Return the standing of a password or token that stands in `place`."""
    return Standing(
        CredentialKind.PASSWORD_FILE,
        words,
        {
            401: f"{words} is wrong or expired; put a new one into {place}",
            403: f"{words} may not read the repository; give it read access at the forge",
            404: f"there is no such repository, or {words} may not see it",
        },
    )


class BasicCredentials:
    """A user name and a password file."""

    def __init__(self, username: str, password_file: Path) -> None:
        self._username = username
        self._file = SecretFile(password_file)
        self.standing = password_standing(
            f"the password of {username} in {password_file}", "the file"
        )

    def secret(self) -> Secret:
        """Return the password.

        Raises:
            UpstreamRefused: The file can't be used.
        """
        try:
            return self._file.read()
        except OSError as error:
            raise self.standing.failed(
                f"the password file {self._file.path} can't be read: {error.strerror};"
                " put the password there, readable for git-mirror's user"
            ) from error
        except ValueError as error:
            raise self.standing.failed(f"the password file can't be used: {error}") from error

    async def authorization(self) -> str:
        """See `Credentials.authorization`."""
        return basic(self._username, self.secret())

    async def renewed(self, refused: str) -> str | None:
        """See `Credentials.renewed`: the file may have changed meanwhile."""
        now = await self.authorization()
        return now if now != refused else None

    def __repr__(self) -> str:
        return f"BasicCredentials({self._username!r}, ***)"


class NetrcCredentials:
    """An entry of a netrc file."""

    def __init__(self, netrc_file: Path, host: str, port: int, *, username: str) -> None:
        """Sign in to `host`; `username` is for an entry that has none."""
        self._host, self._port = host, port
        self._username = username
        self._file = SecretFile(netrc_file)
        self._read: tuple[Secret, str, Secret] | None = None
        self.standing = password_standing(
            f"the password for {host} in {netrc_file}", "that netrc file"
        )
        self.standing.kind = CredentialKind.NETRC_FILE

    def secret(self) -> Secret:
        """Return the password.

        Raises:
            UpstreamRefused: The file can't be used.
        """
        return self._entry()[1]

    async def authorization(self) -> str:
        """See `Credentials.authorization`."""
        return basic(*self._entry())

    async def renewed(self, refused: str) -> str | None:
        """See `Credentials.renewed`: the file may have changed meanwhile."""
        now = await self.authorization()
        return now if now != refused else None

    def _entry(self) -> tuple[str, Secret]:
        path = self._file.path
        try:
            content = self._file.read()
            if self._read is None or self._read[0] is not content:
                self._read = (content, *self._parsed(content))
        except OSError as error:
            raise self.standing.failed(
                f"the netrc file {path} can't be read: {error.strerror};"
                " put it there, readable for git-mirror's user"
            ) from error
        except ValueError as error:
            why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            raise self.standing.failed(f"the netrc file {path} can't be used: {why}") from None
        return self._read[1:]

    def _parsed(self, content: Secret) -> tuple[str, Secret]:
        entry = find_entry(parse_netrc(content.reveal().decode()), self._host, self._port)
        if entry is None:
            raise ValueError(f"it has no entry for {self._host}; add `machine {self._host}`")
        if not entry.password:
            raise ValueError(f"the entry in line {entry.line} has no `password`")
        return entry.login or self._username, Secret(entry.password.encode())

    def __repr__(self) -> str:
        return f"NetrcCredentials({self._host!r}, ***)"


def basic(username: str, password: Secret) -> str:
    """Return the value of an Authorization header (RFC 7617)."""
    pair = username.encode() + b":" + password.reveal()
    return "Basic " + base64.b64encode(pair).decode("ascii")


def concealed(text: str, authorization: str | None) -> str:
    """Return what a peer said, without what it was sent: error pages may repeat a request."""
    if not authorization:
        return text
    scheme, _, value = authorization.partition(" ")
    forms = {authorization, value}
    if scheme == "Basic":
        password = base64.b64decode(value).partition(b":")[2].decode("utf-8", "replace")
        forms |= {password, quote(password, safe="")}
    for form in sorted(filter(None, forms), key=len, reverse=True):
        text = text.replace(form, "***")
    return text
