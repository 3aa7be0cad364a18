"""GitHub's and GitLab's interfaces for webhooks, as far as documented, on a port of this machine.

Like theirs it pages (a page is at most `page_length_max` long), never tells a secret again, and
refuses by status with the words of the real ones.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TOKEN = "t0ken-of-a-maintainer"


@dataclass
class HookServer:
    """The webhooks of one repository.

    Attributes:
        hooks: As they are listed, in the forge's own form.
        secrets: What each was last given as a secret, by its number and the field's name.
        refusal: Answer everything so.
        takes_signing_tokens: GitLab's do since 19.0.
        requests: Method and raw path with query, in order of arrival.
    """

    url: str = ""
    page_length_max: int = 100
    hooks: list[dict[str, Any]] = field(default_factory=list)
    secrets: dict[tuple[int, str], str] = field(default_factory=dict)
    refusal: tuple[int, str, Mapping[str, str]] | None = None
    takes_signing_tokens: bool = True
    requests: list[str] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.requests.append(f"{request.method} {request.raw_path}")
        self.headers.append(dict(request.headers))
        if self.refusal is not None:
            status, text, headers = self.refusal
            return web.Response(status=status, text=text, headers=headers)
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _refuse(401, "Bad credentials")
        path = request.raw_path.partition("?")[0]
        for start, kind in (
            ("/api/v3/repos/acme/gitops-repo/hooks", self._github),
            ("/api/v4/projects/platform%2Fclusters%2Fgitops/hooks", self._gitlab),
            ("/gitlab/api/v4/projects/platform%2Fclusters%2Fgitops/hooks", self._gitlab),
        ):
            if path == start and request.method == "GET":
                return self._page(request, start)
            if path.startswith(start):
                return kind(request.method, path.removeprefix(start), await request.json())
        return _refuse(404, "Not Found")

    def _page(self, request: web.BaseRequest, path: str) -> web.Response:
        length = min(int(request.query.get("per_page", "30")), self.page_length_max)
        page = int(request.query.get("page", "1"))
        headers = {}
        if page * length < len(self.hooks):  # elsewhere: nobody may follow it with a token
            there = f"https://elsewhere.invalid{path}?page={page + 1}"
            headers["Link"] = f'<{there}>; rel="next", <{there}>; rel="last"'
        listed = self.hooks[(page - 1) * length : page * length]
        return web.json_response(listed, headers=headers)

    def _github(self, method: str, rest: str, body: dict[str, Any]) -> web.Response:
        settings = dict(body["config"])
        if method == "POST" and not rest:
            if any(hook["config"]["url"] == settings["url"] for hook in self.hooks):
                errors = [{"resource": "Hook", "message": "Hook already exists on this repository"}]
                return web.json_response(
                    {"message": "Validation Failed", "errors": errors}, status=422
                )
            hook: dict[str, Any] = {"type": "Repository", "id": self._next_id(), "name": "web"}
            self.hooks.append(hook)
            status = 201
        elif method == "PATCH" and (found := self._find(rest)) is not None:
            hook, status = found, 200
        else:
            return _refuse(404, "Not Found")
        self.secrets[hook["id"], "secret"] = settings["secret"]
        settings["secret"] = "********"
        hook.update(active=body["active"], events=body["events"], config=settings)
        return web.json_response(hook, status=status)

    def _gitlab(self, method: str, rest: str, body: dict[str, Any]) -> web.Response:
        if method == "POST" and not rest:
            hook: dict[str, Any] = {"id": self._next_id(), "push_events": True}
            self.hooks.append(hook)
            status = 201
        elif method == "PUT" and (found := self._find(rest)) is not None:
            hook, status = found, 200
        else:
            return _refuse(404, "404 Not found")
        for kind in ("token", "signing_token"):
            if (secret := body.pop(kind, None)) is not None:
                self.secrets[hook["id"], kind] = secret
                if self.takes_signing_tokens:
                    hook[f"{kind}_present"] = True
        hook.update(body)
        return web.json_response(hook, status=status)

    def _next_id(self) -> int:
        return max((hook["id"] for hook in self.hooks), default=1000) + 1

    def _find(self, rest: str) -> dict[str, Any] | None:
        return next((hook for hook in self.hooks if f"/{hook['id']}" == rest), None)


def _refuse(status: int, message: str) -> web.Response:
    return web.json_response({"message": message}, status=status)


def refusal(status: int, message: object, **headers: str) -> tuple[int, str, Mapping[str, str]]:
    """Return what `HookServer.refusal` is to be for a JSON answer with this message."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, json.dumps({"message": message}), named


@asynccontextmanager
async def hook_server() -> AsyncIterator[HookServer]:
    """Run one; its `url` has no path."""
    state = HookServer()
    runner = web.ServerRunner(web.Server(state.answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    state.url = f"http://{host}:{port}"
    try:
        yield state
    finally:
        await runner.cleanup()
