"""One HTTP request to an upstream, within its time limits."""

import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from mirror.upstream.failures import CONNECT_SECONDS_MAX, line_errors


@asynccontextmanager
async def requested(
    session: aiohttp.ClientSession,
    method: str,
    url: URL,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    silence_seconds_max: float,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send a request and provide the answer, whatever its status; redirects are not followed.

    Raises:
        UpstreamError: There is no answer, or its body ends too early.
    """
    timeout = aiohttp.ClientTimeout(
        total=None,
        sock_connect=min(silence_seconds_max, CONNECT_SECONDS_MAX),
        sock_read=silence_seconds_max,
    )
    with line_errors(url, silence_seconds_max=silence_seconds_max):
        async with session.request(
            method,
            url,
            headers=headers,
            data=io.BytesIO(body) if body is not None else None,  # sent in pieces
            allow_redirects=False,
            timeout=timeout,
        ) as response:
            yield response
