"""Pushes: refused, or passed on to the upstream, as the repository's policy says.

A push is never accepted here. What is passed on streams through, both ways, with the client's own
credentials; the last bytes of the upstream's answer wait until the mirror has what was pushed, so
that a client that sees its push succeed finds it with its next fetch, in every process. And one
that is turned away because somebody was quicker finds what they pushed: before it sees the refs of
the upstream, those that are news here are announced.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import chain
from typing import Final

import aiohttp
import structlog
from aiohttp import web

from mirror.access.presented import read_authorization
from mirror.access.tokens import PREFIX
from mirror.config import LimitSettings, PushPolicy, RepositorySettings
from mirror.errors import (
    MirrorError,
    Overloaded,
    ProtocolError,
    ReadOnly,
    SignInWanted,
    TooLarge,
    Unauthenticated,
    UpstreamError,
    UpstreamUnavailable,
)
from mirror.metrics import Metrics
from mirror.refresh.announcements import Announcement, Announcer
from mirror.refresh.patterns import patterns_of
from mirror.refresh.refresher import Trigger
from mirror.refresh.registry import Hosted
from mirror.upstream.connect import Sessions
from mirror.upstream.forges import RefChange
from mirror.upstream.keyring import Keyring
from mirror.upstream.line import Line
from mirror.upstream.push import SERVICE, SILENCE_SECONDS_MAX, PushLine
from mirror.web.protocol import (
    NO_CACHE,
    OPERATION,
    OUTCOME,
    Operation,
    UnsupportedType,
    body_decoder,
    check_body,
    invite_body,
    send,
)
from mirror.wire.names import ObjectId, RefName
from mirror.wire.pktline import FLUSH_PKT
from mirror.wire.push import CommandsReader, RefUpdate, ReportReader, TipsReader, changes_of

REQUEST_TYPE: Final = f"application/x-{SERVICE}-request"

PUSH_SECONDS_MAX: Final = 3600.0
"""A push that takes longer, on whichever side, is given up."""

REFRESH_SECONDS_MAX: Final = 30.0
"""A client that pushed waits so long, at most, for the mirror to have it. After that it sees its
success, which is true; readers are held, and served as stale, as after a webhook."""

ERROR_BODY_BYTES_MAX: Final = 64 * 1024
"""Of an error page, that much is passed on."""

REFS_LOGGED_MAX: Final = 10

_REQUEST_HEADERS: Final = (
    *("Authorization", "Accept", "Accept-Language", "Content-Type", "Git-Protocol", "User-Agent"),
)
_ANSWER_HEADERS: Final = ("Content-Type", "WWW-Authenticate", "Retry-After")

logger = structlog.stdlib.get_logger()


class Pushes:
    """Deals with the pushes to all repositories."""

    def __init__(
        self,
        sessions: Sessions,
        keyring: Keyring,
        announcer: Announcer,
        metrics: Metrics,
        limits: LimitSettings,
        *,
        processes: int,
    ) -> None:
        """Be ready for pushes; nothing is asked yet.

        Args:
            sessions: Reach the upstreams.
            keyring: How they are reached.
            announcer: Is told what was pushed.
            metrics: Of this process.
            limits: The configured ones.
            processes: How many share them.
        """
        self._sessions = sessions
        self._keyring = keyring
        self._announcer = announcer
        self._metrics = metrics
        self._bytes_max = limits.push_bytes_max
        self._at_once_max = -(-limits.pushes_max // processes)
        self._places = asyncio.Semaphore(self._at_once_max)
        self._waiting = 0

    async def info_refs(self, request: web.Request, hosted: Hosted) -> web.StreamResponse:
        """GET /{repository}/info/refs?service=git-receive-pack.

        Raises:
            ReadOnly: Pushes are refused.
            UpstreamError: The upstream does not answer.
        """
        line = self._line(request, hosted)
        async with self._place(), line.info_refs(_request_headers(request)) as answer:
            if answer.status != 200:
                return await self._refused(request, answer)
            response = _response(answer)
            await response.prepare(request)
            tips = TipsReader(_knowledge_of(hosted))
            held = b""
            async for chunk in answer.content.iter_any():
                tips.feed(chunk)
                held += chunk
                await send(response, held[: -len(FLUSH_PKT)])
                held = held[-len(FLUSH_PKT) :]
            if tips.news:
                await self._heed(hosted, tips.news)
            await send(response, held)
            return response

    async def receive_pack(self, request: web.Request, hosted: Hosted) -> web.StreamResponse:
        """POST /{repository}/git-receive-pack.

        Raises:
            ReadOnly: Pushes are refused.
            ClientError: The request is not what git sends, or the client gave up.
            UpstreamError: The upstream does not answer as it should.
        """
        line = self._line(request, hosted)
        if request.content_type != REQUEST_TYPE:
            raise UnsupportedType(
                f"expected Content-Type {REQUEST_TYPE}, got {request.content_type[:100]!r}"
            )
        async with self._place():
            push = _Push(request, self._bytes_max)
            try:
                async with asyncio.timeout(PUSH_SECONDS_MAX):
                    return await self._pass_on(request, hosted, line, push)
            except TimeoutError:
                await self._failed(hosted, push)
                raise UpstreamUnavailable(
                    f"the push took more than {PUSH_SECONDS_MAX:.0f} seconds"
                ) from None
            except UpstreamError as error:
                await self._failed(hosted, push)
                raise push.failure or error from None
            except ConnectionError:  # the client has left: what it sent may have counted
                await self._failed(hosted, push)
                raise

    def _line(self, request: web.Request, hosted: Hosted) -> PushLine:
        request[OPERATION] = Operation.RECEIVE_PACK
        settings = hosted.settings
        if settings.push is PushPolicy.REFUSE:
            raise read_only(settings)
        if is_own_token(request.headers.get("Authorization")):
            # It reads here; there it is nobody's, and in other hands.
            raise SignInWanted(
                "that is a token of this mirror: push with credentials of the upstream"
            )
        line = Line(self._sessions.of(settings), self._keyring.route(settings))
        return PushLine(line, settings.upstream)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Wait for a place among those that push.

        Raises:
            Overloaded: Too many wait already.
        """
        if self._places.locked() and self._waiting >= self._at_once_max:
            raise Overloaded("too many pushes are under way; try again in a moment")
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.release()

    async def _pass_on(
        self, request: web.Request, hosted: Hosted, line: PushLine, push: "_Push"
    ) -> web.StreamResponse:
        headers = _request_headers(request)
        if request.content_length is not None and "Content-Encoding" not in request.headers:
            headers["Content-Length"] = str(request.content_length)
        async with (
            aclosing(push.body()) as body,
            line.receive_pack(headers, body) as answer,
        ):
            if answer.status != 200:
                self._metrics.record_push("refused")
                return await self._refused(request, answer)
            response = _response(answer)
            await response.prepare(request)
            report = ReportReader(has_side_band=push.commands.has_side_band)
            held = b""
            async for chunk in answer.content.iter_any():
                report.feed(chunk)
                held += chunk
                # At the end there is a flush-pkt. Without it no client takes the answer for whole.
                await send(response, held[: -len(FLUSH_PKT)])
                held = held[-len(FLUSH_PKT) :]
        if not push.is_probe:
            await self._ended(hosted, push, report)
        await send(response, held)
        return response

    async def _refused(
        self, request: web.Request, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        """Pass an error on: it is between the client and its forge."""
        request[OUTCOME] = "upstream_status"
        response = _response(answer)
        page = await answer.content.read(ERROR_BODY_BYTES_MAX)
        await response.prepare(request)
        await send(response, page)
        return response

    async def _ended(self, hosted: Hosted, push: "_Push", report: ReportReader) -> None:
        """Bring here what the upstream took, now that it has answered."""
        changes = changes_of(push.commands, report)
        rejected = bool(report.rejected)
        outcome = "unclear" if changes is None else "rejected" if rejected else "accepted"
        self._metrics.record_push(outcome)
        _log("push_passed_on", push, changes, outcome=outcome)
        if changes != []:
            await self._bring_here(hosted, changes or ())

    async def _heed(self, hosted: Hosted, news: Mapping[RefName, ObjectId]) -> None:
        """Hold readers for refs that the upstream has and we have not."""
        name, snapshot = hosted.mirror.name, hosted.mirror.snapshot
        changes = tuple(
            RefChange(ref, snapshot.find(ref) if snapshot is not None else None, tip)
            for ref, tip in news.items()
        )
        try:
            delivery = secrets.token_hex(16)
            await self._announcer.announce(Announcement(SERVICE, delivery, (name,), changes))
        except MirrorError as error:  # the push itself has no part in that
            logger.warning("news_not_announced", repository=name, error=str(error))

    async def _failed(self, hosted: Hosted, push: "_Push") -> None:
        """Look what became of a push that nobody saw the end of."""
        self._metrics.record_push("failed")
        _log("push_broke_off", push, None, outcome="failed")
        if push.commands.updates():
            await self._bring_here(hosted, ())

    async def _bring_here(self, hosted: Hosted, changes: Sequence[RefUpdate]) -> None:
        """Refresh, and let no reader see refs from before as fresh.

        Args:
            hosted: The repository.
            changes: What was pushed; empty where any ref may have changed.
        """
        name = hosted.mirror.name
        moved = tuple(RefChange(one.ref, one.before, one.after) for one in changes)
        trouble = "its refs can't be confirmed"
        try:
            async with asyncio.timeout(REFRESH_SECONDS_MAX):
                delivery = secrets.token_hex(16)
                # It waits while another process is about to take over: then the news are for that.
                await self._announcer.announce(
                    Announcement(SERVICE, delivery, (name,), moved, REFRESH_SECONDS_MAX)
                )
                await asyncio.wait((hosted.refresher.request(Trigger.PUSH),))
                # The upstream may list what it took a moment later only.
                if (await hosted.gate.admit()).stale_seconds is None:
                    return
        except TimeoutError:
            trouble = f"not done after {REFRESH_SECONDS_MAX:.0f} seconds"
        except MirrorError as error:
            trouble = str(error)
        logger.warning("pushed_but_not_here_yet", repository=name, error=trouble)


def read_only(settings: RepositorySettings) -> ReadOnly:
    """Return what is said to who pushes where pushes are refused."""
    return ReadOnly(f"this mirror is read-only; push to {settings.upstream}")


class _Push:
    """A push on its way up: looked at and counted, never held.

    Attributes:
        commands: What it wants to change.
        failure: Why the client's part could not be read to its end.
    """

    def __init__(self, request: web.Request, bytes_max: int) -> None:
        self.commands = CommandsReader()
        self.failure: Exception | None = None
        self._request = request
        self._bytes_max = bytes_max

    @property
    def is_probe(self) -> bool:
        """Whether it changes nothing: git asks with a lone flush-pkt before a large push."""
        commands = self.commands
        return commands.is_ended and commands.is_understood and not commands.updates()

    async def body(self) -> AsyncGenerator[bytes, None]:
        """Yield the client's body, decoded; in what it raises, aiohttp's client wraps it up."""
        try:
            async for chunk in self._chunks():
                yield chunk
        except Exception as error:
            self.failure = error
            raise

    async def _chunks(self) -> AsyncIterator[bytes]:
        request, sent, decoded = self._request, 0, 0
        decoder = body_decoder(request)
        await invite_body(request)
        while True:
            try:
                async with asyncio.timeout(SILENCE_SECONDS_MAX):
                    chunk = await request.content.readany()
                check_body(request)
            except TimeoutError:
                raise ProtocolError(
                    f"nothing of the push came for {SILENCE_SECONDS_MAX:.0f} seconds"
                ) from None
            except (web.RequestPayloadError, ValueError) as error:
                raise ProtocolError(f"the push can't be decoded: {error}") from error
            if not chunk:
                decoder.finish()
                return
            sent += len(chunk)
            for piece in chain((b"",), decoder.feed(chunk)):
                decoded += len(piece)
                if max(sent, decoded) > self._bytes_max:
                    raise TooLarge(
                        f"the push is over {self._bytes_max} bytes; push fewer commits at a time,"
                        " or raise limits.push_bytes_max"
                    )
                if piece:
                    self.commands.feed(piece)
                    yield piece


def _knowledge_of(hosted: Hosted) -> Callable[[RefName, ObjectId], bool]:
    """Return what tells whether a tip of the upstream's is no news here."""
    snapshot = hosted.mirror.snapshot
    is_mirrored = patterns_of(hosted.settings.refs).matches

    def is_known(ref: RefName, tip: ObjectId) -> bool:
        return snapshot is None or snapshot.find(ref) == tip or not is_mirrored(ref)

    return is_known


def _request_headers(request: web.Request) -> dict[str, str]:
    return {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}


def is_own_token(header: str | None) -> bool:
    """Tell whether an Authorization header holds a token of this mirror, or what looks like one."""
    if header is None:
        return False
    try:
        return read_authorization(header).secret.startswith(PREFIX.encode())
    except Unauthenticated:
        return False


def _response(answer: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=NO_CACHE)
    for name in _ANSWER_HEADERS:
        for value in answer.headers.getall(name, ()):
            response.headers.add(name, value)
    return response


def _log(event: str, push: _Push, changes: Sequence[RefUpdate] | None, *, outcome: str) -> None:
    updates = push.commands.updates().values() if changes is None else changes
    shown = [
        f"{_word(one.before)}..{_word(one.after)} {one.ref.decode('utf-8', 'replace')}"
        for one in list(updates)[:REFS_LOGGED_MAX]
    ]
    logger.info(event, outcome=outcome, refs=shown, count=len(updates))


def _word(oid: bytes | None) -> str:
    return "none" if oid is None else oid.decode("ascii")
