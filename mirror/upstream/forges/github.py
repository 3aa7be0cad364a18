"""GitHub's webhooks: is this one genuine, and what does it say?

Follows docs.github.com, "Validating webhook deliveries" and "Webhook events and payloads" (push,
create, delete, ping). GitHub sends no event for more than three tags or 5,000 branches in one push:
the poll finds those.
"""

from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qs

from mirror.errors import ProtocolError, Unauthenticated
from mirror.upstream.forges import payload
from mirror.upstream.forges.events import Ignored, Ping, WebhookEvent
from mirror.upstream.forges.hook_plan import HookPlan
from mirror.upstream.forges.payload import Headers, JsonObject
from mirror.upstream.forges.signatures import hex_digest, verify_hex

FORM_FIELDS_MAX: Final = 8
"""GitHub sends one, `payload`."""


def signature(body: bytes, secret: bytes) -> str:
    """Return what GitHub sends as `X-Hub-Signature-256`."""
    return f"sha256={hex_digest(body, secret)}"


def verify(headers: Headers, body: bytes, *, secrets: Sequence[bytes], now: float) -> int:
    """Return which of `secrets` signed `body`, by position.

    `now` is not looked at: GitHub signs no time.

    Raises:
        Unauthenticated: None of them did. The message says what to mend.
    """
    header = headers.get("X-Hub-Signature-256")
    if header is None and "X-Hub-Signature" in headers:
        raise Unauthenticated("only the SHA-1 signature came; X-Hub-Signature-256 is needed")
    if header is None:
        raise Unauthenticated("no X-Hub-Signature-256 header: set the secret of the webhook")
    if not header.startswith("sha256="):
        raise Unauthenticated("X-Hub-Signature-256 must read sha256=<64 hex digits>")
    digest = header.removeprefix("sha256=")
    return verify_hex(digest, body, secrets=secrets, header="X-Hub-Signature-256")


def parse(headers: Headers, body: bytes) -> WebhookEvent:
    """Return what the webhook says.

    Raises:
        ProtocolError: It is not as GitHub documents it.
    """
    event = payload.event_name(headers, "X-GitHub-Event")
    delivery = payload.header_word(headers, "X-GitHub-Delivery") or payload.body_id(body)
    match event:
        case "push":
            source = _source(headers, body)
            return payload.push_of_one(delivery, source, payload.ref_change(source))
        case "create" | "delete":
            source = _source(headers, body)
            change = payload.created_or_deleted(source, is_created=event == "create")
            if change is None:
                return Ignored(delivery, event, "neither a branch nor a tag")
            return payload.push_of_one(delivery, source, change)
        case "ping":
            repository = payload.optional_object(_source(headers, body), "repository")
            return Ping(delivery, payload.optional_repository_urls(repository))
        case _:
            return Ignored(delivery, event, "only push, create and delete change refs")


def plan_hook(upstream: str, *, url: str) -> HookPlan:
    """Return the webhook to make. A push says of branches and tags made and deleted, too."""
    return HookPlan(
        settings_url=f"{upstream.removesuffix('.git')}/settings/hooks/new",
        fields=(
            ("Payload URL", url),
            ("Content type", "application/json"),
            ("Which events", "Just the push event"),
        ),
        signing_label="Secret",
    )


def _source(headers: Headers, body: bytes) -> JsonObject:
    content_type = payload.content_type(headers)
    match content_type:
        case "application/json":
            return payload.load(body)
        case "application/x-www-form-urlencoded":
            return payload.load(_payload_of_form(body))
        case _:
            raise ProtocolError(
                f"expected application/json as Content-Type, got {content_type[:80]!r}: "
                "choose it in the settings of the webhook"
            )


def _payload_of_form(body: bytes) -> bytes:
    try:
        form = parse_qs(body.decode("ascii"), max_num_fields=FORM_FIELDS_MAX, errors="strict")
    except ValueError as error:
        raise ProtocolError(f"the body is not an HTML form: {error}") from error
    if len(form.get("payload", ())) != 1:
        raise ProtocolError("expected an HTML form with one field payload")
    return form["payload"][0].encode()
