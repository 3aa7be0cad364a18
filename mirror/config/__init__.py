"""The whole configuration: one YAML file, typed, with every mistake reported at once.

    document          YAML to plain values that remember their lines
    notation          how single values are written: durations, sizes, counts, choices
    names             what may be named: repositories, relays, refs, files, users
    addresses         where it may lead: upstreams, receivers, networks, the address to listen on
    limits            the bounds on work and sizes
    section           what every section has in common
    readers           who may read, and TLS
    relays            the receivers of events
    upstreams         places that a whole path stands for, and which names are below them
    models            every section and key as users write it
    credentials       how to sign in to an upstream
    netrc             a netrc file, as curl and git read it
    settings          what the program gets
    loading           a file to `Settings`, or one `ConfigError`; the rules between keys
    explaining        what pydantic found, in our words
    resolving         what is written to what applies
    difference        what a new configuration changes for a running service
    files             whether the files it names can be used
    credential_files  those that reaching an upstream needs
    reference         the JSON Schema and docs/configuration.md, from the models
    environment       the process environment; read nowhere else

Must never import anything of ours but `mirror.errors`.
"""

from mirror.config.addresses import ListenAddress, Network, is_in_the_clear, is_own_machine
from mirror.config.difference import Difference, compare, restart_keys, why_not
from mirror.config.environment import (
    CONFIG_PATH_DEFAULT,
    Environment,
    environment,
    forget_sockets,
    successors_environment,
)
from mirror.config.files import WEBHOOK_SECRETS_MAX, check_files
from mirror.config.limits import LimitSettings
from mirror.config.loading import find_data_dir, load, parse
from mirror.config.models import (
    EngineChoice,
    Forge,
    LogFormat,
    LogLevel,
    LogSettings,
    OnStale,
    PushPolicy,
    ServerSettings,
)
from mirror.config.names import RESERVED_REFS, is_like, is_named, read_repositories_pattern
from mirror.config.netrc import NetrcEntry, find_entry, parse_netrc
from mirror.config.notation import format_duration, format_size, parse_duration, parse_size
from mirror.config.readers import (
    AccessKind,
    CertificateSettings,
    OidcSettings,
    ReaderSettings,
    TlsSettings,
)
from mirror.config.reference import json_schema, reference_markdown
from mirror.config.relays import EventMode, RelayKind, RelaySettings
from mirror.config.resolving import guess_forge
from mirror.config.settings import (
    CredentialSettings,
    GithubAppSettings,
    NetrcSettings,
    PasswordSettings,
    RepositorySettings,
    RouteSettings,
    Settings,
    would_be,
)
from mirror.config.upstreams import Place

__all__ = [
    "CONFIG_PATH_DEFAULT",
    "RESERVED_REFS",
    "WEBHOOK_SECRETS_MAX",
    "AccessKind",
    "CertificateSettings",
    "CredentialSettings",
    "Difference",
    "EngineChoice",
    "Environment",
    "EventMode",
    "Forge",
    "GithubAppSettings",
    "LimitSettings",
    "ListenAddress",
    "LogFormat",
    "LogLevel",
    "LogSettings",
    "NetrcEntry",
    "NetrcSettings",
    "Network",
    "OidcSettings",
    "OnStale",
    "PasswordSettings",
    "Place",
    "PushPolicy",
    "ReaderSettings",
    "RelayKind",
    "RelaySettings",
    "RepositorySettings",
    "RouteSettings",
    "ServerSettings",
    "Settings",
    "TlsSettings",
    "check_files",
    "compare",
    "environment",
    "find_data_dir",
    "find_entry",
    "forget_sockets",
    "format_duration",
    "format_size",
    "guess_forge",
    "is_in_the_clear",
    "is_like",
    "is_named",
    "is_own_machine",
    "json_schema",
    "load",
    "parse",
    "parse_duration",
    "parse_netrc",
    "parse_size",
    "read_repositories_pattern",
    "reference_markdown",
    "restart_keys",
    "successors_environment",
    "why_not",
    "would_be",
]
