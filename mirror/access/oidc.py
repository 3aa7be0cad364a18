"""Tokens of OpenID Connect issuers: JSON Web Tokens (RFC 7519), checked with the issuer's keys.

Keys (RFC 7517) are fetched when the first token needs them, again every hour, and when a token
names one that is not known, twice a minute at the most. While the issuer can't be reached, the
keys that are known hold. `id_tokens` reads and verifies; it is loaded where there are issuers only.
"""

import asyncio
import importlib
import json
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aiohttp
import structlog

from mirror.access.reader import Reader
from mirror.config import OidcSettings, is_like, is_own_machine
from mirror.errors import Unauthenticated, UpstreamUnavailable
from mirror.upstream.credentials import SecretFile

if TYPE_CHECKING:
    from jwt import PyJWK

KEYS_SECONDS: Final = 3600.0
KEYS_AGAIN_SECONDS: Final = 30.0
ANSWER_BYTES_MAX: Final = 1 << 20
ANSWER_SECONDS_MAX: Final = 10.0

TOKEN_SECONDS_MAX: Final = 600.0
"""A proof is kept no longer than that: the keys, or the configuration, may have changed."""

logger = structlog.stdlib.get_logger()


@dataclass(slots=True)
class _Keys:
    """An issuer's keys, as they were last seen."""

    settings: OidcSettings
    by_id: "dict[str, PyJWK]" = field(default_factory=dict)
    fetched_at: float | None = None
    tried_at: float | None = None
    error: str = ""
    fetching: "asyncio.Task[None] | None" = None


def _place_of(settings: OidcSettings) -> tuple[object, ...]:
    """Return what the keys depend on: readers of one issuer share them."""
    return settings.issuer, settings.jwks_url, settings.ca_file, settings.token_file


class Oidc:
    """The readers that show tokens of issuers."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        readers: Sequence[OidcSettings],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._readers = readers
        self._clock = clock
        self._keys: dict[tuple[object, ...], _Keys] = {}
        if readers:  # now: the first token need not hold up the event loop
            importlib.import_module("mirror.access.id_tokens")

    def take_over(self, before: "Oidc") -> None:
        """Go on with the keys that another one has fetched, as far as they are of use here."""
        for settings in self._readers:
            place = _place_of(settings)
            known = before._keys.get(place)  # noqa: SLF001 - of the same class
            if known is not None:
                self._keys[place] = replace(known, settings=settings, fetching=None)

    async def close(self) -> None:
        """End what is under way."""
        tasks = [one.fetching for one in self._keys.values() if one.fetching is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def find(self, secret: bytes) -> tuple[Reader, float] | None:
        """Return the reader that a token proves, and until when (seconds since the epoch).

        Returns `None` if it is no token of any issuer here.

        Raises:
            Unauthenticated: It is one, and is not good; the message says why.
            UpstreamUnavailable: The issuer's keys can't be had.
        """
        if not self._readers:
            return None
        # Only here: who has no issuer pays nothing for cryptography.
        from mirror.access.id_tokens import unverified, verified  # noqa: PLC0415

        claimed = unverified(secret)
        if claimed is None:
            return None
        header, issuer = claimed
        candidates = [one for one in self._readers if one.issuer == issuer]
        if not candidates:
            return None
        refusal: Exception | None = None
        for settings in candidates:
            try:
                key = await self._key(settings, str(header.get("kid", "")))
                claims = await asyncio.to_thread(verified, secret, key, settings)
            except Unauthenticated as error:
                refusal = error
                continue
            if _fit(claims, settings.claims):
                until = min(float(claims["exp"]), time.time() + TOKEN_SECONDS_MAX)
                return Reader(f"oidc {settings.name}", settings.repositories), until
            refusal = Unauthenticated(
                "the token is good, but none of `readers.oidc` has its claims"
            )
        raise refusal or Unauthenticated("the token is not good here")

    async def _key(self, settings: OidcSettings, kid: str) -> "PyJWK":
        """Return the issuer's key of that id.

        Raises:
            Unauthenticated: It has none.
            UpstreamUnavailable: It can't be asked.
        """
        keys = self._keys.setdefault(_place_of(settings), _Keys(settings))
        now = self._clock()
        is_old = keys.fetched_at is None or now - keys.fetched_at > KEYS_SECONDS
        may_ask = keys.tried_at is None or now - keys.tried_at > KEYS_AGAIN_SECONDS
        if (is_old or kid not in keys.by_id) and (may_ask or keys.fetching is not None):
            if keys.fetching is None:
                keys.tried_at = now
                keys.fetching = asyncio.create_task(self._fetch(keys))
            await asyncio.wait((keys.fetching,))
        if kid in keys.by_id:
            return keys.by_id[kid]
        if keys.fetched_at is None:
            raise UpstreamUnavailable(
                f"the keys of {settings.issuer} can't be had: {keys.error or 'not asked yet'}"
            )
        raise Unauthenticated(f"{settings.issuer} has no key {kid[:100]!r}")

    async def _fetch(self, keys: _Keys) -> None:
        """Fetch an issuer's keys; what goes wrong is kept with them."""
        from mirror.access.id_tokens import read_keys  # noqa: PLC0415

        settings = keys.settings
        try:
            tls = await asyncio.to_thread(_tls_context, settings)
            url = settings.jwks_url
            if url is None:
                base = settings.issuer.rstrip("/")
                found = await self._get(f"{base}/.well-known/openid-configuration", settings, tls)
                url = _checked_url(str(found.get("jwks_uri")))
            document = await self._get(url, settings, tls)
            keys.by_id = read_keys(document)
            keys.fetched_at = self._clock()
            keys.error = ""
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            keys.error = str(error) or type(error).__name__
            logger.warning("issuer_keys_failed", issuer=settings.issuer, error=keys.error)
        finally:
            keys.fetching = None

    async def _get(self, url: str, settings: OidcSettings, tls: ssl.SSLContext) -> dict[str, Any]:
        headers = {"Accept": "application/json"}
        if settings.token_file is not None:
            secret = SecretFile(settings.token_file).read().reveal()
            headers["Authorization"] = f"Bearer {secret.decode('ascii')}"
        async with (
            asyncio.timeout(ANSWER_SECONDS_MAX),
            self._session.get(url, headers=headers, ssl=tls, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise ValueError(f"{url} answered {answer.status}")
            raw = await answer.content.read(ANSWER_BYTES_MAX)
            while not answer.content.at_eof() and len(raw) < ANSWER_BYTES_MAX:
                raw += await answer.content.read(ANSWER_BYTES_MAX - len(raw))
        found = json.loads(raw)
        if not isinstance(found, dict):
            raise ValueError(f"{url} did not answer with a JSON object")  # noqa: TRY004
        return found


def _tls_context(settings: OidcSettings) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=settings.ca_file)


def _checked_url(url: str) -> str:
    """Return where an issuer says that its keys are.

    Raises:
        ValueError: Anybody on the way could put others in their place.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and not (
        parts.scheme == "http" and is_own_machine(parts.hostname or "")
    ):
        raise ValueError("the issuer's jwks_uri is not https")
    return url


def _fit(claims: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    """Tell whether a token says all that a reader's settings ask for."""
    return all(_says(claims.get(name), pattern) for name, pattern in wanted.items())


def _says(value: object, pattern: str) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(isinstance(one, str) and is_like(one, pattern) for one in values)
