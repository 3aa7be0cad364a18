"""The control socket: what `git-mirror sync` and others, and health checks, ask of the service.

A Unix socket that only the service's own user may open; the network does not reach it.
"""

import asyncio
import json
from typing import Any, Final, Protocol

from aiohttp import web

from mirror.errors import HandedOver, LocalError, MirrorError
from mirror.refresh.refresher import Trigger
from mirror.refresh.registry import Hosted, Registry
from mirror.web.monitoring import Figures, describe

REPORT_SECONDS: Final = 0.25
"""How often progress is told."""


class Operations(Protocol):
    """What an operator may have the whole service do."""

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again after now; returns what came of it, as JSON.

        Raises:
            HandedOver: Another process does that now.
            MirrorError: It can't be done now.
        """
        ...

    async def upgrade(self) -> int:
        """Hand over to the installed program; returns its process.

        Raises:
            MirrorError: It does not come to serve.
        """
        ...


def build_control_app(
    registry: Registry, figures: Figures, operations: Operations
) -> web.Application:
    """Build the application behind the control socket."""
    control = _Control(registry, figures, operations)
    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", control.healthz),
            web.get("/status.json", control.status),
            web.post("/sync/{repository:.+}", control.sync),
            web.post("/reload", control.reload),
            web.post("/upgrade", control.upgrade),
        ]
    )
    return app


class _Control:
    def __init__(self, registry: Registry, figures: Figures, operations: Operations) -> None:
        self._registry = registry
        self._figures = figures
        self._operations = operations

    async def healthz(self, request: web.Request) -> web.Response:
        """GET /healthz, as at the service's own port: the event loop turns."""
        del request
        return web.json_response({"status": "ok"})

    async def status(self, request: web.Request) -> web.Response:
        """GET /status.json, as at the service's own port, whoever may look there."""
        del request
        body = await self._figures.status()
        return web.Response(body=body, content_type="application/json", charset="utf-8")

    async def reload(self, request: web.Request) -> web.Response:
        """POST /reload: read the configuration again; the answer says what came of it.

        With `ask_again` another process serves now, and listens here in a moment.
        """
        del request
        try:
            return web.json_response(await self._operations.reload())
        except HandedOver as error:
            return web.json_response(_failed(error) | {"ask_again": True}, status=error.status)
        except MirrorError as error:
            return web.json_response(_failed(error), status=error.status)

    async def sync(self, request: web.Request) -> web.StreamResponse:
        """POST /sync/{repository}: refresh now; a line of JSON per step, the last has `outcome`."""
        try:
            hosted = await self._find(request.match_info["repository"])
        except MirrorError as error:
            return web.json_response(_failed(error), status=error.status)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        accepts = "accept_deletions" in request.query
        refreshed = hosted.refresher.request(Trigger.ACCEPT if accepts else Trigger.MANUAL)
        while not refreshed.done():
            await asyncio.wait((refreshed,), timeout=REPORT_SECONDS)
            progress = describe(hosted)["progress"]
            if progress is not None:
                await response.write(_line({"progress": progress}))
        await response.write(_line(_ending(hosted, refreshed)))
        await response.write_eof()
        return response

    async def upgrade(self, request: web.Request) -> web.Response:
        """POST /upgrade: hand over to the installed program; answers when that serves."""
        del request
        try:
            process = await self._operations.upgrade()
        except MirrorError as error:
            return web.json_response(_failed(error), status=error.status)
        return web.json_response({"outcome": "ok", "process": process})

    async def _find(self, path: str) -> Hosted:
        """Return a repository; one below a place of `upstreams` is mirrored first.

        Raises:
            MirrorError: There is none.
        """
        settings = self._registry.resolve(path)
        hosted = self._registry.get(settings.name)
        if hosted is not None:
            return hosted
        return await asyncio.shield(self._registry.open(settings, None))


def _ending(hosted: Hosted, refreshed: "asyncio.Future[None]") -> dict[str, Any]:
    if refreshed.cancelled():
        return _failed(LocalError("the service stopped before the refresh had ended"))
    failure = refreshed.exception()
    if failure is not None:
        return _failed(failure)
    return {"outcome": "ok", "repository": describe(hosted)}


def _failed(error: BaseException) -> dict[str, Any]:
    return {"outcome": "error", "error": str(error)}


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"
