"""Credentials for an upstream: read from their file, never shown.

The file is read again whenever it changed, so that a rotated token is used with the next request.
"""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.errors import UpstreamRefused

SECRET_BYTES_MAX: Final = 64 * 1024
"""A longer "token" is some other file."""


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


@dataclass(slots=True)
class SecretFile:
    """A secret in a file, read anew when the file changes."""

    path: Path
    _stamp: tuple[int, int, int] | None = None
    _secret: Secret | None = None

    def read(self) -> Secret:
        """Return the secret without the newline that editors put at its end.

        Raises:
            OSError: The file can't be read.
            ValueError: It is empty or too long.
        """
        status = self.path.stat()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if self._secret is None or stamp != self._stamp:
            if status.st_size > SECRET_BYTES_MAX:
                raise ValueError(f"{self.path} is too long to be a secret")
            value = self.path.read_bytes().rstrip(b"\r\n")
            if not value:
                raise ValueError(f"{self.path} is empty")
            self._stamp, self._secret = stamp, Secret(value)
        return self._secret


class BasicCredentials:
    """A user name and a password file, sent with every request and never asked for first."""

    def __init__(self, username: str, password_file: Path) -> None:
        self._username = username
        self._file = SecretFile(password_file)

    def authorization(self) -> str:
        """Return the value of the Authorization header (RFC 7617).

        Raises:
            UpstreamRefused: The password file can't be used.
        """
        try:
            password = self._file.read().reveal()
        except OSError as error:
            raise UpstreamRefused(
                f"the password file {self._file.path} can't be read: {error.strerror}"
            ) from error
        except ValueError as error:
            raise UpstreamRefused(f"the password file can't be used: {error}") from error
        pair = self._username.encode() + b":" + password
        return "Basic " + base64.b64encode(pair).decode("ascii")

    def __repr__(self) -> str:
        return f"BasicCredentials({self._username!r}, ***)"
