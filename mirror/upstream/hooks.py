"""Makes a repository's webhook at its forge, or brings the one that is there up to date.

The token and the secret go to the named interface alone: over https or to this machine, never after
a redirect, never into a message.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from mirror.config import is_in_the_clear
from mirror.errors import UpstreamError, UpstreamRefused, UpstreamUnavailable
from mirror.upstream.credentials import Secret
from mirror.upstream.forges.hook_api import HookApi
from mirror.upstream.line import Line

SECONDS_MAX: Final = 30.0
"""For one request. Both forges answer within a second or two."""

ANSWER_BYTES_MAX: Final = 4 << 20
"""A page of a hundred webhooks has about 100 KB."""

PAGE_LENGTH: Final = 100
PAGES_MAX: Final = 20
"""GitHub allows 20 webhooks of a kind for a repository, GitLab 100 for a project."""

WORDS_LENGTH_MAX: Final = 300
"""How much of a forge's explanation is repeated."""


@dataclass(frozen=True, slots=True)
class Installed:
    """What became of a webhook, or would in a dry run.

    Attributes:
        is_new: It was made; otherwise it was there.
        hook_id: The forge's number of it; None where it would be made.
        others: How many more webhooks of the repository deliver to the same URL.
    """

    is_new: bool
    hook_id: int | None
    others: int = 0


