"""From what is written to what applies: defaults taken over, paths absolute, nothing left open."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from mirror.config.addresses import host_of
from mirror.config.environment import Environment, environment
from mirror.config.models import (
    ConfigDocument,
    Forge,
    RepositoryDocument,
    SharedKeys,
    UpstreamDocument,
    keys_of,
)
from mirror.config.readers import (
    AccessKind,
    resolve_readers,
    resolve_tls,
)
from mirror.config.relays import resolve_relays
from mirror.config.settings import (
    CredentialSettings,
    GithubAppSettings,
    NetrcSettings,
    PasswordSettings,
    RepositorySettings,
    RouteSettings,
    Settings,
)
from mirror.config.upstreams import Place

_USERNAMES: Final[Mapping[Forge | None, str]] = {
    Forge.GITHUB: "x-access-token",
    Forge.GITLAB: "oauth2",
}
_USERNAME_ELSEWHERE: Final = "git"

_HOST_SIGNS: Final = {
    "github.": Forge.GITHUB,
    "gitlab": Forge.GITLAB,
    "gitea": Forge.GITEA,
    "forgejo": Forge.GITEA,
    "codeberg": Forge.GITEA,
    "bitbucket": Forge.BITBUCKET,
}


def resolve(config: ConfigDocument, content: bytes, *, source: Path) -> Settings:
    """Return what applies; `content` is the file as it was read from `source`."""
    source = source.absolute()
    base = source.parent
    files = _Files(base, environment())
    repositories = {
        name: _resolve_repository(name, entry, config, files)
        for name, entry in config.repositories.items()
    }
    return Settings(
        source=source,
        data_dir=base / config.data_dir,
        repositories=MappingProxyType(repositories),
        relays=resolve_relays(config.relays, public_url=config.server.public_url, base=base),
        upstreams=tuple(_resolve_place(one, config, files) for one in config.upstreams),
        server=config.server,
        unix_socket=config.server.unix_socket and base / config.server.unix_socket,
        tls=resolve_tls(config.server.tls, base=base),
        readers=resolve_readers(config.readers, base=base),
        engine=config.engine,
        limits=config.limits,
        log=config.log,
        content=content,
    )


def _resolve_repository(
    name: str, entry: RepositoryDocument, config: ConfigDocument, files: "_Files"
) -> RepositorySettings:
    defaults = config.defaults
    shared = _with_defaults(entry, defaults)
    forge = entry.forge or guess_forge(host_of(entry.upstream))
    inherited = defaults.model_fields_set - entry.model_fields_set
    return RepositorySettings(
        name=name,
        upstream=entry.upstream,
        forge=forge,
        credentials=_credentials(shared, forge, files),
        route=_route(shared, files),
        webhook_secret_file=shared.webhook_secret_file and files.place(shared.webhook_secret_file),
        refs=shared.refs,
        poll_interval_seconds=shared.poll_interval_seconds,
        hold_seconds=shared.hold_seconds,
        on_stale=shared.on_stale,
        max_age_seconds=shared.max_age_seconds,
        refs_vanish_after_seconds=shared.refs_vanish_after_seconds,
        access=frozenset(shared.access) or frozenset({AccessKind.ANONYMOUS}),
        push=shared.push,
        lfs=shared.lfs,
        bundle_interval_seconds=shared.bundle_interval_seconds,
        repository_bytes_max=shared.repository_bytes_max,
        bundle_bytes_min=shared.bundle_bytes_min,
        inherited=frozenset(key for key, name in keys_of(SharedKeys).items() if name in inherited),
    )


@dataclass(frozen=True, slots=True)
class _Files:
    """Where the files are that a configuration names."""

    base: Path
    environment: Environment

    def place(self, path: Path) -> Path:
        return self.environment.place(self.base, path)


def _credentials(
    shared: SharedKeys, forge: Forge | None, files: _Files
) -> CredentialSettings | None:
    written = shared.credentials
    if written is None:
        return None
    username = written.username or _USERNAMES.get(forge, _USERNAME_ELSEWHERE)
    if written.github_app is not None:
        app = written.github_app
        return GithubAppSettings(
            app_id=app.app_id,
            private_key_file=files.place(app.private_key_file),
            installation_id=app.installation_id,
            api=app.api,
        )
    if written.netrc_file is not None:
        return NetrcSettings(netrc_file=files.place(written.netrc_file), username=username)
    if written.password_file is not None:
        return PasswordSettings(username=username, password_file=files.place(written.password_file))
    return None  # _contradictions has refused it


def _route(shared: SharedKeys, files: _Files) -> RouteSettings:
    written = shared.proxy_credentials
    return RouteSettings(
        ca_file=shared.ca_file and files.place(shared.ca_file),
        proxy=shared.proxy,
        proxy_credentials=None
        if written is None
        else PasswordSettings(
            username=written.username, password_file=files.place(written.password_file)
        ),
    )


def _resolve_place(
    entry: UpstreamDocument, config: ConfigDocument, files: _Files
) -> RepositorySettings:
    """Return what applies to each repository below a place."""
    shared = {name: getattr(entry, name) for name in SharedKeys.model_fields}
    repository = RepositoryDocument.model_construct(
        # These two have other defaults here.
        _fields_set={*entry.model_fields_set, "poll_interval_seconds", "max_age_seconds"},
        upstream=entry.source,
        forge=entry.forge,
        **shared,
    )
    return replace(_resolve_repository("", repository, config, files), place=Place.of(entry))


def _with_defaults(entry: RepositoryDocument, defaults: SharedKeys) -> SharedKeys:
    repeated = entry.model_fields_set & SharedKeys.model_fields.keys()
    return defaults.model_copy(update={field: getattr(entry, field) for field in repeated})


def guess_forge(host: str) -> Forge | None:
    """Return the forge that the name of its host gives away."""
    return next((forge for sign, forge in _HOST_SIGNS.items() if sign in host), None)
