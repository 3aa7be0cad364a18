"""The smart-HTTP client for one upstream repository (gitprotocol-http(5)).

Connections are kept alive, credentials are sent unasked, requests are gzipped where it pays. What
the upstream can do is asked once and remembered: from then on a look at its refs is one round trip.

A redirect (a renamed repository) is followed within the same host only: credentials never travel to
a place that the configuration does not name.
"""

import asyncio
import gzip
import hashlib
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import aiohttp
from yarl import URL

from mirror.errors import (
    MirrorError,
    OtherObjectFormat,
    Trouble,
    UpstreamError,
    UpstreamRefused,
    UpstreamUnavailable,
)
from mirror.upstream.credentials import Credentials
from mirror.upstream.failures import (
    BrokenOff,
    check_content_type,
    raise_for_status,
    upstream_errors,
)
from mirror.upstream.line import Line, signed
from mirror.upstream.pace import Pace
from mirror.wire.client import (
    FetchAnswerDecoder,
    Listing,
    UpstreamFeatures,
    encode_fetch,
    encode_fetch_of_one_commit,
    encode_ls_refs_command,
    parse_info_refs,
)
from mirror.wire.listing import read_ls_refs
from mirror.wire.names import ObjectId
from mirror.wire.pktline import decode_all
from mirror.wire.ref_table import RefTable

ANSWER_BYTES_MAX: Final = 256 << 20
"""A listing of two million refs; more is refused rather than held in memory."""

SAID_BYTES_MAX: Final = 1 << 20
"""What an upstream may say beside its pack, above as much as the pack has: git writes a line of
progress, some 60 bytes, each second and for each hundredth, so for five hours of counting."""

REDIRECTS_MAX: Final = 3
GZIP_BYTES_MIN: Final = 1024
READ_BYTES: Final = 128 * 1024

WORKED_ON_AT_ONCE_BYTES_MAX: Final = 64 * 1024
"""About a thousand refs, a millisecond or two."""

_NEVER_SEEN: Final = b""  # no answer's digest
_NOTHING: Final = RefTable()
_SERVICE: Final = "git-upload-pack"
_ADVERTISEMENT: Final = f"application/x-{_SERVICE}-advertisement"
_REQUEST: Final = f"application/x-{_SERVICE}-request"
_RESULT: Final = f"application/x-{_SERVICE}-result"
_FIRST_HEADERS: Final = {"Git-Protocol": "version=2", "Pragma": "no-cache"}

T = TypeVar("T")

FetchProgress = Callable[[int, bytes], None]
"""Called with (pack bytes received, the upstream's own progress message)."""


@dataclass(frozen=True, slots=True)
class RemoteLimits:
    """Limits of one request.

    Attributes:
        silence_seconds_max: Nothing heard for that long: given up.
        pack_bytes_max: A larger pack is refused.
        bytes_per_second_min: Slower, over `silence_seconds_max`: given up.
    """

    silence_seconds_max: float
    pack_bytes_max: int
    bytes_per_second_min: int = 0


WARMED_EVERY_SECONDS: Final = 300.0
"""Whoever closes idle connections, a second one is made so often."""


