"""Gitea's and Forgejo's webhooks: is this one genuine, and what does it say?

Follows docs.gitea.com and forgejo.org, "Webhooks", and what both send: Gitea's headers come from
Forgejo too, and either name is taken. The payload of `push`, `create` and `delete` is GitHub's in
shape. Each ref of a push comes by itself. Neither forge sends a delivery again by itself, nor gives
up a hook that is refused.

For a tag made in the web interface both name the commit, though the ref holds a tag object: so what
a tag points to is never taken from them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from mirror.errors import Unauthenticated
from mirror.upstream.forges import payload
from mirror.upstream.forges.events import UNKNOWN, Ignored, RefChange, WebhookEvent
from mirror.upstream.forges.hook_plan import HookPlan
from mirror.upstream.forges.payload import Headers
from mirror.upstream.forges.signatures import verify_hex

_FORM: Final = "application/x-www-form-urlencoded"


def verify(headers: Headers, body: bytes, *, secrets: Sequence[bytes], now: float) -> int:
    """Return which of `secrets` signed `body`, by position.

    `now` is not looked at: no time is signed.

    Raises:
        Unauthenticated: None of them did. The message says what to mend.
    """
    digest = _either(headers, "Signature")
    if not digest:  # an empty one comes from a webhook that has no secret
        raise Unauthenticated("no X-Gitea-Signature came: set the secret of the webhook")
    if payload.content_type(headers) == _FORM:
        raise Unauthenticated(
            "a form's signature is not that of the bytes sent: "
            "choose application/json as content type in the settings of the webhook"
        )
    return verify_hex(digest, body, secrets=secrets, header="X-Gitea-Signature")


def parse(headers: Headers, body: bytes) -> WebhookEvent:
    """Return what the webhook says.

    Raises:
        ProtocolError: It is not as Gitea documents it.
    """
    event = payload.event_name(
        headers, "X-Forgejo-Event" if "X-Forgejo-Event" in headers else "X-Gitea-Event"
    )
    delivery = (
        payload.header_word(headers, "X-Gitea-Delivery")
        or payload.header_word(headers, "X-Forgejo-Delivery")
        or payload.body_id(body)
    )
    match event:
        case "push":
            source = payload.load(body)
            return payload.push_of_one(
                delivery, source, _without_tag_s_tip(payload.ref_change(source))
            )
        case "create" | "delete":
            source = payload.load(body)
            change = payload.created_or_deleted(source, is_created=event == "create")
            if change is None:
                return Ignored(delivery, event, "neither a branch nor a tag")
            return payload.push_of_one(delivery, source, change)
        case _:
            return Ignored(delivery, event, "only push, create and delete change refs")


def plan_hook(upstream: str, *, url: str) -> HookPlan:
    """Return the webhook to make; Forgejo has the page under this name too."""
    return HookPlan(
        settings_url=f"{upstream.removesuffix('.git')}/settings/hooks/gitea/new",
        fields=(
            ("Target URL", url),
            ("HTTP method", "POST"),
            ("POST content type", "application/json"),
            ("Trigger on", "Custom events: Create, Delete, Push"),
            ("Branch filter", "*"),
        ),
        signing_label="Secret",
    )


def _either(headers: Headers, name: str) -> str:
    return headers.get(f"X-Gitea-{name}") or headers.get(f"X-Forgejo-{name}") or ""


def _without_tag_s_tip(change: RefChange) -> RefChange:
    if not change.ref.startswith(b"refs/tags/"):
        return change
    return replace(
        change,
        before=None if change.before is None else UNKNOWN,
        after=None if change.after is None else UNKNOWN,
    )
