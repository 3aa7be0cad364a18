import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from mirror.access.oidc import KEYS_AGAIN_SECONDS, KEYS_SECONDS, Oidc
from mirror.access.reader import Reader
from mirror.config import OidcSettings
from mirror.errors import Unauthenticated, UpstreamUnavailable
from mirror.upstream.connect import open_session
from tests.access.issuer import SERVICE_ACCOUNT, Issuer, issuing

FLUX = Reader("oidc flux-oslo", ("acme/*",))
DISCOVERED = ["/.well-known/openid-configuration", "/jwks"]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with issuing() as running:
        yield running


@pytest.fixture
def clock() -> Clock:
    return Clock()


def settings(issuer: Issuer, **more: object) -> OidcSettings:
    values = {
        "name": "flux-oslo",
        "issuer": issuer.url,
        "audience": "git-mirror",
        "claims": {"sub": "system:serviceaccount:flux-system:*"},
        "repositories": ("acme/*",),
        **more,
    }
    return OidcSettings(**values)  # type: ignore[arg-type]


@pytest.fixture
async def oidc(issuer: Issuer, clock: Clock) -> AsyncIterator[Oidc]:
    async with open_session() as session:
        found = Oidc(session, [settings(issuer)], clock=clock)
        yield found
        await found.close()


async def test_a_service_accounts_token_proves_its_reader(oidc: Oidc, issuer: Issuer) -> None:
    issuer.add_key("second", elliptic=True)
    found = await oidc.find(issuer.token().encode())
    assert found is not None
    assert found[0] == FLUX
    assert time.time() < found[1] <= time.time() + 3600
    second = await oidc.find(issuer.token(kid="second", alg="ES256").encode())
    assert second is not None
    assert second[0] == FLUX
    assert issuer.asked == DISCOVERED, "the keys are asked for once"


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"exp": 1}, "expired"),
        ({"exp": None}, "exp"),
        ({"aud": ["https://kubernetes.default.svc"]}, "udience"),
        ({"aud": None}, "aud"),
        ({"nbf": 32503680000}, "not yet valid"),
        ({"sub": "system:serviceaccount:default:default"}, "none of `readers.oidc`"),
        ({"sub": None}, "none of `readers.oidc`"),
    ],
)
async def test_a_token_that_says_something_else_is_refused(
    oidc: Oidc, issuer: Issuer, claims: dict[str, Any], words: str
) -> None:
    with pytest.raises(Unauthenticated, match=words):
        await oidc.find(issuer.token(**claims).encode())


async def test_a_forged_token_is_refused(oidc: Oidc, issuer: Issuer) -> None:
    other = Issuer()
    other.url = issuer.url
    with pytest.raises(Unauthenticated, match="Signature verification failed"):
        await oidc.find(other.token().encode())
    public = issuer.keys["first"].public_key()
    claims = {"iss": issuer.url, "aud": "git-mirror", "sub": SERVICE_ACCOUNT, "exp": 32503680000}
    unsigned = jwt.encode(claims, "", algorithm="none", headers={"kid": "first"})
    symmetric = jwt.encode(
        claims, str(public).encode().ljust(64), algorithm="HS256", headers={"kid": "first"}
    )
    for forged in (unsigned, symmetric):
        with pytest.raises(Unauthenticated):
            await oidc.find(forged.encode())


async def test_what_is_no_token_of_an_issuer_here_is_nobodys_and_asks_nobody(
    oidc: Oidc, issuer: Issuer
) -> None:
    elsewhere = issuer.token(iss="https://elsewhere.example")
    for secret in (b"", b"gmt_x", b"a.b.c", b"...", elsewhere.encode(), b"\xff.\xff.\xff"):
        assert await oidc.find(secret) is None
    assert issuer.asked == []


async def test_a_new_key_is_found_and_unknown_ones_are_not_asked_for_all_the_time(
    oidc: Oidc, issuer: Issuer, clock: Clock
) -> None:
    assert await oidc.find(issuer.token().encode())
    issuer.add_key("new")
    with pytest.raises(Unauthenticated, match="has no key 'new'"):
        await oidc.find(issuer.token(kid="new").encode())
    assert issuer.asked == DISCOVERED
    clock.now += KEYS_AGAIN_SECONDS + 1
    assert await oidc.find(issuer.token(kid="new").encode())
    assert issuer.asked == DISCOVERED * 2


async def test_known_keys_hold_while_the_issuer_is_down(
    oidc: Oidc, issuer: Issuer, clock: Clock
) -> None:
    assert await oidc.find(issuer.token().encode())
    issuer.status = 503
    clock.now += KEYS_SECONDS + 1
    assert await oidc.find(issuer.token().encode())
    assert len(issuer.asked) == 3


async def test_without_keys_nobody_can_be_let_in_and_the_reason_is_told(
    oidc: Oidc, issuer: Issuer, clock: Clock
) -> None:
    issuer.status = 403
    with pytest.raises(UpstreamUnavailable, match="answered 403"):
        await oidc.find(issuer.token().encode())
    issuer.status = 200
    with pytest.raises(UpstreamUnavailable):
        await oidc.find(issuer.token().encode())
    clock.now += KEYS_AGAIN_SECONDS + 1
    assert await oidc.find(issuer.token().encode())


async def test_many_tokens_at_once_ask_for_the_keys_once(oidc: Oidc, issuer: Issuer) -> None:
    issuer.gate.clear()
    finding = [asyncio.create_task(oidc.find(issuer.token().encode())) for _ in range(10)]
    await issuer.arrived.wait()
    issuer.gate.set()
    assert [found[0] for found in await asyncio.gather(*finding) if found] == [FLUX] * 10
    assert issuer.asked == DISCOVERED


async def test_keys_are_asked_for_with_a_token_where_the_issuer_wants_one(
    issuer: Issuer, tmp_path: Path
) -> None:
    issuer.bearer = "of-the-mirror"
    token_file = tmp_path / "token"
    token_file.write_text("of-the-mirror\n")
    async with open_session() as session:
        url = f"{issuer.url}/jwks"
        oidc = Oidc(session, [settings(issuer, token_file=token_file, jwks_url=url)])
        assert await oidc.find(issuer.token().encode())
    assert issuer.asked == ["/jwks"]


async def test_of_several_readers_of_one_issuer_the_one_whose_claims_fit_is_meant(
    issuer: Issuer,
) -> None:
    argo = settings(issuer, name="argo", claims={"sub": "*:argocd:*", "groups": "readers"})
    async with open_session() as session:
        oidc = Oidc(session, [argo, settings(issuer)])
        found = await oidc.find(issuer.token().encode())
        assert found is not None
        assert found[0].name == "oidc flux-oslo"
        sub = "system:serviceaccount:argocd:argocd-repo-server"
        other = await oidc.find(issuer.token(sub=sub, groups=["a", "readers"]).encode())
        assert other is not None
        assert other[0].name == "oidc argo"
