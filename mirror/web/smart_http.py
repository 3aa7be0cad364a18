"""Smart HTTP for readers: `info/refs` and `git-upload-pack` (gitprotocol-http(5)).

Polls are answered from the published snapshot. Errors are a status on `info/refs` and for bodies
that can't be read, an ``ERR`` pkt-line where a request was read but can't be served, and side-band
3 once the pack began. Never a redirect: Argo CD takes one for an error.
"""

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, assert_never

import structlog
from aiohttp import web

from mirror.errors import ProtocolError, RequestRefused, TooLarge
from mirror.metrics import Metrics
from mirror.refresh.gate import Admitted
from mirror.refresh.registry import Hosted
from mirror.web.fetch import Fetches
from mirror.web.finding import Opening
from mirror.web.first_clone import capabilities_once_mirrored
from mirror.web.guard import Guard
from mirror.web.protocol import (
    ADVERTISEMENT_TYPE,
    BUNDLES_BELOW,
    OPERATION,
    OUTCOME,
    REQUEST_TYPE,
    RESULT_TYPE,
    Operation,
    UnsupportedType,
    accepts_gzip,
    answer_headers,
    protocol_version,
    read_pieces,
    whole_answer,
)
from mirror.web.push import Pushes
from mirror.web.repeating import REPEATABLE, Repeatable
from mirror.wire.advertise import encode_v2_capabilities
from mirror.wire.answers import (
    encode_error,
    encode_object_info,
)
from mirror.wire.bundles import encode_bundle_uris
from mirror.wire.names import ObjectId
from mirror.wire.requests import (
    BundleUriRequest,
    CommandRequest,
    FetchRequest,
    LsRefsRequest,
    ObjectInfoRequest,
    UploadPackRequest,
    parse_command,
    parse_upload_pack,
)

OBJECT_INFO_MAX: Final = 10_000

PARSE_INLINE_BYTES_MAX: Final = 64 * 1024
"""Parsing a longer body takes milliseconds: not on the event loop."""

logger = structlog.stdlib.get_logger()


