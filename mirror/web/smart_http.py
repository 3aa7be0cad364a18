"""Smart HTTP for readers: `info/refs` and `git-upload-pack` (gitprotocol-http(5)).

Polls are answered from the published snapshot. Errors are a status on `info/refs` and for bodies
that can't be read, an ``ERR`` pkt-line where a fetch was understood but can't be served, and
side-band 3 once the pack began. Never a redirect: Argo CD takes one for an error.
"""

import asyncio
import weakref
from collections.abc import Callable
from contextlib import aclosing
from typing import Final, Never, assert_never

import structlog
from aiohttp import web

from mirror.errors import LocalError, MirrorError, NotOurRef, ProtocolError, ReadOnly, TooLarge
from mirror.metrics import Metrics
from mirror.refresh.gate import Admitted
from mirror.refresh.registry import Hosted, Registry
from mirror.repository.fetching import FetchPlan, UnknownRef, missing_objects, plan_v0, plan_v2
from mirror.repository.packing.builds import PackBuilds
from mirror.repository.packing.engine import PackRequest
from mirror.web.protocol import (
    ADVERTISEMENT_TYPE,
    NO_CACHE,
    OPERATION,
    OUTCOME,
    REQUEST_TYPE,
    RESULT_TYPE,
    Operation,
    UnsupportedType,
    accepts_gzip,
    protocol_version,
    read_body,
    send,
    whole_answer,
)
from mirror.web.repeating import REPEATABLE, Repeatable
from mirror.wire.advertise import encode_v2_capabilities
from mirror.wire.answers import (
    Band,
    encode_band,
    encode_band_error,
    encode_end,
    encode_error,
    encode_keepalive,
    encode_object_info,
)
from mirror.wire.names import ObjectId
from mirror.wire.requests import (
    CommandRequest,
    FetchRequest,
    LsRefsRequest,
    ObjectInfoRequest,
    SideBand,
    UploadPackRequest,
    parse_command,
    parse_upload_pack,
)

STALE_HEADER: Final = "Git-Mirror-Stale"
KEEPALIVE_SECONDS: Final = 5.0
"""As git's own server: clients and proxies take longer silence for a dead line."""

WANT_REFRESH_SECONDS_MAX: Final = 10.0
"""How long a want that we lack may wait for the upstream. Argo CD gives up at 15 s."""

OBJECT_INFO_MAX: Final = 10_000
WANTS_LOGGED_MAX: Final = 5

PARSE_INLINE_BYTES_MAX: Final = 64 * 1024
"""Parsing a longer body takes milliseconds: not on the event loop."""

logger = structlog.stdlib.get_logger()


