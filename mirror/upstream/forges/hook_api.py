"""What GitHub's and GitLab's programming interfaces are told about a repository's webhook.

Pure: requests and answers as values; `mirror.upstream.hooks` sends them. Follows docs.github.com,
"REST API endpoints for repository webhooks", and docs.gitlab.com, "Project webhooks API".
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import quote, urlsplit

from mirror.upstream.forges.payload import JsonObject

_EVENTS: Final = frozenset({"push"})
"""At GitHub a push says of branches and tags that are made and deleted, too."""

_SIGNING_TOKEN_PREFIX: Final = "whsec_"  # noqa: S105 - how one begins, not one
_SIGNING_KEY_BYTES: Final = 32


class HookApi(Protocol):
    """One forge's interface, for one repository."""

    @property
    def hooks_url(self) -> str:
        """Lists the repository's webhooks, takes a new one, and has each below itself."""

    @property
    def update_method(self) -> str:
        """How a webhook is changed."""

    @property
    def needs(self) -> str:
        """Which token may do all that, for people."""

    def headers(self, token: str) -> Mapping[str, str]:
        """Return the headers of every request."""

    def url_of(self, hook: JsonObject) -> object:
        """Return where a listed webhook delivers."""

    def wanted(self, url: str, secret: str, *, old: JsonObject | None) -> JsonObject:
        """Return the webhook to make, or what `old` is to become; what else it does stays."""

    def missing(self, hook: JsonObject, secret: str) -> str | None:
        """Return what the webhook lacks that was just written, None where nothing."""


@dataclass(frozen=True, slots=True)
class GithubHookApi:
    """GitHub's, at github.com, for GHE.com and of Enterprise Server."""

    hooks_url: str
    update_method: str = "PATCH"
    needs: str = (
        "a classic token with admin:repo_hook, or a fine-grained token or GitHub App with the "
        "repository permission Webhooks: read and write"
    )

    @classmethod
    def of(cls, upstream: str, api: str | None = None) -> "GithubHookApi":
        """Return that of the repository at `upstream`; `api` as `api_base` returns it."""
        path = urlsplit(upstream).path.strip("/").removesuffix(".git")
        return cls(f"{api or api_base('github', upstream)}/repos/{quote(path)}/hooks")

    def headers(self, token: str) -> Mapping[str, str]:
        """See `HookApi`."""
        return {
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {token}",
            "X-GitHub-Api-Version": "2022-11-28",
        }

    def url_of(self, hook: JsonObject) -> object:
        """See `HookApi`."""
        settings = hook.get("config")
        return settings.get("url") if isinstance(settings, dict) else None

    def wanted(self, url: str, secret: str, *, old: JsonObject | None) -> JsonObject:
        """See `HookApi`. A hook for all events (`*`) stays one."""
        listed = old.get("events") if old else None
        events = {one for one in (listed if isinstance(listed, list) else ()) if type(one) is str}
        wanted = {
            "active": True,
            "events": sorted(events if "*" in events else events | _EVENTS),
            "config": {"url": url, "content_type": "json", "secret": secret, "insecure_ssl": "0"},
        }
        return wanted if old else {"name": "web", **wanted}

    def missing(self, hook: JsonObject, secret: str) -> str | None:
        """See `HookApi`."""
        settings = hook.get("config")
        has_secret = isinstance(settings, dict) and settings.get("secret")
        return None if has_secret else "GitHub did not keep the secret"


@dataclass(frozen=True, slots=True)
class GitlabHookApi:
    """GitLab's, at gitlab.com and self-managed."""

    hooks_url: str
    update_method: str = "PUT"
    needs: str = (
        "a personal, group or project access token with the scope api, of a Maintainer or Owner"
    )

    @classmethod
    def of(cls, upstream: str, api: str | None = None) -> "GitlabHookApi":
        """Return that of the project at `upstream`; `api` as `api_base` returns it."""
        base = api or api_base("gitlab", upstream)
        path = urlsplit(upstream).path.strip("/").removesuffix(".git")
        # GitLab may live below a path: what `api` has before /api/v4 is no part of the project's.
        below = urlsplit(base).path.strip("/").removesuffix("api/v4").strip("/")
        if below and urlsplit(base).netloc == urlsplit(upstream).netloc:
            path = path.removeprefix(f"{below}/")
        return cls(f"{base}/projects/{quote(path, safe='')}/hooks")

    def headers(self, token: str) -> Mapping[str, str]:
        """See `HookApi`. Access tokens of all kinds may come as Bearer, as OAuth's must."""
        return {"Accept": "application/json", "Authorization": f"Bearer {token}"}

    def url_of(self, hook: JsonObject) -> object:
        """See `HookApi`."""
        return hook.get("url")

    def wanted(self, url: str, secret: str, *, old: JsonObject | None) -> JsonObject:
        """See `HookApi`."""
        kind = "signing_token" if _is_signing_token(secret) else "token"
        return {
            "url": url,
            "push_events": True,
            "push_events_branch_filter": "",
            "branch_filter_strategy": "all_branches",
            "tag_push_events": True,
            "enable_ssl_verification": True,
            kind: secret,
        }

    def missing(self, hook: JsonObject, secret: str) -> str | None:
        """See `HookApi`. An older GitLab passes over a signing token without a word."""
        if not _is_signing_token(secret) or hook.get("signing_token_present") is True:
            return None
        return (
            "this GitLab takes no signing token, so the webhook has no secret; put a secret that "
            "does not begin with whsec_ on the first line of webhook_secret_file and try again"
        )


HOOK_APIS: Final[Mapping[str, type[GithubHookApi | GitlabHookApi]]] = {
    "github": GithubHookApi,
    "gitlab": GitlabHookApi,
}
"""By the forge's name: those that can be asked to make a webhook."""


def api_base(forge: str, upstream: str) -> str:
    """Return where the interface of the forge that has `upstream` is, without a trailing slash."""
    parts = urlsplit(upstream)
    origin = f"{parts.scheme}://{parts.netloc}"
    if forge == "gitlab":
        return f"{origin}/api/v4"
    host = parts.hostname or ""
    if host in {"github.com", "www.github.com"}:
        return "https://api.github.com"
    if host.endswith(".ghe.com"):
        return f"{parts.scheme}://api.{parts.netloc}"
    return f"{origin}/api/v3"


def _is_signing_token(secret: str) -> bool:
    """Tell a secret of GitLab's own making, with which it signs instead of sending it along."""
    encoded = secret.removeprefix(_SIGNING_TOKEN_PREFIX)
    if encoded == secret:
        return False
    try:
        return len(base64.b64decode(encoded, validate=True)) == _SIGNING_KEY_BYTES
    except ValueError:
        return False
