"""What a client shows in its Authorization header (RFC 7617, Basic; RFC 6750, Bearer). Pure."""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from typing import Final

from mirror.errors import Unauthenticated

HEADER_BYTES_MAX: Final = 16 * 1024
"""A service account's token takes one or two thousand."""


@dataclass(frozen=True, slots=True)
class Presented:
    """What was shown.

    Attributes:
        secret: The password or Bearer token; where only a user name was given, that.
        digest: SHA-256 of the whole header: what proofs are kept under.
    """

    secret: bytes = field(repr=False)
    digest: bytes = field(repr=False)


def read_authorization(header: str) -> Presented:
    """Read an Authorization header.

    Raises:
        Unauthenticated: It is neither Basic nor Bearer, or broken.
    """
    try:
        raw = header.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Unauthenticated("the Authorization header holds what no header can hold") from None
    if len(raw) > HEADER_BYTES_MAX:
        raise Unauthenticated(f"the Authorization header is over {HEADER_BYTES_MAX} bytes")
    scheme, _, rest = raw.partition(b" ")
    match scheme.lower():
        case b"bearer":
            secret = rest.strip()
        case b"basic":
            secret = _basic(rest.strip())
        case _:
            raise Unauthenticated("expected Basic or Bearer credentials")
    if not secret:
        raise Unauthenticated("the credentials are empty")
    return Presented(secret, hashlib.sha256(raw).digest())


def _basic(encoded: bytes) -> bytes:
    try:
        pair = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise Unauthenticated("the Basic credentials are not base64") from None
    user, colon, password = pair.partition(b":")
    if not colon:
        raise Unauthenticated("the Basic credentials have no colon")
    return password or user  # some tools put a token in the user's place
