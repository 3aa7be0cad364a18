"""GitHub as an app sees it: its interface and its Git, behind one address.

It checks what the real one checks of a token that an app signs, hands out installation tokens that
end, and lets nobody fetch without one. The time is the test's.
"""

import base64
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Final

import jwt
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from mirror.demo.forge import HttpBackend

APP_ID: Final = "123456"
TOKEN_SECONDS: Final = 3600.0

KEY: Final = rsa.generate_private_key(public_exponent=65537, key_size=2048)
"""One for the whole run: making it takes a while."""


def pem(key: rsa.RSAPrivateKey = KEY) -> bytes:
    """Return a private key as GitHub hands it out."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


class Clock:
    """A time that stands still until it is moved: of day, and monotonic."""

    def __init__(self) -> None:
        self.now = 1_795_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class FakeGithub:
    """What the server knows, and what it does wrong.

    Attributes:
        clock: Its time.
        organisations: Their installations' numbers.
        users: As organisations.
        suspended: Installations that are.
        tokens: Each with its end.
        lacks_contents: Whether the app was not given that permission.
        status: Answer the interface's requests with this instead.
        asked: How often each of the interface's paths was.
        permissions: Of the last token.
        signed: All that apps sent to prove themselves.
    """

    clock: Clock
    organisations: dict[str, int] = field(default_factory=lambda: {"acme": 7})
    users: dict[str, int] = field(default_factory=dict)
    suspended: set[int] = field(default_factory=set)
    tokens: dict[str, float] = field(default_factory=dict)
    lacks_contents: bool = False
    status: int | None = None
    asked: Counter[str] = field(default_factory=Counter)
    permissions: dict[str, str] = field(default_factory=dict)
    signed: list[str] = field(default_factory=list)

    @property
    def tokens_made(self) -> int:
        return len(self.tokens)

    def revoke(self) -> None:
        """Take all tokens back."""
        self.tokens = dict.fromkeys(self.tokens, 0.0)

    async def answer(self, request: web.Request) -> web.StreamResponse | None:
        """Be `HttpBackend.beside`: answer for the interface, and for who may not fetch."""
        path = request.path
        if path.startswith("/api/v3/"):
            return self._interface(request, path.removeprefix("/api/v3"), await request.read())
        if self._may_fetch(request.headers.get("Authorization", "")):
            return None
        return web.Response(status=401, text="Bad credentials", headers=self._headers())

    def _may_fetch(self, authorization: str) -> bool:
        try:
            pair = base64.b64decode(authorization.removeprefix("Basic ")).decode()
        except ValueError:
            return False
        user, _, token = pair.partition(":")
        return user == "x-access-token" and self.tokens.get(token, 0.0) > self.clock()

    def _interface(self, request: web.Request, path: str, body: bytes) -> web.Response:
        self.asked[f"{request.method} {path}"] += 1
        signed = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.signed.append(signed)
        if self.status is not None:
            return self._json(self.status, {"message": "Server Error"})
        if (refusal := self._check(signed)) is not None:
            return self._json(401, {"message": refusal})
        for kind, found in (("orgs", self.organisations), ("users", self.users)):
            for owner, number in found.items():
                if path == f"/{kind}/{owner}/installation":
                    return self._json(200, {"id": number, "app_id": int(APP_ID)})
        for number in (*self.organisations.values(), *self.users.values()):
            if path == f"/app/installations/{number}/access_tokens":
                return self._token(number, body)
        return self._json(404, {"message": "Not Found"})

    def _check(self, signed: str) -> str | None:
        """Return what GitHub says of a token that an app signed; `None` where it is right."""
        now = self.clock()
        try:
            claims = jwt.decode(
                signed,
                KEY.public_key(),
                algorithms=["RS256"],
                options={"verify_exp": False, "verify_iat": False, "require": ["iat", "exp"]},
            )
        except jwt.PyJWTError:
            return "A JSON web token could not be decoded"
        if not isinstance(claims["iat"], int) or claims["iat"] > now:
            return (
                "'Issued at' claim ('iat') must be an Integer representing the time that the"
                " assertion was issued"
            )
        if claims["exp"] > now + 600:
            return "'Expiration time' claim ('exp') is too far in the future"
        if claims["exp"] <= now:
            return "'Expiration time' claim ('exp') must be a numeric value in the future"
        return None if claims["iss"] == APP_ID else "Integration not found"

    def _token(self, number: int, body: bytes) -> web.Response:
        if number in self.suspended:
            return self._json(403, {"message": "This installation has been suspended"})
        if self.lacks_contents:
            message = "The permissions requested are not granted to this installation."
            return self._json(422, {"message": message})
        self.permissions = json.loads(body)["permissions"]
        token = f"ghs_installation{number}Token{len(self.tokens)}"
        self.tokens[token] = ends_at = self.clock() + TOKEN_SECONDS
        expires_at = f"{datetime.fromtimestamp(ends_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
        return self._json(201, {"token": token, "expires_at": expires_at})

    def _json(self, status: int, value: object) -> web.Response:
        return web.json_response(value, status=status, headers=self._headers())

    def _headers(self) -> dict[str, str]:
        return {"Date": format_datetime(datetime.fromtimestamp(self.clock(), UTC), usegmt=True)}


@dataclass(frozen=True, slots=True)
class GithubSite:
    """The running server."""

    github: FakeGithub
    forge: HttpBackend


@asynccontextmanager
async def github_site(root: Path, clock: Clock) -> AsyncIterator[GithubSite]:
    """Serve the repositories below `root`, and the interface at /api/v3."""
    github = FakeGithub(clock)
    async with HttpBackend(root) as forge:
        forge.beside = github.answer
        yield GithubSite(github, forge)
