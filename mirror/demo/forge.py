"""A small forge: bare repositories behind git's own http-backend, with the faults of real forges.

Owns one HTTP server; the children are `mirror.demo.cgi`'s, and none outlives `close`. It never
interprets the Git protocol: a client gets what git says, except where `Faults` asks for something
else.

It serves `git-mirror demo` and the tests, so it keeps a record of every request that arrived.
"""

import asyncio
import base64
import contextlib
import dataclasses
import hmac
import re
import tempfile
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, Self

from aiohttp import web

from mirror.demo.cgi import HttpBackendProgram, parse_headers

CHUNK_BYTES: Final = 64 * 1024
"""What a pipe holds: larger reads would never fill."""

BODY_KEPT_BYTES_MAX: Final = 64 * 1024
"""How much of each request body stays in its record: enough for the wants and haves of any test."""

HANDLER_SECONDS_MAX: Final = 5.0
"""How long `close` waits for handlers, all of which were cancelled before."""

_COMMAND: Final = re.compile(rb"[0-9a-f]{4}command=([a-z-]+)")


@dataclass(slots=True)
class ForgeRequest:
    """A request that arrived whole, in order of arrival.

    Attributes:
        git_protocol: The `Git-Protocol` header, as the client sent it.
        authorized: Whether an `Authorization` header came with it, right or wrong.
        content_length: What the client announced; `None` for a chunked body, and for no body.
        body_bytes: The length of the body as it came over the wire.
        body: Its first `BODY_KEPT_BYTES_MAX` bytes, decompressed.
        status: The answer's status; 0 until the answer begins.
        stderr: What git wrote to stderr meanwhile.
    """

    method: str
    path: str
    query: str
    git_protocol: str
    authorized: bool
    content_encoding: str = ""
    content_length: int | None = None
    body_bytes: int = 0
    body: bytes = b""
    status: int = 0
    stderr: str = ""

    def is_post(self) -> bool:
        """Tell whether this is a POST; fits `Faults.only`."""
        return self.method == "POST"

    def is_fetch(self) -> bool:
        """Tell whether this asks for a pack; fits `Faults.only`."""
        return self.operation == "fetch"

    @property
    def operation(self) -> str:
        """``info/refs``, ``ls-refs``, ``fetch``, ``probe``, ``push``, or the path."""
        if self.path.endswith("/info/refs"):
            return "info/refs"
        if self.body == b"0000":
            return "probe"
        if self.path.endswith("/git-receive-pack"):
            return "push"
        if not self.path.endswith("/git-upload-pack"):
            return self.path
        command = _COMMAND.match(self.body)
        return command[1].decode("ascii") if command else "fetch"


@dataclass(slots=True)
class Faults:
    """What the forge does wrong. Each request looks once, after `HttpBackend.on_request`.

    Attributes:
        status: Answer with this status instead of asking git.
        retry_after: The Retry-After header that goes with `status`.
        redirect: (old, new) names of a repository: the old one answers 301 to the new one.
        stall: Wait for this event before answering, or where `stall_after_bytes` says.
        stall_after_bytes: Let so many bytes of a POST's answer out before `stall`.
        cut_after_bytes: Close the connection after so many bytes of a POST's answer.
        content_type: The answer's Content-Type, whatever git says.
        force_protocol_v0: Hide Git-Protocol from git, as a proxy or an old forge does.
        only: Which requests all this is for; `None` is for every one.
    """

    status: int | None = None
    retry_after: str | None = None
    redirect: tuple[str, str] | None = None
    stall: asyncio.Event | None = None
    stall_after_bytes: int | None = None
    cut_after_bytes: int | None = None
    content_type: str | None = None
    force_protocol_v0: bool = False
    only: Callable[[ForgeRequest], bool] | None = None


@dataclass(frozen=True, slots=True)
class BasicAuth:
    """The one account of the forge."""

    user: str
    password: str = field(repr=False)

    def accepts(self, authorization: str) -> bool:
        """Tell whether an `Authorization` header names this account."""
        pair = f"{self.user}:{self.password}".encode()
        expected = f"Basic {base64.b64encode(pair).decode()}"
        return hmac.compare_digest(authorization.encode(), expected.encode())


