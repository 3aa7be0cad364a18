"""Smart HTTP for readers: `info/refs` and `git-upload-pack` (gitprotocol-http(5)).

Polls are answered from the published snapshot. Errors are a status on `info/refs` and for bodies
that can't be read, an ``ERR`` pkt-line where a fetch was understood but can't be served, and
side-band 3 once the pack began. Never a redirect: Argo CD takes one for an error.
"""

import asyncio
from contextlib import aclosing
from typing import Final, Never, TypeVar, assert_never

import structlog
from aiohttp import web

from mirror.errors import ClientError, MirrorError, NotOurRef, ProtocolError, ReadOnly
from mirror.metrics import Metrics
from mirror.refresh.gate import Admitted
from mirror.refresh.refresher import Trigger
from mirror.refresh.registry import Hosted, Registry
from mirror.repository.fetching import FetchPlan, UnknownRef, missing_objects, plan_v0, plan_v2
from mirror.repository.packing.builds import PackBuilds
from mirror.web.protocol import (
    ADVERTISEMENT_TYPE,
    NO_CACHE,
    OPERATION,
    REQUEST_TYPE,
    RESULT_TYPE,
    Operation,
    accepts_gzip,
    protocol_version,
    read_body,
)
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
    FetchRequest,
    LsRefsRequest,
    ObjectInfoRequest,
    UploadPackRequest,
    parse_command,
    parse_upload_pack,
)

STALE_HEADER: Final = "Git-Mirror-Stale"
KEEPALIVE_SECONDS: Final = 5.0
"""As git's own server: clients and proxies take longer silence for a dead line."""

CLIENT_SILENCE_SECONDS_MAX: Final = 120.0
"""A client that takes nothing for that long is gone."""

WANT_REFRESH_SECONDS_MAX: Final = 10.0
"""How long a want that we lack may wait for the upstream. Argo CD gives up at 15 s."""

OBJECT_INFO_MAX: Final = 10_000