class SmartHttp:
    """The handlers of the smart protocol."""

    def __init__(
        self,
        guard: Guard,
        fetches: Fetches,
        pushes: Pushes,
        metrics: Metrics,
        *,
        agent: bytes,
        request_bytes_max: int,
    ) -> None:
        self._guard = guard
        self._fetches = fetches
        self._pushes = pushes
        self._metrics = metrics
        self._v2_capabilities = {
            has_bundles: encode_v2_capabilities(agent, has_bundles=has_bundles)
            for has_bundles in (False, True)
        }
        self._request_bytes_max = request_bytes_max

    # --- info/refs -----------------------------------------------------------------------------

    async def info_refs(self, request: web.Request) -> web.StreamResponse:
        """GET /{repository}/info/refs?service=git-upload-pack."""
        service = request.query.get("service")
        if service == "git-receive-pack":
            return await self._pushes.info_refs(request, await self._guard.find_for_push(request))
        settings = await self._guard.admit(request)
        if service != "git-upload-pack":
            raise ProtocolError(
                "expected ?service=git-upload-pack: only the smart HTTP protocol is served here,"
                " which every git since 1.6.6 speaks"
            )
        version = protocol_version(request)
        if version == 2:
            request[OPERATION] = Operation.CAPABILITIES
            found = self._guard.look(request, settings)
            if isinstance(found, Opening):
                without_bundles = self._v2_capabilities[False]
                return await capabilities_once_mirrored(request, found, without_bundles)
            return self._capabilities(request, found)
        request[OPERATION] = Operation.ADVERTISE
        hosted = await self._guard.bring(request, settings)
        admitted = await self._admit(hosted)
        encoded = admitted.snapshot.advertisement(version)
        headers = answer_headers(ADVERTISEMENT_TYPE, admitted)
        body = encoded.plain
        if encoded.gzip is not None:
            headers["Vary"] = "Accept-Encoding"
            if accepts_gzip(request):
                headers["Content-Encoding"] = "gzip"
                body = encoded.gzip
        _offer(request, hosted, admitted, body)
        return await whole_answer(request, body, headers)

    def _capabilities(self, request: web.Request, hosted: Hosted) -> web.Response:
        hosted.gate.current()
        mirror, gate = hosted.mirror, hosted.gate
        has_bundles = mirror.bundles is not None

        def is_valid() -> bool:
            return gate.is_open() and (mirror.bundles is not None) == has_bundles

        answer = self._v2_capabilities[has_bundles]
        request[REPEATABLE] = Repeatable(answer, is_valid)
        return _whole(answer, ADVERTISEMENT_TYPE)

    async def receive_pack(self, request: web.Request) -> web.StreamResponse:
        """POST /{repository}/git-receive-pack."""
        return await self._pushes.receive_pack(request, await self._guard.find_for_push(request))

    # --- git-upload-pack -----------------------------------------------------------------------

    async def upload_pack(self, request: web.Request) -> web.StreamResponse:
        """POST /{repository}/git-upload-pack."""
        settings = await self._guard.admit(request)
        if request.content_type != REQUEST_TYPE:
            raise UnsupportedType(
                f"expected Content-Type {REQUEST_TYPE}, got {request.content_type[:100]!r}"
            )
        hosted = await self._guard.bring(request, settings)
        hosted.gate.current()
        version = protocol_version(request)
        pieces = await read_pieces(
            request,
            bytes_max=self._request_bytes_max,
            hint="fetch fewer refs at a time, or raise limits.request_bytes_max",
        )
        body = pieces[0]  # all of it, unless it is too long to be remembered
        planned = await self._fetches.planned(hosted, version, body)
        if planned is not None:
            request[OPERATION] = Operation.FETCH
            return await self._fetches.send(request, hosted, hosted.gate.current(), planned)
        try:
            command = await _parse(version, pieces)
        except RequestRefused as error:
            request[OUTCOME] = error.label
            logger.info("refused", kind=error.label, error=str(error))
            return _whole(encode_error(str(error)), RESULT_TYPE)
        match command:
            case None:
                request[OPERATION] = Operation.PROBE
                return _whole(b"", RESULT_TYPE)
            case LsRefsRequest():
                request[OPERATION] = Operation.LS_REFS
                admitted = await self._admit(hosted)
                answer = admitted.snapshot.ls_refs(command)
                _offer(request, hosted, admitted, answer)
                return await whole_answer(request, answer, answer_headers(RESULT_TYPE, admitted))
            case ObjectInfoRequest():
                request[OPERATION] = Operation.OBJECT_INFO
                return await self._object_info(request, hosted, command)
            case BundleUriRequest():
                request[OPERATION] = Operation.BUNDLE_URI
                answer = encode_bundle_uris(hosted.mirror.bundles, below=BUNDLES_BELOW)
                return _whole(answer, RESULT_TYPE)
            case FetchRequest() | UploadPackRequest():
                request[OPERATION] = Operation.FETCH
                fetch = command.fetch if isinstance(command, UploadPackRequest) else command
                by_name = bool(fetch.want_refs or fetch.deepen.exclude)
                seen = await self._admit(hosted) if by_name else None
                return await self._fetches.answer(
                    request, hosted, command, admitted=seen, version=version, body=body
                )
            case _:
                assert_never(command)

    async def _object_info(
        self, request: web.Request, hosted: Hosted, command: ObjectInfoRequest
    ) -> web.Response:
        if len(command.oids) > OBJECT_INFO_MAX:
            request[OUTCOME] = TooLarge.label
            message = f"object-info for more than {OBJECT_INFO_MAX} objects at once"
            return _whole(encode_error(message), RESULT_TYPE)
        source = hosted.gate.current().repository.source

        def sizes() -> list[tuple[ObjectId, int | None]]:
            return [
                (oid, source.size(oid) if source.contains(oid) else None) for oid in command.oids
            ]

        answer = encode_object_info(await asyncio.to_thread(sizes), with_size=command.size)
        return _whole(answer, RESULT_TYPE)

    async def _admit(self, hosted: Hosted) -> Admitted:
        admitted = await hosted.gate.admit()
        if admitted.held_seconds:
            self._metrics.record_held(admitted.held_seconds)
        if admitted.stale_seconds is not None:
            self._metrics.record_stale_answer()
            logger.warning(
                "stale_answer",
                stale_seconds=admitted.stale_seconds,
                error=hosted.mirror.last.error,
            )
        return admitted


async def _parse(version: int, pieces: deque[bytes]) -> CommandRequest | UploadPackRequest | None:
    """Parse a body, whose pieces are let go of one by one."""
    parse: Callable[[bytes, Iterable[bytes]], CommandRequest | UploadPackRequest | None]
    parse = parse_command if version == 2 else parse_upload_pack
    first = pieces.popleft()
    if len(first) <= PARSE_INLINE_BYTES_MAX:
        return parse(first, pieces)
    following = (pieces.popleft() for _ in range(len(pieces)))
    return await asyncio.to_thread(parse, first, following)


def _offer(request: web.Request, hosted: Hosted, admitted: Admitted, body: bytes) -> None:
    """Let a poll's answer be given again for as long as the same refs are fresh."""
    if admitted.stale_seconds is not None:
        return
    gate, shown = hosted.gate, weakref.ref(admitted.snapshot)

    def is_valid() -> bool:
        snapshot = shown()
        return snapshot is not None and gate.is_fresh(snapshot)

    request[REPEATABLE] = Repeatable(body, is_valid)


def _whole(body: bytes, content_type: str) -> web.Response:
    return web.Response(body=body, headers=answer_headers(content_type))
