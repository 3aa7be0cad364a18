"""The requests that tell a receiver of a change, signed as it checks them. Pure.

* Argo CD and Fleet: GitHub's `push` event. They compare host and path of `repository.html_url` with
  the URLs that they are configured with, so it carries this service's own. What GitHub lists commit
  by commit is one entry here, with the files of the whole range: Argo CD takes them together.
  Without a list it looks at all that the ref concerns. Newer receivers check `X-Hub-Signature-256`,
  Fleet's library still `X-Hub-Signature` (SHA-1).
* Flux: any body, signed in `X-Signature` (Receiver of type `generic-hmac`).
* Anybody else: CloudEvents 1.0 over HTTP, structured or binary, signed as Standard Webhooks has it.
  Unlike GitHub's, that signature covers an id and the time, so that a receiver can refuse what
  somebody recorded and sends again, and there are libraries that check it for most languages.

Fleet is told of branches only, and never of a deletion: it takes every `after` for a commit.
"""

import base64
import binascii
import hashlib
import hmac
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from mirror.config import EventMode, RelayKind, RelaySettings
from mirror.refresh.relay.backlog import BRANCHES, Change, IsTold
from mirror.wire.names import ZERO_ID, ObjectId, RefName

FLUX_REFS_MAX: Final = 100
"""One body for so many refs: a Receiver does the same for each. About 30 KB; Flux takes 3 MiB."""

EVENT_TYPE: Final = "git-mirror.ref.changed.v1"

_SECRET_PREFIX: Final = b"whsec_"


@dataclass(frozen=True, slots=True)
class Files:
    """The files that differ between two commits, by path."""

    added: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.added) + len(self.modified) + len(self.removed)


@dataclass(frozen=True, slots=True)
class Told:
    """A change, and what is known of it.

    Attributes:
        change: The change.
        is_forced: Whether it takes away commits, as far as can be told.
        files: What it touches; `None` when that can't be told.
    """

    change: Change
    is_forced: bool = False
    files: Files | None = None


@dataclass(frozen=True, slots=True)
class News:
    """What one delivery tells.

    Attributes:
        repository: The name it is served under.
        told: The changes.
        default_branch: What HEAD names.
        number: How many deliveries the receiver has acknowledged for the repository. With it the
            same change has the same id when it is sent again, and another when it is made again.
        now: Seconds since the epoch.
    """

    repository: str
    told: tuple[Told, ...]
    default_branch: RefName | None
    number: int
    now: float


@dataclass(frozen=True, slots=True)
class Request:
    """A POST request."""

    body: bytes
    headers: Mapping[str, str] = field(repr=False)


def wants_files(kind: RelayKind) -> bool:
    """Tell whether a receiver's events list files."""
    return kind is not RelayKind.FLUX


def batch_max(kind: RelayKind) -> int:
    """Return how many refs one delivery to a receiver tells of."""
    return FLUX_REFS_MAX if kind is RelayKind.FLUX else 1


def is_told(kind: RelayKind) -> IsTold:
    """Return what a receiver wants to know."""
    return _is_branch_with_commit if kind is RelayKind.FLEET else _is_any


def _is_any(_ref: RefName, _after: ObjectId | None) -> bool:
    return True


def _is_branch_with_commit(ref: RefName, after: ObjectId | None) -> bool:
    return ref.startswith(BRANCHES) and after is not None


def signing_key(kind: RelayKind, secret: bytes) -> bytes:
    """Return the key that stands in a secret file.

    Standard Webhooks writes keys as base64 after `whsec_`; anything else is taken as it is.

    Raises:
        ValueError: It is no such key.
    """
    if kind is not RelayKind.WEBHOOK or not secret.startswith(_SECRET_PREFIX):
        return secret
    try:
        return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("what stands after `whsec_` is not base64") from None


def requests(relay: RelaySettings, news: News, key: bytes) -> Iterator[Request]:
    """Return what to send, in order; the receiver has to take each of them.

    Args:
        relay: The receiver.
        news: What to tell it.
        key: What to sign with.
    """
    if relay.kind is RelayKind.FLUX:
        yield _for_flux(relay, news, key)
        return
    for url in relay.public_urls:
        for told in news.told:
            place = f"{url}/{news.repository}"
            event_id = _id(relay.name, place, told.change, news.number)
            if relay.kind is RelayKind.WEBHOOK:
                yield _cloud_event(relay.mode, place, news, told, event_id, key)
            else:
                yield _github_push(place, news, told, event_id, key)


