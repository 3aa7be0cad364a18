"""Whether the files that a configuration names can be used: offline, and only to report.

Must never raise, nor repeat what a secret file holds.
"""

import os
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mirror.config.credential_files import content_problems, credential_files
from mirror.config.environment import CREDENTIALS_VARIABLE
from mirror.config.settings import RepositorySettings, Settings

SECRET_BYTES_MAX: Final = 64 * 1024
"""A secret is a line. More is the wrong file."""

WEBHOOK_SECRETS_MAX: Final = 8
"""Secrets of one webhook, one a line: each costs a hash of every delivery. A rotation needs two."""


def check_files(settings: Settings) -> list[str]:
    """Return what is wrong with the files `settings` names, each with its key and what to do."""
    relays = settings.relays.values()
    problems = [f"data_dir: {problem}" for problem in _data_dir_problems(settings.data_dir)]
    named = dict.fromkeys(
        entry
        for each in (*settings.repositories.values(), *settings.upstreams)
        for entry in _secret_files(each)
    )
    named |= {(f"relays.{one.name}.secret_file", one.secret_file, 1): None for one in relays}
    named |= {
        (f"readers.oidc.{one.name}.token_file", one.token_file, 1): None
        for one in settings.readers.oidc
        if one.token_file is not None
    }
    for key, file, lines_max in named:
        problems += [f"{key}: {problem}" for problem in _secret_problems(file, lines_max)]
    for key, authorities in dict.fromkeys(_authorities(settings)):
        problems += [f"{key}: {problem}" for problem in _ca_problems(authorities)]
    for certificate, private_key in settings.tls.pairs if settings.tls else ():
        problems += [f"server.tls: {one}" for one in _pair_problems(certificate, private_key)]
    contents = (one for each in settings.repositories.values() for one in content_problems(each))
    return [*problems, *dict.fromkeys(contents)]


def _secret_files(repository: RepositorySettings) -> Iterator[tuple[str, Path, int]]:
    """Yield the key, the path, and how many secrets, one a line, the file may hold."""
    for key, file in credential_files(repository):
        yield key, file, 1
    if repository.webhook_secret_file:
        key = f"{repository.place_of('webhook_secret_file')}.webhook_secret_file"
        yield key, repository.webhook_secret_file, WEBHOOK_SECRETS_MAX


def _secret_problems(file: Path, lines_max: int) -> Iterator[str]:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            yield f"{file} is not a file; name a file that holds the secret and nothing else"
            return
        with file.open("rb") as opened:
            content = opened.read(SECRET_BYTES_MAX + 1)
    except FileNotFoundError:
        if file.parts[:1] == (CREDENTIALS_VARIABLE,):
            yield (
                f"{file} is there for the unit alone, whose credentials systemd loads"
                " (`LoadCredential=`); while it runs, say where:"
                " CREDENTIALS_DIRECTORY=/run/credentials/git-mirror.service"
            )
            return
        yield f"{file} does not exist; create it with the secret in it and mode 0600"
        return
    except (OSError, ValueError) as error:
        yield f"{file} can't be read: {_reason(error)}; make it readable for this user"
        return
    if not content.strip():
        yield f"{file} is empty; write the secret into it"
    if len(content) > SECRET_BYTES_MAX:
        yield f"{file} is longer than {SECRET_BYTES_MAX // 1024} KiB; it holds no secret"
    elif lines_max > 1:
        yield from _line_problems(file, content, lines_max)
    if status.st_mode & stat.S_IROTH:
        yield f"{file} can be read by every user of this machine; run `chmod o-rwx {file}`"


def _ca_problems(file: Path) -> Iterator[str]:
    try:
        ssl.create_default_context(cafile=str(file))
    except ssl.SSLError:
        yield f"{file} holds no certificate that can be read; it must be PEM"
    except (OSError, ValueError) as error:
        yield f"{file} can't be read: {_reason(error)}"


def _authorities(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Yield the key and the path of each file of authorities."""
    for relay in settings.relays.values():
        if relay.ca_file is not None:
            yield f"relays.{relay.name}.ca_file", relay.ca_file
    for issuer in settings.readers.oidc:
        if issuer.ca_file is not None:
            yield f"readers.oidc.{issuer.name}.ca_file", issuer.ca_file
    if settings.tls is not None and settings.tls.client_ca_file is not None:
        yield "server.tls.client_ca_file", settings.tls.client_ca_file
    for repository in settings.repositories.values():
        if repository.route.ca_file is not None:
            yield f"{repository.place_of('ca_file')}.ca_file", repository.route.ca_file


def _pair_problems(certificate: Path, private_key: Path) -> Iterator[str]:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, private_key)
    except ssl.SSLError as error:
        yield f"{certificate} and {private_key} are no certificate and its key: {error.reason}"
    except (OSError, ValueError) as error:
        yield f"{certificate} or {private_key} can't be read: {_reason(error)}"


def _line_problems(file: Path, content: bytes, lines_max: int) -> Iterator[str]:
    lines = [line.rstrip(b"\r") for line in content.split(b"\n")]
    if (count := sum(1 for line in lines if line.strip())) > lines_max:
        yield (
            f"{file} holds {count} lines; at most {lines_max} secrets, one a line, can be in use"
            " at once: remove the old ones"
        )
    for number, line in enumerate(lines, 1):
        if line.strip() and line != line.strip():
            yield (
                f"line {number} of {file} begins or ends with white space, which would be part of"
                " the secret; remove it"
            )


def _data_dir_problems(data_dir: Path) -> Iterator[str]:
    try:
        existing = next(path for path in (data_dir, *data_dir.parents) if path.exists())
        usable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except (OSError, ValueError) as error:
        yield f"{data_dir} can't be used: {_reason(error)}; choose another directory"
        return
    if usable:
        if existing == data_dir and data_dir.stat().st_mode & stat.S_IWOTH:
            yield f"everybody may write to {data_dir}: chmod o-w {data_dir}"
        return
    if not existing.is_dir():
        yield f"{existing} is not a directory; choose another directory"
    elif existing == data_dir:
        yield f"{data_dir} can't be written to; give it to git-mirror's user"
    else:
        yield f"{data_dir} can't be created in {existing}; create it for git-mirror's user"


def _reason(error: OSError | ValueError) -> str:
    return str(error.strerror) if isinstance(error, OSError) else str(error)
