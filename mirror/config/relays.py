"""The receivers of events: how they are written, the rules between their keys, and what applies.

Must never repeat a receiver's URL in a message: Flux's path is as good as a password.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import Field

from mirror.config.addresses import PUBLIC_URL, RECEIVER_URL, read_receiver_url
from mirror.config.document import Document, KeyPath, Mistake, mapping_of
from mirror.config.names import PATH, PATH_OR_NONE, REPOSITORIES_PATTERN, is_named
from mirror.config.notation import choice, duration
from mirror.config.section import DefaultWords, Section

RELAYS_MAX: Final = 32
"""Each has connections, a queue and metrics of its own."""

PUBLIC_URLS_MAX: Final = 8
"""Each is an event of its own, for each change."""


_NO_PUBLIC_URL: Final = (
    "the event must name this service as its readers do: set `server.public_url`, or list the URLs"
    " here"
)


class RelayKind(StrEnum):
    """What a receiver understands."""

    ARGOCD = "argocd"
    FLEET = "fleet"
    FLUX = "flux"
    WEBHOOK = "webhook"


class EventMode(StrEnum):
    """Where the attributes of a CloudEvent are: in its body, or in headers."""

    STRUCTURED = "structured"
    BINARY = "binary"


class RelayDocument(Section):
    """A receiver of events.

    It is told of each change of a ref once every reader can fetch it here. What fails is sent again
    until it is taken, over restarts too; see [relay.md](relay.md).
    """

    kind: Annotated[RelayKind, choice(RelayKind)] = Field(alias="type", examples=["argocd"])
    """What is sent: GitHub's push event, to Argo CD's API server or ApplicationSet controller
    (`argocd`) or to Fleet (`fleet`); the body that Flux's `generic-hmac` Receivers want (`flux`);
    or a CloudEvent with a signature as Standard Webhooks has it (`webhook`)."""

    url: Annotated[str, RECEIVER_URL] = Field(
        examples=["https://argocd.example.com/api/webhook"],
    )
    """Where to. Redirects are not followed."""

    secret_file: Annotated[Path, PATH] = Field(examples=["secrets/argocd-webhook"])
    """The file with the secret that the receiver checks signatures with, and nothing else. It is
    read again when it changes."""

    repositories: Annotated[
        tuple[Annotated[str, REPOSITORIES_PATTERN], ...],
        Field(json_schema_extra={"minItems": 1}),
    ] = ("*",)
    """The repositories whose changes are told: each that one of the patterns names and none with
    `!` takes away."""

    public_urls: Annotated[
        tuple[Annotated[str, PUBLIC_URL], ...],
        DefaultWords("`server.public_url`"),
        Field(
            json_schema_extra={"minItems": 1, "maxItems": PUBLIC_URLS_MAX},
            examples=["https://git-mirror.example.com"],
        ),
    ] = ()
    """This service's URLs as the receiver's repositories are configured with, when they are not
    written with `server.public_url`. Argo CD and Fleet compare host and path. With several, each
    change is told once for each."""

    ca_file: Annotated[Path | None, PATH_OR_NONE, DefaultWords("those of the system")] = None
    """Certificates (PEM) of the authorities that the receiver's certificate is checked with."""

    timeout_seconds: Annotated[float, duration("1s", "2m")] = Field(default=10.0, alias="timeout")
    """The longest that the receiver may take for an answer."""

    mode: Annotated[EventMode, choice(EventMode)] = EventMode.STRUCTURED
    """For `webhook`: the CloudEvent's attributes in the body (`structured`), where the signature
    covers them, or in `ce-` headers (`binary`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings:
    """One receiver, with every default applied.

    Attributes:
        public_urls: Without trailing slashes; empty only for Flux.
    """

    name: str
    kind: RelayKind
    url: str
    secret_file: Path
    repositories: tuple[str, ...] = ("*",)
    public_urls: tuple[str, ...] = ()
    ca_file: Path | None = None
    timeout_seconds: float = 10.0
    mode: EventMode = EventMode.STRUCTURED

    def tells(self, repository: str) -> bool:
        """Tell whether the receiver is told of this repository's changes."""
        return is_named(repository, self.repositories)


def resolve_relays(
    relays: Mapping[str, RelayDocument], *, public_url: str | None, base: Path
) -> Mapping[str, RelaySettings]:
    """Return what applies; `base` is the directory that paths are relative to."""
    default = (public_url,) if public_url else ()
    return MappingProxyType(
        {
            name: RelaySettings(
                name=name,
                kind=entry.kind,
                url=entry.url,
                secret_file=base / entry.secret_file,
                repositories=entry.repositories,
                public_urls=entry.public_urls or default,
                ca_file=entry.ca_file and base / entry.ca_file,
                timeout_seconds=entry.timeout_seconds,
                mode=entry.mode,
            )
            for name, entry in relays.items()
        }
    )


def relay_contradictions(document: Document) -> Iterator[Mistake]:
    """Yield the mistakes between keys; they look at what is written, whatever else is wrong."""
    server = mapping_of(document.value.get("server"))
    names = list(mapping_of(document.value.get("repositories")))
    for name, value in mapping_of(document.value.get("relays")).items():
        entry = mapping_of(value)
        for key, text in _mistakes(entry, names, has_public_url="public_url" in server):
            where: KeyPath = ("relays", name, key)
            yield Mistake(document.line_of(where), where, text)


def _mistakes(
    entry: Mapping[str, object], names: list[str], *, has_public_url: bool
) -> Iterator[tuple[str, str]]:
    kind = entry.get("type")
    if kind in ("argocd", "flux") and _has_no_path(entry.get("url")):
        path = "/api/webhook" if kind == "argocd" else "/hook/..., the Receiver's webhookPath"
        yield "url", f"has no path; write the whole address, which ends in {path}"
    if kind in ("argocd", "fleet", "webhook") and not entry.get("public_urls", has_public_url):
        yield "public_urls", _NO_PUBLIC_URL
    if isinstance(urls := entry.get("public_urls"), list) and len(urls) > PUBLIC_URLS_MAX:
        yield "public_urls", f"more than {PUBLIC_URLS_MAX} URLs; each is an event of its own"
    if "mode" in entry and kind in ("argocd", "fleet", "flux"):
        yield "mode", f"is for `type: webhook`; {kind} has no choice, leave it out"
    patterns = entry.get("repositories", ["*"])
    if isinstance(patterns, list):
        written = [one for one in patterns if isinstance(one, str)]
        if len(written) == len(patterns) and not any(is_named(name, written) for name in names):
            yield "repositories", "names none of the `repositories`, so nothing would be told"


def _has_no_path(url: object) -> bool:
    try:
        return urlsplit(read_receiver_url(str(url))).path in ("", "/")
    except ValueError:
        return False