class SmartHttp:
    """The handlers of the smart protocol."""

    def __init__(
        self,
        registry: Registry,
        builds: PackBuilds,
        metrics: Metrics,
        *,
        agent: bytes,
        request_bytes_max: int,
    ) -> None:
        self._registry = registry
        self._builds = builds
        self._metrics = metrics
        self._v2_capabilities = encode_v2_capabilities(agent)
        self._request_bytes_max = request_bytes_max

    # --- info/refs -----------------------------------------------------------------------------

    async def info_refs(self, request: web.Request) -> web.StreamResponse:
        """GET /{repository}/info/refs?service=git-upload-pack."""
        hosted = self._registry.find(request.match_info["repository"])
        service = request.query.get("service")
        if service == "git-receive-pack":
            self._refuse_push(request, hosted)
        if service != "git-upload-pack":
            raise ProtocolError(
                "expected ?service=git-upload-pack: only the smart HTTP protocol is served here,"
                " which every git since 1.6.6 speaks"
            )
        version = protocol_version(request)
        if version == 2:
            request[OPERATION] = Operation.CAPABILITIES
            hosted.gate.current()
            request[REPEATABLE] = Repeatable(self._v2_capabilities, hosted.gate.is_open)
            return _whole(self._v2_capabilities, ADVERTISEMENT_TYPE)
        request[OPERATION] = Operation.ADVERTISE
        admitted = await self._admit(hosted)
        encoded = admitted.snapshot.advertisement(version)
        headers = _headers(ADVERTISEMENT_TYPE, admitted)
        body = encoded.plain
        if encoded.gzip is not None:
            headers["Vary"] = "Accept-Encoding"
            if accepts_gzip(request):
                headers["Content-Encoding"] = "gzip"
                body = encoded.gzip
        _offer(request, hosted, admitted, body)
        return await whole_answer(request, body, headers)

    async def receive_pack(self, request: web.Request) -> web.Response:
        """POST /{repository}/git-receive-pack: refused."""
        self._refuse_push(request, self._registry.find(request.match_info["repository"]))

    def _refuse_push(self, request: web.Request, hosted: Hosted) -> Never:
        request[OPERATION] = Operation.RECEIVE_PACK
        raise ReadOnly(f"this mirror is read-only; push to {hosted.mirror.settings.upstream}")

    # --- git-upload-pack -----------------------------------------------------------------------

    async def upload_pack(self, request: web.Request) -> web.StreamResponse:
        """POST /{repository}/git-upload-pack."""
        hosted = self._registry.find(request.match_info["repository"])
        if request.content_type != REQUEST_TYPE:
            raise UnsupportedType(
                f"expected Content-Type {REQUEST_TYPE}, got {request.content_type[:100]!r}"
            )
        hosted.gate.current()
        command = await self._command(request)
        match command:
            case None:
                request[OPERATION] = Operation.PROBE
                return _whole(b"", RESULT_TYPE)
            case LsRefsRequest():
                request[OPERATION] = Operation.LS_REFS
                admitted = await self._admit(hosted)
                answer = admitted.snapshot.ls_refs(command)
                _offer(request, hosted, admitted, answer)
                return await whole_answer(request, answer, _headers(RESULT_TYPE, admitted))
            case ObjectInfoRequest():
                request[OPERATION] = Operation.OBJECT_INFO
                return await self._object_info(request, hosted, command)
            case FetchRequest() | UploadPackRequest():
                request[OPERATION] = Operation.FETCH
                return await self._fetch(request, hosted, command)
            case _:
                assert_never(command)

    async def _command(self, request: web.Request) -> CommandRequest | UploadPackRequest | None:
        """Read and parse the body."""
        body = await read_body(
            request,
            bytes_max=self._request_bytes_max,
            hint="fetch fewer refs at a time, or raise limits.request_bytes_max",
        )
        parse: Callable[[bytes], CommandRequest | UploadPackRequest | None]
        parse = parse_command if protocol_version(request) == 2 else parse_upload_pack
        if len(body) <= PARSE_INLINE_BYTES_MAX:
            return parse(body)
        return await asyncio.to_thread(parse, body)

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
                (oid, source.size(oid) if command.size and source.contains(oid) else None)
                for oid in command.oids
            ]

        answer = encode_object_info(await asyncio.to_thread(sizes), with_size=command.size)
        return _whole(answer, RESULT_TYPE)

    async def _fetch(
        self, request: web.Request, hosted: Hosted, command: FetchRequest | UploadPackRequest
    ) -> web.StreamResponse:
        fetch = command.fetch if isinstance(command, UploadPackRequest) else command
        by_name = bool(fetch.want_refs or fetch.deepen.exclude)
        admitted = await self._admit(hosted) if by_name else hosted.gate.current()
        try:
            try:
                plan = await asyncio.to_thread(_plan, admitted, command)
            except NotOurRef:
                # A reader may know of a push before we do: the upstream is asked, once.
                await hosted.gate.look_again(WANT_REFRESH_SECONDS_MAX)
                admitted = admitted if by_name else hosted.gate.current()
                plan = await asyncio.to_thread(_plan, admitted, command)
            if plan.pack is not None:
                return await self._send_pack(request, admitted, plan, plan.pack)
            answer = plan.head
        except (NotOurRef, UnknownRef, ProtocolError, LocalError) as error:
            request[OUTCOME] = error.label
            log = logger.warning if isinstance(error, LocalError) else logger.info
            log("refused", kind=error.label, error=str(error))
            answer = encode_error(f"upload-pack: {error}")
        return await whole_answer(request, answer, _headers(RESULT_TYPE, admitted))

    async def _send_pack(
        self, request: web.Request, admitted: Admitted, plan: FetchPlan, pack: PackRequest
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=_headers(RESULT_TYPE, admitted))
        band = plan.side_band
        sent = 0
        pieces = self._builds.read(admitted.repository, pack, idle_seconds=KEEPALIVE_SECONDS)
        async with aclosing(pieces):
            try:
                # The first piece decides: an error before it can still be told as an ERR.
                piece: bytes | None = await anext(pieces, None)
                await response.prepare(request)
                await send(response, plan.head)
                while piece is not None:
                    _check_connected(request)
                    framed = encode_band(Band.PACK, piece, band) or encode_keepalive(band)
                    await send(response, framed)
                    sent += len(piece)
                    piece = await anext(pieces, None)
                await send(response, encode_end(band))
            except MirrorError as error:
                if not response.prepared:
                    raise
                request[OUTCOME] = error.label
                logger.warning("pack_broke_off", kind=error.label, error=str(error))
                if band is SideBand.NONE:
                    raise ConnectionAbortedError("no side-band to tell an error by") from error
                await send(response, encode_band_error(str(error), band))
                response.force_close()
                return response
        logger.info(
            "served",
            wants=[oid.decode() for oid in pack.wants[:WANTS_LOGGED_MAX]],
            want_count=len(pack.wants),
            have_count=len(pack.haves),
            shallow_count=len(pack.shallow),
            filter=pack.filter.spec().decode() if pack.filter else None,
            pack_bytes=sent,
        )
        return response

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