@dataclass(frozen=True, slots=True)
class HookInstaller:
    """Talks to one forge's interface with one token."""

    line: Line
    api: HookApi
    token: Secret

    async def install(self, *, url: str, secret: Secret, is_dry_run: bool) -> Installed:
        """Make the webhook that delivers to `url`, or bring the one that is there up to date.

        Raises:
            UpstreamRefused: The forge, or we, will not; the message says what to do.
            UpstreamUnavailable: Passing trouble.
        """
        if is_in_the_clear(self.api.hooks_url):
            raise UpstreamRefused(
                f"over plain http everybody on the way to {self._host} could read the token and "
                "the secret; name an https address with --api"
            )
        words = _text(secret, what="the webhook's secret")
        same = [hook for hook in await self._list(words) if _is_same(self.api.url_of(hook), url)]
        old = same[0] if same else None
        hook_id = None if old is None else self._id_of(old)
        if is_dry_run:
            return Installed(old is None, hook_id, max(0, len(same) - 1))
        wanted = self.api.wanted(url, words, old=old)
        if old is None:
            written = await self._ask("POST", self.api.hooks_url, words, wanted)
        else:
            written = await self._ask(
                self.api.update_method, f"{self.api.hooks_url}/{hook_id}", words, wanted
            )
        hook = _object(written.value)
        if (missing := self.api.missing(hook, words)) is not None:
            raise UpstreamRefused(missing)
        return Installed(old is None, self._id_of(hook), max(0, len(same) - 1))

    @property
    def _host(self) -> str:
        return urlsplit(self.api.hooks_url).netloc

    async def _list(self, secret: str) -> list[Mapping[str, Any]]:
        """Return the repository's webhooks, from all pages.

        The next page is asked for by its number: a link could lead the token elsewhere.
        """
        hooks: list[Mapping[str, Any]] = []
        for page in range(1, PAGES_MAX + 1):
            url = f"{self.api.hooks_url}?per_page={PAGE_LENGTH}&page={page}"
            answer = await self._ask("GET", url, secret)
            if not isinstance(answer.value, list):
                raise UpstreamRefused(f"{self._host} did not answer with a list of webhooks")
            hooks += [_object(hook) for hook in answer.value]
            if not answer.has_next:
                return hooks
        raise UpstreamRefused(f"the repository has over {PAGES_MAX * PAGE_LENGTH} webhooks")

    def _id_of(self, hook: Mapping[str, Any]) -> int:
        hook_id = hook.get("id")
        if not isinstance(hook_id, int):
            raise UpstreamRefused(f"{self._host} did not tell the number of a webhook")
        return hook_id

    async def _ask(
        self, method: str, url: str, secret: str, body: Mapping[str, object] | None = None
    ) -> "_Answer":
        token = _text(self.token, what="the token")
        try:
            options, place = await self.line.route.options(), URL(url, encoded=True)
            async with self.line.session.request(
                method,
                place,
                json=body,
                headers={**self.api.headers(token), **self.line.route.headers_for(place)},
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=SECONDS_MAX),
                **options,
            ) as response:
                content = await _read(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise UpstreamUnavailable(f"{self._host} can't be reached: {reason}") from error
        if response.status not in {200, 201}:
            raise self._refusal(response, _words(content, hidden=(token, secret)))
        try:
            return _Answer(json.loads(content), has_next="next" in response.links)
        except (ValueError, RecursionError):
            raise UpstreamRefused(
                f"{self._host} did not answer with JSON; is its interface there? name it with --api"
            ) from None

    def _refusal(self, response: aiohttp.ClientResponse, words: str) -> UpstreamError:
        said = f"{self._host} answered {response.status}" + (f" ({words})" if words else "")
        headers = response.headers
        slow_down = "Retry-After" in headers or headers.get("X-RateLimit-Remaining") == "0"
        match response.status:
            case 429:
                return UpstreamUnavailable(f"{said}: it asks us to slow down; try again later")
            case 403 if slow_down:
                return UpstreamUnavailable(f"{said}: it asks us to slow down; try again later")
            case 401:
                return UpstreamRefused(
                    f"{said}: the token is wrong or has expired; needed is {self.api.needs}"
                )
            case 403:
                return UpstreamRefused(
                    f"{said}: the token may not set webhooks; needed is {self.api.needs}"
                )
            case 404:
                return UpstreamRefused(
                    f"{said}: the token may not see the repository's webhooks, or there is no such "
                    f"repository, or no interface (--api); needed is {self.api.needs}"
                )
            case status if 300 <= status < 400:
                return UpstreamRefused(
                    f"{said}: it redirects, and the token is not sent after it; put the new URL "
                    "into `upstream`, or name the interface with --api"
                )
            case status if status >= 500:
                return UpstreamUnavailable(f"{said}: try again later")
            case _:
                return UpstreamRefused(f"{said}: it does not take this webhook")


@dataclass(frozen=True, slots=True)
class _Answer:
    value: object
    has_next: bool


def _text(secret: Secret, *, what: str) -> str:
    """Return a secret as text, fit for a header and for JSON."""
    try:
        text = secret.reveal().decode()
    except UnicodeDecodeError:
        text = ""
    if not text.isprintable() or not text or text != text.strip():
        raise UpstreamRefused(f"{what} must be one line of text, with no white space around it")
    return text


async def _read(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_chunked(64 * 1024):
        content += chunk
        if len(content) > ANSWER_BYTES_MAX:
            raise UpstreamRefused(f"the answer is longer than {ANSWER_BYTES_MAX >> 20} MiB")
    return bytes(content)


def _words(content: bytes, *, hidden: Sequence[str]) -> str:
    """Return the explanation in a refusal, as far as there is one, with no secret in it."""
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(said, dict):
        return ""
    errors = said.get("errors")
    parts = [said.get("message"), said.get("error"), said.get("error_description")]
    parts += [
        one.get("message") if isinstance(one, dict) else one
        for one in (errors if isinstance(errors, list) else ())
    ]
    text = "; ".join(part if isinstance(part, str) else json.dumps(part) for part in parts if part)
    for secret in hidden:
        text = text.replace(secret, "***")
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable[:WORDS_LENGTH_MAX]


def _is_same(listed: object, url: str) -> bool:
    return isinstance(listed, str) and listed.rstrip("/") == url


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UpstreamRefused("the forge did not answer with a webhook")
    return value
