"""The way of a push to its upstream: what the client sent, with the client's own credentials.

Must never send credentials of the mirror's, nor follow a redirect: the client's go to the place
that the configuration names, and nowhere else.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import aiohttp
from yarl import URL

from mirror.errors import UpstreamRefused
from mirror.upstream.line import Line

SERVICE: Final = "git-receive-pack"

SILENCE_SECONDS_MAX: Final = 300.0
"""Hooks of a forge may think for minutes before they say a word."""


class PushLine:
    """Passes on pushes to one upstream repository."""

    def __init__(self, line: Line, upstream: str) -> None:
        self._line = line
        self._base = URL(upstream)

    def info_refs(
        self, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Ask for the advertisement of receive-pack.

        Raises:
            UpstreamError: There is no answer, or a redirect.
        """
        return self._passed_on("GET", self._base / "info/refs" % {"service": SERVICE}, headers)

    def receive_pack(
        self, headers: Mapping[str, str], body: AsyncIterator[bytes]
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send a push; `body` is taken as fast as the upstream takes it.

        Raises:
            UpstreamError: There is no answer, or a redirect.
        """
        return self._passed_on("POST", self._base / SERVICE, headers, body)

    @asynccontextmanager
    async def _passed_on(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        body: AsyncIterator[bytes] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        async with self._line.requested(
            method,
            url,
            # What comes back is looked at, and counted as it is.
            headers={**headers, "Accept-Encoding": "identity"},
            body=body,
            silence_seconds_max=SILENCE_SECONDS_MAX,
        ) as answer:
            if 300 <= answer.status < 400:
                raise UpstreamRefused(
                    f"{self._base} has moved; push there directly, or put the new place into"
                    " the mirror's configuration as `upstream`"
                )
            yield answer