def _offer(request: web.Request, hosted: Hosted, admitted: Admitted, body: bytes) -> None:
    """Let a poll's answer be given again for as long as the same refs are fresh."""
    if admitted.stale_seconds is not None:
        return
    gate, shown = hosted.gate, weakref.ref(admitted.snapshot)

    def is_valid() -> bool:
        snapshot = shown()
        return snapshot is not None and gate.is_fresh(snapshot)

    request[REPEATABLE] = Repeatable(body, is_valid)


def _plan(admitted: Admitted, command: FetchRequest | UploadPackRequest) -> FetchPlan:
    """Plan the answer; blocking.

    Raises:
        NotOurRef: A want is not here.
    """
    fetch = command.fetch if isinstance(command, UploadPackRequest) else command
    if missing := missing_objects(admitted.repository, fetch.wants):
        raise NotOurRef(f"not our ref {missing[0].decode()}")
    if isinstance(command, UploadPackRequest):
        return plan_v0(admitted.repository, admitted.snapshot, command)
    return plan_v2(admitted.repository, admitted.snapshot, command)


def _headers(content_type: str, admitted: Admitted | None = None) -> dict[str, str]:
    """Return an answer's headers: those of git http-backend, and whether it may be stale."""
    headers = {**NO_CACHE, "Content-Type": content_type}
    if admitted is not None and admitted.stale_seconds is not None:
        headers[STALE_HEADER] = str(admitted.stale_seconds)
    return headers


def _whole(body: bytes, content_type: str) -> web.Response:
    return web.Response(body=body, headers=_headers(content_type))


def _check_connected(request: web.Request) -> None:
    """Notice a client that left while nothing was sent to it.

    Raises:
        ConnectionError: It did.
    """
    if request.transport is None or request.transport.is_closing():
        raise ConnectionResetError("the client went away")