def _github_push(url: str, news: News, told: Told, event_id: uuid.UUID, key: bytes) -> Request:
    change, after = told.change, _hex(told.change.after)
    commits = []
    if told.files:
        files = {
            "added": told.files.added,
            "modified": told.files.modified,
            "removed": told.files.removed,
        }
        commits = [{"id": after, "distinct": True, "message": "", **files}]
    owner, _, name = news.repository.rpartition("/")
    push = {
        "ref": _text(change.ref),
        "before": _hex(change.before),
        "after": after,
        "created": change.before is None,
        "deleted": change.after is None,
        "forced": told.is_forced,
        "base_ref": None,
        "compare": "",
        "commits": commits,
        "head_commit": None if change.after is None else {"id": after, "message": ""},
        "repository": {
            "name": name,
            "full_name": news.repository,
            "owner": {"name": owner, "login": owner},
            "html_url": url,
            "url": url,
            "clone_url": f"{url}.git",
            "default_branch": _branch(news.default_branch),
        },
        "pusher": {"name": "git-mirror"},
        "sender": {"login": "git-mirror"},
    }
    body = _json(push)
    return Request(
        body,
        {
            "Content-Type": "application/json",
            "X-GitHub-Event": "push",
            "X-GitHub-Delivery": str(event_id),
            "X-Hub-Signature-256": f"sha256={hmac.new(key, body, hashlib.sha256).hexdigest()}",
            "X-Hub-Signature": f"sha1={hmac.new(key, body, hashlib.sha1).hexdigest()}",
        },
    )


def _for_flux(relay: RelaySettings, news: News, key: bytes) -> Request:
    body = _json(
        {
            "repository": news.repository,
            "urls": [f"{url}/{news.repository}" for url in relay.public_urls],
            "refs": [
                {
                    "ref": _text(told.change.ref),
                    "before": _hex(told.change.before),
                    "after": _hex(told.change.after),
                }
                for told in news.told
            ],
        }
    )
    signature = hmac.new(key, body, hashlib.sha256).hexdigest()
    headers = {"Content-Type": "application/json", "X-Signature": f"sha256={signature}"}
    return Request(body, headers)


def _cloud_event(
    mode: EventMode, url: str, news: News, told: Told, event_id: uuid.UUID, key: bytes
) -> Request:
    change, files = told.change, told.files
    attributes = {
        "specversion": "1.0",
        "id": str(event_id),
        "source": url,
        "type": EVENT_TYPE,
        "subject": _text(change.ref),
        "time": datetime.fromtimestamp(news.now, UTC).isoformat(timespec="milliseconds"),
    }
    data = {
        "repository": news.repository,
        "url": url,
        "ref": _text(change.ref),
        "before": None if change.before is None else _hex(change.before),
        "after": None if change.after is None else _hex(change.after),
        "forced": told.is_forced,
        "default_branch": _branch(news.default_branch) or None,
        "files": None
        if files is None
        else {"added": files.added, "modified": files.modified, "removed": files.removed},
    }
    if mode is EventMode.BINARY:
        body = _json(data)
        headers = {
            "Content-Type": "application/json",
            **{f"ce-{name}": quote(value, safe=_PLAIN) for name, value in attributes.items()},
        }
    else:
        body = _json({**attributes, "datacontenttype": "application/json", "data": data})
        headers = {"Content-Type": "application/cloudevents+json; charset=utf-8"}
    at = str(int(news.now))
    signed = b".".join((attributes["id"].encode(), at.encode(), body))
    signature = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    headers |= {
        "webhook-id": attributes["id"],
        "webhook-timestamp": at,
        "webhook-signature": f"v1,{signature}",
    }
    return Request(body, headers)


_PLAIN: Final = "".join(map(chr, range(0x21, 0x7F))).replace("%", "").replace('"', "")
"""What stands in a header of a CloudEvent as it is (CloudEvents HTTP binding, 3.1.3.2)."""


def _id(relay: str, url: str, change: Change, number: int) -> uuid.UUID:
    """Return the id of an event: the same whenever the same is sent again."""
    parts = (relay, url, change.ref.hex(), _hex(change.before), _hex(change.after), str(number))
    return uuid.uuid5(uuid.NAMESPACE_URL, "\n".join(parts))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _hex(oid: ObjectId | None) -> str:
    return (oid or ZERO_ID).decode("ascii")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _branch(ref: RefName | None) -> str:
    return _text(ref.removeprefix(BRANCHES)) if ref is not None else ""
