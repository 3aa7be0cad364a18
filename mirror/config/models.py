"""The configuration as it is written: every section and key, its bounds and its default.

The docstring under a field is its description in the JSON Schema and in docs/configuration.md.
A field's name carries the unit; its alias is what users write.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic_core import CoreSchema, core_schema

from mirror.config.addresses import (
    LISTEN_ADDRESS,
    NETWORK,
    PUBLIC_URL,
    UPSTREAM,
    ListenAddress,
    Network,
)
from mirror.config.credentials import (
    PROXY,
    CredentialsDocument,
    GithubAppDocument,
    ProxyCredentialsDocument,
)
from mirror.config.limits import LimitSettings
from mirror.config.names import PATH, PATH_OR_NONE, REF_PATTERN, RELAY_NAME, REPOSITORY_NAME
from mirror.config.notation import (
    choice,
    count_or_auto,
    duration,
    duration_or_never,
    size,
    size_or_none,
    switch,
)
from mirror.config.readers import (
    AccessKind,
    CertificateDocument,
    OidcDocument,
    ReadersDocument,
    TlsDocument,
)
from mirror.config.relays import RELAYS_MAX, RelayDocument
from mirror.config.section import DefaultWords, NeedsRestart, Section
from mirror.config.upstreams import PLACES_MAX, PlaceKeys

REFS_MAX: Final = 256
"""Patterns per repository: each costs a look at every ref of the upstream."""


class EngineChoice(StrEnum):
    """Who makes and indexes packs."""

    AUTO = "auto"
    GIT = "git"
    DULWICH = "dulwich"


class Forge(StrEnum):
    """Whose webhooks and habits an upstream has."""

    GITHUB = "github"
    GITLAB = "gitlab"
    GITEA = "gitea"
    BITBUCKET = "bitbucket"


class OnStale(StrEnum):
    """What a reader gets when the refresh it was held for has not ended in time."""

    SERVE = "serve"
    REFUSE = "refuse"


class PushPolicy(StrEnum):
    """What becomes of a push."""

    REFUSE = "refuse"
    PROXY = "proxy"


class LogFormat(StrEnum):
    """How log lines look."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class LogLevel(StrEnum):
    """The least important lines that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class _OrNone:
    """`none` stands for the absence of a section, so that a repository can undo a default."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        written = handler(schema)
        return {"anyOf": [written["anyOf"][0], {"const": "none"}]}

    @staticmethod
    def _read(value: object) -> object:
        if value is None:
            raise ValueError("has no value; write keys under it, `none`, or leave it out")
        return None if value == "none" else value


class ServerSettings(Section):
    """Where readers and webhooks come in."""

    listen: Annotated[ListenAddress, LISTEN_ADDRESS, NeedsRestart()] = ListenAddress(
        "127.0.0.1", 8470
    )
    """The address to listen on: `0.0.0.0` is every IPv4 address, `[::]` every address of either
    kind. Port 0 lets the system choose one."""

    unix_socket: Annotated[Path | None, PATH_OR_NONE, DefaultWords("none"), NeedsRestart()] = None
    """A Unix socket to listen on as well, for a proxy on this machine: plain HTTP, open to the
    service's user and group. Whoever may open it is believed as `trusted_proxies` are."""

    public_url: Annotated[str | None, PUBLIC_URL, DefaultWords("none")] = None
    """Where readers find this service, as they write it before a repository's name: with the port
    and the path of a proxy where there are such. Relays put it into their events."""

    tls: Annotated[
        TlsDocument | None, DefaultWords("none: plain HTTP"), NeedsRestart(only_presence=True)
    ] = None
    """The certificate to serve TLS with. Without one, put a proxy that speaks TLS in front where
    the network is not yours."""

    trusted_proxies: Annotated[tuple[Annotated[Network, NETWORK], ...], DefaultWords("none")] = ()
    """Proxies whose `X-Forwarded-For`, `-Proto` and `-Host` are believed; nobody else's are."""

    monitoring_from: Annotated[
        tuple[Annotated[Network, NETWORK], ...],
        DefaultWords("everybody, if every repository is `anonymous`; else this machine"),
    ] = ()
    """From where `/metrics` and `/status.json`, which name all repositories, may be looked at;
    this machine always may."""

    fast_lane: Annotated[bool, switch(), NeedsRestart()] = True
    """Whether polls and small fetches that repeat an earlier one are answered with the bytes of
    that answer, without a way through the HTTP framework. Readers see no difference but the time
    it takes."""

    workers: Annotated[int | None, count_or_auto(1, 64), NeedsRestart()] = 1
    """How many processes serve readers; `auto` is one for each processor. With 1, one process does
    everything. With more, each takes memory of its own, and learns of every push before anybody is
    told of it. One serves thousands of polls a second: add more when it keeps a processor busy."""

    reload_on_change: Annotated[bool, switch()] = True
    """Whether this file is read again when it has changed. With `false` that takes
    `git-mirror reload` or the signal HUP."""

    drain_timeout_seconds: Annotated[float, duration("0s", "1h")] = Field(
        default=20.0, alias="drain_timeout"
    )
    """How long a stop waits for answers under way, such as clones; what lasts longer is cut. Keep
    `TimeoutStopSec` of the systemd unit 20 seconds above it."""

    upgrade_timeout_seconds: Annotated[float, duration("0s", "7d")] = Field(
        default=600.0, alias="upgrade_timeout"
    )
    """The same for an upgrade (`git-mirror upgrade`), where the next process serves already."""