class HttpBackend:
    """Serves every bare repository below `root` over smart HTTP on the loopback interface.

    Attributes:
        account: Who may in; a token that expires is an account that is replaced. `None`: everybody.
        faults: What to do wrong.
        requests: Every request that arrived, the oldest first.
        on_request: Awaited with each request before its answer: it may wait, or change `faults`.
    beside: Asked before git, and keeps a record of its own; `None` leaves a request to git.
    """

    def __init__(
        self,
        root: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        basic_auth: tuple[str, str] | None = None,
    ) -> None:
        self.account = BasicAuth(*basic_auth) if basic_auth else None
        self.faults = Faults()
        self.requests: list[ForgeRequest] = []
        self.on_request: Callable[[ForgeRequest], Awaitable[None]] | None = None
        self.beside: Callable[[web.Request], Awaitable[web.StreamResponse | None]] | None = None
        self._host = host
        self._port = port
        self._arrival = asyncio.Condition()
        self._handlers: set[asyncio.Task[object]] = set()
        self._program = HttpBackendProgram(root)
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """The forge's address, without a slash at its end."""
        return f"http://{self._host}:{self._port}"

    @property
    def port(self) -> int:
        """The port it listens on, once started."""
        return self._port

    @property
    def children(self) -> frozenset[int]:
        """Process ids of the children that have not been reaped."""
        return self._program.running

    def repository_url(self, name: str) -> str:
        """Return the clone URL of the repository at ``root/<name>.git``."""
        return f"{self.url}/{name}.git"

    @property
    def operations(self) -> list[str]:
        """What the requests so far asked for: one entry for each round trip."""
        return [request.operation for request in self.requests]

    async def wait_for_requests(self, count: int, operation: str | None = None) -> None:
        """Return once `count` requests (of this operation) have arrived, answered or not."""

        def arrived() -> bool:
            wanted = [name for name in self.operations if operation in {None, name}]
            return len(wanted) >= count

        async with self._arrival:
            await self._arrival.wait_for(arrived)

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            LocalError: git or its http-backend is not on this machine.
        """
        await self._program.find()
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            application,
            access_log=None,
            auto_decompress=False,  # http-backend inflates bodies itself
            handler_cancellation=True,  # a client that hangs up needs no child any more
            shutdown_timeout=HANDLER_SECONDS_MAX,
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Stop listening, drop every connection and end every child."""
        for handler in self._handlers:
            handler.cancel()
        if self._runner:
            await self._runner.cleanup()
        await self._program.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        handler = asyncio.current_task()
        if handler is None:  # aiohttp runs every handler in a task
            raise RuntimeError("a request is handled outside a task")
        self._handlers.add(handler)
        try:
            if self.beside and (answer := await self.beside(request)):
                return answer
            with tempfile.TemporaryFile() as body:
                record = await _receive(request, body)
                await self._announce(record)
                return await self._answer(request, record, body)
        finally:
            self._handlers.discard(handler)

    async def _announce(self, record: ForgeRequest) -> None:
        self.requests.append(record)
        async with self._arrival:
            self._arrival.notify_all()
        if self.on_request:
            await self.on_request(record)

    async def _answer(
        self, request: web.Request, record: ForgeRequest, body: IO[bytes]
    ) -> web.StreamResponse:
        faults = dataclasses.replace(self.faults)
        if faults.only and not faults.only(record):
            faults = Faults()
        if faults.stall and faults.stall_after_bytes is None:
            await faults.stall.wait()
        refusal = self._refuse(request, faults)
        if refusal:
            record.status = refusal.status
            return refusal
        variables = self._variables(request, record, faults)
        with tempfile.TemporaryFile() as errors:
            try:
                async with self._program.run(variables, body, errors) as output:
                    return await _relay(request, record, output, faults)
            finally:
                errors.seek(0)
                record.stderr = errors.read(CHUNK_BYTES).decode("utf-8", "replace")

    def _refuse(self, request: web.Request, faults: Faults) -> web.Response | None:
        if faults.status is not None:
            headers = {"Retry-After": faults.retry_after} if faults.retry_after else {}
            return _plain(faults.status, "a fault was asked for", headers)
        if faults.redirect:
            old, new = faults.redirect
            moved, found = re.subn(
                rf"^/{re.escape(old)}(?=\.git/|/)", f"/{new}", str(request.rel_url)
            )
            if found:
                location = {"Location": f"http://{request.host}{moved}"}
                return _plain(301, "the repository was renamed", location)
        authorization = request.headers.get("Authorization", "")
        if self.account and not self.account.accepts(authorization):
            return _plain(401, "authentication is required")
        return None

    def _variables(
        self, request: web.Request, record: ForgeRequest, faults: Faults
    ) -> dict[str, str]:
        """Return the request's meta-variables (RFC 3875, section 4.1)."""
        variables = {
            "SERVER_NAME": self._host,
            "SERVER_PORT": str(self._port),
            "REMOTE_ADDR": request.remote or "",
            "REQUEST_METHOD": record.method,
            "PATH_INFO": record.path,
            "QUERY_STRING": record.query,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(record.body_bytes),
        }
        if record.content_encoding:
            variables["HTTP_CONTENT_ENCODING"] = record.content_encoding
        if record.git_protocol and not faults.force_protocol_v0:
            variables["HTTP_GIT_PROTOCOL"] = record.git_protocol
            variables["GIT_PROTOCOL"] = record.git_protocol
        if self.account:
            variables["REMOTE_USER"] = self.account.user
        return variables


