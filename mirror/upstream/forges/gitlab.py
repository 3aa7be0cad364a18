"""GitLab's webhooks: is this one genuine, and what does it say?

Follows docs.gitlab.com, "Webhooks", "Webhook events" (push, tag) and "System hooks" (push,
tag_push, repository_update, project_rename, project_transfer); the signed form is that of
standardwebhooks.com. GitLab sends no project hook for a push of more than three refs; the system
hook `repository_update` always comes.

GitLab disables a hook that is answered 4xx, so what is merely of no use to us is `Ignored`: so are
projects and groups that come and go (project_create, project_destroy, group_rename and the like).
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final

from mirror.errors import Unauthenticated
from mirror.upstream.forges import payload
from mirror.upstream.forges.events import Ignored, Push, WebhookEvent
from mirror.upstream.forges.hook_plan import HookPlan
from mirror.upstream.forges.payload import Headers, JsonObject
from mirror.upstream.forges.signatures import first_proven, header_bytes

SIGNATURE_AGE_SECONDS_MAX: Final = 300
"""How far the signed time may be from ours, either way: what Standard Webhooks' libraries allow."""

KIND_LENGTH_MAX: Final = 100
"""GitLab's longest event name has about 40 characters."""

PATH_LENGTH_MAX: Final = 200
"""How much of a project's path is repeated."""

_HOOKS: Final = frozenset({"Push Hook", "Tag Push Hook", "System Hook"})
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}", re.ASCII)
_SIGNING_TOKEN_PREFIX: Final = b"whsec_"


def verify(headers: Headers, body: bytes, *, secrets: Sequence[bytes], now: float) -> int:
    """Return which of `secrets` was sent as the token or signed the request, by position.

    A hook may send both its secret token and a signature while we were told only one of the
    two: either proves it genuine.

    Raises:
        Unauthenticated: None of them. The message says what to mend.
    """
    token = headers.get("X-Gitlab-Token")
    signatures = headers.get("webhook-signature")
    if token is None and signatures is None:
        raise Unauthenticated(
            "neither X-Gitlab-Token nor webhook-signature came: set the webhook's secret token"
        )
    if token is not None:
        sent = header_bytes(token)
        position = first_proven(secrets, lambda secret: hmac.compare_digest(secret, sent))
        if position is not None:
            return position
    if signatures is None:
        raise Unauthenticated(
            "X-Gitlab-Token is wrong: is the webhook's secret token the configured one?"
        )
    return _verify_signatures(headers, body, signatures, secrets=secrets, now=now)


def _verify_signatures(
    headers: Headers, body: bytes, signatures: str, *, secrets: Sequence[bytes], now: float
) -> int:
    message_id = headers.get("webhook-id")
    timestamp = headers.get("webhook-timestamp")
    if message_id is None or timestamp is None:
        raise Unauthenticated("webhook-signature came without webhook-id or webhook-timestamp")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise Unauthenticated("webhook-timestamp must be a number of seconds since 1970")
    if (age := abs(now - int(timestamp))) > SIGNATURE_AGE_SECONDS_MAX:
        raise Unauthenticated(
            f"webhook-timestamp is {age:.0f} s away from our time, "
            f"at most {SIGNATURE_AGE_SECONDS_MAX} s are allowed: is a clock wrong?"
        )
    signed = header_bytes(f"{message_id}.{timestamp}.")
    sent = header_bytes(signatures).split(b" ")

    def signs(secret: bytes) -> bool:
        expected = _signature(signed, body, secret)
        if expected is None:
            return False
        fits = [hmac.compare_digest(expected, one) for one in sent]
        return any(fits)

    position = first_proven(secrets, signs)
    if position is None:
        raise Unauthenticated(
            "webhook-signature does not fit the body: is its signing token the configured secret?"
        )
    return position


def _signature(signed: bytes, body: bytes, secret: bytes) -> bytes | None:
    """Return what GitLab sends as `webhook-signature`, None where `secret` is no key."""
    key = _signing_key(secret)
    if not key:  # `whsec_` alone: anybody could sign with it
        return None
    mac = hmac.new(key, signed, hashlib.sha256)
    mac.update(body)
    return b"v1," + base64.b64encode(mac.digest())


def _signing_key(secret: bytes) -> bytes:
    if not secret.startswith(_SIGNING_TOKEN_PREFIX):
        return secret
    try:
        return base64.b64decode(secret.removeprefix(_SIGNING_TOKEN_PREFIX), validate=True)
    except ValueError:
        return secret


def parse(headers: Headers, body: bytes) -> WebhookEvent:
    """Return what the webhook says.

    Raises:
        ProtocolError: It is not as GitLab documents it.
    """
    hook = payload.event_name(headers, "X-Gitlab-Event")
    delivery = _delivery_id(headers, body)
    if hook not in _HOOKS:
        return Ignored(delivery, hook, "only push, tag push and system hooks change refs")
    source = payload.load(body)
    # The body decides, not the header: all system hooks share one, and GitLab's "Test" button sends
    # a push under the header of a tag push.
    kind = payload.optional_text(source, "event_name") or payload.optional_text(
        source, "object_kind"
    )
    match kind:
        case "push" | "tag_push":
            changes = [payload.ref_change(source)]
        case "repository_update":
            changes = payload.ref_changes(source, "changes")
        case "project_rename" | "project_transfer":
            return Ignored(delivery, kind, _moved(source))
        case _:
            return Ignored(delivery, kind[:KIND_LENGTH_MAX] or hook, "it changes no ref")
    project = payload.optional_object(source, "project")
    repository = payload.optional_object(source, "repository")
    return Push(
        delivery=delivery,
        repository_urls=payload.repository_urls(project, repository),
        changes=tuple(changes),
        default_branch=payload.default_branch(project),
    )


def plan_hook(upstream: str, *, url: str) -> HookPlan:
    """Return the webhook to make."""
    return HookPlan(
        settings_url=f"{upstream.removesuffix('.git')}/-/hooks",
        fields=(("URL", url), ("Trigger", "Push events (all branches), Tag push events")),
        signing_label="Secret token",
    )


def _moved(source: JsonObject) -> str:
    """Say what to do about a project that moved. Its host is not told, so it can't be looked up."""
    old = payload.optional_text(source, "old_path_with_namespace")[:PATH_LENGTH_MAX]
    new = payload.optional_text(source, "path_with_namespace")[:PATH_LENGTH_MAX]
    return f"the project {old!a} is {new!a} now: if it is mirrored, put the new URL into `upstream`"


def _delivery_id(headers: Headers, body: bytes) -> str:
    """Return the id that a repeated delivery shares, and nothing else does.

    `Idempotency-Key` came with GitLab 17.4. Before, `X-Gitlab-Event-UUID` is the same for a push
    and for what another webhook pushes in answer to it: the body must tell those two apart.
    """
    delivery = payload.header_word(headers, "Idempotency-Key")
    if delivery := delivery or payload.header_word(headers, "webhook-id"):
        return delivery
    event = payload.header_word(headers, "X-Gitlab-Event-UUID")
    return f"{event}:{payload.body_id(body)}" if event else payload.body_id(body)
