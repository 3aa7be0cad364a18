"""The HTTP application: every route in one table, and the boundary where errors become answers."""

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.typedefs import Middleware

from mirror.errors import (
    ClientError,
    MirrorError,
    NotYetMirrored,
    OtherProcessGone,
    Overloaded,
    SignInWanted,
    StaleRefused,
    TooManyAttempts,
    UpstreamUnavailable,
)
from mirror.metrics import Metrics
from mirror.web.bodies import ROOMS, Rooms, leave_rooms
from mirror.web.broken_bodies import give_up
from mirror.web.canary import CANARY_PATH, canary
from mirror.web.connections import had_turn
from mirror.web.editions import Editions
from mirror.web.fast_lane import FastLane
from mirror.web.finding import end_reading
from mirror.web.front import Traffic
from mirror.web.guard import CHALLENGES, client_address
from mirror.web.lfs import OID
from mirror.web.protocol import (
    BUNDLES_BELOW,
    EDITION,
    EXPLAIN,
    OK,
    OPERATION,
    OUTCOME,
    Operation,
    check_expectation,
    end,
    repository_path,
)
from mirror.web.repeating import REQUEST_ID as REQUEST_ID_HEADER
from mirror.web.turns import TURNS, Turns, later

RETRY_AFTER_SECONDS: Final = 5
CLIENT_GONE_STATUS: Final = 499
"""Seen by nobody; what nginx calls it."""

_GIT_TYPES: Final = "application/x-git-"
"""No browser shows these, and they are most of the answers."""

_FOR_BROWSERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""There is no page here. What somebody put into a repository or a path isn't to become one, in
whatever browser: neither an LFS object that looks like HTML nor the text of an error."""

_VERSIONS: Final = frozenset({HttpVersion10, HttpVersion11})
_OTHER_VERSION: Final = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 32\r\n\r\n"
    b"expected HTTP/1.1 (or HTTP/1.0)\n"
)

REQUEST_ID: Final = web.RequestKey("request_id", str)
ANSWER: Final = web.RequestKey("answer", web.StreamResponse)
"""The answer whose headers are on their way: there can't be another."""

logger = structlog.stdlib.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(
    editions: Editions,
    metrics: Metrics,
    *,
    traffic: Traffic,
    turns: Turns,
    lane: FastLane | None = None,
) -> web.Application:
    """Build the application that readers, forges and operators talk to.

    Its answers are told to `lane`, which repeats what handlers offer as `REPEATABLE`. `traffic` is
    told of each request; long answers, and requests that were not waited for, take `turns`.
    """
    # Bodies are read through `protocol.read_body`, which keeps the limits.
    app = web.Application(middlewares=[_observed(metrics, editions, traffic)], client_max_size=0)
    app[ROOMS] = Rooms()
    app[TURNS] = turns
    app.on_response_prepare.append(_begin)
    app.on_response_prepare.append(_ending(traffic))
    if lane is not None:
        app.on_response_prepare.append(_told(lane))
    # A body that is refused is not asked for: `read_body` says "100 Continue", not the router.
    get = partial(web.get, expect_handler=_unanswered)
    post = partial(web.post, expect_handler=_unanswered)
    to = editions.to
    app.add_routes(
        [
            get(CANARY_PATH, canary),
            get("/healthz", to(lambda one: one.monitoring.healthz)),
            get("/readyz", to(lambda one: one.monitoring.readyz)),
            get("/metrics", to(lambda one: one.monitoring.metrics)),
            get("/status.json", to(lambda one: one.monitoring.status)),
            post("/webhooks/{forge}", to(lambda one: one.webhooks.receive)),
            get("/{repository:.+}/info/refs", to(lambda one: one.smart_http.info_refs)),
            post("/{repository:.+}/git-upload-pack", to(lambda one: one.smart_http.upload_pack)),
            post("/{repository:.+}/git-receive-pack", to(lambda one: one.smart_http.receive_pack)),
            post("/{repository:.+}/info/lfs/objects/batch", to(lambda one: one.lfs.batch)),
            get(
                f"/{{repository:.+}}/info/lfs/objects/{{oid:{OID}}}",
                to(lambda one: one.lfs.download),
            ),
            web.put(
                f"/{{repository:.+}}/info/lfs/objects/{{oid:{OID}}}",
                to(lambda one: one.lfs.upload),
                expect_handler=_unanswered,
            ),
            web.route(
                "*",
                "/{repository:.+}/info/lfs/locks{rest:(/.*)?}",
                to(lambda one: one.lfs.locks),
                expect_handler=_unanswered,
            ),
            get(f"/{{repository:.+}}/{BUNDLES_BELOW}/list", to(lambda one: one.bundles.listing)),
            get(
                f"/{{repository:.+}}/{BUNDLES_BELOW}/{{bundle}}", to(lambda one: one.bundles.bundle)
            ),
        ]
    )
    return app


async def _unanswered(_: web.Request) -> None:
    """Say nothing yet to a client that waits for "100 Continue"."""


async def _begin(request: web.Request, response: web.StreamResponse) -> None:
    """Note that an answer begins, and give it the request's id; aiohttp calls this."""
    request[ANSWER] = response
    if not response.content_type.startswith(_GIT_TYPES):
        response.headers.update(_FOR_BROWSERS)
    if REQUEST_ID in request:  # not where aiohttp refuses what came before any handler
        response.headers[REQUEST_ID_HEADER] = request[REQUEST_ID]


def _ending(traffic: Traffic) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Say in each answer that its connection ends, once that is so."""

    async def end_connection(_: web.Request, response: web.StreamResponse) -> None:
        traffic.answers(response)

    return end_connection


def _told(lane: FastLane) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Tell the lane of each answer, with its last header."""

    async def tell(request: web.Request, response: web.StreamResponse) -> None:
        if REQUEST_ID in request:
            lane.answers_with(request, response)

    return tell


