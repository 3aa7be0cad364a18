"""The smart-HTTP client for one upstream repository (gitprotocol-http(5)).

Connections are kept alive, credentials are sent unasked, requests are gzipped where it pays. What
the upstream can do is asked once and remembered: from then on a look at its refs is one round trip.

A redirect (a renamed repository) is followed within the same host only: credentials never travel to
a place that the configuration does not name.
"""

import asyncio
import gzip
import io
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

import aiohttp
from yarl import URL

from mirror.errors import ProtocolError, UpstreamError, UpstreamRefused, UpstreamUnavailable
from mirror.upstream.credentials import BasicCredentials
from mirror.wire.client import (
    FetchAnswerDecoder,
    Listing,
    UpstreamFeatures,
    encode_fetch,
    encode_ls_refs_command,
    parse_info_refs,
)
from mirror.wire.listing import read_ls_refs
from mirror.wire.names import ObjectId
from mirror.wire.pktline import decode_all
from mirror.wire.ref_table import RefTable

ANSWER_BYTES_MAX: Final = 256 << 20
"""A listing of two million refs; more is refused rather than held in memory."""

REDIRECTS_MAX: Final = 3
RETRY_AFTER_SECONDS_MAX: Final = 3600.0
"""Longer than forges ask for: a slip of a proxy must not silence us for days."""

CONNECT_SECONDS_MAX: Final = 15.0
GZIP_BYTES_MIN: Final = 1024
READ_BYTES: Final = 128 * 1024
ERROR_BODY_BYTES_MAX: Final = 500

PARSE_INLINE_BYTES_MAX: Final = 64 * 1024
"""To parse more takes more than a few milliseconds: not on the event loop."""

_NOTHING: Final = RefTable()
_SERVICE: Final = "git-upload-pack"
_ADVERTISEMENT: Final = f"application/x-{_SERVICE}-advertisement"
_REQUEST: Final = f"application/x-{_SERVICE}-request"
_RESULT: Final = f"application/x-{_SERVICE}-result"

