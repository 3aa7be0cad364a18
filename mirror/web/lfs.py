"""Git LFS for readers: objects/batch for downloads, and the objects (docs/api/ of git-lfs).

An object is handed out only through a repository whose upstream has offered it (`LfsStore`).
Uploads and locks are refused as pushes are, naming the upstream. Errors are JSON, as git-lfs shows
them. The URLs in a batch's answer are those that the reader came by, so that a proxy in front of us
stays in front.
"""

import asyncio
import re
import time
from pathlib import Path
from typing import Final, Never

import structlog
from aiohttp import web

from mirror.config import LimitSettings, RepositorySettings
from mirror.errors import ClientError, Damaged, MirrorError, Overloaded, ProtocolError, ReadOnly
from mirror.metrics import Metrics
from mirror.refresh.lfs import LfsSource
from mirror.refresh.registry import Hosted
from mirror.repository.integrity import Kind
from mirror.repository.lfs_store import Found, LfsStore
from mirror.web.forwarded import Proxies
from mirror.web.guard import Guard
from mirror.web.lfs_sending import Span, send_arriving, send_stored
from mirror.web.protocol import EXPLAIN, NO_CACHE, OPERATION, OUTCOME, Operation, read_body
from mirror.wire.lfs import (
    CONTENT_TYPE,
    REQUEST_BYTES_MAX,
    Action,
    Pointer,
    Refusal,
    encode_batch_answer,
    encode_error,
    parse_batch_request,
)

OID: Final = "[0-9a-f]{64}"

_HOST: Final = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")

logger = structlog.stdlib.get_logger()


class LfsOff(ClientError):
    """`lfs: false` for the repository."""

    status = 404
    label = "lfs_off"


class NotGranted(ClientError):
    """An object that the repository's upstream has not offered, as far as is known here."""

    status = 404
    label = "lfs_not_granted"


class LfsHandlers:
    """The handlers of Git LFS."""

    def __init__(
        self,
        guard: Guard,
        store: LfsStore,
        source: LfsSource,
        metrics: Metrics,
        limits: LimitSettings,
    ) -> None:
        self._guard = guard
        self._store = store
        self._source = source
        self._metrics = metrics
        self._limits = limits

    # --- refused -------------------------------------------------------------------------------

    async def upload(self, request: web.Request) -> web.Response:
        """PUT of an object: refused."""
        settings = await self._admit(request, Operation.LFS_UPLOAD)
        self._refuse(settings, "takes no LFS uploads; upload to")

    async def locks(self, request: web.Request) -> web.Response:
        """Everything below locks: refused."""
        settings = await self._admit(request, Operation.LFS_LOCKS)
        self._refuse(settings, "keeps no LFS locks; lock files at")

    def _refuse(self, settings: RepositorySettings, what: str) -> Never:
        raise ReadOnly(f"this mirror {what} {settings.upstream}")

    # --- batches -------------------------------------------------------------------------------

    async def batch(self, request: web.Request) -> web.Response:
        """POST /{repository}/info/lfs/objects/batch."""
        settings = await self._admit(request, Operation.LFS_BATCH)
        body = await read_body(
            request, bytes_max=REQUEST_BYTES_MAX, hint="ask for fewer LFS objects at a time"
        )
        batch = parse_batch_request(body)
        if batch.is_upload:
            request[OPERATION] = Operation.LFS_UPLOAD
            self._refuse(settings, "takes no LFS uploads; upload to")
        self._check_is_on(settings)
        hosted = await self._guard.bring(request, settings)
        hosted.gate.current()
        prefix = _own_url(request, self._guard.proxies).removesuffix("batch")
        refusals = await self._refusals(hosted, batch.pointers)
        answers = (
            (one, refusals.get(one.oid) or Action(prefix + one.oid)) for one in batch.pointers
        )
        return web.Response(
            body=encode_batch_answer(answers), headers={**NO_CACHE, "Content-Type": CONTENT_TYPE}
        )

    async def _refusals(self, hosted: Hosted, pointers: tuple[Pointer, ...]) -> dict[str, Refusal]:
        """Return which objects are not to be had, and why.

        The upstream is asked for those that are not here, and for those that it has not confirmed
        for long. When it can't be asked, those that are here are handed out all the same.
        """
        bytes_max = min(self._limits.lfs_object_bytes_max, self._limits.lfs_cache_bytes_max)
        refusals = {
            one.oid: Refusal(413, _too_large(one, bytes_max))
            for one in pointers
            if one.size > bytes_max
        }
        wanted = tuple(one for one in pointers if one.oid not in refusals)
        found = await asyncio.to_thread(self._store.look, self._scope(hosted), wanted)
        unsure = [one for one in wanted if not _is_sure(one, found[one])]
        if not unsure:
            return refusals
        try:
            answers = await self._source.ask(hosted.mirror.name, unsure)
        except Overloaded:
            raise
        except MirrorError as error:
            logger.warning("lfs_not_asked", error=str(error), objects=len(unsure))
            why = Refusal(503, str(error))
            answers = {one.oid: None if _is_here(one, found[one]) else why for one in unsure}
        return refusals | {oid: why for oid, why in answers.items() if why is not None}

    # --- objects -------------------------------------------------------------------------------

    async def download(self, request: web.Request) -> web.StreamResponse:
        """GET and HEAD of an object."""
        settings = await self._admit(request, Operation.LFS_DOWNLOAD)
        self._check_is_on(settings)
        hosted = await self._guard.bring(request, settings)
        oid = request.match_info["oid"]
        grant = await asyncio.to_thread(self._store.granted, self._scope(hosted), oid)
        if grant is None:
            raise NotGranted(
                f"no LFS object {oid} is known for {hosted.mirror.name}; ask objects/batch first"
            )
        pointer = Pointer(oid, grant.size)
        headers = _object_headers(oid)
        known = request.headers.get("If-None-Match", "")
        if known.strip() == "*" or headers["ETag"] in known:
            return web.Response(status=304, headers=headers)
        span = _span(request, pointer)
        if span.start >= span.stop and span.is_part:
            request[OUTCOME] = "bad_range"
            answer = _explained(f"the object has {grant.size} bytes; that range is none of them")
            answer.set_status(416)
            answer.headers["Content-Range"] = f"bytes */{grant.size}"
            return answer
        if span.is_part:
            headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{grant.size}"
        response = web.StreamResponse(status=206 if span.is_part else 200, headers=headers)
        response.content_length = span.stop - span.start
        if request.method == "HEAD":
            return response
        file = await asyncio.to_thread(self._store.open, pointer)
        if file is not None:
            self._metrics.record_lfs_object("hit")
            try:
                await send_stored(request, response, file, pointer, span)
            except Damaged:
                self._metrics.record_damage(Kind.LFS_OBJECT.value)
                await asyncio.to_thread(self._store.remove_damaged, pointer)
                raise
        else:
            fetch = self._source.fetch(hosted.mirror.name, pointer)
            await send_arriving(request, response, self._store, pointer, span, fetch=fetch)
        self._metrics.record_lfs_sent(span.stop - span.start)
        logger.info("lfs_served", oid=oid, bytes=span.stop - span.start, cached=file is not None)
        return response

    # --- for all -------------------------------------------------------------------------------

    async def _admit(self, request: web.Request, operation: Operation) -> RepositorySettings:
        request[OPERATION] = operation
        request[EXPLAIN] = _explained
        return await self._guard.admit(request)

    def _check_is_on(self, settings: RepositorySettings) -> None:
        if not settings.lfs:
            raise LfsOff(
                f"Git LFS is off for {settings.name} (`lfs: false`); its objects are at"
                f" {settings.upstream}"
            )

    def _scope(self, hosted: Hosted) -> Path:
        settings = hosted.settings
        return self._store.scope(settings.name, settings.upstream)


