"""docs/openapi.yaml says what there is: every route, and what it answers."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
from aiohttp import web

from mirror.demo.forge import HttpBackend
from mirror.metrics import Metrics
from mirror.upstream.forges import RECEIVERS
from mirror.web.app import build_app
from mirror.web.editions import Editions
from mirror.web.front import Traffic
from mirror.web.turns import Turns
from tests.git_client import Upstream
from tests.httpfuzz.description import check, load, operations
from tests.mirror_service import (
    MirrorService,
    bitbucket_headers,
    gitea_push,
    github_headers,
    gitlab_headers,
    gitlab_push,
    mirroring,
)
from tests.web.asking import command, fetch_v2

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

LFS = {"Content-Type": "application/vnd.git-lfs+json"}
UPLOAD_PACK = {"Content-Type": "application/x-git-upload-pack-request"}


class NoEditions:
    """What routes are made with where nothing is asked."""

    def to(self, handler: object) -> Handler:
        del handler

        async def answer(request: web.Request) -> web.StreamResponse:
            raise web.HTTPNotFound

        return answer


def described_as(path: str) -> list[str]:
    """Return the paths of the description that a route stands for."""
    if path == "/webhooks/{forge}":
        return [f"/webhooks/{name}" for name in RECEIVERS]
    if path.endswith("{rest}"):
        return [path.removesuffix("{rest}"), path.replace("{rest}", "/{rest}")]
    return [path]


def test_every_route_and_method_is_described_and_no_other() -> None:
    editions = cast("Editions", NoEditions())
    app = build_app(editions, cast("Metrics", None), traffic=Traffic(), turns=Turns())
    routes = set()
    for route in app.router.routes():
        assert route.resource is not None
        # HEAD goes with each GET, and is described once, at the top.
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE"] if route.method == "*" else []
        methods += [route.method] if route.method not in ("*", "HEAD") else []
        routes |= {
            (method, path) for method in methods for path in described_as(route.resource.canonical)
        }
    assert operations(load()) == routes


def test_an_answer_that_is_not_as_described_is_found() -> None:
    document = load()
    headers = {"Content-Type": "application/json", "X-Request-Id": "0" * 16}

    def healthz(status: int, body: bytes, **more: str) -> None:
        check(document, "GET", "/healthz", status=status, headers=headers | more, body=body)

    healthz(200, b'{"status": "ok"}')
    with pytest.raises(AssertionError, match="answered 500"):
        healthz(500, b"")
    for body in (b'{"status": "bad"}', b"{}", b'{"status": "ok", "more": 1}'):
        with pytest.raises(jsonschema.ValidationError):
            healthz(200, body)
    with pytest.raises(jsonschema.ValidationError):
        healthz(200, b'{"status": "ok"}', **{"X-Request-Id": "x"})
    with pytest.raises(AssertionError, match="as text/html"):
        healthz(200, b"", **{"Content-Type": "text/html"})
    with pytest.raises(AssertionError, match="503 without Retry-After"):
        check(document, "GET", "/metrics", status=503, headers=headers, body=b"")


async def test_what_is_answered_is_as_described(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    document = load()
    asked = set()
    names = [upstream.name, "acme/nothing"]
    async with mirroring(
        forge, tmp_path / "mirror", names=names[:1], repository="access: [readers, anonymous]"
    ) as mirror:

        async def ask(
            method: str, path: str, headers: dict[str, str], body: bytes | None, *statuses: int
        ) -> None:
            target = path
            for name, value in (
                ("{repository}", upstream.name),
                ("{oid}", "0" * 64),
                ("{bundle}", "x"),
                ("{rest}", "verify"),
            ):
                target = target.replace(name, value)
            target += "?service=git-upload-pack" if target.endswith("/info/refs") else ""
            answer = await mirror.ask(method, target, body=body, headers=headers)
            assert answer.status in statuses, answer
            check(
                document,
                method,
                path,
                status=answer.status,
                headers=answer.headers,
                body=answer.body,
            )
            asked.add((method, path))

        for path in ("/healthz", "/readyz", "/metrics", "/status.json", "/.canary/info/refs"):
            await ask("GET", path, {}, None, 200)
        await _ask_webhooks(mirror, upstream, ask)
        await ask("GET", "/{repository}/info/refs", {}, None, 200)
        body = command("ls-refs", "peel")
        version = {**UPLOAD_PACK, "Git-Protocol": "version=2"}
        await ask("POST", "/{repository}/git-upload-pack", version, body, 200)
        await ask("POST", "/{repository}/git-upload-pack", version, fetch_v2(upstream.oid()), 200)
        await ask("POST", "/{repository}/git-upload-pack", {}, body, 415)
        await ask("POST", "/{repository}/git-upload-pack", UPLOAD_PACK, b"nonsense", 400)
        await ask("POST", "/{repository}/git-receive-pack", {}, b"0000", 403)
        batch: dict[str, Any] = {"operation": "download", "objects": [{"oid": "0" * 64, "size": 1}]}
        path = "/{repository}/info/lfs/objects/batch"
        await ask("POST", path, LFS, json.dumps(batch).encode(), 200)
        await ask("POST", path, LFS, b"nonsense", 422)
        await ask("POST", path, LFS, json.dumps({**batch, "hash_algo": "md5"}).encode(), 409)
        path = "/{repository}/info/lfs/objects/{oid}"
        await ask("GET", path, {}, None, 404)
        await ask("PUT", path, {}, b"object", 403)
        for path in ("/{repository}/info/lfs/locks", "/{repository}/info/lfs/locks/{rest}"):
            for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
                await ask(method, path, {}, None, 403)
        await ask("GET", "/{repository}/bundles/list", {}, None, 404)
        await ask("GET", "/{repository}/bundles/{bundle}", {}, None, 404)
    assert asked == operations(document)


async def _ask_webhooks(
    mirror: MirrorService,
    upstream: Upstream,
    ask: Callable[..., Awaitable[None]],
) -> None:
    url = mirror.forge.repository_url(upstream.name)
    github = b'{"zen": "Keep it simple."}'
    await ask("POST", "/webhooks/github", github_headers(github, event="ping"), github, 200)
    await ask("POST", "/webhooks/github", github_headers(b"nonsense"), b"nonsense", 400)
    await ask("POST", "/webhooks/github", {}, github, 401)
    gitlab = gitlab_push(url, "refs/heads/main", "0" * 40, upstream.oid())
    await ask("POST", "/webhooks/gitlab", gitlab_headers(), gitlab, 202, 401)
    body, headers = gitea_push(url, "main", "0" * 40, upstream.oid())
    await ask("POST", "/webhooks/gitea", headers, body, 202)
    await ask("POST", "/webhooks/bitbucket", bitbucket_headers(b"{}"), b"{}", 202, 401)
