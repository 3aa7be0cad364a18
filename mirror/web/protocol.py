"""HTTP facts of the smart protocol (gitprotocol-http(5)): names, headers, versions, bodies."""

import asyncio
import enum
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from itertools import chain
from typing import Final

from aiohttp import HttpVersion11, web

from mirror.errors import ClientError, ProtocolError, TooLarge
from mirror.refresh.gate import Admitted
from mirror.web.bodies import FREE_BYTES, ROOMS
from mirror.web.broken_bodies import BROKEN, is_broken
from mirror.web.content_encoding import BodyDecoder
from mirror.web.turns import later

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

BODY_START_SECONDS: Final = 30.0
BODY_PACE_BYTES: Final = 1024
"""A request body has to come at this pace, in bytes a second, but for its first half minute: a
byte now and then does not keep a connection."""

BODY_SLICE_BYTES: Final = 256 * 1024
"""After so much of a body the event loop gets a turn: a gzipped one comes at memory's speed."""

ANSWER_SLICE_BYTES: Final = 64 * 1024
"""A longer answer goes out in slices, so that slow readers don't each hold a copy of it. A shorter
one fits into what a connection buffers: whoever sends it does not wait."""

CLIENT_SILENCE_SECONDS_MAX: Final = 120.0
"""A client that takes nothing for that long is gone."""


BUNDLES_BELOW: Final = "bundles"
"""Where a repository's bundles are, below its URL."""

STALE_HEADER: Final = "Git-Mirror-Stale"


class Operation(enum.StrEnum):
    """What a request asks for: a label of the metrics."""

    ADVERTISE = "advertise"
    CAPABILITIES = "capabilities"
    LS_REFS = "ls_refs"
    FETCH = "fetch"
    OBJECT_INFO = "object_info"
    LFS_BATCH = "lfs_batch"
    LFS_DOWNLOAD = "lfs_download"
    LFS_UPLOAD = "lfs_upload"
    LFS_LOCKS = "lfs_locks"
    BUNDLE_URI = "bundle_uri"
    BUNDLE = "bundle"
    PROBE = "probe"
    RECEIVE_PACK = "receive_pack"
    WEBHOOK = "webhook"
    CONTROL = "control"
    MONITORING = "monitoring"
    OTHER = "other"


OPERATION: Final = web.RequestKey("operation", Operation)
EDITION: Final = web.RequestKey("edition", object)
"""By what configuration a request is answered: see `mirror.web.editions`."""

OUTCOME: Final = web.RequestKey("outcome", str)
"""What came of a request: the other label. A handler sets it where it answers an error itself."""

EXPLAIN: Final[web.RequestKey[Callable[[str], web.Response]]] = web.RequestKey("explain")
"""Makes an answer's body and type of an error's sentence, for clients that want it in their way."""

OK: Final = "ok"
"""The outcome of a request that was answered as asked."""


def repository_path(request: web.Request) -> str | None:
    """Return the repository that a request names, as the log shows it."""
    return request.match_info.get("repository", "")[:200] or None


def protocol_version(request: web.Request) -> int:
    """Return the version a client asks for: the highest we know in its Git-Protocol header."""
    version = 0
    for entry in request.headers.get("Git-Protocol", "").split(":"):
        if entry in ("version=1", "version=2"):
            version = max(version, int(entry[-1]))
    return version


def answer_headers(content_type: str, admitted: Admitted | None = None) -> dict[str, str]:
    """Return an answer's headers: those of git http-backend, and whether it may be stale."""
    headers = {**NO_CACHE, "Content-Type": content_type}
    if admitted is not None and admitted.stale_seconds is not None:
        headers[STALE_HEADER] = str(admitted.stale_seconds)
    return headers


