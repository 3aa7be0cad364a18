"""A small LFS server beside the forge of a test: batches there, the objects on a port of their own.

It does as docs/api/batch.md and basic-transfers.md of git-lfs say, ranges included, and whatever
`LfsFaults` asks for. The storage wants the token that a batch gave out, and nothing of the forge.
"""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from mirror.demo.forge import HttpBackend
from tests.mirror_service import WAIT_SECONDS_MAX

LFS_TYPE = "application/vnd.git-lfs+json"
TOKEN = "the-token-of-the-storage"
ATTRIBUTES = "*.bin filter=lfs diff=lfs merge=lfs -text\n"


def oid_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pointer_file(content: bytes) -> str:
    """Return what Git has in the place of an LFS object."""
    return (
        "version https://git-lfs.github.com/spec/v1\n"
        f"oid sha256:{oid_of(content)}\nsize {len(content)}\n"
    )


def noise(size: int, seed: int = 1) -> bytes:
    """Return bytes that are the same on every run."""
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(size)


@dataclass(slots=True)
class LfsFaults:
    """What the server does wrong.

    Attributes:
        batch_status: Answer batches with this status.
        object_error: Refuse each object with this code.
        echoes_size: Offer an object whatever size is asked for.
        storage_status: Answer downloads with this status.
        statuses: The same, for one download each, the next first; 200 is no fault.
        wrong_byte: Change a byte in the middle.
        cut_after_bytes: Close the connection of a download after so many bytes, each time.
        cuts: How many downloads are cut; `None` is each.
        stall: Wait for this event after `stall_after_bytes` of a download.
        redirects: How many redirects a download takes before it is answered.
        href: The URL of every download, in place of the storage's.
        token: What the next batches give out.
        ignores_ranges: Answer with all of an object whatever part is asked for.
    """

    batch_status: int | None = None
    object_error: int | None = None
    echoes_size: bool = False
    storage_status: int | None = None
    statuses: list[int] = field(default_factory=list)
    wrong_byte: bool = False
    cut_after_bytes: int | None = None
    cuts: int | None = None
    stall: asyncio.Event | None = None
    stall_after_bytes: int = 0
    redirects: int = 0
    href: str | None = None
    token: str = TOKEN
    ignores_ranges: bool = False


@dataclass(slots=True)
class Download:
    """A request that came to the storage."""

    oid: str
    headers: Mapping[str, str]


class LfsServer:
    """The server. Objects belong to a repository: another one does not get them.

    Attributes:
        faults: What to do wrong.
        batches: The body of each batch request, the oldest first.
        authorizations: The Authorization header that came with each.
        downloads: Each request to the storage.
    """

    def __init__(self) -> None:
        self.faults = LfsFaults()
        self.objects: dict[tuple[str, str], bytes] = {}
        self.batches: list[dict[str, Any]] = []
        self.authorizations: list[str] = []
        self.downloads: list[Download] = []
        self.storage_url = ""
        self.basic_auth: tuple[str, str] | None = None
        self._arrival = asyncio.Condition()

    def add(self, repository: str, content: bytes) -> str:
        """Give an object to a repository; returns its id."""
        oid = oid_of(content)
        self.objects[repository, oid] = content
        return oid

    async def wait_for_downloads(self, count: int) -> None:
        """Return once so many requests have come to the storage."""
        async with asyncio.timeout(WAIT_SECONDS_MAX), self._arrival:
            await self._arrival.wait_for(lambda: len(self.downloads) >= count)

    async def beside(self, request: web.Request) -> web.StreamResponse | None:
        """Answer what is for LFS; fits `HttpBackend.beside`."""
        repository, found, rest = request.path.strip("/").partition(".git/info/lfs/")
        if not found:
            return None
        if rest != "objects/batch" or request.method != "POST":
            return _refused(404, "Not found")
        assert request.headers["Accept"] == LFS_TYPE
        assert request.headers["Content-Type"] == LFS_TYPE
        document = json.loads(await request.read())
        self.batches.append(document)
        self.authorizations.append(request.headers.get("Authorization", ""))
        if self.basic_auth and self.authorizations[-1] != _basic(*self.basic_auth):
            return _refused(401, "Credentials needed")
        if self.faults.batch_status is not None:
            return _refused(self.faults.batch_status, "a fault was asked for")
        assert document["operation"] == "download"
        objects = [self._described(repository, one) for one in document["objects"]]
        return web.json_response({"transfer": "basic", "objects": objects}, content_type=LFS_TYPE)

    def _described(self, repository: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        named = {"oid": asked["oid"], "size": asked["size"]}
        content = self.objects.get((repository, asked["oid"]))
        if self.faults.object_error is not None:
            return named | {"error": {"code": self.faults.object_error, "message": "a fault"}}
        if content is None:
            return named | {"error": {"code": 404, "message": "Object does not exist"}}
        if not self.faults.echoes_size:
            named["size"] = len(content)
        href = self.faults.href or f"{self.storage_url}/{asked['oid']}"
        action = {"href": href, "header": {"X-Token": self.faults.token}, "expires_in": 3600}
        return named | {"authenticated": True, "actions": {"download": action}}

    async def storage(self, request: web.Request) -> web.StreamResponse:
        """Answer a download."""
        faults, oid = self.faults, request.match_info["oid"]
        self.downloads.append(Download(oid, dict(request.headers)))
        async with self._arrival:
            self._arrival.notify_all()
        status = faults.statuses.pop(0) if faults.statuses else faults.storage_status or 200
        if status != 200:
            return web.Response(status=status, text=f"secret {request.headers.get('X-Token')}")
        if int(request.query.get("hop", "0")) < faults.redirects:
            hop = int(request.query.get("hop", "0")) + 1
            raise web.HTTPTemporaryRedirect(f"/{oid}?hop={hop}")
        if request.headers.get("X-Token") != TOKEN:
            return web.Response(status=403, text="expired")
        whole = next(content for (_, one), content in self.objects.items() if one == oid)
        if faults.wrong_byte:
            middle = len(whole) // 2
            whole = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        return await self._send(request, whole)

    async def _send(self, request: web.Request, whole: bytes) -> web.StreamResponse:
        faults, start = self.faults, 0
        response = web.StreamResponse()
        if "Range" in request.headers and not faults.ignores_ranges:
            start = request.http_range.start
            response.set_status(206)
            response.headers["Content-Range"] = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
        content = whole[start:]
        response.content_length = len(content)
        await response.prepare(request)
        if faults.stall is not None:
            await response.write(content[: faults.stall_after_bytes])
            content = content[faults.stall_after_bytes :]
            await faults.stall.wait()
        if faults.cut_after_bytes is not None and faults.cuts != 0:
            if faults.cuts is not None:
                faults.cuts -= 1
            await response.write(content[: faults.cut_after_bytes])
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(content)
        return response


@asynccontextmanager
async def lfs_server(forge: HttpBackend) -> AsyncIterator[LfsServer]:
    """Run one beside `forge`."""
    server = LfsServer()
    app = web.Application()
    app.router.add_get("/{oid}", server.storage)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.storage_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        forge.beside = server.beside
        yield server
    finally:
        await runner.cleanup()


def _refused(status: int, message: str) -> web.Response:
    return web.json_response({"message": message}, status=status, content_type=LFS_TYPE)


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
