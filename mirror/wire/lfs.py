"""The batch API of Git LFS: as our readers ask us, and as we ask an upstream (docs/api/batch.md).

Bytes to values and back, nothing else. What a peer sends is taken as it is said or refused with
`InvalidBatch`, `WrongHash` or `TooLarge`; what an upstream sends, with `ProtocolError`. An action's
URL and headers are secrets: they never show in a repr.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from mirror.errors import ClientError, ProtocolError, TooLarge

CONTENT_TYPE: Final = "application/vnd.git-lfs+json"

OBJECTS_MAX: Final = 1000
"""In one batch; git-lfs asks for 100 at a time."""

REQUEST_BYTES_MAX: Final = 512 * 1024
"""A batch of so many objects, and room to spare."""

ANSWER_BYTES_MAX: Final = 16 << 20
"""From an upstream: signed URLs and headers are long."""

SIZE_MAX: Final = (1 << 63) - 1

HEADERS_MAX: Final = 32
HEADER_BYTES_MAX: Final = 16 * 1024
HREF_BYTES_MAX: Final = 16 * 1024
MESSAGE_CHARACTERS_MAX: Final = 500

_OID: Final = re.compile(r"[0-9a-f]{64}")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_HREF: Final = re.compile(r"[!-~]+")
_NOT_FOR_AN_ACTION: Final = frozenset(
    {
        *("host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade"),
        *("expect", "range", "accept-encoding", "keep-alive", "proxy-authorization", "user-agent"),
    }
)
"""Headers that are ours to set, or the connection's."""


class InvalidBatch(ProtocolError):
    """A batch request that is not as the specification says."""

    status = 422
    label = "invalid_batch"


class WrongHash(ClientError):
    """A batch request for objects that are not named by their SHA-256."""

    status = 409
    label = "wrong_hash"


@dataclass(frozen=True, slots=True)
class Pointer:
    """An object as a pointer file names it: the SHA-256 of its bytes in hex, and their number."""

    oid: str
    size: int


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """What a reader asks for. `is_upload` tells that it wants to send them."""

    pointers: tuple[Pointer, ...]
    is_upload: bool


