"""How each forge sends webhooks: what it signs with, its events, and payloads it really sent."""

import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from multidict import CIMultiDict

from mirror.upstream.forges import RECEIVERS, Receiver

PAYLOADS = Path(__file__).parent / "payloads"
NOW = 1_740_000_000.5
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Sample:
    """How one forge sends webhooks.

    Attributes:
        push: The name of a payload that is a push, which comes under the first of `events`.
        signature_header: Where the digest stands that `signed` makes.
        is_flat: A push is one change: `ref`, `before` and `after` at the top of the payload.
    """

    forge: str
    push: str
    signed: Callable[[bytes, bytes], CIMultiDict[str]]
    signature_header: str
    delivery_header: str
    events: tuple[CIMultiDict[str], ...]
    is_flat: bool = True

    @property
    def receiver(self) -> Receiver:
        return RECEIVERS[self.forge]

    @property
    def payloads(self) -> tuple[bytes, ...]:
        return tuple(path.read_bytes() for path in sorted((PAYLOADS / self.forge).glob("*.json")))

    @property
    def push_body(self) -> bytes:
        return (PAYLOADS / self.forge / f"{self.push}.json").read_bytes()


def digest(body: bytes, secret: bytes) -> str:
    return hmac.new(secret, body, hashlib.sha256).hexdigest()


def by_github(body: bytes, secret: bytes) -> CIMultiDict[str]:
    return CIMultiDict({"x-hub-signature-256": f"sha256={digest(body, secret)}"})


def by_gitlab(body: bytes, secret: bytes) -> CIMultiDict[str]:
    timestamp = int(NOW)
    mac = hmac.new(secret, b"id-1.%d.%b" % (timestamp, body), hashlib.sha256).digest()
    return CIMultiDict(
        {
            "Webhook-Id": "id-1",
            "Webhook-Timestamp": str(timestamp),
            "Webhook-Signature": f"v1,{base64.b64encode(mac).decode()}",
        }
    )


def by_gitea(body: bytes, secret: bytes) -> CIMultiDict[str]:
    return CIMultiDict({"X-Gitea-Signature": digest(body, secret)})


def by_bitbucket(body: bytes, secret: bytes) -> CIMultiDict[str]:
    return CIMultiDict({"X-Hub-Signature": f"sha256={digest(body, secret)}"})


def github_event(event: str, content_type: str = "application/json") -> CIMultiDict[str]:
    return CIMultiDict({"X-GitHub-Event": event, "Content-Type": content_type})


def events(header: str, *names: str) -> tuple[CIMultiDict[str], ...]:
    return tuple(CIMultiDict({header: name}) for name in names)


GITHUB = Sample(
    "github",
    "push-branch-created",
    by_github,
    "X-Hub-Signature-256",
    "X-GitHub-Delivery",
    (
        *map(github_event, ("push", "create", "delete", "ping", "issues")),
        github_event("push", FORM),
    ),
)
GITLAB = Sample(
    "gitlab",
    "push",
    by_gitlab,
    "webhook-signature",
    "Idempotency-Key",
    events("X-Gitlab-Event", "Push Hook", "Tag Push Hook", "System Hook", "Issue Hook"),
)
GITEA = Sample(
    "gitea",
    "push",
    by_gitea,
    "X-Gitea-Signature",
    "X-Gitea-Delivery",
    (
        *events("X-Gitea-Event", "push", "create", "delete", "issues"),
        *events("X-Forgejo-Event", "push", "create"),
    ),
)
BITBUCKET = Sample(
    "bitbucket",
    "push",
    by_bitbucket,
    "X-Hub-Signature",
    "X-Request-UUID",
    events(
        "X-Event-Key", "repo:push", "repo:refs_changed", "diagnostics:ping", "pullrequest:created"
    ),
    is_flat=False,
)
SAMPLES = (GITHUB, GITLAB, GITEA, BITBUCKET)