def accepts_gzip(request: web.Request) -> bool:
    """Tell whether the client takes gzip (RFC 9110, 12.5.3)."""
    for item in request.headers.get("Accept-Encoding", "").split(","):
        coding, _, weight = item.strip().partition(";")
        if coding.strip().lower() in ("gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def check_expectation(request: web.Request) -> None:
    """Check what a request expects; that it waits for "100 Continue" is seen to by `read_body`.

    Raises:
        HTTPExpectationFailed: It is something else (RFC 9110, 10.1.1).
    """
    expected = request.headers.get("Expect", "")
    if expected and request.version >= HttpVersion11 and expected.lower() != "100-continue":
        raise web.HTTPExpectationFailed(reason="expected nothing but Expect: 100-continue")


async def read_body(request: web.Request, *, bytes_max: int, hint: str) -> bytes:
    """Read a request body as `read_pieces` does, and return it as one."""
    pieces = await read_pieces(request, bytes_max=bytes_max, hint=hint)
    if len(pieces) == 1:
        return pieces[0]
    return await asyncio.to_thread(b"".join, pieces)  # which lets others run meanwhile


async def read_pieces(request: web.Request, *, bytes_max: int, hint: str) -> deque[bytes]:
    """Read a request body and undo its Content-Encoding.

    A client that waits to be told so is told to send it; where nobody reads the body, it never is.

    Args:
        request: Whose body.
        bytes_max: The most it may be, both as it comes and once decoded.
        hint: What to do about one that is longer, for its sender.

    Returns:
        Its pieces, of `BODY_SLICE_BYTES` or more but for the last: a short body is one. Who takes a
        long one apart needs no second copy, and can let go of it piece by piece.

    Raises:
        TooLarge: It is over `bytes_max`.
        UnsupportedEncoding: It is encoded in a way that is not undone here.
        ProtocolError: It is broken, comes too slowly or does not end.
        Overloaded: It is long, and there are too many such at once.
        ConnectionError: The client is gone.
    """
    decoder = body_decoder(request)
    rooms = request.config_dict.get(ROOMS)
    body = _Body()
    sent_bytes = 0
    now = asyncio.get_running_loop().time
    began_at = now()
    seconds_max = min(BODY_SECONDS_MAX, BODY_START_SECONDS)
    try:
        async with asyncio.timeout(seconds_max) as deadline:
            await invite_body(request)
            async for chunk in request.content.iter_any():
                check_body(request)
                sent_bytes += len(chunk)
                for piece in chain((b"",), decoder.feed(chunk)):
                    body.add(piece)
                    if max(sent_bytes, len(body)) > bytes_max:
                        raise TooLarge(
                            f"the request body is over {bytes_max} bytes, sent or decoded; {hint}"
                        )
                    if rooms is not None and len(body) > FREE_BYTES:
                        deadline.reschedule(None)  # to wait for a place is not the client's fault
                        came_at = now()
                        await rooms.enter(request, len(body))
                        began_at += now() - came_at
                        deadline.reschedule(began_at + seconds_max)
                    if len(body) > BODY_SLICE_BYTES:
                        await asyncio.sleep(0)
                seconds_max = min(
                    BODY_SECONDS_MAX, BODY_START_SECONDS + sent_bytes / BODY_PACE_BYTES
                )
                deadline.reschedule(began_at + seconds_max)
    except TimeoutError:
        raise ProtocolError(f"the request body took more than {seconds_max:.0f} seconds") from None
    except (web.RequestPayloadError, ValueError) as error:
        raise ProtocolError(f"the request body can't be read: {error}") from error
    decoder.finish()
    return body.pieces()


class _Body:
    """A body as it grows: a long one is neither moved about nor copied as a whole."""

    def __init__(self) -> None:
        self._slices: deque[bytes] = deque()
        self._end = bytearray()
        self._sliced_bytes = 0

    def __len__(self) -> int:
        return self._sliced_bytes + len(self._end)

    def add(self, piece: bytes) -> None:
        self._end += piece
        if len(self._end) >= BODY_SLICE_BYTES:
            self._slices.append(bytes(self._end))
            self._sliced_bytes += len(self._end)
            self._end.clear()

    def pieces(self) -> deque[bytes]:
        if self._end or not self._slices:
            self._slices.append(bytes(self._end))
        return self._slices


def body_decoder(request: web.Request) -> BodyDecoder:
    """Return what undoes the Content-Encoding of a request's body.

    Raises:
        UnsupportedEncoding: It is one that is not undone here, or several.
    """
    return BodyDecoder(", ".join(request.headers.getall("Content-Encoding", ())))


async def invite_body(request: web.Request) -> None:
    """Answer "100 Continue" where the client waits for that: its body is about to be read.

    Raises:
        ProtocolError: It is broken already.
        ConnectionError: The client is gone.
    """
    check_body(request)
    if request.version >= HttpVersion11 and "Expect" in request.headers:
        writer = request.writer
        await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        writer.output_size = 0  # the answer itself has not begun


def check_body(request: web.Request) -> None:
    """Notice, before and after each piece of a body, that its end can't come any more.

    Raises:
        ProtocolError: It is one that no end can be found of.
        ConnectionError: The client is gone. Where it left before the request was looked at, aiohttp
            would have a `RuntimeError` for who reads.
    """
    if request.content.is_eof():
        return
    check_connected(request)
    if is_broken(request):
        raise ProtocolError(f"the request body can't be read: {BROKEN}")


async def whole_answer(
    request: web.Request, body: bytes, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Return an answer whose body is at hand; a long one is sent on the way."""
    if len(body) <= ANSWER_SLICE_BYTES or request.method == "HEAD":
        return web.Response(body=body, headers=headers)
    response = web.StreamResponse(headers=headers)
    response.content_length = len(body)
    await response.prepare(request)
    view = memoryview(body)
    for start in range(0, len(body), ANSWER_SLICE_BYTES):
        await later(request)
        await send(response, view[start : start + ANSWER_SLICE_BYTES])
    return response


async def send(response: web.StreamResponse, data: bytes | memoryview) -> None:
    """Send a part of a body and wait until the client has room for more.

    Raises:
        ConnectionError: It is gone, or takes nothing any more.
    """
    if data:
        await _taken(response.write(data))


def check_connected(request: web.Request) -> None:
    """Notice a client that left while nothing was sent to it.

    Raises:
        ConnectionError: It did.
    """
    if request.transport is None or request.transport.is_closing():
        raise ConnectionResetError("the client went away")


async def end(response: web.StreamResponse) -> None:
    """Send what ends the body.

    Raises:
        ConnectionError: The client is gone, or takes nothing any more.
    """
    await _taken(response.write_eof())


async def _taken(sending: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(CLIENT_SILENCE_SECONDS_MAX):
            await sending
    except TimeoutError:
        raise ConnectionAbortedError(
            f"the client took nothing for {CLIENT_SILENCE_SECONDS_MAX:.0f} seconds"
        ) from None


class UnsupportedType(ClientError):
    """The wrong Content-Type."""

    status = 415
    label = "unsupported_type"
