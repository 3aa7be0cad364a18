"""A GitHub App: signs for itself, and keeps a token for each of its installations.

A token lasts an hour and is one for all repositories of an installation. It is renewed ahead of
time, once for all who wait for it; while the interface is down, the old one serves to its end. The
private key never leaves this process, nor does a token go anywhere but to the upstream.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from yarl import URL

from mirror.errors import MirrorError, UpstreamRefused, UpstreamUnavailable
from mirror.upstream.credentials import (
    CredentialKind,
    Secret,
    SecretFile,
    Standing,
    basic,
    concealed,
)
from mirror.upstream.failures import retry_after_seconds
from mirror.upstream.github_api import (
    PERMISSIONS,
    Answer,
    AppWords,
    claims,
    installation_paths,
    lifetime_seconds,
    token_path,
)
from mirror.upstream.line import Line

USERNAME: Final = "x-access-token"

RENEWED_AHEAD_SECONDS: Final = 600.0
SPARE_SECONDS: Final = 60.0
"""A token that ends sooner is not begun with: a clone may take a while to send its requests."""

YOUNG_SECONDS: Final = 60.0
"""A token that is younger is not renewed because it was refused: that is not its age's fault."""

PAUSE_SECONDS: Final = 5.0
"""After a failure the interface is left alone so long: many repositories may ask."""

SILENCE_SECONDS_MAX: Final = 15.0
ANSWER_BYTES_MAX: Final = 1 << 20

_TOKEN_REQUEST: Final = json.dumps({"permissions": PERMISSIONS}).encode()

logger = structlog.stdlib.get_logger()


@dataclass(slots=True)
class _Token:
    """A token, with times of the monotonic clock."""

    secret: Secret = field(repr=False)
    made_at: float
    renew_at: float
    ends_at: float