def _check_refs(refs: tuple[str, ...]) -> tuple[str, ...]:
    if not 0 < len(refs) <= REFS_MAX:
        raise ValueError(f"must list from 1 to {REFS_MAX} patterns, not {len(refs)}")
    return tuple(dict.fromkeys(refs))


class SharedKeys(Section):
    """What applies to every repository that does not repeat the key."""

    poll_interval_seconds: Annotated[float | None, duration_or_never("100ms", "7d")] = Field(
        default=30.0, alias="poll_interval"
    )
    """How often the upstream is asked for its refs, to find what webhooks missed. With `never`
    webhooks and readers alone start a refresh. GitHub recommends at most 15 reads per second and
    repository."""

    hold_seconds: Annotated[float, duration("0s", "5m")] = Field(default=5.0, alias="hold")
    """How long a reader waits for a refresh that a webhook announced. Argo CD gives up after
    15 seconds."""

    on_stale: Annotated[OnStale, choice(OnStale)] = OnStale.SERVE
    """What a reader gets when the wait is over: the last good refs, marked as stale (`serve`), or
    an error 503 (`refuse`)."""

    max_age_seconds: Annotated[float | None, duration_or_never("0s", "365d")] = Field(
        default=None, alias="max_age"
    )
    """When the refs were confirmed longer ago than this, the upstream is asked before a reader is
    answered. `0s` asks before every answer, `never` leaves it to polls and webhooks."""

    access: Annotated[
        tuple[Annotated[AccessKind, choice(AccessKind)], ...],
        DefaultWords("`anonymous` while `server.listen` is on loopback; required otherwise"),
        Field(json_schema_extra={"minItems": 1}, examples=["readers"]),
    ] = ()
    """Who may read: everybody who reaches the port (`anonymous`), the readers that are known by
    name (`readers`: tokens, and those below `readers:`), whoever may read it at the forge with the
    same credentials (`upstream`), or several of these."""

    push: Annotated[PushPolicy, choice(PushPolicy)] = PushPolicy.REFUSE
    """What becomes of a push: it is refused, with the upstream's URL in the message (`refuse`), or
    passed on to the upstream with the client's own credentials (`proxy`). Before the client sees
    that it succeeded, the mirror has what was pushed. Those credentials travel to the mirror as
    well: use TLS there, or a network of your own."""

    refs: Annotated[
        tuple[Annotated[str, REF_PATTERN], ...],
        AfterValidator(_check_refs),  # a length of pydantic's would also count refused patterns
        Field(json_schema_extra={"minItems": 1, "maxItems": REFS_MAX}),
    ] = ("refs/heads/*", "refs/tags/*")
    """Which refs of the upstream are mirrored: full names, each with at most one `*`, which also
    matches slashes. `refs/git-mirror/` is the mirror's own."""

    refs_vanish_after_seconds: Annotated[float, duration("0s", "7d")] = Field(
        default=600.0, alias="refs_vanish_after"
    )
    """When the upstream lists no refs at all any more, or more than half of them are gone at once
    (and at least 10), their deletion is believed only after it has gone on for so long, over at
    least three looks; or when webhooks announced it, or `git-mirror sync --accept-deletions` was
    run. Until then they are served on. A repository that is not mirrored yet and lists nothing is
    believed to be empty after a minute, or after this if it is less. `0s` believes it at once."""

    credentials: Annotated[CredentialsDocument | None, _OrNone(), DefaultWords("none")] = None
    """How the mirror signs in to the upstream. Under `defaults` they are sent to the host of every
    repository that has none of its own; a repository undoes that with `credentials: none`."""

    ca_file: Annotated[Path | None, PATH_OR_NONE, DefaultWords("none")] = None
    """A file with certificates (PEM) of authorities that are trusted for this upstream, beside
    those of the system. It is read again when it changes. `none` undoes a default."""

    proxy: Annotated[str | None, PROXY, DefaultWords("none")] = None
    """The HTTP proxy that leads to the upstream, to its programming interface, and to where it
    keeps LFS objects. The environment (`HTTPS_PROXY`) is not heeded. What hosts of others the
    upstream may send the mirror to is then for the proxy to bound. `none` undoes a default."""

    proxy_credentials: Annotated[
        ProxyCredentialsDocument | None, _OrNone(), DefaultWords("none")
    ] = None
    """How the mirror signs in to the `proxy`."""

    lfs: Annotated[bool, switch()] = True
    """Whether Git LFS objects are served: downloaded from the upstream when a reader first asks for
    one, and kept. Nothing is downloaded ahead."""

    webhook_secret_file: Annotated[Path | None, PATH_OR_NONE, DefaultWords("none")] = None
    """The file that holds the secret the forge signs webhooks with, and nothing else. To rotate it,
    put the new one on a line above the old one: each of up to 8 lines is a secret that is accepted.
    The file is read again when it changes. Without one no webhook for the repository is accepted.
    `none` undoes a default."""

    bundle_interval_seconds: Annotated[float | None, duration_or_never("1s", "365d")] = Field(
        default=None, alias="bundle_interval"
    )
    """How often what changed is put into a bundle, a file that clients with `transfer.bundleURI`
    download before they fetch the rest. `never` makes none, and removes what there is."""

    repository_bytes_max: Annotated[
        int | None, size_or_none("1MiB", "1024TiB"), DefaultWords("none")
    ] = None
    """The disk space for the repository's packs. A refresh that would take more is refused, and
    what was there before is served on. `none` undoes a default."""

    bundle_bytes_min: Annotated[int, size("0", "1TiB")] = 16 * 1024**2
    """Repositories whose packs take less get no bundles: a clone costs the mirror little, and a
    client would ask more often for nothing."""