R = TypeVar("R", bound=web.StreamResponse)

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

    async def info_refs(self, request: web.Request) -> web.Response:
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
            return _whole(self._v2_capabilities, ADVERTISEMENT_TYPE)
        request[OPERATION] = Operation.ADVERTISE
        admitted = await self._admit(hosted)
        encoded = admitted.snapshot.advertisement(version)
        if encoded.gzip is not None and accepts_gzip(request):
            response = _whole(encoded.gzip, ADVERTISEMENT_TYPE)
            response.headers["Content-Encoding"] = "gzip"
            response.headers["Vary"] = "Accept-Encoding"
        else:
            response = _whole(encoded.plain, ADVERTISEMENT_TYPE)
        return _marked(response, admitted)

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
            raise _UnsupportedType(
                f"expected Content-Type {REQUEST_TYPE}, got {request.content_type[:100]!r}"
            )
        hosted.gate.current()
        body = await read_body(request, bytes_max=self._request_bytes_max)
        command = parse_command(body) if protocol_version(request) == 2 else parse_upload_pack(body)
        match command:
            case None:
                request[OPERATION] = Operation.PROBE
                return _whole(b"", RESULT_TYPE)
            case LsRefsRequest():
                request[OPERATION] = Operation.LS_REFS
                admitted = await self._admit(hosted)
                return _marked(_whole(admitted.snapshot.ls_refs(command), RESULT_TYPE), admitted)
            case ObjectInfoRequest():
                request[OPERATION] = Operation.OBJECT_INFO
                return await self._object_info(hosted, command)
            case FetchRequest() | UploadPackRequest():
                request[OPERATION] = Operation.FETCH
                return await self._fetch(request, hosted, command)
            case _:
                assert_never(command)

    async def _object_info(self, hosted: Hosted, command: ObjectInfoRequest) -> web.Response:
        if len(command.oids) > OBJECT_INFO_MAX:
            return _error(f"object-info for more than {OBJECT_INFO_MAX} objects at once")
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
            await self._bring_missing(hosted, admitted, fetch)
            admitted = admitted if by_name else hosted.gate.current()
            plan = await asyncio.to_thread(_plan, admitted, command)
        except (NotOurRef, UnknownRef, ProtocolError) as error:
            request["outcome"] = error.label
            return _marked(_error(f"upload-pack: {error}"), admitted)
        if plan.pack is None:
            return _marked(_whole(plan.head, RESULT_TYPE), admitted)
        return await self._send_pack(request, admitted, plan, fetch)

    async def _bring_missing(self, hosted: Hosted, admitted: Admitted, fetch: FetchRequest) -> None:
        """Ask the upstream once for wants that we lack: a reader may know a push before we do.

        Raises:
            NotOurRef: They are not to be had.
        """
        repository = admitted.repository
        missing = missing_objects(repository, fetch.wants)
        if not missing:
            return
        refreshed = hosted.refresher.request(Trigger.WANT)
        await asyncio.wait((refreshed,), timeout=WANT_REFRESH_SECONDS_MAX)
        missing = missing_objects(repository, missing)
        if missing:
            raise NotOurRef(f"not our ref {missing[0].decode()}")

    async def _send_pack(
        self, request: web.Request, admitted: Admitted, plan: FetchPlan, fetch: FetchRequest
    ) -> web.StreamResponse:
        if plan.pack is None:
            raise AssertionError("a plan without a pack is answered before")
        response = web.StreamResponse(headers={**NO_CACHE, "Content-Type": RESULT_TYPE})
        _marked(response, admitted)
        band = plan.side_band
        sent = 0
        pieces = self._builds.read(admitted.repository, plan.pack, idle_seconds=KEEPALIVE_SECONDS)
        async with aclosing(pieces):
            try:
                # The first piece decides: an error before it can still be told by its status.
                first = await anext(pieces, b"")
                await response.prepare(request)
                await _write(response, plan.head)
                await _write(response, encode_band(Band.PACK, first, band))
                sent += len(first)
                async for piece in pieces:
                    framed = encode_band(Band.PACK, piece, band) or encode_keepalive(band)
                    await _write(response, framed)
                    sent += len(piece)
                await _write(response, encode_end(band))
            except MirrorError as error:
                if not response.prepared:
                    raise
                request["outcome"] = error.label
                await _write(response, encode_band_error(str(error), band))
                response.force_close()
                if request.transport is not None and not band.value:
                    request.transport.abort()  # no side-band: a broken connection is the only sign
                return response
        logger.info(
            "served",
            wants=[oid.decode() for oid in fetch.wants[:5]],
            want_count=len(fetch.wants),
            have_count=len(fetch.haves),
            depth=fetch.deepen.depth,
            filter=fetch.filter.spec().decode() if fetch.filter else None,
            pack_bytes=sent,
        )
        await response.write_eof()
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


class _UnsupportedType(ClientError):
    """The wrong Content-Type."""

    status = 415
    label = "unsupported_type"


def _plan(admitted: Admitted, command: FetchRequest | UploadPackRequest) -> FetchPlan:
    if isinstance(command, UploadPackRequest):
        return plan_v0(admitted.repository, admitted.snapshot, command)
    return plan_v2(admitted.repository, admitted.snapshot, command)


def _whole(body: bytes, content_type: str) -> web.Response:
    return web.Response(body=body, headers={**NO_CACHE, "Content-Type": content_type})


def _error(message: str) -> web.Response:
    return _whole(encode_error(message), RESULT_TYPE)


def _marked(response: R, admitted: Admitted) -> R:
    if admitted.stale_seconds is not None:
        response.headers[STALE_HEADER] = str(admitted.stale_seconds)
    return response


async def _write(response: web.StreamResponse, data: bytes) -> None:
    """Send `data` and wait until the client has room for more."""
    if not data:
        return
    async with asyncio.timeout(CLIENT_SILENCE_SECONDS_MAX):
        await response.write(data)
