"""What the forges' signature checks share: trying secrets in constant time, and the usual digest.

No message of this package ever holds a secret, or the signature that would have been right.
"""

import hmac
from collections.abc import Callable, Sequence

from mirror.errors import Unauthenticated


def first_proven(secrets: Sequence[bytes], proves: Callable[[bytes], bool]) -> int | None:
    """Return the position of the first of `secrets` that `proves` the request genuine.

    All of them are tried, so that the time taken does not tell which one fits. An empty secret
    never does: anybody could sign with it.

    Raises:
        Unauthenticated: There is no secret to try.
    """
    if not any(secrets):
        raise Unauthenticated(
            "no webhook secret is configured here for this forge: set webhook_secret_file"
        )
    proven = [position for position, secret in enumerate(secrets) if secret and proves(secret)]
    return proven[0] if proven else None


def hex_digest(body: bytes, secret: bytes) -> str:
    """Return the HMAC-SHA-256 of `body`, as all forges but GitLab write it."""
    return hmac.digest(secret, body, "sha256").hex()


def verify_hex(digest: str, body: bytes, *, secrets: Sequence[bytes], header: str) -> int:
    """Return which of `secrets` gives `body` the digest that came in `header`, by position.

    Raises:
        Unauthenticated: None of them does.
    """
    sent = header_bytes(digest)
    position = first_proven(
        secrets, lambda secret: hmac.compare_digest(hex_digest(body, secret).encode(), sent)
    )
    if position is None:
        raise Unauthenticated(
            f"{header} does not fit the body: is the webhook's secret the configured one?"
        )
    return position


def header_bytes(value: str) -> bytes:
    """Return the bytes of a header as they came; aiohttp decodes them with surrogateescape.

    Raises:
        Unauthenticated: No bytes decode to it.
    """
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Unauthenticated("a signature header holds characters no header can hold") from None
