"""What pydantic found wrong with keys and values, in our words.

Must never repeat in a message what may be a secret: a whole value of unknown shape, a URL.
"""

from collections.abc import Iterator
from typing import Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mirror.config.document import (
    Document,
    KeyPath,
    Mistake,
)
from mirror.config.models import (
    ANY_NAME,
    ANY_PLACE,
    SECTIONS,
    keys_of,
)
from mirror.config.notation import enumerate_words, kind_of, nearest, shown

_PASSWORD_KEYS: Final = frozenset(
    {"password", "passwd", "token", "access_token", "private_token", "api_token", "api_key"}
)
_KEY_KEYS: Final = frozenset({"private_key", "key", "pem"})
_WEBHOOK_KEYS: Final = frozenset({"webhook_secret", "webhook_token", "secret", "secret_token"})


def dotted(path: KeyPath) -> str:
    """Return a place in the file as people write it: `repositories.acme/app.refs[1]`."""
    words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return words.removeprefix(".")


def mistakes_of(error: ValidationError, document: Document) -> Iterator[Mistake]:
    """Yield what pydantic found, but for what is reported already."""
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
    return f"under `{dotted(place)}`" if place else "at the top"


def _section_at(path: KeyPath) -> type[BaseModel]:
    if path[:1] in (("repositories",), ("relays",)) and len(path) > 1:
        path = (path[0], ANY_NAME, *path[2:])
    if path[:1] == ("readers",) and len(path) > 2:
        path = (*path[:2], ANY_NAME, *path[3:])
    if path[:1] == ("upstreams",) and len(path) > 1:
        path = ("upstreams", ANY_PLACE, *path[2:])
    return SECTIONS[tuple(str(part) for part in path)]
