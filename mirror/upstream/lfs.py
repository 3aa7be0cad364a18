"""The LFS side of one upstream repository: what it offers, and the bytes (docs/api/ of git-lfs).

A batch is asked for with the mirror's credentials, as its refs are. A download goes wherever the
answer says (see `storage`), with what the answer says to send along: credentials of ours go to the
upstream's own scheme, host and port alone, and from https nothing is followed to http. URLs of
downloads hold tokens: no message shows more of them than the host.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import aiohttp
from yarl import URL

from mirror.errors import UpstreamRefused, UpstreamUnavailable
from mirror.upstream.credentials import Credentials
from mirror.upstream.failures import raise_for_status, retry_after_seconds, upstream_errors
from mirror.upstream.line import Line, signed
from mirror.upstream.storage import Storage
from mirror.wire.lfs import (
    ANSWER_BYTES_MAX,
    CONTENT_TYPE,
    Action,
    Pointer,
    Refusal,
    encode_batch_request,
    parse_batch_answer,
)

REDIRECTS_MAX: Final = 3
READ_BYTES: Final = 256 * 1024

_REDIRECTS: Final = (301, 302, 303, 307, 308)


class ActionRefused(UpstreamRefused):
    """A download was refused: a newer action for it may do."""


class LfsRemote:
    """One upstream repository's LFS objects."""

    def __init__(
        self,
        line: Line,
        storage: Storage,
        url: str,
        *,
        credentials: Credentials | None,
        silence_seconds_max: float,
        agent: bytes,
    ) -> None:
        self._line = line
        self._storage = storage
        self._upstream = URL(url)
        self._batch = endpoint(url) / "objects" / "batch"
        self._credentials = credentials
        self._silence = silence_seconds_max
        self._agent = f"git-lfs/3 ({agent.decode('ascii')})"

    # --- what it offers ------------------------------------------------------------------------

    async def batch(self, pointers: Sequence[Pointer]) -> dict[str, Action | Refusal]:
        """Ask for objects; returns how to download each, or why not, by its id.

        Raises:
            UpstreamError: It does not answer as an LFS server should.
        """
        url, body = self._batch, encode_batch_request(pointers)
        headers = {"Accept": CONTENT_TYPE, "Content-Type": CONTENT_TYPE, "User-Agent": self._agent}
        for _ in range(REDIRECTS_MAX + 1):
            async with signed(
                self._line,
                self._credentials,
                "POST",
                url,
                headers=headers,
                body=body,
                silence_seconds_max=self._silence,
            ) as response:
                if response.status in _REDIRECTS:
                    url = self._moved(response)
                    continue
                await self._check(response, url)
                answer = await _whole(response)
            with upstream_errors():
                return await asyncio.to_thread(
                    parse_batch_answer, answer, pointers, now=time.time()
                )
        raise UpstreamRefused(f"the upstream's LFS redirects more than {REDIRECTS_MAX} times")

    def _moved(self, response: aiohttp.ClientResponse) -> URL:
        """Return where a renamed repository's LFS is: at the same place, or nowhere."""
        place = _target(response)
        own = self._batch
        upgraded = own.scheme == "http" and place.scheme == "https"
        if place.host != own.host or not (upgraded or _origin(place) == _origin(own)):
            raise UpstreamRefused(
                f"the upstream's LFS redirects to {place.host}, which is another place; put the"
                " repository's new URL into the configuration"
            )
        return place

    async def _check(self, response: aiohttp.ClientResponse, url: URL) -> None:
        if response.status in (404, 405, 501):
            raise UpstreamRefused(
                f"{url.with_query(None)} answered {response.status}: the upstream has no LFS for"
                " this repository, or these credentials may not see it"
            )
        await raise_for_status(response, url.with_query(None), credentials=self._credentials)

    # --- the bytes -----------------------------------------------------------------------------

    async def download(
        self, action: Action, pointer: Pointer, *, offset: int
    ) -> AsyncGenerator[bytes, None]:
        """Yield an object's bytes from `offset` on, as they arrive; nothing is verified.

        Raises:
            ActionRefused: The action is not, or no longer, good for it.
            UpstreamError: It did not answer as it should, or was cut off.
        """
        url = self._followed(action.href, self._upstream)
        plain = {"Accept-Encoding": "identity", "User-Agent": self._agent}
        if offset:
            plain["Range"] = f"bytes={offset}-{pointer.size - 1}"
        headers = {**action.header, **plain}
        credentials = self._credentials_for(action, url)
        for _ in range(REDIRECTS_MAX + 1):
            line = await self._storage.line_to(url, line=self._line, upstream=self._upstream)
            async with signed(
                line, credentials, "GET", url, headers=headers, silence_seconds_max=self._silence
            ) as response:
                if response.status in _REDIRECTS:
                    target = self._followed(str(_target(response)), url)
                    if _origin(target) != _origin(url):
                        headers, credentials = plain, None
                    url = target
                    continue
                skipped = _begins_at(response, offset)
                async for chunk in response.content.iter_chunked(READ_BYTES):
                    wanted = chunk[skipped:]
                    skipped -= len(chunk) - len(wanted)
                    if wanted:
                        yield wanted
                return
        raise UpstreamRefused(f"{url.host} redirects more than {REDIRECTS_MAX} times")

    def _followed(self, href: str, before: URL) -> URL:
        """Return the URL to go to from `before`.

        Raises:
            UpstreamRefused: Not there.
        """
        try:
            url = URL(href, encoded=True)
            host = url.host
        except ValueError:
            host = url = None
        if url is None or not host or url.scheme not in ("http", "https") or url.user:
            raise UpstreamRefused("the upstream names a download that is no http or https URL")
        if before.scheme == "https" and url.scheme != "https":
            raise UpstreamRefused(f"a download leads from https to plain http, at {host}")
        return url

    def _credentials_for(self, action: Action, url: URL) -> Credentials | None:
        """Return our credentials at home alone, where an action has none of its own."""
        is_signed = action.is_authenticated or "authorization" in map(str.lower, action.header)
        is_own = _origin(url) == _origin(self._upstream)
        return self._credentials if is_own and not is_signed else None


def endpoint(url: str) -> URL:
    """Return the LFS server of a repository (docs/api/server-discovery.md)."""
    return URL(url if url.endswith(".git") else f"{url}.git") / "info" / "lfs"


def _begins_at(response: aiohttp.ClientResponse, offset: int) -> int:
    """Return how many bytes at the beginning of the body were received before.

    Raises:
        UpstreamError: It is no body of the object.
    """
    status, host = response.status, response.url.host
    if status == 200:
        return offset
    if status == 206 and offset:
        said = response.headers.get("Content-Range", "")
        if said.startswith(f"bytes {offset}-"):
            return 0
        raise UpstreamUnavailable(f"{host} sent another part of an LFS object than asked for")
    if status in (401, 403, 404, 410):
        raise ActionRefused(f"{host} answered {status} to the download of an LFS object")
    raise UpstreamUnavailable(
        f"{host} answered {status} to the download of an LFS object",
        retry_after_seconds=retry_after_seconds(response),
    )


def _target(response: aiohttp.ClientResponse) -> URL:
    try:
        return response.url.join(URL(response.headers.get("Location", ""), encoded=True))
    except ValueError:
        raise UpstreamRefused(
            f"{response.url.host} redirects to something that is no URL"
        ) from None


def _origin(url: URL) -> tuple[str, str | None, int | None]:
    return url.scheme, url.host, url.port


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(READ_BYTES):
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            raise UpstreamRefused(f"the upstream's LFS answer is over {ANSWER_BYTES_MAX} bytes")
    return bytes(body)
