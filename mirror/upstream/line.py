"""HTTP requests to upstreams, within their time limits: the one place that sends them.

A `Line` is a session and the route that the configuration names for an upstream; whoever speaks to
an upstream speaks through one. `signed` adds the mirror's own credentials.
"""

import asyncio
import io
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp
from yarl import URL

from mirror.errors import Trouble, UpstreamRefused, UpstreamUnavailable
from mirror.upstream.credentials import Credentials
from mirror.upstream.failures import CONNECT_SECONDS_MAX, PROXY_REFUSES, line_errors
from mirror.upstream.route import DIRECT, Route

Body = bytes | AsyncIterator[bytes] | None


@dataclass(frozen=True, slots=True)
class _HeadersDue:
    """When the headers of an answer are due: some time after its request was sent.

    Silence is another matter: headers may come byte by byte. Time in the queue for a connection
    does not count, and a body that a client sends takes as long as it takes.
    """

    limit: asyncio.Timeout
    seconds: float


def headers_trace() -> aiohttp.TraceConfig:
    """Make what a session needs so that headers are due."""
    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(_on_headers_sent)
    return trace


async def _on_headers_sent(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
    due = context.trace_request_ctx
    if isinstance(due, _HeadersDue):
        due.limit.reschedule(asyncio.get_running_loop().time() + due.seconds)


@dataclass(frozen=True, slots=True)
class Line:
    """What leads to an upstream.

    Attributes:
        session: Holds the connections.
        route: Whom to trust, and which proxy to take.
    """

    session: aiohttp.ClientSession
    route: Route = DIRECT

    @asynccontextmanager
    async def requested(
        self,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str],
        body: Body = None,
        silence_seconds_max: float,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and provide the answer, whatever its status.

        Redirects are not followed. `body` is taken as fast as the upstream takes it.

        Raises:
            UpstreamError: There is no answer, or its body ends too early.
        """
        timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=min(silence_seconds_max, CONNECT_SECONDS_MAX),
            sock_read=silence_seconds_max,
        )
        options = await self.route.options()
        limit = asyncio.timeout(None)
        is_sent_at_once = body is None or isinstance(body, bytes)
        due = _HeadersDue(limit, 2 * silence_seconds_max) if is_sent_at_once else None
        with line_errors(url, silence_seconds_max=silence_seconds_max), _headers_in_time(due):
            async with (
                limit,
                self.session.request(
                    method,
                    url,
                    headers={**headers, **self.route.headers_for(url)},
                    data=io.BytesIO(body) if isinstance(body, bytes) else body,  # sent in pieces
                    allow_redirects=False,
                    timeout=timeout,
                    trace_request_ctx=due,
                    **options,
                ) as response,
            ):
                limit.reschedule(None)
                if response.status == 407 and self.route.proxy is not None:
                    raise UpstreamRefused(
                        f"on the way to {url.host} {PROXY_REFUSES}", trouble=Trouble.CREDENTIALS
                    )
                yield response


@contextmanager
def _headers_in_time(due: _HeadersDue | None) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        if due is None or not due.limit.expired():
            raise
        raise UpstreamUnavailable(
            f"the headers of the answer took over {due.seconds:g} seconds (twice"
            " limits.upstream_timeout)",
            trouble=Trouble.SLOW,
        ) from error


@asynccontextmanager
async def signed(
    line: Line,
    credentials: Credentials | None,
    method: str,
    url: URL,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    silence_seconds_max: float,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send a request with the mirror's credentials, as `Line.requested` does.

    Where they are refused and newer ones can be had, it is sent once more with those.

    Raises:
        UpstreamError: There is no answer, its body ends too early, or credentials can't be had.
    """

    def requested(more: Mapping[str, str]) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return line.requested(
            method,
            url,
            headers={**headers, **more},
            body=body,
            silence_seconds_max=silence_seconds_max,
        )

    if credentials is None:
        async with requested({}) as response:
            yield response
        return
    authorization = await credentials.authorization()
    async with requested({"Authorization": authorization}) as response:
        renewed = await credentials.renewed(authorization) if response.status == 401 else None
        if renewed is None:
            credentials.standing.answered(response.status)
            yield response
            return
    async with requested({"Authorization": renewed}) as response:
        credentials.standing.answered(response.status)
        yield response