def _observed(metrics: Metrics, editions: Editions, traffic: Traffic) -> Middleware:
    """Give each request an edition, an id, a place in the metrics, and an answer in any case."""

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        began_at = time.perf_counter()
        edition = request[EDITION] = editions.edition
        edition.begin()
        request[OPERATION] = Operation.OTHER
        request[OUTCOME] = OK
        request[REQUEST_ID] = secrets.token_hex(8)
        traffic.began(request)
        with structlog.contextvars.bound_contextvars(
            request_id=request[REQUEST_ID],
            repository=repository_path(request),
            remote=client_address(edition.guard.proxies, request),
        ):
            try:
                if not had_turn(request):
                    await later(request)
                return await _answered(request, handler)
            except asyncio.CancelledError:
                request[OUTCOME] = "cancelled"
                raise
            finally:
                traffic.ended(request)
                end_reading(request)
                edition.end()
                leave_rooms(request)
                seconds = time.perf_counter() - began_at
                metrics.record_request(request[OPERATION], request[OUTCOME], seconds)

    return observe


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Return the handler's answer, or what stands in its place.

    One that was begun is ended here; aiohttp sends the others, which are short.
    """
    if request.version not in _VERSIONS:
        return _other_version(request)
    try:
        response = await _handled(request, handler)
        if not request.content.is_eof():
            # Nobody reads the rest of the body: it is neither kept nor inflated.
            response.force_close()
            request.protocol.close()
            give_up(request)
        if response.prepared:
            await end(response)
    except ConnectionError:
        if request[OUTCOME] == OK:
            request[OUTCOME] = "client_gone"
        return _broken_off(request)
    return response


async def _handled(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn errors into answers.

    Raises:
        ConnectionError: The client is gone, or an answer had begun when the error came.
    """
    try:
        check_expectation(request)
        return await handler(request)
    except MirrorError as error:
        request[OUTCOME] = error.label
        response = _answer(request, error)
        _log(request, error)
    except web.HTTPException as error:
        response = _explained(request, error)
        if response.status >= HTTPStatus.BAD_REQUEST:
            request[OUTCOME] = "client_error" if error.status < 500 else "internal"
    except ConnectionError:
        raise
    except Exception:
        request[OUTCOME] = "internal"
        logger.exception("request_broke", method=request.method, path=request.path[:500])
        response = _text(500, "something broke here; the log has it under this request id")
    if ANSWER in request:
        raise ConnectionAbortedError("half an answer can't be followed by another")
    return response


def _other_version(request: web.Request) -> web.StreamResponse:
    """Refuse a version that aiohttp takes: it would answer in that version, with HTTP/1.1's words.

    So the answer goes out past it, and ends the connection: what is returned is not sent any more.
    """
    request[OUTCOME] = ClientError.label
    if request.transport is not None:
        request.transport.write(_OTHER_VERSION)
        request.transport.close()
    return web.Response(status=ClientError.status)


def _broken_off(request: web.Request) -> web.StreamResponse:
    """End the connection at once: what was sent of an answer can't be taken for the whole."""
    if request.transport is not None:
        request.transport.abort()
    return request.get(ANSWER) or web.Response(status=CLIENT_GONE_STATUS)


def _answer(request: web.Request, error: MirrorError) -> web.Response:
    explain = request.get(EXPLAIN)
    response = _text(error.status, str(error)) if explain is None else explain(str(error))
    response.set_status(error.status)
    match error:
        case NotYetMirrored() | StaleRefused() | Overloaded() | OtherProcessGone():
            response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        case TooManyAttempts():
            response.headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
        case UpstreamUnavailable(retry_after_seconds=float() as seconds):
            response.headers["Retry-After"] = str(math.ceil(seconds))
        case SignInWanted():
            for challenge in CHALLENGES:
                response.headers.add("WWW-Authenticate", challenge)
        case _:
            pass
    return response


def _log(request: web.Request, error: MirrorError) -> None:
    log = logger.info if isinstance(error, ClientError) else logger.warning
    log(
        "refused",
        method=request.method,
        path=request.path[:500],
        status=error.status,
        kind=error.label,
        error=str(error),
    )


def _explained(request: web.Request, error: web.HTTPException) -> web.Response:
    """Say what was expected where aiohttp only names the status."""
    if request.method == hdrs.METH_OPTIONS:
        if isinstance(error, web.HTTPMethodNotAllowed):
            return _options(error.allowed_methods)
        if request.raw_path == "*":
            return _options((hdrs.METH_GET, hdrs.METH_HEAD, hdrs.METH_POST))
    if error.status == HTTPStatus.NOT_FOUND:
        message = (
            "nothing here; a repository's URL is /<name> or /<name>.git, as its Git client uses it"
        )
    elif isinstance(error, web.HTTPMethodNotAllowed):
        expected = ", ".join(sorted(error.allowed_methods))
        message = f"{error.method} is not allowed here; expected {expected}"
    else:
        message = error.reason
    response = _text(error.status, message)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def _options(methods: Iterable[str]) -> web.Response:
    """Answer OPTIONS: what else may be asked (RFC 9110, 9.3.7)."""
    allowed = ", ".join(sorted({*methods, hdrs.METH_OPTIONS}))
    return web.Response(status=204, headers={"Allow": allowed, "Cache-Control": "no-store"})


def _text(status: int, message: str) -> web.Response:
    return web.Response(status=status, text=message + "\n", headers={"Cache-Control": "no-store"})