class RepositoryDocument(SharedKeys):
    """One repository, served at /NAME and /NAME.git. Every key of `defaults` may stand here too."""

    upstream: Annotated[str, UPSTREAM] = Field(examples=["https://github.com/acme/gitops-repo.git"])
    """The repository to mirror: an http or https URL, without user name and password. With
    `credentials` it must be https, unless the host is this machine."""

    forge: Annotated[
        Forge | None, choice(Forge), DefaultWords("guessed from the upstream's host")
    ] = None
    """Whose webhooks and habits the upstream has; `gitea` stands for Forgejo, too. Needed when the
    host tells nothing and there is a `webhook_secret_file`."""


class UpstreamDocument(SharedKeys, PlaceKeys):
    """A place upstream that a whole path stands for.

    A repository below it is mirrored when it is first asked for, and removed when it is not used
    any more; see [pull-through](operations.md#pull-through). One of the same path that is
    configured wins; of several places around a name, the nearest decides. Every key of `defaults`
    may stand here too, and applies to each of the repositories, but that `poll_interval` and
    `max_age` are not taken from `defaults`.
    """

    poll_interval_seconds: Annotated[float | None, duration_or_never("100ms", "7d")] = Field(
        default=None, alias="poll_interval"
    )
    """As under `defaults`. The upstream is best asked when somebody reads: see `max_age`."""

    max_age_seconds: Annotated[float | None, duration_or_never("0s", "365d")] = Field(
        default=30.0, alias="max_age"
    )
    """As under `defaults`. With a webhook for all the repositories, it may be longer."""

    forge: Annotated[
        Forge | None, choice(Forge), DefaultWords("guessed from the host of `from`")
    ] = None
    """Whose webhooks and habits the upstreams have."""


class LogSettings(Section):
    """What is logged, and how."""

    format: Annotated[LogFormat, choice(LogFormat)] = LogFormat.AUTO
    """How lines look: `json`, `console`, or `auto`, which is `console` on a terminal and `json`
    elsewhere."""

    level: Annotated[LogLevel, choice(LogLevel)] = LogLevel.INFO
    """The least important lines that are logged."""


def _check_upstreams(upstreams: tuple[UpstreamDocument, ...]) -> tuple[UpstreamDocument, ...]:
    if len(upstreams) > PLACES_MAX:
        raise ValueError(f"must list at most {PLACES_MAX} places, not {len(upstreams)}")
    return upstreams