class GithubApp:
    """One app at one GitHub."""

    def __init__(
        self,
        line: Line,
        *,
        app_id: str,
        private_key_file: Path,
        api: str,
        agent: bytes,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Be ready to sign; nothing is read or asked yet.

        Args:
            line: Leads to the interface.
            app_id: Its id or client id.
            private_key_file: Holds its key.
            api: The interface's URL.
            agent: What GitHub knows us by.
            clock: The time of day.
            monotonic: For the age of tokens.
        """
        self.api = api
        self.app_id = app_id
        self.words = f"GitHub App {app_id} (key {private_key_file})"
        self.key_file = private_key_file
        self.clock = clock
        self.monotonic = monotonic
        self._line = line
        self._agent = agent.decode("ascii")
        self._file = SecretFile(private_key_file)
        self._key: tuple[Secret, RSAPrivateKey] | None = None
        # As long as a repository uses them.
        self._installations: WeakValueDictionary[tuple[str, int | None], Installation] = (
            WeakValueDictionary()
        )

    def installation(self, owner: str, installation_id: int | None) -> "Installation":
        """Return the installation for an owner, or that with a number, the same to all who ask."""
        key = (owner.lower() if installation_id is None else "", installation_id)
        known = self._installations.get(key)
        if known is None:
            known = self._installations[key] = Installation(self, owner, installation_id)
        return known

    def renew_ahead(self) -> None:
        """Begin to renew the tokens whose time has come."""
        for one in list(self._installations.values()):
            one.renew_ahead()

    async def close(self) -> None:
        """End what is under way."""
        for one in list(self._installations.values()):
            await one.close()

    async def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """Ask the interface, as the app itself.

        Raises:
            UpstreamError: The key can't be used, or there is no answer.
        """
        headers = {
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {await self._signed()}",
            "User-Agent": self._agent,
            "X-GitHub-Api-Version": "2022-11-28",
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        async with self._line.requested(
            method,
            URL(self.api + path, encoded=True),
            headers=headers,
            body=body,
            silence_seconds_max=SILENCE_SECONDS_MAX,
        ) as response:
            content = bytearray()
            async for chunk in response.content.iter_chunked(64 * 1024):
                content += chunk
                if len(content) > ANSWER_BYTES_MAX:
                    raise UpstreamUnavailable(f"the answer of {self.api} is over 1 MiB")
            said = concealed(content.decode("utf-8", "replace"), headers["Authorization"])
            return Answer(
                response.status,
                response.headers,
                said,
                retry_after_seconds(response),
                received_at=self.clock(),
            )

    async def _signed(self) -> str:
        """Return a JSON Web Token of the app (RFC 7519), signed by RS256."""
        key = await self._private_key()
        return await asyncio.to_thread(
            jwt.encode, claims(self.app_id, self.clock()), key, algorithm="RS256"
        )

    async def _private_key(self) -> RSAPrivateKey:
        try:
            content = self._file.read()
            if self._key is None or self._key[0] is not content:
                self._key = content, await asyncio.to_thread(_parse_key, content)
        except OSError as error:
            raise UpstreamRefused(
                f"the private key of GitHub App {self.app_id}, {self.key_file}, can't be read:"
                f" {error.strerror}; put it there, readable for git-mirror's user"
            ) from error
        except ValueError as error:
            raise UpstreamRefused(
                f"the private key of GitHub App {self.app_id} can't be used: {error}"
            ) from None
        except _NoKey:
            raise UpstreamRefused(
                f"{self.key_file} holds no private RSA key in PEM form; make one on the page of"
                f" GitHub App {self.app_id} and put it there"
            ) from None
        return self._key[1]


class _NoKey(Exception):
    """A file without a key; what cryptography says of it may repeat its content."""


def _parse_key(content: Secret) -> RSAPrivateKey:
    try:
        key = load_pem_private_key(content.reveal(), password=None)
    except Exception:  # noqa: BLE001 - cryptography has many ways to say so
        raise _NoKey from None
    if not isinstance(key, RSAPrivateKey):
        raise _NoKey
    return key


class Installation:
    """An app's installation for one owner, and its token."""

    def __init__(self, app: GithubApp, owner: str, installation_id: int | None) -> None:
        self._app = app
        self._configured_id = self._id = installation_id
        self._words = AppWords(app.words, str(app.key_file), owner, app.api)
        self._token: _Token | None = None
        self._renewing: asyncio.Task[_Token] | None = None
        self._failure: MirrorError | None = None
        self._not_before = 0.0
        self.renewed_at: float | None = None
        """When the token was last renewed; seconds since the epoch."""

    async def authorization(self) -> str:
        """Return what signs in to the upstream.

        Raises:
            UpstreamError: There is no token to be had.
        """
        token = self._token
        if token is None or self._app.monotonic() >= token.ends_at:
            token = await self._renewed()
        else:
            self.renew_ahead()
        return basic(USERNAME, token.secret)

    async def renewed(self, refused: str) -> str | None:
        """Return what to send in the place of what was refused; `None` where that is new itself.

        Raises:
            UpstreamError: There is no token to be had.
        """
        token = self._token
        if token is not None and basic(USERNAME, token.secret) == refused:
            if self._app.monotonic() - token.made_at < YOUNG_SECONDS:
                return None
            self._token = None  # revoked
        return await self.authorization()

    def renew_ahead(self) -> None:
        """Begin to renew the token, if its time has come."""
        now = self._app.monotonic()
        if self._token is not None and now >= self._token.renew_at and now >= self._not_before:
            self._renew()

    async def close(self) -> None:
        """End a renewal under way."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait((self._renewing,))

    async def _renewed(self) -> _Token:
        """Wait for the renewal under way, or begin one. Who leaves cancels nothing."""
        if self._failure is not None and self._app.monotonic() < self._not_before:
            raise self._failure.with_traceback(None)
        return await asyncio.shield(self._renew())

    def _renew(self) -> "asyncio.Task[_Token]":
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._ask(), name=f"token of {self._words.app}")
            self._renewing.add_done_callback(self._ended)
        return self._renewing

    def _ended(self, task: "asyncio.Task[_Token]") -> None:
        self._renewing = None
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._failure = None
            return
        self._not_before = self._app.monotonic() + PAUSE_SECONDS
        self._failure = error if isinstance(error, MirrorError) else None
        logger.warning(
            "github_app_token_not_renewed",
            app_id=self._app.app_id,
            owner=self._words.owner,
            error=str(error),
            old_token_serves=self._token is not None,
        )

    async def _ask(self) -> _Token:
        answer = await self._ask_for_token(await self._installation_id())
        if answer.status == 404 and self._configured_id is None:
            self._id = None  # installed anew under another number
            answer = await self._ask_for_token(await self._installation_id())
        if answer.status != 201:
            raise self._words.refusal(answer)
        value = answer.object().get("token")
        if not isinstance(value, str) or not value.isprintable() or not value:
            raise UpstreamUnavailable(f"the answer of {self._app.api} has no token")
        now, lasts = self._app.monotonic(), lifetime_seconds(answer)
        if lasts <= 0:
            raise UpstreamUnavailable(f"the token of {self._app.api} has ended already")
        ends_at = now + lasts - min(SPARE_SECONDS, lasts / 10)
        renew_at = now + lasts - min(RENEWED_AHEAD_SECONDS, lasts / 4)
        self._token = _Token(Secret(value.encode()), now, renew_at, ends_at)
        self.renewed_at = self._app.clock()
        return self._token

    async def _ask_for_token(self, installation_id: int) -> Answer:
        return await self._app.ask("POST", token_path(installation_id), _TOKEN_REQUEST)

    async def _installation_id(self) -> int:
        if self._id is not None:
            return self._id
        organisation, user = installation_paths(self._words.owner)
        answer = await self._app.ask("GET", organisation)
        if answer.status == 404:
            answer = await self._app.ask("GET", user)
        if answer.status != 200:
            raise self._words.refusal(answer)
        found = answer.object().get("id")
        if not isinstance(found, int):
            raise UpstreamUnavailable(f"the answer of {self._app.api} has no installation")
        self._id = found
        return found


class GithubAppCredentials:
    """One repository's part in an app's installation."""

    def __init__(self, app: GithubApp, installation: Installation) -> None:
        self._installation = installation
        self.standing = Standing(
            CredentialKind.GITHUB_APP,
            app.words,
            {
                401: f"it refuses a new token of {app.words}; look at the app's page at GitHub",
                403: (
                    f"{app.words} may not read the repository; give it the repository permission"
                    " Contents: read-only, and let the owner accept it"
                ),
                404: (
                    f"there is no such repository, or {app.words} may not see it; add it to the"
                    " app's installation"
                ),
            },
            clock=app.clock,
        )

    async def authorization(self) -> str:
        """See `Credentials.authorization`."""
        with self._noted():
            return await self._installation.authorization()

    async def renewed(self, refused: str) -> str | None:
        """See `Credentials.renewed`."""
        with self._noted():
            return await self._installation.renewed(refused)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except UpstreamUnavailable as error:
            words = str(self.standing.failed(str(error)))
            raise UpstreamUnavailable(
                words, retry_after_seconds=error.retry_after_seconds
            ) from error
        except UpstreamRefused as error:
            raise self.standing.failed(str(error)) from error
        finally:
            self.standing.renewed_at = self._installation.renewed_at

    def __repr__(self) -> str:
        return f"GithubAppCredentials({self.standing.words!r}, ***)"
