"""Bundles as static files: whole or in part, with entity tags; and the list of them.

RFC 9110: 13.1.2 (If-None-Match), 13.1.5 (If-Range), 14 (ranges). A bundle's name has its checksum,
which is its entity tag, so that it may be kept for ever by whoever keeps it; the list changes.
One range is answered as one; several at once are answered with the whole, as is allowed.
"""

import asyncio
import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO, Final

import structlog
from aiohttp import hdrs, web

from mirror.errors import NoBundle
from mirror.places import DataDirectory
from mirror.web.guard import Guard
from mirror.web.protocol import OPERATION, Operation, send
from mirror.wire.bundles import BUNDLE_NAME, encode_bundle_list

READ_BYTES: Final = 512 * 1024
"""Read at once, in a thread, and held for each reader."""

BUNDLE_TYPE: Final = "application/x-git-bundle"
LIST_TYPE: Final = "text/plain; charset=utf-8"
FOREVER: Final = "public, max-age=31536000, immutable"

_RANGE: Final = re.compile(r"bytes *= *([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)

logger = structlog.stdlib.get_logger()


class BundleFiles:
    """The handlers of bundles."""

    def __init__(self, guard: Guard, places: DataDirectory) -> None:
        self._guard = guard
        self._places = places

    async def listing(self, request: web.Request) -> web.Response:
        """GET /{repository}/bundles/list: what `git clone --bundle-uri` is given."""
        request[OPERATION] = Operation.BUNDLE_URI
        hosted = await self._guard.find(request)
        hosted.gate.current()
        mirror = hosted.mirror
        if mirror.bundles is None:
            raise NoBundle(f"{mirror.name} offers no bundles; see bundle_interval")
        body = encode_bundle_list(mirror.bundles)
        tag = f'"{hashlib.sha256(body).hexdigest()}"'
        headers = {hdrs.ETAG: tag, hdrs.CACHE_CONTROL: "no-cache", hdrs.CONTENT_TYPE: LIST_TYPE}
        if _has_already(request, tag):
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers=headers)

    async def bundle(self, request: web.Request) -> web.StreamResponse:
        """GET /{repository}/bundles/{bundle}: also one that was offered until a while ago."""
        request[OPERATION] = Operation.BUNDLE
        mirror = (await self._guard.find(request)).mirror
        name = BUNDLE_NAME.fullmatch(request.match_info["bundle"])
        gone = NoBundle(f"{mirror.name} has no such bundle (any more); ask for its list again")
        if name is None:
            raise gone
        try:
            path = self._places.bundles(mirror.name) / name[0]
            file = await asyncio.to_thread(_open, path)
        except OSError:
            raise gone from None
        with file:
            return await _answer(request, file, tag=f'"{name[1]}"')


async def _answer(request: web.Request, file: BinaryIO, *, tag: str) -> web.StreamResponse:
    size = os.fstat(file.fileno()).st_size
    headers = {
        hdrs.ETAG: tag,
        hdrs.CACHE_CONTROL: FOREVER,
        hdrs.ACCEPT_RANGES: "bytes",
        hdrs.CONTENT_TYPE: BUNDLE_TYPE,
    }
    if _has_already(request, tag):
        return web.Response(status=304, headers=headers)
    part = _wanted_part(request, size, tag)
    if part is None:
        return web.Response(status=416, headers={**headers, hdrs.CONTENT_RANGE: f"bytes */{size}"})
    if len(part) < size:
        headers[hdrs.CONTENT_RANGE] = f"bytes {part.start}-{part.stop - 1}/{size}"
    response = web.StreamResponse(status=206 if len(part) < size else 200, headers=headers)
    response.content_length = len(part)
    await response.prepare(request)
    if request.method == hdrs.METH_HEAD:
        return response
    digest, held = hashlib.sha256(), b""
    for start in range(part.start, part.stop, READ_BYTES):
        count = min(READ_BYTES, part.stop - start)
        data = await asyncio.to_thread(_read, file, count, start, digest)
        if len(data) < count:
            raise ConnectionAbortedError("the bundle is shorter than it was")
        await send(response, held)
        held = data
    # Of a part it can't be told: git checks the pack in the bundle as a whole.
    if len(part) == size and f'"{digest.hexdigest()}"' != tag:
        logger.error("bundle_damaged", bundle=tag)
        raise ConnectionAbortedError("the bundle is damaged")
    await send(response, held)
    logger.info("bundle_served", start=part.start, sent_bytes=len(part), bundle_bytes=size)
    return response


def _read(file: BinaryIO, count: int, start: int, digest: "hashlib._Hash") -> bytes:
    data = os.pread(file.fileno(), count, start)
    digest.update(data)
    return data


def _open(path: Path) -> BinaryIO:
    return path.open("rb", buffering=0)


def _has_already(request: web.Request, tag: str) -> bool:
    """Tell whether the client names what it has, and that is this (weak comparison)."""
    given = ",".join(request.headers.getall(hdrs.IF_NONE_MATCH, ()))
    names = [name.strip().removeprefix("W/") for name in given.split(",")]
    return tag in names or names == ["*"]


def _wanted_part(request: web.Request, size: int, tag: str) -> range | None:
    """Return which bytes are asked for; `None` when there are no such bytes.

    What is not one range of bytes is no condition, and stands for the whole; so does a range of
    another version of the file.
    """
    whole = range(size)
    found = _RANGE.fullmatch(request.headers.get(hdrs.RANGE, "").strip())
    if (
        found is None
        or request.method != hdrs.METH_GET
        or request.headers.get(hdrs.IF_RANGE, tag).strip() != tag
    ):
        return whole
    first, last = found.groups()
    if first:
        if last and int(last) < int(first):
            return whole  # invalid, and so to be passed over
        part = range(int(first), min(int(last) + 1 if last else size, size))
    elif last:
        part = range(max(0, size - int(last)), size)
    else:
        return whole
    return part or None
