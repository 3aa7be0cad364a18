"""The files with secrets that reaching an upstream needs: which, and whether they hold that.

Offline. Must never repeat what a file holds.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from mirror.config.netrc import find_entry, parse_netrc
from mirror.config.settings import (
    GithubAppSettings,
    NetrcSettings,
    PasswordSettings,
    RepositorySettings,
)

FILE_BYTES_MAX: Final = 64 * 1024

_NOT_PRIVATE: Final = b" PRIVATE KEY-----"


def credential_files(repository: RepositorySettings) -> Iterator[tuple[str, Path]]:
    """Yield the files with secrets that reaching the upstream needs, each after its key."""
    key = f"{repository.place_of('credentials')}.credentials"
    match repository.credentials:
        case PasswordSettings(password_file=file):
            yield f"{key}.password_file", file
        case GithubAppSettings(private_key_file=file):
            yield f"{key}.github_app.private_key_file", file
        case NetrcSettings(netrc_file=file):
            yield f"{key}.netrc_file", file
        case None:
            pass
    if repository.route.proxy_credentials is not None:
        key = f"{repository.place_of('proxy_credentials')}.proxy_credentials.password_file"
        yield key, repository.route.proxy_credentials.password_file


def content_problems(repository: RepositorySettings) -> Iterator[str]:
    """Yield what is wrong with what the files hold, as far as they can be read."""
    key = f"{repository.place_of('credentials')}.credentials"
    match repository.credentials:
        case GithubAppSettings(private_key_file=file):
            content = _content(file)
            if content and (b"-----BEGIN " not in content or _NOT_PRIVATE not in content):
                yield (
                    f"{key}.github_app.private_key_file: {file} holds no private key in PEM form;"
                    " make one on the app's page at GitHub (*Private keys*)"
                )
        case NetrcSettings(netrc_file=file):
            content = _content(file)
            if content:
                yield from _netrc_problems(f"{key}.netrc_file", file, content, repository.upstream)
        case _:
            pass


def _netrc_problems(key: str, file: Path, content: bytes, upstream: str) -> Iterator[str]:
    try:
        entries = parse_netrc(content.decode())
    except UnicodeDecodeError:
        yield f"{key}: {file} is not UTF-8; is it a netrc file?"
        return
    except ValueError as error:
        yield f"{key}: {file}: {error}"
        return
    parts = urlsplit(upstream)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    entry = find_entry(entries, host, port)
    if entry is None:
        yield f"{key}: {file} has no entry for {host}, and no `default`; add `machine {host}`"
    elif not entry.password:
        yield f"{key}: the entry in line {entry.line} of {file} has no `password`"


def _content(file: Path) -> bytes:
    """Return what a file holds; nothing where the check of secrets has said why not."""
    try:
        if not file.is_file() or file.stat().st_size > FILE_BYTES_MAX:
            return b""
        return file.read_bytes()
    except (OSError, ValueError):
        return b""
