"""The configuration as the program gets it: resolved, with nothing left to look up or to guess.

Sections that need no resolving are the models themselves (`ServerSettings`, `LimitSettings`,
`LogSettings`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from mirror.config.limits import LimitSettings
from mirror.config.models import (
    EngineChoice,
    Forge,
    LogSettings,
    OnStale,
    PushPolicy,
    ServerSettings,
    SharedKeys,
)
from mirror.config.readers import AccessKind, ReaderSettings, TlsSettings
from mirror.config.relays import RelaySettings
from mirror.config.upstreams import Place, find_place

_DEFAULTS: Final = SharedKeys()


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordSettings:
    """A user name, and the file of the password or token."""

    username: str
    password_file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class GithubAppSettings:
    """A GitHub App.

    Attributes:
        installation_id: `None`: to be found for the repository's owner.
        api: `None`: to be derived from the upstream.
    """

    app_id: str
    private_key_file: Path
    installation_id: int | None = None
    api: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetrcSettings:
    """A netrc file.

    Attributes:
        username: Where an entry has none.
    """

    netrc_file: Path
    username: str


CredentialSettings = PasswordSettings | GithubAppSettings | NetrcSettings
"""How to sign in to an upstream. The secret itself stays in its file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSettings:
    """How an upstream is reached.

    Attributes:
        ca_file: Authorities that are trusted beside the system's.
        proxy: `http://host:port`; `None` for a direct way.
        proxy_credentials: For the proxy.
    """

    ca_file: Path | None = None
    proxy: str | None = None
    proxy_credentials: PasswordSettings | None = None


DIRECT: Final = RouteSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositorySettings:
    """One repository, with every default applied.

    Attributes:
        poll_interval_seconds: `None` for never.
        max_age_seconds: `None` for never.
        bundle_interval_seconds: `None` for no bundles.
        place: The place of `upstreams:` that it is below; `None` for one that is configured.
        inherited: The keys that were taken from `defaults:`, for messages that name them.
    """

    name: str
    upstream: str
    forge: Forge | None = None
    credentials: CredentialSettings | None = None
    route: RouteSettings = DIRECT
    webhook_secret_file: Path | None = None
    refs: tuple[str, ...] = _DEFAULTS.refs
    poll_interval_seconds: float | None = _DEFAULTS.poll_interval_seconds
    hold_seconds: float = _DEFAULTS.hold_seconds
    on_stale: OnStale = _DEFAULTS.on_stale
    max_age_seconds: float | None = _DEFAULTS.max_age_seconds
    refs_vanish_after_seconds: float = _DEFAULTS.refs_vanish_after_seconds
    access: frozenset[AccessKind] = frozenset({AccessKind.ANONYMOUS})
    push: PushPolicy = _DEFAULTS.push
    lfs: bool = _DEFAULTS.lfs
    bundle_interval_seconds: float | None = _DEFAULTS.bundle_interval_seconds
    repository_bytes_max: int | None = _DEFAULTS.repository_bytes_max
    bundle_bytes_min: int = _DEFAULTS.bundle_bytes_min
    place: Place | None = None
    inherited: frozenset[str] = frozenset()

    def place_of(self, key: str) -> str:
        """Return the section that a key of this repository stands in, for messages."""
        if key in self.inherited:
            return "defaults"
        if self.place is not None:
            return f"upstreams./{self.place.at}"
        return f"repositories.{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole configuration. Every path in it is absolute.

    Attributes:
        upstreams: For each place of `upstreams:`, what applies to a repository below it, which is
            to be given its `name` and `upstream`.
        content: The file as it was read, for worker processes: it may have changed since.
    """

    source: Path
    data_dir: Path
    repositories: Mapping[str, RepositorySettings]
    readers: ReaderSettings = field(default_factory=ReaderSettings)
    relays: Mapping[str, RelaySettings] = field(default_factory=dict)
    upstreams: Sequence[RepositorySettings] = ()
    server: ServerSettings = field(default_factory=ServerSettings)
    unix_socket: Path | None = None
    tls: TlsSettings | None = None
    engine: EngineChoice = EngineChoice.AUTO
    limits: LimitSettings = field(default_factory=LimitSettings)
    log: LogSettings = field(default_factory=LogSettings)
    content: bytes = field(default=b"", repr=False, compare=False)

    def find(self, name: str) -> RepositorySettings | None:
        """Return the settings of a repository, configured or below a place; `None` for neither."""
        return self.repositories.get(name) or would_be(name, self.upstreams)


def would_be(name: str, upstreams: Sequence[RepositorySettings]) -> RepositorySettings | None:
    """Return the settings of a repository that is not configured, if it is below a place.

    Args:
        name: What a reader asks for, without `.git`; anything at all.
        upstreams: See `Settings.upstreams`.
    """
    by_place = {one.place: one for one in upstreams if one.place is not None}
    place = find_place(name, by_place)
    if place is None:
        return None
    upstream = place.upstream_of(place.rest_of(name) or "")
    return replace(by_place[place], name=name, upstream=upstream)
