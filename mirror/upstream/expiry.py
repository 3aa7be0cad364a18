"""When tokens end: asked of the forges that tell, once a day and whenever a token changes.

GitHub says it in a header of every answer of its interface, GitLab where a token may ask about
itself. That a forge does not tell is no trouble: a token may be of a kind that it says nothing
about. A token goes to the interface of the forge that it was configured for, and nowhere else.
"""

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Final

import structlog
from yarl import URL

from mirror.config import Forge, is_in_the_clear
from mirror.errors import UpstreamError
from mirror.upstream.credentials import BasicCredentials, NetrcCredentials, Secret
from mirror.upstream.forges.hook_api import api_base
from mirror.upstream.line import Line

ASKED_EVERY_SECONDS: Final = 86_400.0
ASKED_AGAIN_SECONDS: Final = 3600.0
"""Where there was no answer."""

TOKENS_MAX: Final = 1000
"""Remembered: one each, however many repositories use it."""

SILENCE_SECONDS_MAX: Final = 15.0
ANSWER_BYTES_MAX: Final = 64 * 1024

GITHUB_HEADER: Final = "GitHub-Authentication-Token-Expiration"

_GITHUB_FORMATS: Final = ("%Y-%m-%d %H:%M:%S %z", "%Y-%m-%d %H:%M:%S UTC")

logger = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Told:
    """What a forge told of a token.

    Attributes:
        expires_at: Seconds since the epoch; `None` where it did not tell.
        ask_at: When to ask again.
    """

    expires_at: float | None
    ask_at: float


class Expiries:
    """What is known of the ends of tokens."""

    def __init__(self, *, agent: bytes, clock: Callable[[], float] = time.time) -> None:
        self._agent = agent.decode("ascii")
        self._clock = clock
        self._told: OrderedDict[bytes, Told] = OrderedDict()

    async def look(
        self,
        line: Line,
        credentials: BasicCredentials | NetrcCredentials,
        *,
        forge: Forge | None,
        upstream: str,
    ) -> None:
        """Bring `credentials.standing.expires_at` up to date, if the forge has a way to tell.

        Credentials that the upstream has not taken are not asked about: that would be one more
        failed login.
        """
        standing = credentials.standing
        if forge not in _ASKED or standing.accepted_at is None or standing.failing_since:
            return
        api = api_base(forge.value, upstream)
        try:
            secret = credentials.secret()
        except UpstreamError:
            return  # the next refresh says so
        key = hashlib.sha256(api.encode() + b"\0" + secret.reveal()).digest()
        told = self._told.get(key)
        if told is None or self._clock() >= told.ask_at:
            told = self._told[key] = await self._ask(line, forge, api, secret)
            if len(self._told) > TOKENS_MAX:
                self._told.popitem(last=False)
        standing.expires_at = told.expires_at

    async def _ask(self, line: Line, forge: Forge, api: str, secret: Secret) -> Told:
        unknown = Told(None, self._clock() + ASKED_EVERY_SECONDS)
        try:
            token = secret.reveal().decode("ascii")
        except UnicodeDecodeError:
            return unknown
        if not token.isprintable() or is_in_the_clear(api):
            return unknown
        path, read = _ASKED[forge]
        headers = {"Authorization": f"Bearer {token}", "User-Agent": self._agent}
        try:
            async with line.requested(
                "GET", URL(api + path), headers=headers, silence_seconds_max=SILENCE_SECONDS_MAX
            ) as response:
                body = await response.content.read(ANSWER_BYTES_MAX)
                return replace(unknown, expires_at=read(response.headers, body))
        except UpstreamError as error:
            logger.info("token_expiry_unknown", api=api, error=str(error))
            return Told(None, self._clock() + ASKED_AGAIN_SECONDS)


def github_expiry(headers: Mapping[str, str], body: bytes) -> float | None:
    """Return what GitHub's header says, in seconds since the epoch."""
    del body
    told = headers.get(GITHUB_HEADER, "").strip()
    for form in _GITHUB_FORMATS:
        try:
            at = datetime.strptime(told, form)  # noqa: DTZ007 - the second form is UTC
        except ValueError:
            continue
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    return None


def gitlab_expiry(headers: Mapping[str, str], body: bytes) -> float | None:
    """Return when the day begins that GitLab's answer names, by UTC: the token ends there."""
    del headers
    try:
        value = json.loads(body)
        day = date.fromisoformat(value["expires_at"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


_ASKED: Final = {
    # Costs nothing of the rate limit, and works where that is off: the header is in every answer.
    Forge.GITHUB: ("/rate_limit", github_expiry),
    Forge.GITLAB: ("/personal_access_tokens/self", gitlab_expiry),
}
