"""JSON Web Tokens (RFC 7519) and the sets of keys that verify them (RFC 7517), by PyJWT.

Only asymmetric algorithms are taken. Loading this takes 0.1 s of a processor.
"""

from collections.abc import Mapping
from typing import Any, Final

import jwt

from mirror.config import OidcSettings
from mirror.errors import Unauthenticated

ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"),
)
LEEWAY_SECONDS: Final = 30.0
"""Clocks differ."""

KEYS_MAX: Final = 100


def read_keys(document: Mapping[str, Any]) -> dict[str, jwt.PyJWK]:
    """Return the keys of a set by their id; an only one also without.

    Raises:
        ValueError: There is none.
    """
    try:
        keys = jwt.PyJWKSet.from_dict(dict(document)).keys
    except (jwt.PyJWTError, TypeError) as error:
        raise ValueError(f"no set of keys: {error}") from error
    by_id = {str(one.key_id): one for one in keys[:KEYS_MAX] if one.key_id is not None}
    if len(keys) == 1:
        by_id[""] = keys[0]
    return by_id


def unverified(secret: bytes) -> tuple[Mapping[str, Any], str] | None:
    """Return the header and the issuer that a token claims; `None` if it is no token at all."""
    if secret.count(b".") != 2:
        return None
    try:
        header = jwt.get_unverified_header(secret)
        claims = jwt.decode(secret, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError):
        return None
    return header, str(claims.get("iss"))


def verified(secret: bytes, key: jwt.PyJWK, settings: OidcSettings) -> Mapping[str, Any]:
    """Return what a token says.

    Raises:
        Unauthenticated: It is not good.
    """
    try:
        claims: Mapping[str, Any] = jwt.decode(
            secret,
            key,
            algorithms=list(ALGORITHMS),
            audience=settings.audience,
            issuer=settings.issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iss", "aud"]},
        )
    except (jwt.PyJWTError, ValueError) as error:
        raise Unauthenticated(f"the token is not good: {error}") from error
    return claims