async def _receive(request: web.Request, body: IO[bytes]) -> ForgeRequest:
    """Spool the body to a file: CGI wants its length, which a chunked request does not tell."""
    record = ForgeRequest(
        method=request.method,
        path=request.path,
        query=request.rel_url.raw_query_string,
        git_protocol=request.headers.get("Git-Protocol", ""),
        authorized="Authorization" in request.headers,
        content_encoding=request.headers.get("Content-Encoding", ""),
        content_length=request.content_length,
    )
    async for chunk in request.content.iter_any():
        body.write(chunk)
        record.body_bytes += len(chunk)
    body.seek(0)
    kept = body.read(BODY_KEPT_BYTES_MAX)
    body.seek(0)
    if record.content_encoding in {"gzip", "x-gzip"}:
        with contextlib.suppress(zlib.error):  # git will say what is wrong with it
            kept = zlib.decompressobj(wbits=31).decompress(kept, BODY_KEPT_BYTES_MAX)
    record.body = kept
    return record


async def _relay(
    request: web.Request, record: ForgeRequest, output: asyncio.StreamReader, faults: Faults
) -> web.StreamResponse:
    """Turn the CGI answer into an HTTP answer, streaming its body."""
    try:
        head = await output.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        record.status = 502
        return _plain(502, "git http-backend did not answer as a CGI program")
    status, reason, fields = parse_headers(head)
    response = web.StreamResponse(status=status, reason=reason)
    for name, value in fields:
        response.headers.add(name, value)
    if faults.content_type is not None:
        response.headers["Content-Type"] = faults.content_type
    record.status = response.status
    await response.prepare(request)
    cut, stall = (
        (faults.cut_after_bytes, faults.stall_after_bytes) if record.is_post() else (None, None)
    )
    sent = 0
    while True:
        if sent == stall and faults.stall:
            await faults.stall.wait()
        if sent == cut:
            if request.transport:
                request.transport.close()
            return response
        marks = [mark - sent for mark in (cut, stall) if mark is not None and mark > sent]
        chunk = await output.read(min([CHUNK_BYTES, *marks]))
        if not chunk:
            return response
        await response.write(chunk)
        sent += len(chunk)


def _plain(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    response = web.Response(status=status, text=f"{text}\n", headers=headers)
    if status == web.HTTPUnauthorized.status_code:
        response.headers["WWW-Authenticate"] = 'Basic realm="forge"'
    return response
