"""From a file to `Settings`, or to one `ConfigError` that lists every mistake in it.

pydantic finds what is wrong with each key; the rules between keys (`_contradictions`) are looked
at as well, around whatever is broken, so that one run shows all there is to mend.

Must never repeat in a message what may be a secret: a whole value of unknown shape, a URL.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mirror.config.addresses import host_of, is_in_the_clear, read_upstream
from mirror.config.credentials import form_mistakes
from mirror.config.document import (
    DOCUMENT_BYTES_MAX,
    Document,
    KeyPath,
    Mistake,
    read_document,
)
from mirror.config.environment import Environment, environment
from mirror.config.models import (
    ANY_NAME,
    ANY_PLACE,
    SECTIONS,
    ConfigDocument,
    Forge,
    PushPolicy,
    RepositoryDocument,
    SharedKeys,
    UpstreamDocument,
    keys_of,
)
from mirror.config.notation import enumerate_words, kind_of, nearest, shown
from mirror.config.readers import (
    AccessKind,
    reader_contradictions,
    resolve_readers,
    resolve_tls,
)
from mirror.config.relays import relay_contradictions, resolve_relays
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
from mirror.errors import ConfigError

_PASSWORD_KEYS: Final = frozenset(
    {"password", "passwd", "token", "access_token", "private_token", "api_token", "api_key"}
)
_KEY_KEYS: Final = frozenset({"private_key", "key", "pem"})
_WEBHOOK_KEYS: Final = frozenset({"webhook_secret", "webhook_token", "secret", "secret_token"})

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


def load(path: Path) -> Settings:
    """Read the configuration file at `path`.

    Raises:
        ConfigError: With every mistake, a line each: `FILE:LINE: key.path: what is wrong`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(DOCUMENT_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: there is no such file; name one with --config or GIT_MIRROR_CONFIG"
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: the file can't be read: {reason}") from error
    return parse(content, source=path)


def parse(content: bytes, *, source: Path) -> Settings:
    """Read the content of a configuration file that stands at `source`.

    Raises:
        ConfigError: As `load`.
    """
    document = read_document(content, source=source)
    mistakes = [
        *document.mistakes,
        *_contradictions(document),
        *relay_contradictions(document),
        *reader_contradictions(document),
    ]
    try:
        config = ConfigDocument.model_validate(document.value)
    except ValidationError as error:
        mistakes += _mistakes(error, document)
        raise ConfigError(_message(mistakes, source=source)) from error
    if mistakes:
        raise ConfigError(_message(mistakes, source=source))
    return _resolve(config, content, source=source)


def _message(mistakes: list[Mistake], *, source: Path) -> str:
    lines: dict[str, None] = {}
    for mistake in sorted(mistakes, key=lambda mistake: mistake.line):
        where = _dotted(mistake.path)
        lines[f"{source}:{mistake.line}: {where}{': ' if where else ''}{mistake.text}"] = None
    return "\n".join(lines)


def _dotted(path: KeyPath) -> str:
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return words.removeprefix(".")


# What pydantic found, in our words.


def _mistakes(error: ValidationError, document: Document) -> Iterator[Mistake]:
    for details in error.errors(include_url=False):
        path: KeyPath = details["loc"]
        if details["type"] == "value_error" and len(path) == 3 and path[-1] == "[key]":
            path = path[:-1]  # the name of a repository or relay is wrong, not a key under it
        if any(path[:length] in document.unusable for length in range(len(path) + 1)):
            continue
        yield Mistake(document.line_of(path), path, _explain(path, details))


def _explain(path: KeyPath, details: ErrorDetails) -> str:
    match details["type"]:
        case "value_error":
            return str(details["ctx"]["error"])
        case "missing":
            return f"the key is missing; write {_example(path)}"
        case "extra_forbidden":
            return _explain_unknown_key(path)
        case "model_type" | "dict_type":
            kind = kind_of(details["input"])
            return f"must be a mapping (`key: value` lines under it), not {kind}"
        case "tuple_type":
            return f"must be a list, like `[{_entry(path)}]`, not {kind_of(details['input'])}"
        case _:
            return details["msg"]


def _example(path: KeyPath) -> str:
    key = str(path[-1])
    section = _section_at(path[:-1])
    examples = section.model_fields[keys_of(section)[key]].examples
    return f"`{key}: {examples[0]}`" if examples else f"`{key}:` and its value"


def _entry(path: KeyPath) -> str:
    """Return an entry of a list as it might be written."""
    section = _section_at(path[:-1])
    field = section.model_fields[keys_of(section)[str(path[-1])]]
    return str(next(iter(field.examples or field.default)))


def _explain_unknown_key(path: KeyPath) -> str:
    key = str(path[-1])
    plain = key.lower().replace("-", "_")
    if plain in _PASSWORD_KEYS:
        is_among_credentials = path[-2:-1] in {("credentials",), ("proxy_credentials",)}
        where = "`password_file`" if is_among_credentials else "`credentials:`"
        return f"a secret has no place in this file; name its file, with {where}"
    if plain in _KEY_KEYS:
        return "a key has no place in this file; name its file, with `private_key_file`"
    if path[:1] == ("relays",) and plain in _WEBHOOK_KEYS:
        return "a secret has no place in this file; name its file, with `secret_file`"
    if plain in _WEBHOOK_KEYS:
        return "a secret has no place in this file; name its file, with `webhook_secret_file`"
    known = keys_of(_section_at(path[:-1]))
    for place, section in SECTIONS.items():
        if key in keys_of(section):
            return f"unknown key {shown(key)} here; it belongs {_place(place)}"
    if meant := nearest(plain, known):
        return f"unknown key {shown(key)}; did you mean `{meant}`?"
    return f"unknown key {shown(key)}; the keys here are {enumerate_words(known, last='and')}"


def _place(place: tuple[str, ...]) -> str:
    return f"under `{_dotted(place)}`" if place else "at the top"


def _section_at(path: KeyPath) -> type[BaseModel]:
    if path[:1] in (("repositories",), ("relays",)) and len(path) > 1:
        path = (path[0], ANY_NAME, *path[2:])
    if path[:1] == ("readers",) and len(path) > 2:
        path = (*path[:2], ANY_NAME, *path[3:])
    if path[:1] == ("upstreams",) and len(path) > 1:
        path = ("upstreams", ANY_PLACE, *path[2:])
    return SECTIONS[tuple(str(part) for part in path)]


# Rules between keys. They look at what is written, so that they find something in a repository
# that has other mistakes too.


def _contradictions(document: Document) -> Iterator[Mistake]:
    defaults = _mapping(document.value.get("defaults"))
    yield from _wrong_forms(document, ("defaults",), defaults)
    yield from _lacks(document)
    for where, key, entry in _entries(document):
        written = {**defaults, **entry}
        yield from _wrong_forms(document, where, entry)
        try:
            upstream = read_upstream(str(written.get(key)))
        except ValueError:
            continue
        if _is_given(written, "proxy_credentials") and not _is_given(written, "proxy"):
            yield Mistake(
                document.line_of((*where, "proxy_credentials")),
                (*where, "proxy_credentials"),
                "there is no `proxy` to sign in to; name it, or write `proxy_credentials: none`",
            )
        if _is_given(written, "credentials") and is_in_the_clear(upstream):
            yield Mistake(
                document.line_of((*where, key)),
                (*where, key),
                "over plain http everybody on the way could read the password of `credentials`;"
                " use https, or write `credentials: none`",
            )
        if written.get("push") == PushPolicy.PROXY and is_in_the_clear(upstream):
            yield Mistake(
                document.line_of((*where, key)),
                (*where, key),
                "over plain http everybody on the way could read the passwords of those who push"
                " (`push: proxy`); use https, or write `push: refuse`",
            )
        guessed = "forge" in written or guess_forge(host_of(upstream))
        forge = written.get("forge") or guess_forge(host_of(upstream))
        is_app = "github_app" in _mapping(written.get("credentials"))
        if is_app and forge in (Forge.GITLAB, Forge.GITEA, Forge.BITBUCKET):  # as it is written
            yield Mistake(
                document.line_of((*where, "credentials")),
                (*where, "credentials"),
                f"only GitHub knows `github_app`, and the upstream's forge is {shown(str(forge))};"
                " write `password_file`",
            )
        if _is_given(written, "webhook_secret_file") and not guessed:
            yield Mistake(
                document.line_of((*where, "forge")),
                (*where, "forge"),
                f"can't be guessed from the host {shown(host_of(upstream))}, and webhooks"
                f" need it; write `forge:` with {enumerate_words(Forge)}",
            )


def _wrong_forms(
    document: Document, where: KeyPath, written: Mapping[str, object]
) -> Iterator[Mistake]:
    """Look at a section's own `credentials`; one that was inherited is looked at where it is."""
    credentials = written.get("credentials")
    if isinstance(credentials, dict):
        path: KeyPath = (*where, "credentials")
        for key, text in form_mistakes(credentials):
            yield Mistake(document.line_of((*path, key)), (*path, key), text)


def _lacks(document: Document) -> Iterator[Mistake]:
    """Say what is missing of the sections as a whole, or stands there twice."""
    repositories, places = document.value.get("repositories"), document.value.get("upstreams")
    if not repositories and not places:
        where = ("repositories",)
        if "repositories" not in document.value:
            text = "the key is missing; write `repositories:` and its value"
            yield Mistake(document.line_of(where), where, text)
        elif isinstance(repositories, dict):
            text = "must name at least one repository to mirror"
            yield Mistake(document.line_of(where), where, text)
    seen: set[str] = set()
    for position, entry in enumerate(places if isinstance(places, list) else ()):
        at = str(_mapping(entry).get("at")).strip("/")
        if at in seen:
            path = ("upstreams", position, "at")
            yield Mistake(
                document.line_of(path), path, f"another place is at {shown('/' + at)} too"
            )
        seen.add(at)


def _entries(document: Document) -> Iterator[tuple[KeyPath, str, Mapping[str, object]]]:
    """Yield where repositories and places stand, the key of their URL, and what is written."""
    for name, entry in _mapping(document.value.get("repositories")).items():
        yield ("repositories", name), "upstream", _mapping(entry)
    places = document.value.get("upstreams")
    for position, entry in enumerate(places if isinstance(places, list) else ()):
        yield ("upstreams", position), "from", _mapping(entry)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _is_given(written: Mapping[str, object], key: str) -> bool:
    return written.get(key) not in (None, "none")


# From what is written to what applies.


def _resolve(config: ConfigDocument, content: bytes, *, source: Path) -> Settings:
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
        access=frozenset(shared.access) or frozenset({AccessKind.ANONYMOUS}),
        push=shared.push,
        lfs=shared.lfs,
        bundle_interval_seconds=shared.bundle_interval_seconds,
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