@dataclass(frozen=True, slots=True)
class Action:
    """How to download an object.

    Attributes:
        href: The URL.
        header: What to send with the request.
        is_authenticated: Whether no credentials but these are needed.
        expires_at: Seconds since the epoch; `None` where nothing is said of it.
    """

    href: str = field(repr=False)
    header: Mapping[str, str] = field(default_factory=dict, repr=False)
    is_authenticated: bool = False
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an object is not to be had; `code` is an HTTP status."""

    code: int
    message: str


def parse_batch_request(body: bytes) -> BatchRequest:
    """Read the body of a POST to objects/batch.

    Raises:
        InvalidBatch: It is not a batch request that can be answered.
        WrongHash: It is for objects with another kind of name.
        TooLarge: It names too many objects.
    """
    try:
        return _batch_request(body)
    except ProtocolError as error:
        raise InvalidBatch(f"not a batch request of Git LFS: {error}") from error


def _batch_request(body: bytes) -> BatchRequest:
    document = _mapping(_json(body), "the request")
    operation = document.get("operation")
    if operation not in ("download", "upload"):
        raise ProtocolError("`operation` must be `download` or `upload`")
    transfers = document.get("transfers")
    if transfers and "basic" not in _list(transfers, "`transfers`"):
        raise ProtocolError("only the `basic` transfer is known here; let `transfers` name it")
    if (document.get("hash_algo") or "sha256") != "sha256":
        raise WrongHash("objects are named by their SHA-256 here; `hash_algo` says otherwise")
    objects = _list(document.get("objects"), "`objects`")
    if len(objects) > OBJECTS_MAX:
        raise TooLarge(f"a batch of {len(objects)} objects; ask for {OBJECTS_MAX} at a time")
    pointers = tuple(dict.fromkeys(map(_pointer, objects)))
    if len({one.oid for one in pointers}) < len(pointers):
        raise ProtocolError("an object is named twice, with different sizes")
    return BatchRequest(pointers, is_upload=operation == "upload")


def encode_batch_answer(answers: Iterable[tuple[Pointer, Action | Refusal]]) -> bytes:
    """Return the answer to a batch request, in the order of `answers`."""
    return _encode(
        {
            "transfer": "basic",
            "objects": [_described(pointer, answer) for pointer, answer in answers],
            "hash_algo": "sha256",
        }
    )


def encode_batch_request(pointers: Iterable[Pointer]) -> bytes:
    """Return the request to download objects."""
    objects = [{"oid": one.oid, "size": one.size} for one in pointers]
    return _encode(
        {
            "operation": "download",
            "transfers": ["basic"],
            "objects": objects,
            "hash_algo": "sha256",
        }
    )


def parse_batch_answer(
    body: bytes, asked: Sequence[Pointer], *, now: float
) -> dict[str, Action | Refusal]:
    """Read an upstream's answer.

    Args:
        body: The JSON.
        asked: What was asked for. The result has each of them, and nothing else.
        now: Seconds since the epoch.

    Returns:
        By the object's id. An object whose size is not the one asked for is refused.

    Raises:
        ProtocolError: It is no answer to a batch request.
    """
    document = _mapping(_json(body), "the answer")
    if document.get("transfer", "basic") not in ("basic", "", None):
        raise ProtocolError("the answer is for a transfer that was not asked for")
    sizes = {one.oid: one.size for one in asked}
    found: dict[str, Action | Refusal] = {}
    for entry in _list(document.get("objects"), "`objects`"):
        described = _mapping(entry, "an object")
        oid = described.get("oid")
        if isinstance(oid, str) and oid in sizes:
            found[oid] = _answer(described, sizes[oid], now)
    missing = Refusal(404, "the upstream's answer does not name the object")
    return {one.oid: found.get(one.oid, missing) for one in asked}


def encode_error(message: str) -> bytes:
    """Return the body of an error ("Response Errors")."""
    return _encode({"message": message})


def _answer(described: Mapping[str, Any], size: int, now: float) -> Action | Refusal:
    """Read what an upstream says of one object."""
    error = described.get("error")
    if error:
        code = _mapping(error, "`error`").get("code")
        message = str(error.get("message", ""))[:MESSAGE_CHARACTERS_MAX]
        if not isinstance(code, int) or not 400 <= code <= 599:
            code = 502
        return Refusal(code, message or "the upstream refuses the object")
    said = described.get("size")
    if not _is_size(said):
        raise ProtocolError("an object without a `size`")
    if said != size:
        return Refusal(422, f"the object has {said} bytes, not {size}")
    actions = described.get("actions") or described.get("_links")
    download = _mapping(actions, "`actions`").get("download") if actions else None
    if download is None:
        return Refusal(404, "the upstream offers no download of the object")
    return _action(
        _mapping(download, "`download`"),
        now,
        is_authenticated=described.get("authenticated") is True,
    )


def _action(download: Mapping[str, Any], now: float, *, is_authenticated: bool) -> Action:
    href = download.get("href")
    if not isinstance(href, str) or len(href) > HREF_BYTES_MAX or not _HREF.fullmatch(href):
        raise ProtocolError("an action without a usable `href`")
    header = _mapping(download.get("header") or {}, "`header`")
    if len(header) > HEADERS_MAX:
        raise ProtocolError(f"an action with {len(header)} headers")
    for name, value in header.items():
        is_usable = isinstance(value, str) and len(name) + len(value) <= HEADER_BYTES_MAX
        if not (is_usable and _HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value)):
            raise ProtocolError("an action with a header that can't be sent")
    return Action(
        href,
        {name: value for name, value in header.items() if name.lower() not in _NOT_FOR_AN_ACTION},
        is_authenticated,
        _expiry(download, now),
    )


def _expiry(download: Mapping[str, Any], now: float) -> float | None:
    """Return when an action expires. Zero is said by servers that mean nothing by it."""
    seconds = download.get("expires_in")
    if isinstance(seconds, int) and seconds:
        return now + min(seconds, 1 << 31)
    text = download.get("expires_at")
    if not isinstance(text, str) or text.startswith("0001-"):
        return None
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _described(pointer: Pointer, answer: Action | Refusal) -> dict[str, Any]:
    named = {"oid": pointer.oid, "size": pointer.size}
    if isinstance(answer, Refusal):
        return {**named, "error": {"code": answer.code, "message": answer.message}}
    download = {"href": answer.href} | ({"header": dict(answer.header)} if answer.header else {})
    return {**named, "actions": {"download": download}}


def _pointer(entry: object) -> Pointer:
    named = _mapping(entry, "an object")
    oid, size = named.get("oid"), named.get("size")
    if not isinstance(oid, str) or not _OID.fullmatch(oid):
        raise ProtocolError("an `oid` is 64 lower-case hex digits")
    if not isinstance(size, int) or not _is_size(size):
        raise ProtocolError(f"the `size` of {oid} is no number of bytes")
    return Pointer(oid, size)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= SIZE_MAX


def _json(body: bytes) -> object:
    try:
        found: object = json.loads(body)
    except (ValueError, RecursionError):
        raise ProtocolError("it is not JSON") from None
    return found


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError(f"{what} must be an object of JSON")
    return value


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ProtocolError(f"{what} must be a list")
    return value


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