def _is_here(pointer: Pointer, found: Found) -> bool:
    is_granted = found.grant is not None and found.grant.size == pointer.size
    return is_granted and found.is_stored


def _is_sure(pointer: Pointer, found: Found) -> bool:
    grant = found.grant
    return grant is not None and grant.is_fresh(time.time()) and _is_here(pointer, found)


def _too_large(pointer: Pointer, bytes_max: int) -> str:
    return (
        f"the object has {pointer.size} bytes, and this mirror takes {bytes_max} at most"
        " (limits.lfs_object_bytes_max, limits.lfs_cache_bytes_max)"
    )


def _explained(message: str) -> web.Response:
    headers = {"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"}
    return web.Response(body=encode_error(message), headers=headers)


def _object_headers(oid: str) -> dict[str, str]:
    return {
        "Content-Type": "application/octet-stream",
        "ETag": f'"{oid}"',
        "Accept-Ranges": "bytes",
        # What an id names never changes; but not everybody may have it.
        "Cache-Control": "private, max-age=31536000, immutable",
    }


def _own_url(request: web.Request, proxies: Proxies) -> str:
    """Return the URL that a reader came by, as a proxy that is believed says or the request does.

    Raises:
        ProtocolError: There is no usable host in it.
    """
    scheme, host = proxies.origin(
        request.remote or None, request.headers, request.scheme, request.host
    )
    if scheme not in ("http", "https") or not _HOST.fullmatch(host):
        raise ProtocolError("the request names no host that the objects' URLs could be made of")
    return f"{scheme}://{host}{request.rel_url.raw_path}"


def _span(request: web.Request, pointer: Pointer) -> Span:
    """Return the part of an object that is asked for (RFC 9110, 14): one range, or all of it.

    A part without bytes is one that the object does not have.
    """
    whole = Span(0, pointer.size)
    said = request.headers.get("Range")
    condition = request.headers.get("If-Range")
    if (
        request.method != "GET"
        or said is None
        or (condition is not None and condition != f'"{pointer.oid}"')
    ):
        return whole
    found = re.fullmatch(r"bytes=([0-9]{0,19})-([0-9]{0,19})", said.replace(" ", ""))
    if found is None or not (found[1] or found[2]):
        return whole  # several ranges, another unit: a server may send all of it
    if not found[1]:
        start, stop = max(0, pointer.size - int(found[2])), pointer.size
    else:
        start = int(found[1])
        stop = min(int(found[2]) + 1, pointer.size) if found[2] else pointer.size
    if found[1] and found[2] and int(found[2]) < start:
        return whole
    return Span(start, stop, is_part=True)
