"""From a file to `Settings`, or to one `ConfigError` that lists every mistake in it.

pydantic finds what is wrong with each key; the rules between keys (`_contradictions`) are looked
at as well, around whatever is broken, so that one run shows all there is to mend.

Must never repeat in a message what may be a secret: a whole value of unknown shape, a URL.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from mirror.config.addresses import host_of, is_in_the_clear, read_upstream
from mirror.config.credentials import form_mistakes
from mirror.config.document import (
    DOCUMENT_BYTES_MAX,
    Document,
    KeyPath,
    Mistake,
    entries_of,
    mapping_of,
    read_document,
)
from mirror.config.explaining import dotted, mistakes_of
from mirror.config.models import (
    ConfigDocument,
    Forge,
    PushPolicy,
)
from mirror.config.notation import enumerate_words, shown
from mirror.config.readers import (
    reader_contradictions,
)
from mirror.config.relays import relay_contradictions
from mirror.config.resolving import guess_forge, resolve
from mirror.config.settings import (
    Settings,
)
from mirror.errors import ConfigError


def load(path: Path) -> Settings:
    """Read the configuration file at `path`.

    Raises:
        ConfigError: With every mistake, a line each: `FILE:LINE: key.path: what is wrong`.
    """
    return parse(_read(path), source=path)


def find_data_dir(path: Path) -> Path:
    """Return the data directory that the file at `path` names, whatever else is wrong there.

    Raises:
        ConfigError: That can't be told.
    """
    written = read_document(_read(path), source=path).value
    data_dir = written.get("data_dir", ConfigDocument.model_fields["data_dir"].default)
    if not isinstance(data_dir, str | Path):
        raise ConfigError(f"{path}: data_dir: must be a path")
    return path.absolute().parent / data_dir


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(DOCUMENT_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: there is no such file; name one with --config or GIT_MIRROR_CONFIG"
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: the file can't be read: {reason}") from error


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
        mistakes += mistakes_of(error, document)
        raise ConfigError(_message(mistakes, source=source)) from error
    if mistakes:
        raise ConfigError(_message(mistakes, source=source))
    return resolve(config, content, source=source)


def _message(mistakes: list[Mistake], *, source: Path) -> str:
    lines: dict[str, None] = {}
    for mistake in sorted(mistakes, key=lambda mistake: mistake.line):
        where = dotted(mistake.path)
        lines[f"{source}:{mistake.line}: {where}{': ' if where else ''}{mistake.text}"] = None
    return "\n".join(lines)


# Rules between keys. They look at what is written, so that they find something in a repository
# that has other mistakes too.


def _contradictions(document: Document) -> Iterator[Mistake]:
    defaults = mapping_of(document.value.get("defaults"))
    yield from _wrong_forms(document, ("defaults",), defaults)
    yield from _lacks(document)
    for where, key, entry in entries_of(document):
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
        is_app = "github_app" in mapping_of(written.get("credentials"))
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
        at = str(mapping_of(entry).get("at")).strip("/")
        if at in seen:
            path = ("upstreams", position, "at")
            yield Mistake(
                document.line_of(path), path, f"another place is at {shown('/' + at)} too"
            )
        seen.add(at)


def _is_given(written: Mapping[str, object], key: str) -> bool:
    return written.get(key) not in (None, "none")