class Remote:
    """One upstream repository."""

    def __init__(
        self,
        line: Line,
        url: str,
        *,
        credentials: Credentials | None,
        limits: RemoteLimits,
        agent: bytes,
        may_move_to: Callable[[str], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._may_move_to = may_move_to
        self._clock = clock
        self._warmed_at: float | None = None
        self._line = line
        self._configured = self._base = URL(url)
        self._credentials = credentials
        self._limits = limits
        self._agent = agent
        self._features: UpstreamFeatures | None = None
        self._first: tuple[bytes, UpstreamFeatures] | None = None  # the first answer's digest
        self.moved_to: str | None = None
        """Where the upstream says it is now, when that is not where the configuration says."""

    def __repr__(self) -> str:
        return f"Remote({str(self._configured)!r})"

    @property
    def is_known(self) -> bool:
        """Whether the upstream was asked what it can do: then a pack takes one request."""
        return self._features is not None

    async def warm(self) -> None:
        """Make a small request, unless that was done a while ago.

        Beside another request, so that there are two open connections: a push needs two at once,
        and the pool takes them in turn, so that the next polls keep both alive. What fails here
        does no harm.
        """
        features, now = self._features, self._clock()
        if features is None or features.version != 2:  # the first answer of v0 may be large
            return
        if self._warmed_at is not None and now - self._warmed_at < WARMED_EVERY_SECONDS:
            return
        self._warmed_at = now
        with suppress(MirrorError):
            url = self._base / "info/refs" % {"service": _SERVICE}
            async with self._request("GET", url, headers=_FIRST_HEADERS) as response:
                await self._whole_body(response)

    def forget(self) -> None:
        """Forget what the upstream can do, so that the next look starts from the beginning."""
        self._features = None

    async def list_refs(self, prefixes: Iterable[bytes], *, known: RefTable = _NOTHING) -> Listing:
        """Ask for the refs whose names begin with one of `prefixes`, and HEAD.

        A v0 upstream sends all it has. What is as in `known` is not read again.

        Raises:
            UpstreamError: It did not answer as it should.
        """
        listing = await self.list_news(prefixes, seen=_NEVER_SEEN, known=known)
        if listing is None:
            raise UpstreamUnavailable("the upstream's answer has no digest")  # they all have
        return listing

    async def list_news(
        self, prefixes: Iterable[bytes], *, seen: bytes, known: RefTable = _NOTHING
    ) -> Listing | None:
        """Do as `list_refs`, but return `None` if the answer is the one whose digest is `seen`.

        Most looks find nothing new; a hundred thousand refs are then hashed, not parsed.

        Raises:
            UpstreamError: It did not answer as it should.
        """
        features = self._features
        if features is not None and features.version == 2:
            try:
                return await self._ls_refs(features, prefixes, seen, known)
            except (BrokenOff, UpstreamRefused):
                # A kept-alive connection that had died, a renamed repository, another server behind
                # the same name: start over once, and let that error stand if there is one.
                self._features = None
            except UpstreamError:
                self._features = None
                raise
        features = self._features = await self._first_answer()
        if features.listing is None:
            return await self._ls_refs(features, prefixes, seen, known)
        if features.listing.shallow:
            raise UpstreamRefused(
                "the upstream is a shallow repository; unshallow it to mirror it",
                trouble=Trouble.UNSUPPORTED,
            )
        return features.listing if features.listing.digest != seen else None

    async def _ls_refs(
        self,
        features: UpstreamFeatures,
        prefixes: Iterable[bytes],
        seen: bytes,
        known: RefTable,
    ) -> Listing | None:
        command = encode_ls_refs_command(features, [b"HEAD", *prefixes], self._agent)
        with upstream_errors():
            async with self._post(command, features) as response:
                body = await self._whole_body(response)
            digest = await _work(_digest, body)
            if digest == seen:
                return None
            listing = await _in_steps(read_ls_refs(body, known))
            return replace(listing, digest=digest)

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
        received = heard = 0
        pace = self._pace(counts=False)
        with upstream_errors():
            async with self._post(body, features) as response:
                async for data in self._chunks(response, pace):
                    heard += len(data)
                    for piece in decoder.feed(data):
                        received += len(piece)
                        pace.counts = True
                        if received > self._limits.pack_bytes_max:
                            raise UpstreamRefused(
                                f"the upstream's pack is over limits.pack_bytes_max"
                                f" ({self._limits.pack_bytes_max} bytes)",
                                trouble=Trouble.TOO_LARGE,
                            )
                        yield piece
                    if heard - received > SAID_BYTES_MAX + received:
                        raise UpstreamUnavailable(
                            f"the upstream sent {heard - received} bytes of progress and the like"
                            f" with {received} bytes of a pack: it does not come to the point",
                            trouble=Trouble.NO_PACK,
                        )
                    if progress is not None:
                        progress(received, decoder.progress)
                decoder.finish()

    async def fetch_one_commit(self, commit: ObjectId) -> int:
        """Fetch a commit to see that it works; returns the bytes of the answer.

        Raises:
            UpstreamError: It did not answer with a pack.
        """
        features = self._features or await self._first_answer()
        body = encode_fetch_of_one_commit(features, commit, self._agent)
        async with self._post(body, features) as response:
            answer = await self._whole_body(response)
        if b"PACK" not in answer:
            raise UpstreamUnavailable(f"no pack came: {answer[:100]!r}")
        return len(answer)

    async def _first_answer(self) -> UpstreamFeatures:
        self._base = self._configured
        self.moved_to = None
        for _ in range(REDIRECTS_MAX + 1):
            url = self._base / "info/refs" % {"service": _SERVICE}
            async with self._request("GET", url, headers=_FIRST_HEADERS) as response:
                if response.status in (301, 302, 303, 307, 308):
                    self._follow(response)
                    continue
                await raise_for_status(response, self._base, credentials=self._credentials)
                check_content_type(response, _ADVERTISEMENT)
                body = await self._whole_body(response)
            features = await self._parse_first_answer(body)
            if features.object_format != b"sha1":
                hash_name = features.object_format.decode("ascii", "backslashreplace")
                raise OtherObjectFormat(
                    f"the upstream's object format is {hash_name}, and only sha1 repositories can"
                    " be mirrored: take it out of the configuration and let its readers fetch from"
                    f" {self._base} itself"
                )
            return features
        raise UpstreamRefused(
            f"the upstream redirects more than {REDIRECTS_MAX} times", trouble=Trouble.REDIRECTED
        )

    async def _parse_first_answer(self, body: bytes) -> UpstreamFeatures:
        """Parse it, unless it is the last one again: of v0 it holds all refs."""
        digest = await _work(_digest, body)
        if self._first is None or self._first[0] != digest:
            with upstream_errors():
                features = await _work(lambda whole: parse_info_refs(decode_all(whole)), body)
            if features.listing is not None:
                features = replace(features, listing=replace(features.listing, digest=digest))
            self._first = (digest, features)
        return self._first[1]

    def _follow(self, response: aiohttp.ClientResponse) -> None:
        """Take over the place a redirect names, or refuse to go there."""
        try:
            target = response.url.join(URL(response.headers.get("Location", "")))
            place = target.with_user(None).with_query(None).with_fragment(None)
        except ValueError as error:
            raise UpstreamRefused(
                f"{self._base} redirects to something that is no URL: {error}",
                trouble=Trouble.REDIRECTED,
            ) from error
        upgraded = self._base.scheme == "http" and place.scheme == "https"
        same_place = place.host == self._base.host and (
            upgraded or (place.scheme, place.port) == (self._base.scheme, self._base.port)
        )
        if not same_place:
            raise UpstreamRefused(
                f"the upstream redirects to {place}, which is another place;"
                " if that is right, put it into the configuration",
                trouble=Trouble.REDIRECTED,
            )
        suffix = "/info/refs"
        if not place.raw_path.endswith(suffix):
            raise UpstreamRefused(
                f"the upstream redirects to {place}, which is no repository:"
                " is the URL right, and does it want credentials?",
                trouble=Trouble.REDIRECTED,
            )
        base = place.with_path(place.raw_path.removesuffix(suffix), encoded=True)
        if self._may_move_to is not None and not self._may_move_to(str(base)):
            raise UpstreamRefused(
                f"the upstream redirects to {base}, which is no repository that `upstreams` admits",
                trouble=Trouble.REDIRECTED,
            )
        self._base = base
        self.moved_to = str(base)

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
            await raise_for_status(response, self._base, credentials=self._credentials)
            check_content_type(response, _RESULT)
            yield response

    @asynccontextmanager
    async def _request(
        self, method: str, url: URL, *, headers: Mapping[str, str], body: bytes | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {**headers, "User-Agent": f"git/{self._agent.decode('ascii')}"}
        async with signed(
            self._line,
            self._credentials,
            method,
            url,
            headers=headers,
            body=body,
            silence_seconds_max=self._limits.silence_seconds_max,
        ) as response:
            yield response

    async def _whole_body(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in self._chunks(response, self._pace(counts=True)):
            body += chunk
            if len(body) > ANSWER_BYTES_MAX:
                raise UpstreamRefused(
                    f"the upstream's answer is over {ANSWER_BYTES_MAX} bytes",
                    trouble=Trouble.TOO_LARGE,
                )
        return bytes(body)

    def _pace(self, *, counts: bool) -> Pace:
        limits = self._limits
        return Pace(
            bytes_per_second_min=limits.bytes_per_second_min,
            window_seconds=limits.silence_seconds_max,
            counts=counts,
        )

    async def _chunks(
        self, response: aiohttp.ClientResponse, pace: Pace
    ) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives.

        Raises:
            UpstreamUnavailable: It is too slow.
        """
        began_at = self._clock()
        while chunk := await response.content.read(READ_BYTES):
            pace.took(self._clock() - began_at, len(chunk))
            yield chunk
            began_at = self._clock()


async def _work(function: Callable[[bytes], T], body: bytes) -> T:
    """Work on an answer: on a large one in a thread."""
    if len(body) <= WORKED_ON_AT_ONCE_BYTES_MAX:
        return function(body)
    return await asyncio.to_thread(function, body)


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=32).digest()


async def _in_steps(steps: Generator[None, None, T]) -> T:
    """Run a generator to its end; the loop is not to stand still meanwhile."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        await asyncio.sleep(0)