def _check_relays(relays: dict[str, RelayDocument]) -> dict[str, RelayDocument]:
    if len(relays) > RELAYS_MAX:
        raise ValueError(f"more than {RELAYS_MAX} receivers; let a message bus tell the others")
    return relays


class ConfigDocument(Section):
    """The configuration of git-mirror."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {
                    "required": ["repositories"],
                    "properties": {"repositories": {"minProperties": 1}},
                },
                {"required": ["upstreams"], "properties": {"upstreams": {"minItems": 1}}},
            ]
        }
    )

    server: ServerSettings = ServerSettings()
    """Where readers and webhooks come in."""

    data_dir: Annotated[Path, PATH, NeedsRestart()] = Path("/var/lib/git-mirror")
    """The directory of the mirrored repositories. Nothing else should write there."""

    engine: Annotated[EngineChoice, choice(EngineChoice), NeedsRestart()] = EngineChoice.AUTO
    """Who makes and indexes packs: the `git` of this machine, `dulwich` in process, or `auto`,
    which is `git` where 2.39 or later is installed, but for small packs, which are made and indexed
    in process."""

    defaults: SharedKeys = SharedKeys()
    """What applies to every repository that does not repeat the key."""

    repositories: Annotated[
        dict[Annotated[str, REPOSITORY_NAME], RepositoryDocument],
        Field(json_schema_extra={"additionalProperties": False}),
        DefaultWords("required, unless there are `upstreams`"),
    ] = {}  # noqa: RUF012 - pydantic copies it
    """The repositories by name. A name is the path that a repository is served at, such as
    `acme/gitops-repo` or `group/subgroup/project`, without `.git`."""

    readers: ReadersDocument = ReadersDocument()
    """Readers that are known by name."""

    relays: Annotated[
        dict[Annotated[str, RELAY_NAME], RelayDocument],
        AfterValidator(_check_relays),
        Field(json_schema_extra={"maxProperties": RELAYS_MAX, "additionalProperties": False}),
        DefaultWords("none"),
    ] = {}  # noqa: RUF012 - pydantic copies it
    """Who is told of each change once it can be fetched here, by a name of your choice."""
    upstreams: Annotated[
        tuple[UpstreamDocument, ...],
        AfterValidator(_check_upstreams),
        Field(
            json_schema_extra={"maxItems": PLACES_MAX},
            examples=["{at: /github.com/acme, from: https://github.com/acme/}"],
        ),
        DefaultWords("none"),
    ] = ()
    """Places upstream that whole paths stand for: a repository below one is mirrored on its first
    request."""

    limits: LimitSettings = LimitSettings()
    """Bounds on work and sizes."""

    log: LogSettings = LogSettings()
    """What is logged, and how."""


SectionPath = tuple[str, ...]

ANY_NAME: Final = "<name>"
"""Stands for the name of a repository, a relay or a reader in the path of a section."""

ANY_PLACE: Final = "<place>"
"""Stands for the position of a place."""

_BELOW_SHARED_KEYS: Final[Mapping[SectionPath, type[BaseModel]]] = {
    ("credentials",): CredentialsDocument,
    ("credentials", "github_app"): GithubAppDocument,
    ("proxy_credentials",): ProxyCredentialsDocument,
}

SECTIONS: Final[Mapping[SectionPath, type[BaseModel]]] = {
    (): ConfigDocument,
    ("server",): ServerSettings,
    ("defaults",): SharedKeys,
    ("repositories", ANY_NAME): RepositoryDocument,
    **{
        (*place, *below): section
        for place in (("repositories", ANY_NAME), ("defaults",), ("upstreams", ANY_PLACE))
        for below, section in _BELOW_SHARED_KEYS.items()
    },
    ("server", "tls"): TlsDocument,
    ("readers",): ReadersDocument,
    ("readers", "oidc", ANY_NAME): OidcDocument,
    ("readers", "certificates", ANY_NAME): CertificateDocument,
    ("relays", ANY_NAME): RelayDocument,
    ("upstreams", ANY_PLACE): UpstreamDocument,
    ("limits",): LimitSettings,
    ("log",): LogSettings,
}
"""Every mapping with fixed keys, in the order of the reference."""


def keys_of(section: type[BaseModel]) -> dict[str, str]:
    """Return the keys that users write in `section`, each with the name of its field."""
    return {field.alias or name: name for name, field in section.model_fields.items()}
