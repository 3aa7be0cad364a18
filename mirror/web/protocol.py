"""HTTP facts of the smart protocol (gitprotocol-http(5)): names, headers, versions, bodies."""

import asyncio
import enum
from typing import Final

from aiohttp import web

from mirror.errors import ProtocolError, TooLarge

ADVERTISEMENT_TYPE: Final = "application/x-git-upload-pack-advertisement"
REQUEST_TYPE: Final = "application/x-git-upload-pack-request"
RESULT_TYPE: Final = "application/x-git-upload-pack-result"

NO_CACHE: Final = {
    # As git http-backend sends them.
    "Expires": "Fri, 01 Jan 1980 00:00:00 GMT",
    "Pragma": "no-cache",
    "Cache-Control": "no-cache, max-age=0, must-revalidate",
}

BODY_SECONDS_MAX: Final = 300.0
"""A request body that takes longer is not a slow line but an attack."""


class Operation(enum.StrEnum):
    """What a request asks for: a label of the metrics."""

    ADVERTISE = "advertise"
    CAPABILITIES = "capabilities"
    LS_REFS = "ls_refs"
    FETCH = "fetch"
    OBJECT_INFO = "object_info"
    PROBE = "probe"
    RECEIVE_PACK = "receive_pack"
    WEBHOOK = "webhook"
    CONTROL = "control"
    MONITORING = "monitoring"
    OTHER = "other"


OPERATION: Final = web.RequestKey("operation", Operation)


def protocol_version(request: web.Request) -> int:
    """Return the version a client asks for: the highest we know in its Git-Protocol header."""
    version = 0
    for entry in request.headers.get("Git-Protocol", "").split(":"):
        if entry in ("version=1", "version=2"):
            version = max(version, int(entry[-1]))
    return version


def accepts_gzip(request: web.Request) -> bool:
    """Tell whether the client takes gzip (RFC 9110, 12.5.3)."""
    for item in request.headers.get("Accept-Encoding", "").split(","):
        coding, _, weight = item.strip().partition(";")
        if coding.strip().lower() in ("gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


async def read_body(request: web.Request, *, bytes_max: int) -> bytes:
    """Read a request body, decoded (aiohttp undoes gzip and deflate as it reads).

    Raises:
        TooLarge: It is over `bytes_max` once decoded.
        ProtocolError: It is broken or does not end.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > bytes_max:
                    raise TooLarge(
                        f"the request body is over {bytes_max} bytes once decoded; fetch fewer refs"
                        " at a time, or raise limits.request_bytes_max"
                    )
    except TimeoutError:
        raise ProtocolError(
            f"the request body took more than {BODY_SECONDS_MAX:.0f} seconds"
        ) from None
    except (web.RequestPayloadError, ValueError) as error:
        raise ProtocolError(f"the request body can't be decoded: {error}") from error
    return bytes(body)
