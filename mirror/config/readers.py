"""Who may read: how readers are named, and what applies.

A reader is somebody the mirror knows by name: by a token (`git-mirror token`), which stands in the
data directory and not here, by a token of an OpenID Connect issuer, or by a client certificate.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field

from mirror.config.addresses import (
    SECURE_URL,
    is_in_the_clear,
    is_own_machine,
    read_listen_address,
    read_upstream,
)
from mirror.config.document import Document, KeyPath, Mistake, entries_of, mapping_of
from mirror.config.names import PATH, PATH_OR_NONE, RELAY_NAME, REPOSITORIES_PATTERN, is_named
from mirror.config.notation import duration, words
from mirror.config.section import DefaultWords, NeedsRestart, Section

READERS_MAX: Final = 256
"""Of each kind: each is compared with every new token or certificate."""

CLAIMS_MAX: Final = 16


class AccessKind(StrEnum):
    """Who may read a repository."""

    ANONYMOUS = "anonymous"
    READERS = "readers"
    UPSTREAM = "upstream"


_REPOSITORIES = Annotated[
    tuple[Annotated[str, REPOSITORIES_PATTERN], ...],
    Field(json_schema_extra={"minItems": 1}),
]


def _check_claims(claims: dict[str, str]) -> dict[str, str]:
    if not 0 < len(claims) <= CLAIMS_MAX:
        raise ValueError(
            f"must name from 1 to {CLAIMS_MAX} claims: whoever the issuer knows would be let in"
        )
    return claims


class OidcDocument(Section):
    """A reader that shows a JSON Web Token of an OpenID Connect issuer.

    Kubernetes' service accounts have such tokens. They come as password of HTTP Basic, with any
    user name, or as Bearer token.
    """

    issuer: Annotated[str, SECURE_URL] = Field(
        examples=["https://kubernetes.default.svc.cluster.local"]
    )
    """The issuer, as the claim `iss` has it to the letter."""

    audience: Annotated[str, words("the audience", "git-mirror")] = Field(examples=["git-mirror"])
    """What the claim `aud` must hold. A token that was made for somebody else is not taken."""

    claims: Annotated[
        dict[str, Annotated[str, words("the value of a claim", "system:serviceaccount:flux-*")]],
        AfterValidator(_check_claims),
        Field(
            json_schema_extra={"minProperties": 1, "maxProperties": CLAIMS_MAX},
            examples=["{sub: system:serviceaccount:flux-system:source-controller}"],
        ),
    ]
    """What else the token must say, by claim; `*` stands for anything. Of a list one entry must
    be so."""

    repositories: _REPOSITORIES = ("*",)
    """What the reader may see: each repository that one of the patterns names and none with `!`
    takes away, where its `access` has `readers`."""

    jwks_url: Annotated[str | None, SECURE_URL, DefaultWords("found by discovery")] = None
    """Where the issuer's keys are."""

    ca_file: Annotated[Path | None, PATH_OR_NONE, DefaultWords("those of the system")] = None
    """Certificates (PEM) of the authorities that the issuer's certificate is checked with."""

    token_file: Annotated[Path | None, PATH_OR_NONE, DefaultWords("none")] = None
    """The file with a Bearer token to ask for the keys with; Kubernetes wants one unless
    `system:service-account-issuer-discovery` is bound to `system:unauthenticated`."""


class CertificateDocument(Section):
    """A reader that shows a client certificate of `server.tls.client_ca_file`."""

    subject: Annotated[str, words("a subject", "CN=argocd-repo-server,O=acme")] = Field(
        examples=["CN=argocd-repo-server,O=acme"]
    )
    """The certificate's subject as RFC 4514 writes it; `*` stands for anything."""

    repositories: _REPOSITORIES = ("*",)
    """What the reader may see, as above."""


class ReadersDocument(Section):
    """Readers that are known by name; tokens are made with `git-mirror token create`."""

    oidc: Annotated[
        dict[Annotated[str, RELAY_NAME], OidcDocument],
        Field(json_schema_extra={"maxProperties": READERS_MAX, "additionalProperties": False}),
        DefaultWords("none"),
    ] = {}  # noqa: RUF012 - pydantic copies it
    """By tokens of OpenID Connect issuers, by a name of your choice."""

    certificates: Annotated[
        dict[Annotated[str, RELAY_NAME], CertificateDocument],
        Field(json_schema_extra={"maxProperties": READERS_MAX, "additionalProperties": False}),
        DefaultWords("none"),
    ] = {}  # noqa: RUF012 - pydantic copies it
    """By client certificates, by a name of your choice."""

    upstream_valid_seconds: Annotated[float, duration("1s", "1d")] = Field(
        default=300.0, alias="upstream_valid"
    )
    """For `access: [upstream]`: how long the forge's word on somebody's credentials holds."""

    upstream_outage_seconds: Annotated[float, duration("0s", "30d")] = Field(
        default=3600.0, alias="upstream_outage"
    )
    """And how long its last good word holds while it can't be asked."""


