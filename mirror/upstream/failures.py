"""What an upstream's refusals mean, and what to do about them: from HTTP to our error tree.

Never tells a secret: credentials are in no URL and no message.
"""

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp
from yarl import URL

from mirror.errors import (
    NotUpstream,
    ProtocolError,
    Trouble,
    UpstreamRefused,
    UpstreamUnavailable,
)
from mirror.upstream.credentials import Credentials, concealed

RETRY_AFTER_SECONDS_MAX: Final = 3600.0
"""Longer than forges ask for: a slip of a proxy must not silence us for days."""

ERROR_BODY_BYTES_MAX: Final = 500

_SIGNED: Final = "Authorization"

CONNECT_SECONDS_MAX: Final = 15.0


class BrokenOff(UpstreamUnavailable):
    """The connection ended too early; a kept-alive one may have been dead before."""

    trouble = Trouble.BROKE_OFF


PROXY_REFUSES: Final = (
    "the proxy wants other credentials (407): look at `proxy` and `proxy_credentials`"
)

_HINTS: Final = {
    401: "it wants credentials; set `credentials`",
    403: "not everybody may read the repository; set `credentials`",
    404: "there is no such repository, or it can't be seen without `credentials`",
}
"""What to do about a status without credentials; with them it is for their `Standing` to say."""


async def raise_for_status(
    response: aiohttp.ClientResponse, base: URL, *, credentials: Credentials | None
) -> None:
    """Say what an error status means, and what to do about it.

    Raises:
        UpstreamError: The status is not 200.
    """
    status = response.status
    if status == 200:
        return
    where = f"{base} answered {status}"
    retry_after = retry_after_seconds(response)
    if status == 429 or (retry_after is not None and (status == 403 or status >= 500)):
        raise UpstreamUnavailable(
            f"{where}: it asks us to slow down",
            trouble=Trouble.RATE_LIMITED,
            retry_after_seconds=retry_after,
        )
    if status == 410:
        raise NotUpstream(f"{where}: the repository is gone")
    if credentials is not None and status in credentials.standing.mend:
        failed = credentials.standing.failed(f"{where}: {credentials.standing.mend[status]}")
        raise NotUpstream(str(failed)) if status == 404 else failed
    if status in _HINTS:
        # Without credentials, forges ask for them where there is nothing, so as not to say so.
        kind = UpstreamRefused if status == 403 else NotUpstream
        trouble = Trouble.NOT_FOUND if status == 404 else Trouble.CREDENTIALS
        raise kind(f"{where}: {_HINTS[status]}", trouble=trouble)
    page = await _beginning(response) or response.reason
    if status >= 500:
        raise UpstreamUnavailable(f"{where}: {page}", trouble=Trouble.SERVER_ERROR)
    raise UpstreamRefused(f"{where}: {page}")


@contextmanager
def upstream_errors() -> Iterator[None]:
    """What our parsers refuse is the upstream's fault here, not a reader's."""
    try:
        yield
    except ProtocolError as error:
        raise UpstreamUnavailable(str(error), trouble=Trouble.MALFORMED) from error


@contextmanager
def line_errors(url: URL, *, silence_seconds_max: float) -> Iterator[None]:
    """Say what an error of aiohttp's client means, for a request to `url`: only its host shows.

    Raises:
        UpstreamRefused: The certificate is not accepted.
        BrokenOff: The connection ended too early.
        UpstreamUnavailable: The host can't be reached, or is silent for too long.
    """
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise UpstreamRefused(
            f"the certificate of {url.host} is not accepted: {error.certificate_error};"
            " renew it there, or name its authority with `ca_file`",
            trouble=Trouble.CERTIFICATE,
        ) from error
    except aiohttp.ClientHttpProxyError as error:  # its own text has the whole URL
        if error.status == 407:
            raise UpstreamRefused(
                f"on the way to {url.host} {PROXY_REFUSES}", trouble=Trouble.CREDENTIALS
            ) from None
        words = " ".join(error.message.split())
        raise UpstreamUnavailable(
            f"on the way to {url.host} the proxy answered {error.status}: {words}",
            trouble=Trouble.UNREACHABLE,
        ) from None
    except aiohttp.ClientProxyConnectionError as error:
        raise UpstreamUnavailable(
            f"the proxy {error.host}:{error.port} can't be reached: {reason_of(error.os_error)}",
            trouble=Trouble.UNREACHABLE,
        ) from error
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
        raise UpstreamUnavailable(
            f"{url.host} can't be reached: {reason_of(error)}", trouble=Trouble.UNREACHABLE
        ) from error
    except TimeoutError as error:
        raise UpstreamUnavailable(
            f"{url.host} was silent for {silence_seconds_max:g} seconds",
            trouble=Trouble.SILENT,
        ) from error
    except aiohttp.ClientResponseError as error:  # its own text has the whole URL
        words = " ".join(error.message.split())
        raise BrokenOff(f"{url.host} broke off: {words}") from None
    except (aiohttp.ClientError, OSError) as error:
        raise BrokenOff(f"{url.host} broke off: {reason_of(error)}") from error


def check_content_type(response: aiohttp.ClientResponse, expected: str) -> None:
    """Tell a smart-HTTP Git server from a web page.

    Raises:
        UpstreamRefused: It is none.
    """
    if response.content_type != expected:
        raise UpstreamRefused(
            f"{response.url.with_query(None)} answered with {response.content_type!r} instead of"
            f" {expected!r}: this is not a smart-HTTP Git server, or not the repository's URL",
            trouble=Trouble.NOT_GIT,
        )


def retry_after_seconds(response: aiohttp.ClientResponse) -> float | None:
    """Read Retry-After (RFC 9110, 10.2.3): seconds, or a date by the clock of who sent it."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return min(float(value), RETRY_AFTER_SECONDS_MAX)
    try:
        at = parsedate_to_datetime(value)
        date = response.headers.get("Date")
        now = dt.datetime.now(dt.UTC) if date is None else parsedate_to_datetime(date)
        return min(max(0.0, (at - now).total_seconds()), RETRY_AFTER_SECONDS_MAX)
    except (ValueError, TypeError):
        return None


def reason_of(error: BaseException) -> str:
    """Return what to say of an error of the line."""
    return str(error).strip() or type(error).__name__


async def _beginning(response: aiohttp.ClientResponse) -> str:
    """Return the first words of an error page, as far as there are any."""
    try:
        raw = await response.content.read(ERROR_BODY_BYTES_MAX)
    except (TimeoutError, aiohttp.ClientError):
        return ""
    page = concealed(raw.decode("utf-8", "replace"), response.request_info.headers.get(_SIGNED))
    return " ".join(page.split())