FetchProgress = Callable[[int, bytes], None]
"""Called with (pack bytes received, the upstream's own progress message)."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RemoteLimits:
    """Limits of one request.

    Attributes:
        silence_seconds_max: Nothing heard for that long: given up.
        pack_bytes_max: A larger pack is refused.
    """

    silence_seconds_max: float
    pack_bytes_max: int


class _BrokenOff(UpstreamUnavailable):
    """The connection ended too early; a kept-alive one may have been dead before."""


_HINTS: Final = {
    (401, True): "the credentials are wrong or expired; put new ones into the password file",
    (401, False): "it wants credentials; set `credentials`",
    (403, True): "these credentials may not read the repository",
    (403, False): "not everybody may read the repository; set `credentials`",
    (404, True): "there is no such repository, or these credentials may not see it",
    (404, False): "there is no such repository, or it can't be seen without `credentials`",
    (410, True): "the repository is gone",
    (410, False): "the repository is gone",
}
"""What to do about a status, with credentials and without."""


class Remote:
    """One upstream repository."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        credentials: BasicCredentials | None,
        limits: RemoteLimits,
        agent: bytes,
    ) -> None:
        self._session = session
        self._configured = self._base = URL(url)
        self._credentials = credentials
        self._limits = limits
        self._agent = agent
        self._features: UpstreamFeatures | None = None
        self.moved_to: str | None = None
        """Where the upstream says it is now, when that is not where the configuration says."""

    def __repr__(self) -> str:
        return f"Remote({str(self._configured)!r})"

    def forget(self) -> None:
        """Forget what the upstream can do, so that the next look starts from the beginning."""
        self._features = None

    async def list_refs(self, prefixes: Iterable[bytes], *, known: RefTable = _NOTHING) -> Listing:
        """Ask for the refs whose names begin with one of `prefixes`, and HEAD.

        A v0 upstream sends all it has. What is as in `known` is not read again.

        Raises:
            UpstreamError: It did not answer as it should.
        """
        features = self._features
        if features is not None and features.version == 2:
            try:
                return await self._ls_refs(features, prefixes, known)
            except (_BrokenOff, UpstreamRefused):
                # A kept-alive connection that had died, a renamed repository, another server behind
                # the same name: start over once, and let that error stand if there is one.
                self._features = None
            except UpstreamError:
                self._features = None
                raise
        features = self._features = await self._first_answer()
        if features.listing is None:
            return await self._ls_refs(features, prefixes, known)
        if features.listing.shallow:
            raise UpstreamRefused("the upstream is a shallow repository; unshallow it to mirror it")
        return features.listing

    async def _ls_refs(
        self, features: UpstreamFeatures, prefixes: Iterable[bytes], known: RefTable
    ) -> Listing:
        command = encode_ls_refs_command(features, [b"HEAD", *prefixes], self._agent)
        with _upstream_errors():
            async with self._post(command, features) as response:
                return await _in_steps(read_ls_refs(await self._whole_body(response), known))

    async def fetch_pack(
        self,
        wants: Sequence[ObjectId],
        haves: Sequence[ObjectId],
        *,
        progress: FetchProgress | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Ask for a pack and yield it as it arrives. Call `list_refs` first.

        Raises:
            UpstreamError: It did not answer as it should, or was cut off.
        """
        features = self._features or await self._first_answer()
        body = encode_fetch(features, wants=wants, haves=haves, agent=self._agent)
        decoder = FetchAnswerDecoder(features)
        received = 0
        with _upstream_errors():
            async with self._post(body, features) as response:
                async for data in _chunks(response):
                    for piece in decoder.feed(data):
                        received += len(piece)
                        if received > self._limits.pack_bytes_max:
                            raise UpstreamRefused(
                                f"the upstream's pack is over limits.pack_bytes_max"
                                f" ({self._limits.pack_bytes_max} bytes)"
                            )
                        yield piece
                    if progress is not None:
                        progress(received, decoder.progress)
                decoder.finish()

    async def _first_answer(self) -> UpstreamFeatures:
        headers = {"Git-Protocol": "version=2", "Pragma": "no-cache"}
        self._base = self._configured
        self.moved_to = None
        for _ in range(REDIRECTS_MAX + 1):
            url = self._base / "info/refs" % {"service": _SERVICE}
            async with self._request("GET", url, headers=headers) as response:
                if response.status in (301, 302, 303, 307, 308):
                    self._follow(response)
                    continue
                await self._raise_for_status(response)
                _check_content_type(response, _ADVERTISEMENT)
                with _upstream_errors():
                    body = await self._whole_body(response)
                    if len(body) <= PARSE_INLINE_BYTES_MAX:
                        features = _parse_first_answer(body)
                    else:  # the whole listing of a v0 upstream
                        features = await asyncio.to_thread(_parse_first_answer, body)
            if features.object_format != b"sha1":
                raise UpstreamRefused(
                    f"the upstream uses {features.object_format.decode('ascii', 'replace')} object"
                    " ids; only SHA-1 repositories can be mirrored"
                )
            return features
        raise UpstreamRefused(f"the upstream redirects more than {REDIRECTS_MAX} times")

    def _follow(self, response: aiohttp.ClientResponse) -> None:
        """Take over the place a redirect names, or refuse to go there."""
        try:
            target = response.url.join(URL(response.headers.get("Location", "")))
            place = target.with_user(None).with_query(None).with_fragment(None)
        except ValueError as error:
            raise UpstreamRefused(
                f"{self._base} redirects to something that is no URL: {error}"
            ) from error
        upgraded = self._base.scheme == "http" and place.scheme == "https"
        same_place = place.host == self._base.host and (
            upgraded or (place.scheme, place.port) == (self._base.scheme, self._base.port)
        )
        if not same_place:
            raise UpstreamRefused(
                f"the upstream redirects to {place}, which is another place;"
                " if that is right, put it into the configuration"
            )
        suffix = "/info/refs"
        if not place.raw_path.endswith(suffix):
            raise UpstreamRefused(
                f"the upstream redirects to {place}, which is no repository:"
                " is the URL right, and does it want credentials?"
            )
        self._base = place.with_path(place.raw_path.removesuffix(suffix), encoded=True)
        self.moved_to = str(self._base)

    @asynccontextmanager
    async def _post(
        self, body: bytes, features: UpstreamFeatures
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Content-Type": _REQUEST, "Accept": _RESULT}
        if features.version:
            headers["Git-Protocol"] = f"version={features.version}"
        if len(body) > GZIP_BYTES_MIN:
            body = gzip.compress(body, 1)
            headers["Content-Encoding"] = "gzip"
        url = self._base / _SERVICE
        async with self._request("POST", url, headers=headers, body=body) as response:
            await self._raise_for_status(response)
            _check_content_type(response, _RESULT)
            yield response

    @asynccontextmanager
    async def _request(
        self, method: str, url: URL, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {**headers, "User-Agent": f"git/{self._agent.decode('ascii')}"}
        if self._credentials is not None:
            headers["Authorization"] = self._credentials.authorization()
        silence = self._limits.silence_seconds_max
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=min(silence, CONNECT_SECONDS_MAX), sock_read=silence
        )
        try:
            async with self._session.request(
                method,
                url,
                headers=headers,
                data=io.BytesIO(body) if body is not None else None,  # sent in pieces
                allow_redirects=False,
                timeout=timeout,
            ) as response:
                yield response
        except aiohttp.ClientConnectorCertificateError as error:
            raise UpstreamRefused(
                f"the certificate of {url.host} is not accepted: {error.certificate_error}"
            ) from error
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
            raise UpstreamUnavailable(f"{url.host} can't be reached: {_reason(error)}") from error
        except TimeoutError as error:
            raise UpstreamUnavailable(f"{url.host} was silent for {silence:g} seconds") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _BrokenOff(f"{url.host} broke off: {_reason(error)}") from error

    async def _raise_for_status(self, response: aiohttp.ClientResponse) -> None:
        """Say what an error status means, and what to do about it."""
        status = response.status
        if status == 200:
            return
        where = f"{self._base} answered {status}"
        retry_after = _retry_after_seconds(response)
        if status == 429 or (status in (403, 503) and retry_after is not None):
            raise UpstreamUnavailable(
                f"{where}: it asks us to slow down", retry_after_seconds=retry_after
            )
        hint = _HINTS.get((status, self._credentials is not None))
        if hint is not None:
            raise UpstreamRefused(f"{where}: {hint}")
        page = await _beginning(response) or response.reason
        if status >= 500:
            raise UpstreamUnavailable(f"{where}: {page}")
        raise UpstreamRefused(f"{where}: {page}")

    async def _whole_body(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in _chunks(response):
            body += chunk
            if len(body) > ANSWER_BYTES_MAX:
                raise UpstreamRefused(f"the upstream's answer is over {ANSWER_BYTES_MAX} bytes")
        return bytes(body)


def _parse_first_answer(body: bytes) -> UpstreamFeatures:
    return parse_info_refs(decode_all(body))


async def _in_steps(steps: Generator[None, None, T]) -> T:
    """Run a generator to its end; the loop is not to stand still meanwhile."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        await asyncio.sleep(0)


def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    return response.content.iter_chunked(READ_BYTES).__aiter__()


@contextmanager
def _upstream_errors() -> Iterator[None]:
    """What our parsers refuse is the upstream's fault here, not a reader's."""
    try:
        yield
    except ProtocolError as error:
        raise UpstreamUnavailable(str(error)) from error


def _check_content_type(response: aiohttp.ClientResponse, expected: str) -> None:
    if response.content_type != expected:
        raise UpstreamRefused(
            f"{response.url.with_query(None)} answered with {response.content_type!r} instead of"
            f" {expected!r}: this is not a smart-HTTP Git server, or not the repository's URL"
        )


def _retry_after_seconds(response: aiohttp.ClientResponse) -> float | None:
    """Read Retry-After (RFC 9110, 10.2.3): seconds or a date."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return min(float(value), RETRY_AFTER_SECONDS_MAX)
    try:
        at = parsedate_to_datetime(value)
        now = parsedate_to_datetime(response.headers["Date"])
        return min(max(0.0, (at - now).total_seconds()), RETRY_AFTER_SECONDS_MAX)
    except (ValueError, TypeError, KeyError):
        return None


def _reason(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__


async def _beginning(response: aiohttp.ClientResponse) -> str:
    """Return the first words of an error page, as far as there are any."""
    try:
        raw = await response.content.read(ERROR_BODY_BYTES_MAX)
    except (TimeoutError, aiohttp.ClientError):
        return ""
    return " ".join(raw.decode("utf-8", "replace").split())
