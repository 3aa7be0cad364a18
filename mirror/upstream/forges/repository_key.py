"""Under which key a repository is found, however a URL names it.

A payload names its repository by several URLs, the configuration by one. Two URLs mean the same
repository when their keys are equal; a payload means a configured repository when the key of any of
its URLs equals the key of the configured one:

    https://github.com/Acme/GitOps.git                 github.com           acme/gitops
    git@github.com:acme/gitops.git                     github.com           acme/gitops
    ssh://git@gitlab.acme.no:2222/acme/gitops.git      gitlab.acme.no       acme/gitops
    http://127.0.0.1:8123/acme/gitops                  127.0.0.1:8123       acme/gitops

A port of http or https that is not the usual one tells two forges on one machine apart, so it
stays. The port of ssh or git says nothing about where the same forge speaks https, so it goes: such
a URL finds a forge at the usual port only; at another, one of the payload's https URLs does.

Paths are compared without regard to case, as the forges do. Where an upstream tells `a/x` from
`A/x`, both have one key: index keys to lists, and refresh both. One hint too many does no harm.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

_USUAL_PORT: Final = {"http": 80, "https": 443}
_SCHEMES: Final = frozenset({"http", "https", "ssh", "git"})
_SCP_LIKE: Final = re.compile(r"(?:[^@/]*@)?(\[[^\]/]+\]|[^:/\[\]]+):(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RepositoryKey:
    """A repository of a forge: its host, with an unusual http or https port, and its path."""

    host: str
    path: str


def repository_key(url: str) -> RepositoryKey | None:
    """Return the key of the repository at `url`, None where `url` names none we could know."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        scp_like = _SCP_LIKE.fullmatch(url)
        return _key(scp_like[1].lower(), scp_like[2]) if scp_like else None
    if scheme.lower() not in _SCHEMES:
        return None
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        path = unquote(parts.path, errors="strict")
    except (
        ValueError
    ):  # a port that is no number, brackets that don't match, bytes that aren't UTF-8
        return None
    if not host:
        return None
    if ":" in host:
        host = f"[{host}]"
    if port is not None and _USUAL_PORT.get(parts.scheme, port) != port:
        host = f"{host}:{port}"
    return _key(host, path)


def _key(host: str, path: str) -> RepositoryKey | None:
    path = path.strip("/").lower().removesuffix(".git").rstrip("/")
    return RepositoryKey(host, path) if path else None
