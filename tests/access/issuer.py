"""An OpenID Connect issuer on loopback, as Kubernetes' API server is one."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

SERVICE_ACCOUNT = "system:serviceaccount:flux-system:source-controller"


class Issuer:
    """The issuer.

    Attributes:
        url: Its name, and where it is.
        asked: The paths that were asked for.
        status: What it answers with.
        bearer: The token that it wants to be asked with; `None` for none.
        gate: What its answers wait for.
        arrived: Set by the first question.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []
        self.status = 200
        self.bearer: str | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()
        self.keys: dict[str, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey] = {}
        self.add_key("first")

    def add_key(self, kid: str, *, elliptic: bool = False) -> None:
        self.keys[kid] = (
            ec.generate_private_key(ec.SECP256R1())
            if elliptic
            else rsa.generate_private_key(public_exponent=65537, key_size=2048)
        )

    def token(self, *, kid: str = "first", alg: str = "RS256", key: Any = None, **more: Any) -> str:
        """Make a token as a service account has it; `None` leaves a claim out."""
        now = time.time()
        claims = {
            "iss": self.url,
            "aud": ["git-mirror"],
            "sub": SERVICE_ACCOUNT,
            "iat": now,
            "nbf": now,
            "exp": now + 3600,
            **more,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, key or self.keys[kid], algorithm=alg, headers={"kid": kid})

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        self.arrived.set()
        await self.gate.wait()
        if self.bearer and request.headers.get("Authorization") != f"Bearer {self.bearer}":
            return web.Response(status=401)
        if self.status != 200:
            return web.Response(status=self.status)
        if request.path == "/.well-known/openid-configuration":
            return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/jwks"})
        return web.json_response({"keys": [_public(kid, key) for kid, key in self.keys.items()]})


def _public(kid: str, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    if isinstance(key, rsa.RSAPrivateKey):
        found = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        return {**found, "kid": kid, "alg": "RS256", "use": "sig"}
    found = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**found, "kid": kid, "alg": "ES256", "use": "sig"}


@asynccontextmanager
async def issuing() -> AsyncIterator[Issuer]:
    """Run an issuer."""
    issuer = Issuer()
    app = web.Application()
    app.router.add_get("/{path:.*}", issuer.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        issuer.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield issuer
    finally:
        issuer.gate.set()
        await runner.cleanup()
