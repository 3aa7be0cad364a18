"""Webhooks of the forges: is this one genuine, what does it say, which repository does it mean?

Pure: headers and bytes in, an event or an error of `mirror.errors` out. Which repositories exist,
which secret is whose and what was delivered before is the caller's to know.

Each forge is a module with `verify`, `parse` and `plan_hook` (`Receiver`); a new one is one module
more in `RECEIVERS`, and its payloads in the contract suite (tests/upstream/test_forges.py). In use:

    receiver = RECEIVERS["github"]
    position = receiver.verify(headers, body, secrets=secrets, now=now)   # or Unauthenticated
    event = receiver.parse(headers, body)                                 # or ProtocolError

`position` tells which of the secrets it was: where repositories have secrets of their own, the
owner of one must not speak for another. `body` is the raw body as it came.

    github, gitlab, gitea, bitbucket: one forge each (gitea is Forgejo's, too)

    events          what a webhook tells us, whichever forge sent it
    payload         reading what all of them send alike
    signatures      what their checks share
    repository_key  under which key a repository is found, however a URL names it
    hook_plan       which webhook a repository needs, in the forge's words
    hook_api        what the forges' interfaces are told about it
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from mirror.upstream.forges import bitbucket, gitea, github, gitlab
from mirror.upstream.forges.events import (
    UNKNOWN,
    Ignored,
    Ping,
    Push,
    RefChange,
    Tip,
    Unknown,
    WebhookEvent,
)
from mirror.upstream.forges.hook_plan import HookPlan, delivery_url
from mirror.upstream.forges.payload import Headers
from mirror.upstream.forges.repository_key import RepositoryKey, repository_key

__all__ = [
    "RECEIVERS",
    "RESENTFUL",
    "UNKNOWN",
    "Headers",
    "HookPlan",
    "Ignored",
    "Ping",
    "Push",
    "Receiver",
    "RefChange",
    "RepositoryKey",
    "Tip",
    "Unknown",
    "WebhookEvent",
    "bitbucket",
    "delivery_url",
    "gitea",
    "github",
    "gitlab",
    "repository_key",
]


class Receiver(Protocol):
    """One forge's webhooks."""

    def verify(self, headers: Headers, body: bytes, *, secrets: Sequence[bytes], now: float) -> int:
        """Return the position in `secrets` of the one that proves the request genuine.

        Raises:
            Unauthenticated: None does.
        """

    def parse(self, headers: Headers, body: bytes) -> WebhookEvent:
        """Return what the webhook says.

        Raises:
            ProtocolError: It is not what the forge documents.
        """

    def plan_hook(self, upstream: str, *, url: str) -> HookPlan:
        """Return the webhook for the repository at `upstream`, delivering to `url`.

        `upstream` is an http or https URL as the configuration has it, `url` what `delivery_url`
        returned.
        """


RECEIVERS: Final[Mapping[str, Receiver]] = {
    "github": github,
    "gitlab": gitlab,
    "gitea": gitea,
    "bitbucket": bitbucket,
}
"""By the forge's name in the configuration and in `/webhooks/<forge>`."""

RESENTFUL: Final = frozenset({"gitlab", "bitbucket"})
"""The forges that stop delivering to whoever answers 4xx too often: GitLab disables a hook after a
few refusals in a row, Bitbucket Data Center lets it rest for longer and longer. One push that we
can't read, of a SHA-256 repository say, must not cost the next ones."""
