"""What a GitHub App asks of GitHub's interface, and what the refusals mean.

Pure but for reading answers: requests as values, refusals as sentences that say what to do.
Follows docs.github.com, "Generating a JSON Web Token (JWT) for a GitHub App" and "REST API
endpoints for GitHub Apps".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote

from mirror.errors import UpstreamError, UpstreamRefused, UpstreamUnavailable

ISSUED_BEFORE_SECONDS: Final = 60
"""A token of the app is dated back: clocks differ a little."""

EXPIRES_AFTER_SECONDS: Final = 540
"""GitHub takes at most 600, by its own clock."""

PERMISSIONS: Final = {"contents": "read", "metadata": "read"}
"""All that a mirror needs: a token that leaks can do no more, whatever else the app may do."""

SKEW_SECONDS_MIN: Final = 5.0
WORDS_LENGTH_MAX: Final = 300
TOKEN_SECONDS_DEFAULT: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the interface, read to its end.

    Attributes:
        retry_after_seconds: What Retry-After asked for.
        received_at: Our clock, in seconds since the epoch.
    """

    status: int
    headers: Mapping[str, str]
    body: str
    retry_after_seconds: float | None
    received_at: float

    def object(self) -> Mapping[str, Any]:
        """Return the JSON object that it holds; an empty one where it holds none."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def message(self) -> str:
        """GitHub's own explanation: printable, and not long."""
        said = self.object().get("message")
        if not isinstance(said, str):
            return ""
        return "".join(one if one.isprintable() else " " for one in said)[:WORDS_LENGTH_MAX]

    @property
    def is_limit(self) -> bool:
        """Whether it asks us to slow down."""
        if self.status == 429:
            return True
        spent = self.headers.get("X-RateLimit-Remaining") == "0"
        return self.status == 403 and (spent or self.retry_after_seconds is not None)

    def skew_seconds(self) -> float | None:
        """Return how far our clock is ahead of theirs; `None` where they don't tell."""
        try:
            theirs = parsedate_to_datetime(self.headers["Date"]).timestamp()
        except (KeyError, ValueError, TypeError):
            return None
        return self.received_at - theirs


def claims(app_id: str, now: float) -> dict[str, int | str]:
    """Return what the app signs to prove itself; `now` in seconds since the epoch."""
    return {
        "iat": int(now) - ISSUED_BEFORE_SECONDS,
        "exp": int(now) + EXPIRES_AFTER_SECONDS,
        "iss": app_id,
    }


def installation_paths(owner: str) -> tuple[str, str]:
    """Return where the installation for an owner is found: an organisation's, or a user's."""
    name = quote(owner, safe="")
    return f"/orgs/{name}/installation", f"/users/{name}/installation"


def token_path(installation_id: int) -> str:
    """Return where a token of an installation is made."""
    return f"/app/installations/{installation_id}/access_tokens"


def lifetime_seconds(answer: Answer) -> float:
    """Return how long the token of an answer lasts: by GitHub's clock at both ends."""
    try:
        ends_at = datetime.fromisoformat(str(answer.object()["expires_at"])).timestamp()
    except (KeyError, ValueError):
        return TOKEN_SECONDS_DEFAULT
    return ends_at - (answer.received_at - (answer.skew_seconds() or 0.0))


@dataclass(frozen=True, slots=True)
class AppWords:
    """How errors speak of an app.

    Attributes:
        app: "GitHub App 123456 (key /etc/git-mirror/app.pem)".
        key_file: The file of its key.
        owner: Whose installation it is about.
        api: The interface.
    """

    app: str
    key_file: str
    owner: str
    api: str

    def refusal(self, answer: Answer) -> UpstreamError:
        """Return what a refusal means, and what to do about it."""
        status, said = answer.status, answer.message
        where = f"{self.api} answered {status}" + (f" ({said})" if said else "")
        if answer.is_limit:
            return UpstreamUnavailable(
                f"{where}: it asks {self.app} to slow down",
                retry_after_seconds=answer.retry_after_seconds,
            )
        if status >= 500:
            return UpstreamUnavailable(f"{where} to {self.app}")
        return UpstreamRefused(f"{where}: {self._hint(answer, said)}")

    def _hint(self, answer: Answer, said: str) -> str:
        match answer.status:
            case 401 if "'iat'" in said or "'exp'" in said or "'Issued at'" in said:
                return f"{self._clock(answer)}; set it with chrony or systemd-timesyncd"
            case 401:
                return (
                    f"it does not know {self.app}; is `app_id` right, and the key not deleted at"
                    f" GitHub? make a new one and put it into {self.key_file}"
                )
            case 403 if "suspended" in said:
                return (
                    f"the installation of {self.app} for {self.owner} is suspended; an owner can"
                    " unsuspend it in the settings, under GitHub Apps"
                )
            case 404:
                return (
                    f"{self.app} is not installed for {self.owner}; install it there, for this"
                    " repository too, or mend `installation_id`"
                )
            case 422:
                return (
                    f"{self.app} lacks the repository permission Contents: read-only for"
                    f" {self.owner}; add it to the app, and let the owner accept it"
                )
            case status if 300 <= status < 400:
                return f"{self.owner} has moved; put the repository's new URL into `upstream`"
            case _:
                return f"it gives {self.app} no token for {self.owner}"

    def _clock(self, answer: Answer) -> str:
        skew = answer.skew_seconds()
        if skew is None or abs(skew) < SKEW_SECONDS_MIN:
            return f"it refuses the time that {self.app} signed: is this machine's clock right?"
        way = "ahead of" if skew > 0 else "behind"
        return (
            f"it refuses the time that {self.app} signed: this machine's clock is"
            f" {abs(skew):.0f} s {way} GitHub's"
        )
