"""What the first reader of a repository gets while it is being mirrored.

A client of protocol v2 begins with the list of capabilities, in which it has to ignore those that
it does not know (gitprotocol-v2(5), "Capability Advertisement"). So the list is begun, grows by a
line every few seconds for as long as the first clone takes, and ends when all that is asked for
next is here: no time-out on the way, no refs before they can be fetched. A failure is told by an
``ERR`` pkt-line, in place of the end. Must never end the list before the clone is done.

Protocol v0 has no such place: go-git takes any line before the refs for one of them. Its clients
are held, and told to come again.
"""

import asyncio
import time
from typing import Final

import structlog
from aiohttp import hdrs, web

from mirror.errors import MirrorError, NotYetMirrored
from mirror.web.finding import Opening
from mirror.web.protocol import ADVERTISEMENT_TYPE, OUTCOME, answer_headers, check_connected, send
from mirror.wire.advertise import encode_waiting_line
from mirror.wire.answers import encode_error
from mirror.wire.pktline import FLUSH_PKT

QUIET_SECONDS: Final = 5.0
"""Until something is sent: before the first of it, what fails is told by an HTTP status."""

SECONDS_MAX: Final = 3600.0
"""A first clone that takes longer, with its wait for a place, has its readers come again."""

logger = structlog.stdlib.get_logger()


async def capabilities_once_mirrored(
    request: web.Request, opening: Opening, capabilities: bytes
) -> web.StreamResponse:
    """Answer with `capabilities` (of v2, with their flush-pkt) once the repository is mirrored.

    Raises:
        ClientError: It can't be mirrored, and that was known soon enough.
    """
    headers = answer_headers(ADVERTISEMENT_TYPE)
    outcome = opening.outcome
    await asyncio.wait((outcome,), timeout=QUIET_SECONDS)
    if outcome.done():
        outcome.result()
        return web.Response(body=capabilities, headers=headers)
    # nginx would keep the lines until there are enough of them.
    response = web.StreamResponse(headers={**headers, "X-Accel-Buffering": "no"})
    if request.method == hdrs.METH_HEAD:
        return response  # nothing follows
    await response.prepare(request)
    await send(response, capabilities.removesuffix(FLUSH_PKT))
    try:
        await _wait(request, response, opening)
    except MirrorError as error:
        request[OUTCOME] = error.label
        logger.info("refused", kind=error.label, error=str(error))
        await send(response, encode_error(str(error)))
        response.force_close()
        return response
    await send(response, FLUSH_PKT)
    return response


async def _wait(request: web.Request, response: web.StreamResponse, opening: Opening) -> None:
    """Wait for the first clone, with a line now and then.

    Raises:
        ClientError: It failed, or takes too long.
        ConnectionError: The client is gone.
    """
    outcome, number = opening.outcome, 0
    until = time.monotonic() + SECONDS_MAX
    while not outcome.done():
        if time.monotonic() >= until:
            raise NotYetMirrored(f"{opening.name} is still being mirrored; try again")
        check_connected(request)
        number += 1
        await send(response, encode_waiting_line(number))
        await asyncio.wait((outcome,), timeout=QUIET_SECONDS)
    outcome.result()
