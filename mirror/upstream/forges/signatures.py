"""What every forge's signature check shares: trying secrets in constant time.

No message of this package ever holds a secret, or the signature that would have been right.
"""

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


def header_bytes(value: str) -> bytes:
    """Return the bytes of a header as they came; aiohttp decodes them with surrogateescape.

    Raises:
        Unauthenticated: No bytes decode to it.
    """
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Unauthenticated("a signature header holds characters no header can hold") from None
