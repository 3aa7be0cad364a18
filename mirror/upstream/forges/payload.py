"""Reading what all forges send alike: a JSON object, refs and ids in it, a delivery id beside it.

Whatever the bytes, the outcome is a value or `ProtocolError`. Only the keys we need are looked at,
so a forge may add others.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Final, NoReturn, TypeAlias

from mirror.errors import ProtocolError
from mirror.upstream.forges.events import UNKNOWN, Push, RefChange
from mirror.wire.names import ZERO_ID, ObjectId, RefName, object_id, ref_name

Headers: TypeAlias = Mapping[str, str]
"""The headers of a request, looked up in any case (aiohttp's CIMultiDict does)."""

JsonObject: TypeAlias = Mapping[str, object]

CHANGES_MAX: Final = 10_000
"""Beyond it "everything may have changed" costs us less than reading on."""

HEADER_WORD_LENGTH_MAX: Final = 200
"""Delivery ids are UUIDs and event names a few words; both are kept and logged."""

_REPOSITORY_URL_KEYS: Final = (
    "clone_url",
    "git_http_url",
    "http_url",
    "html_url",
    "web_url",
    "url",
    "ssh_url",
    "git_ssh_url",
    "git_url",
)  # not `homepage` or `mirror_url`: at GitHub the owner writes there what he likes


def event_name(headers: Headers, name: str) -> str:
    """Return the event's name from the header `name`.

    Raises:
        ProtocolError: It is missing or no name.
    """
    event = header_word(headers, name)
    if event is None:
        raise ProtocolError(f"expected the event's name in the header {name}")
    return event


def body_id(body: bytes) -> str:
    """Return the id of a delivery to which the forge gave none."""
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def header_word(headers: Headers, name: str) -> str | None:
    """Return the header `name`, None where it is missing or nothing to keep and to log."""
    word = headers.get(name, "")
    if 0 < len(word) <= HEADER_WORD_LENGTH_MAX and word.isascii() and word.isprintable():
        return word
    return None


def content_type(headers: Headers) -> str:
    """Return the media type of the body, in lower case and without its parameters."""
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def load(body: bytes) -> JsonObject:
    """Return the JSON object that `body` is.

    Raises:
        ProtocolError: It is not one.
    """
    try:
        value: object = json.loads(body.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise ProtocolError("the payload is nested too deeply") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise ProtocolError(f"the payload is not JSON: {error}") from error
    return _as_object(value, "payload")


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")


def _as_object(value: object, what: str) -> JsonObject:
    if not isinstance(value, dict):
        raise ProtocolError(f"expected an object as {what}, got {type(value).__name__}")
    return value


def optional_object(source: JsonObject, key: str) -> JsonObject:
    """Return the object at `key`, an empty one where there is none."""
    value = source.get(key)
    return {} if value is None else _as_object(value, key)


def optional_text(source: JsonObject, key: str) -> str:
    """Return the string at `key`, an empty one where there is none."""
    value = source.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ProtocolError(f"expected a string as {key}, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ProtocolError(f"{key} holds half a surrogate pair") from None
    return value


def text(source: JsonObject, key: str) -> str:
    """Return the string at `key`."""
    if value := optional_text(source, key):
        return value
    raise ProtocolError(f"the payload has no {key}")


def ref_change(source: JsonObject) -> RefChange:
    """Return the change that `ref`, `before` and `after` of `source` describe."""
    return RefChange(
        ref=ref_name(text(source, "ref").encode()),
        before=tip(source, "before"),
        after=tip(source, "after"),
    )


def push_of_one(delivery: str, source: JsonObject, change: RefChange) -> Push:
    """Return the push of one change, to the repository that `source` describes."""
    repository = optional_object(source, "repository")
    return Push(
        delivery=delivery,
        repository_urls=repository_urls(repository),
        changes=(change,),
        default_branch=default_branch(repository),
    )


def ref_changes(source: JsonObject, key: str) -> list[RefChange]:
    """Return the list of changes at `key`, an empty one if there are more than `CHANGES_MAX`."""
    changes = objects(source, key)
    return [] if len(changes) > CHANGES_MAX else [ref_change(change) for change in changes]


def created_or_deleted(source: JsonObject, *, is_created: bool) -> RefChange | None:
    """Return the change that `ref` and `ref_type` of a `create` or `delete` event describe.

    None where it is of neither a branch nor a tag.
    """
    match text(source, "ref_type"):
        case "branch":
            ref = branch(text(source, "ref"))
        case "tag":
            ref = tag(text(source, "ref"))
        case _:
            return None
    if is_created:
        return RefChange(ref, before=None, after=UNKNOWN)
    return RefChange(ref, before=UNKNOWN, after=None)


def objects(source: JsonObject, key: str) -> list[JsonObject]:
    """Return the list of objects at `key`."""
    values = source.get(key)
    if not isinstance(values, list):
        raise ProtocolError(f"expected a list as {key}, got {type(values).__name__}")
    return [_as_object(value, f"entry of {key}") for value in values]


def tip(source: JsonObject, key: str) -> ObjectId | None:
    """Return the object id at `key`, None for the zero id."""
    oid = object_id(text(source, key).encode())
    return None if oid == ZERO_ID else oid


def branch(name: str) -> RefName:
    """Return the full name of the branch `name`."""
    return ref_name(b"refs/heads/" + name.encode())


def tag(name: str) -> RefName:
    """Return the full name of the tag `name`."""
    return ref_name(b"refs/tags/" + name.encode())


def default_branch(repository: JsonObject) -> RefName | None:
    """Return the full name of the default branch, None where `repository` has none yet."""
    return branch_or_none(optional_text(repository, "default_branch"))


def branch_or_none(name: str) -> RefName | None:
    """Return the full name of the branch `name`, None where that is empty."""
    return branch(name) if name else None


def optional_repository_urls(*sources: JsonObject) -> tuple[str, ...]:
    """Return every URL, each once, by which `sources` name their repository."""
    urls = (optional_text(source, key) for source in sources for key in _REPOSITORY_URL_KEYS)
    return tuple(dict.fromkeys(url for url in urls if url))


def repository_urls(*sources: JsonObject) -> tuple[str, ...]:
    """Return every URL, each once, by which `sources` name their repository: at least one."""
    if urls := optional_repository_urls(*sources):
        return urls
    raise ProtocolError("the payload names no repository")