class TlsDocument(Section):
    """TLS (1.2 and later), served by git-mirror itself. Files are read again when they change."""

    certificate_file: Annotated[Path, PATH] = Field(examples=["tls/tls.crt"])
    """The certificate and those between it and the authority (PEM)."""

    key_file: Annotated[Path, PATH] = Field(examples=["tls/tls.key"])
    """Its private key (PEM, without a password)."""

    other_certificate_file: Annotated[Path | None, PATH_OR_NONE, DefaultWords("none")] = None
    """A certificate with another kind of key, for clients that need it: RSA beside ECDSA."""

    other_key_file: Annotated[Path | None, PATH_OR_NONE, DefaultWords("none")] = None
    """Its private key."""

    client_ca_file: Annotated[
        Path | None, PATH_OR_NONE, DefaultWords("none"), NeedsRestart(only_presence=True)
    ] = None
    """Certificates of the authorities for client certificates (PEM). A client may show one then;
    `readers.certificates` says what it may see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcSettings:
    """A reader that shows a token of an issuer, with every default applied."""

    name: str
    issuer: str
    audience: str
    claims: Mapping[str, str]
    repositories: tuple[str, ...]
    jwks_url: str | None = None
    ca_file: Path | None = None
    token_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateSettings:
    """A reader that shows a client certificate."""

    name: str
    subject: str
    repositories: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderSettings:
    """All readers that the configuration knows."""

    oidc: tuple[OidcSettings, ...] = ()
    certificates: tuple[CertificateSettings, ...] = ()
    upstream_valid_seconds: float = 300.0
    upstream_outage_seconds: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """The files of TLS; `pairs` are certificates with their keys."""

    pairs: tuple[tuple[Path, Path], ...]
    client_ca_file: Path | None = None


def resolve_readers(readers: ReadersDocument, *, base: Path) -> ReaderSettings:
    """Return what applies; `base` is the directory that paths are relative to."""
    return ReaderSettings(
        oidc=tuple(
            OidcSettings(
                name=name,
                issuer=entry.issuer,
                audience=entry.audience,
                claims=entry.claims,
                repositories=entry.repositories,
                jwks_url=entry.jwks_url,
                ca_file=entry.ca_file and base / entry.ca_file,
                token_file=entry.token_file and base / entry.token_file,
            )
            for name, entry in readers.oidc.items()
        ),
        certificates=tuple(
            CertificateSettings(name=name, subject=entry.subject, repositories=entry.repositories)
            for name, entry in readers.certificates.items()
        ),
        upstream_valid_seconds=readers.upstream_valid_seconds,
        upstream_outage_seconds=readers.upstream_outage_seconds,
    )


def resolve_tls(tls: TlsDocument | None, *, base: Path) -> TlsSettings | None:
    """Return what applies."""
    if tls is None:
        return None
    pairs = [(base / tls.certificate_file, base / tls.key_file)]
    if tls.other_certificate_file and tls.other_key_file:
        pairs.append((base / tls.other_certificate_file, base / tls.other_key_file))
    return TlsSettings(
        pairs=tuple(pairs), client_ca_file=tls.client_ca_file and base / tls.client_ca_file
    )


# Rules between keys.

_WHO = (
    "who may read is not said, and the service listens on more than this machine: write"
    " `access: [anonymous]` to let everybody in who reaches the port, or `access: [readers]`"
)


def reader_contradictions(document: Document) -> Iterator[Mistake]:
    """Yield the mistakes between keys; they look at what is written, whatever else is wrong."""
    server = mapping_of(document.value.get("server"))
    defaults = mapping_of(document.value.get("defaults"))
    repositories = mapping_of(document.value.get("repositories"))
    is_open = _is_open(server)
    for where, key, entry in entries_of(document):
        written = {**defaults, **entry}
        access = written.get("access")
        if access is None and is_open:
            yield Mistake(document.line_of(where), where, _WHO)
        if (
            isinstance(access, list)
            and AccessKind.UPSTREAM in access
            and _is_clear(written.get(key))
        ):
            yield Mistake(
                document.line_of((*where, key)),
                (*where, key),
                "over plain http everybody on the way could read the credentials of readers"
                " (`access: [upstream]`); use https",
            )
    yield from _tls_mistakes(document, mapping_of(server.get("tls")))
    readers = mapping_of(document.value.get("readers"))
    if readers.get("certificates") and not mapping_of(server.get("tls")).get("client_ca_file"):
        place: KeyPath = ("readers", "certificates")
        text = "no certificate can be checked: set `server.tls.client_ca_file`"
        yield Mistake(document.line_of(place), place, text)
    for kind in ("oidc", "certificates"):
        for name, entry in mapping_of(readers.get(kind)).items():
            # What is below `upstreams` can't be told: there, any name may come.
            patterns = mapping_of(entry).get("repositories", ["*"])
            if not document.value.get("upstreams") and _names_nothing(patterns, repositories):
                place = ("readers", kind, name, "repositories")
                text = "names none of the `repositories`, so there is nothing to see"
                yield Mistake(document.line_of(place), place, text)


def _names_nothing(patterns: object, repositories: Iterable[str]) -> bool:
    if not (isinstance(patterns, list) and all(isinstance(one, str) for one in patterns)):
        return False  # a mistake of another kind
    return not any(is_named(one, patterns) for one in repositories)


def _tls_mistakes(document: Document, tls: Mapping[str, Any]) -> Iterator[Mistake]:
    pair = ("other_certificate_file", "other_key_file")
    given = [key for key in pair if key in tls]
    if len(given) == 1:
        place: KeyPath = ("server", "tls", given[0])
        text = f"goes with `{pair[1 - pair.index(given[0])]}`; write both or none"
        yield Mistake(document.line_of(place), place, text)


def _is_open(server: Mapping[str, object]) -> bool:
    """Tell whether others than this machine reach the service; `False` where that is unclear."""
    try:
        return not is_own_machine(read_listen_address(str(server["listen"])).host)
    except (KeyError, ValueError):
        return False


def _is_clear(upstream: object) -> bool:
    try:
        return is_in_the_clear(read_upstream(str(upstream)))
    except ValueError:
        return False
