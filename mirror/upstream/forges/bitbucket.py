"""Bitbucket's webhooks, Cloud and Data Center: is this one genuine, and what does it say?

Follows support.atlassian.com, "Event payloads" and "Manage webhooks" (`repo:push`), and, for Data
Center, confluence.atlassian.com, "Event payload" (`repo:refs_changed`, `diagnostics:ping`). Both
sign the body alike; all else differs.

Cloud tries a delivery twice again and leaves payloads over 256 KB out: the poll finds those. Data
Center stops for a while after refusals, so what is merely of no use to us is `Ignored`.

For a tag both may name the commit, though the ref holds a tag object: so what a tag points to is
never taken from them.
"""

import re
from collections.abc import Sequence
from typing import Final

from mirror.errors import ProtocolError, Unauthenticated
from mirror.upstream.forges import payload
from mirror.upstream.forges.events import (
    UNKNOWN,
    Ignored,
    Ping,
    Push,
    RefChange,
    Tip,
    WebhookEvent,
)
from mirror.upstream.forges.hook_plan import HookPlan
from mirror.upstream.forges.payload import CHANGES_MAX, Headers, JsonObject
from mirror.upstream.forges.signatures import verify_hex
from mirror.wire.names import RefName, ref_name

_DATA_CENTER_URL: Final = re.compile(r"(.*)/scm/([^/]+)/([^/]+)")
_PING: Final = "diagnostics:ping"


def verify(headers: Headers, body: bytes, *, secrets: Sequence[bytes], now: float) -> int:
    """Return which of `secrets` signed `body`, by position.

    `now` is not looked at: Bitbucket signs no time.

    Raises:
        Unauthenticated: None of them did. The message says what to mend.
    """
    header = headers.get("X-Hub-Signature")
    if header is None and headers.get("X-Event-Key") == _PING:
        raise Unauthenticated(
            "this connection test is not signed, so it proves nothing: set the secret of the "
            "webhook if there is none yet, and push to see a signed delivery"
        )
    if header is None:
        raise Unauthenticated("no X-Hub-Signature header: set the secret of the webhook")
    if not header.startswith("sha256="):
        raise Unauthenticated("X-Hub-Signature must read sha256=<64 hex digits>")
    digest = header.removeprefix("sha256=")
    return verify_hex(digest, body, secrets=secrets, header="X-Hub-Signature")


def parse(headers: Headers, body: bytes) -> WebhookEvent:
    """Return what the webhook says.

    Raises:
        ProtocolError: It is not as Bitbucket documents it.
    """
    event = payload.event_name(headers, "X-Event-Key")
    delivery = _delivery_id(headers, body)
    match event:
        case "repo:push":
            return _cloud_push(delivery, payload.load(body))
        case "repo:refs_changed":
            return _data_center_push(delivery, payload.load(body))
        case "diagnostics:ping":
            return Ping(delivery, ())
        case _:
            return Ignored(delivery, event, "only repo:push and repo:refs_changed change refs")


def plan_hook(upstream: str, *, url: str) -> HookPlan:
    """Return the webhook to make; Data Center is told by the `/scm/` it clones from."""
    page = f"{upstream.removesuffix('.git')}/admin/webhooks"
    if data_center := _DATA_CENTER_URL.fullmatch(upstream.removesuffix(".git")):
        base, project, name = data_center.groups()
        page = f"{base}/plugins/servlet/webhooks/projects/{project}/repos/{name}"
    return HookPlan(
        settings_url=page,
        fields=(("URL", url), ("Status", "Active"), ("Triggers", "Repository: Push")),
        signing_label="Secret",
    )


def _delivery_id(headers: Headers, body: bytes) -> str:
    """Return the id that a repeated delivery shares, and nothing else does.

    Proxies write an `X-Request-Id` of their own: the body must tell two of one request apart.
    """
    request = payload.header_word(headers, "X-Request-UUID")
    request = request or payload.header_word(headers, "X-Request-Id")
    return f"{request}:{payload.body_id(body)}" if request else payload.body_id(body)


# Bitbucket Cloud.


def _cloud_push(delivery: str, source: JsonObject) -> Push:
    repository = payload.optional_object(source, "repository")
    links = payload.optional_object(repository, "links")
    url = payload.optional_text(payload.optional_object(links, "html"), "href")
    changes = payload.objects(payload.optional_object(source, "push"), "changes")
    return Push(
        delivery=delivery,
        repository_urls=_urls(url),
        changes=_known([_cloud_change(change) for change in changes[:CHANGES_MAX]], len(changes)),
        default_branch=payload.branch_or_none(
            payload.optional_text(payload.optional_object(repository, "mainbranch"), "name")
        ),
    )


def _cloud_change(change: JsonObject) -> RefChange | None:
    """Return what a change says, None where it is of neither a branch nor a tag."""
    old, new = payload.optional_object(change, "old"), payload.optional_object(change, "new")
    one = new or old
    if not one:
        raise ProtocolError("a change has neither old nor new")
    name = payload.text(one, "name")
    match payload.text(one, "type"):
        case "branch":
            return RefChange(payload.branch(name), _cloud_tip(old), _cloud_tip(new))
        case "tag":
            return _tag_change(payload.tag(name), is_there_before=bool(old), is_there=bool(new))
        case _:
            return None


def _cloud_tip(side: JsonObject) -> Tip:
    return payload.tip(payload.optional_object(side, "target"), "hash") if side else None


# Bitbucket Data Center.


def _data_center_push(delivery: str, source: JsonObject) -> Push:
    links = payload.optional_object(payload.optional_object(source, "repository"), "links")
    clone = payload.objects(links, "clone") if "clone" in links else []
    changes = payload.objects(source, "changes")
    return Push(
        delivery=delivery,
        repository_urls=_urls(
            *(
                payload.optional_text(link, "href")
                for link in clone
                if payload.optional_text(link, "name") in {"http", "https"}
            )
        ),
        changes=_known(
            [_data_center_change(change) for change in changes[:CHANGES_MAX]], len(changes)
        ),
        default_branch=None,
    )


def _data_center_change(change: JsonObject) -> RefChange:
    ref = ref_name(payload.text(payload.optional_object(change, "ref"), "id").encode())
    before, after = payload.tip(change, "fromHash"), payload.tip(change, "toHash")
    if ref.startswith(b"refs/tags/"):
        return _tag_change(ref, is_there_before=before is not None, is_there=after is not None)
    return RefChange(ref, before, after)


# Both.


def _tag_change(ref: RefName, *, is_there_before: bool, is_there: bool) -> RefChange:
    return RefChange(ref, UNKNOWN if is_there_before else None, UNKNOWN if is_there else None)


def _known(changes: Sequence[RefChange | None], count: int) -> tuple[RefChange, ...]:
    """Return the changes, none where not all of them are known: then any ref may have changed."""
    known = tuple(change for change in changes if change is not None)
    return known if len(known) == count else ()


def _urls(*urls: str) -> tuple[str, ...]:
    if found := tuple(dict.fromkeys(url for url in urls if url)):
        return found
    raise ProtocolError("the payload names no repository: it has no link to it")
