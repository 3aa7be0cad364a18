"""The HTTP application: every route in one table, and the boundary where errors become answers."""

import secrets
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from mirror.errors import ClientError, MirrorError, NotYetMirrored, Overloaded, StaleRefused
from mirror.metrics import Metrics
from mirror.web.monitoring import Monitoring
from mirror.web.protocol import OPERATION, Operation
from mirror.web.smart_http import SmartHttp
from mirror.web.webhooks import Webhooks

RETRY_AFTER_SECONDS: Final = 5
CLIENT_GONE_STATUS: Final = 499
"""Seen by nobody; what nginx calls it."""

logger = structlog.stdlib.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(
    smart_http: SmartHttp, webhooks: Webhooks, monitoring: Monitoring, metrics: Metrics
) -> web.Application:
    """Build the application that readers, forges and operators talk to."""
    # Bodies are read through `protocol.read_body`, which keeps the limits.
    app = web.Application(middlewares=[_observed(metrics)], client_max_size=0)
    app.add_routes(
        [
            web.get("/healthz", monitoring.healthz),
            web.get("/readyz", monitoring.readyz),
            web.get("/metrics", monitoring.metrics),
            web.get("/status.json", monitoring.status),
            web.post("/webhooks/{forge}", webhooks.receive),
            web.get("/{repository:.+}/info/refs", smart_http.info_refs),
            web.post("/{repository:.+}/git-upload-pack", smart_http.upload_pack),
            web.post("/{repository:.+}/git-receive-pack", smart_http.receive_pack),
        ]
    )
    return app


def _observed(metrics: Metrics) -> Middleware:
    """Give each request an id, a place in the metrics, and an answer whatever happens."""

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        began_at = time.perf_counter()
        request[OPERATION] = Operation.OTHER
        request_id = secrets.token_hex(8)
        outcome = "ok"
        with structlog.contextvars.bound_contextvars(
            request_id=request_id,
            repository=request.match_info.get("repository"),
            remote=request.remote,
        ):
            try:
                response = await handler(request)
                outcome = request.get("outcome", "ok")
            except MirrorError as error:
                outcome = error.label
                response = _answer(error)
                _log(request, error)
            except web.HTTPException as error:
                outcome = "client_error" if error.status < 500 else "internal"
                response = _explained(error)
            except (ConnectionError, TimeoutError):
                outcome = "client_gone"
                response = _text(CLIENT_GONE_STATUS, "the client went away")
            except Exception:
                outcome = "internal"
                logger.exception("request_broke", method=request.method, path=request.path)
                response = _text(500, "something broke here; the log has it under this request id")
            finally:
                seconds = time.perf_counter() - began_at
                metrics.record_request(request[OPERATION], outcome, seconds)
        if not response.prepared:
            response.headers["X-Request-Id"] = request_id
        return response

    return observe


def _answer(error: MirrorError) -> web.Response:
    response = _text(error.status, str(error))
    if isinstance(error, NotYetMirrored | StaleRefused | Overloaded):
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
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


def _explained(error: web.HTTPException) -> web.Response:
    """Say what was expected where aiohttp only names the status."""
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


def _text(status: int, message: str) -> web.Response:
    return web.Response(status=status, text=message + "\n", headers={"Cache-Control": "no-store"})
