"""Sends an LFS object from its file: one that is whole, or one that is still growing.

What grows is not verified yet. Its last `HELD_BACK_BYTES` are sent only when all of it is there and
right: an answer that could be taken for the whole is the whole. A reader looks at the file itself
for what is new, in whichever process it is served, so there is nothing to be told meanwhile.
"""

import asyncio
import hashlib
import os
from collections.abc import Coroutine
from typing import IO, Any, Final, NamedTuple

from aiohttp import web

from mirror.errors import Damaged, LocalError
from mirror.repository.lfs_store import LfsStore
from mirror.repository.threads import run_to_end
from mirror.web.protocol import check_connected, send
from mirror.wire.lfs import Pointer

HELD_BACK_BYTES: Final = 64 * 1024
"""An object up to here is sent when it is verified, or its error as an error."""

PIECE_BYTES: Final = 256 * 1024
LOOK_SECONDS: Final = 0.02
"""How often a growing file is looked at: less than a round trip to most upstreams."""


class Span(NamedTuple):
    """The bytes to send, from `start` up to `stop`; `is_part` where they were asked for so."""

    start: int
    stop: int
    is_part: bool = False


class Gone(LocalError):
    """An object that was removed as soon as it was there, or came from elsewhere in the end."""

    status = 503
    label = "lfs_object_gone"


async def send_stored(
    request: web.Request,
    response: web.StreamResponse,
    file: IO[bytes],
    pointer: Pointer,
    span: Span,
) -> None:
    """Send an object that is here, or a part of it; `file` is closed.

    The whole is hashed on its way, and its end held back until it is found right. Of a part this
    can't be told: who puts parts together has to check the whole, as git-lfs does.

    Raises:
        Damaged: It is not what its id says; the answer may have begun.
        ConnectionError: The client is gone.
    """
    with file:
        if span.stop - span.start < pointer.size:
            await _send_span(request, response, file, span.start, span.stop)
            return
        digest = hashlib.sha256()
        position, held = 0, memoryview(b"")
        while position < pointer.size:
            piece = await _read(file, position, min(PIECE_BYTES, pointer.size - position))
            if not piece:
                raise LocalError("an LFS object's file was cut while it was read")
            hashing = asyncio.create_task(asyncio.to_thread(digest.update, piece))
            try:
                if held:
                    await _begun(request, response)
                    await send(response, held)
            finally:
                await asyncio.wait((hashing,))
            position, held = position + len(piece), piece
        if digest.hexdigest() != pointer.oid:
            raise Damaged("the LFS object is damaged here; it is fetched anew: try again")
        await _begun(request, response)
        await send(response, held)


async def _begun(request: web.Request, response: web.StreamResponse) -> None:
    if not response.prepared:
        await response.prepare(request)


async def send_arriving(
    request: web.Request,
    response: web.StreamResponse,
    store: LfsStore,
    pointer: Pointer,
    span: Span,
    *,
    fetch: Coroutine[Any, Any, None],
) -> None:
    """Send a part of an object that is not here yet.

    Args:
        request: Who asks.
        response: The answer, with all its headers; begun when the first bytes are there.
        store: Where the object will be.
        pointer: The object.
        span: Which bytes of it.
        fetch: Brings it there.

    Raises:
        MirrorError: It does not come; the answer may have begun.
        ConnectionError: The client is gone.
    """
    fetching = asyncio.create_task(fetch)
    part: IO[bytes] | None = None
    position = span.start
    try:
        if span.stop < pointer.size:
            await fetching  # the end of this part says nothing of the whole
        while not fetching.done():
            part = part or await asyncio.to_thread(store.open_part, pointer)
            size = os.fstat(part.fileno()).st_size if part is not None else 0
            stop = min(size, pointer.size - HELD_BACK_BYTES)
            if part is not None and stop > position:
                await _send_span(request, response, part, position, stop)
                position = stop
            else:
                await asyncio.wait((fetching,), timeout=LOOK_SECONDS)
                check_connected(request)
        await fetching
        file = await asyncio.to_thread(store.open, pointer)
        if file is None:
            raise Gone("the LFS object did not stay; raise limits.lfs_cache_bytes_max")
        with file:
            if position > span.start and not await _is_same(part, file, span.start, position):
                # What was sent came from a download that failed, before another one did not.
                raise Gone("the LFS object came from elsewhere in the end; try again")
            await _send_span(request, response, file, position, span.stop)
    finally:
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        if part is not None:
            part.close()


async def _is_same(part: IO[bytes] | None, file: IO[bytes], start: int, stop: int) -> bool:
    """Tell whether these bytes of an object were right when they were sent from its `part`.

    That need not have become the object itself: while one process takes over from another, both may
    download it.
    """
    return part is not None and await run_to_end(_are_equal, part, file, start, stop)


def _are_equal(one: IO[bytes], other: IO[bytes], start: int, stop: int) -> bool:
    """Compare a span of two files, if they are two; blocking."""
    if os.path.sameopenfile(one.fileno(), other.fileno()):
        return True
    while start < stop:
        length = min(PIECE_BYTES, stop - start)
        piece = os.pread(one.fileno(), length, start)
        if not piece or piece != os.pread(other.fileno(), len(piece), start):
            return False
        start += len(piece)
    return True


async def _send_span(
    request: web.Request, response: web.StreamResponse, file: IO[bytes], start: int, stop: int
) -> None:
    await _begun(request, response)
    position = start
    while position < stop:
        piece = await _read(file, position, min(PIECE_BYTES, stop - position))
        if not piece:
            raise LocalError("an LFS object's file was cut while it was read")
        await send(response, piece)
        position += len(piece)
        await asyncio.sleep(0)  # a fast reader is not to keep the loop from the others


async def _read(file: IO[bytes], position: int, length: int) -> memoryview:
    """Read what is in the page cache at once, and the rest in a thread: disks make one wait."""
    buffer = bytearray(length)
    try:
        count = os.preadv(file.fileno(), [buffer], position, os.RWF_NOWAIT)
    except OSError:  # not in memory, or a file system that can't tell
        count = await run_to_end(os.preadv, file.fileno(), [buffer], position)
    return memoryview(buffer)[:count]
