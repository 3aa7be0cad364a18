"""Answers to a fetch: the plan, and the pack from wherever it comes.

A pack that is at hand goes out with its length, and its answer may be given again; one that is
being built is followed.

Errors are an ``ERR`` pkt-line before the pack, side-band 3 once it began or where all of the answer
is to be in side-bands, and where there is no side-band the connection is cut.
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Final
from weakref import ref

import structlog
from aiohttp import web

from mirror.errors import LocalError, MirrorError, NotOurRef, PackError, ProtocolError
from mirror.metrics import Metrics
from mirror.refresh.foresight import Foresight
from mirror.refresh.gate import Admitted
from mirror.refresh.refresher import Trigger
from mirror.refresh.registry import Hosted
from mirror.repository.fetching import FetchPlan, UnknownRef, first_missing, plan_v0, plan_v2
from mirror.repository.packing.engine import PackRequest
from mirror.repository.packing.framing import STORED, Reframer
from mirror.repository.packing.pack_cache import PackBuild, PackCache, slices
from mirror.repository.packing.pack_store import PackKey, StoredPack
from mirror.web.plans import Planned, Plans
from mirror.web.protocol import (
    OUTCOME,
    RESULT_TYPE,
    answer_headers,
    check_connected,
    send,
    whole_answer,
)
from mirror.web.repeating import REPEATABLE, Repeatable
from mirror.web.turns import later
from mirror.wire.answers import encode_band_error, encode_end, encode_error
from mirror.wire.requests import FetchRequest, SideBand, UploadPackRequest

KEEPALIVE_SECONDS: Final = 5.0
"""As git's own server: clients and proxies take longer silence for a dead line."""

WANT_REFRESH_SECONDS_MAX: Final = 10.0
"""How long a want that we lack may wait for the upstream. Argo CD gives up at 15 s."""

WANTS_LOGGED_MAX: Final = 5

REPEATED_BYTES_MAX: Final = 512 * 1024
"""A shallow clone of a deployment repository; up to here an answer is given again in one piece."""

logger = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class _Found:
    """A plan, the name of its pack, and the pack where it had to be taken from disk."""

    plan: FetchPlan
    key: PackKey | None
    stored: StoredPack | None


_REFUSALS: Final = (NotOurRef, UnknownRef, ProtocolError, LocalError)
"""What is told by an ``ERR``: the request was understood."""


class Fetches:
    """Answers the fetches of all repositories."""

    def __init__(self, packs: PackCache, foresight: Foresight, metrics: Metrics) -> None:
        self._packs = packs
        self._foresight = foresight
        self._metrics = metrics
        self._plans = Plans()

    async def planned(self, hosted: Hosted, version: int, body: bytes) -> Planned | None:
        """Return what was planned for such a body before, if that still holds."""
        return await self._plans.find(hosted.mirror, version, body)

    async def plan(
        self, hosted: Hosted, admitted: Admitted | None, command: FetchRequest | UploadPackRequest
    ) -> tuple[Admitted, _Found]:
        """Plan the answer, after a look at the upstream where a want is not here.

        Args:
            hosted: What the fetch is from.
            command: What it asks for.
            admitted: The refs that it names; `None` when it names objects only.

        Raises:
            NotOurRef: A want is nowhere.
            UnknownRef: A ref that it names is not there.
            ProtocolError: It makes no sense.
            LocalError: An object can't be read.
        """
        seen = admitted or hosted.gate.current()
        try:
            return seen, await asyncio.to_thread(self._look, seen, command)
        except NotOurRef:
            # A reader may know of a push before we do: the upstream is asked, once.
            await hosted.gate.look_again(WANT_REFRESH_SECONDS_MAX)
            seen = admitted or hosted.gate.current()
            return seen, await asyncio.to_thread(self._look, seen, command)

    def _look(self, admitted: Admitted, command: FetchRequest | UploadPackRequest) -> _Found:
        """Plan the answer and look whether its pack is on disk: one way to a thread for both."""
        plan = _plan(admitted, command)
        if plan.pack is None:
            return _Found(plan, None, None)
        key = self._packs.key(admitted.repository, plan.pack)
        at_hand = self._packs.is_at_hand(key)
        return _Found(plan, key, None if at_hand else self._packs.look(key))

    async def answer(
        self,
        request: web.Request,
        hosted: Hosted,
        command: FetchRequest | UploadPackRequest,
        *,
        admitted: Admitted | None,
        version: int,
        body: bytes,
    ) -> web.StreamResponse:
        """Answer a fetch, and remember the plan for `body`: the one it was, or began with."""
        try:
            with self._plans.making(hosted.mirror, version, body):
                seen, found = await self.plan(hosted, admitted, command)
                planned = self._planned(hosted, seen, found, command, by_name=admitted is not None)
                if planned is not None:
                    self._plans.add(hosted.mirror, seen.snapshot, version, body, planned)
        except _REFUSALS as error:
            _tell_of_damage(hosted, error)
            in_band = _wants_all_in_band(command)
            return await _refuse(request, error, admitted, in_band=in_band)
        if planned is None:
            headers = answer_headers(RESULT_TYPE, seen)
            return await whole_answer(request, found.plan.head, headers)
        if found.stored is not None:
            self._packs.admit(planned.key, found.stored)
        return await self.send(request, hosted, seen, planned, may_be_on_disk=False)

    def _planned(
        self,
        hosted: Hosted,
        seen: Admitted,
        found: _Found,
        command: FetchRequest | UploadPackRequest,
        *,
        by_name: bool,
    ) -> Planned | None:
        """Return what is to be sent; `None` when the answer ends before a pack."""
        pack = found.plan.pack
        if pack is None or found.key is None:
            return None
        fetch = command.fetch if isinstance(command, UploadPackRequest) else command
        shape = self._foresight.recognise(hosted.mirror.name, seen.snapshot, fetch, pack)
        in_band = _wants_all_in_band(command)
        return Planned(found.plan, pack, found.key, shape, by_name, in_band)

    async def send(
        self,
        request: web.Request,
        hosted: Hosted,
        admitted: Admitted,
        planned: Planned,
        *,
        may_be_on_disk: bool = True,
    ) -> web.StreamResponse:
        """Send what was planned; `may_be_on_disk` is false where somebody has just looked."""
        opened = self._packs.open(
            admitted.repository, planned.pack, planned.key, may_be_on_disk=may_be_on_disk
        )
        try:
            async with opened as found:
                if isinstance(found, StoredPack):
                    self._count(hosted, planned, "hit")
                    return await self._send_stored(request, hosted, admitted, planned, found)
                self._count(hosted, planned, "joined" if found.readers > 1 else "miss")
                return await self._send_build(request, hosted, admitted, planned, found)
        except _REFUSALS as error:
            _tell_of_damage(hosted, error)
            return await _refuse(request, error, admitted, in_band=planned.sideband_all)

    def _count(self, hosted: Hosted, planned: Planned, result: str) -> None:
        self._metrics.record_pack(result)
        name = hosted.mirror.name
        if self._foresight.asked(name, planned.shape, planned.pack, planned.key):
            self._metrics.record_first_fetch(result)

    async def _send_stored(
        self,
        request: web.Request,
        hosted: Hosted,
        admitted: Admitted,
        planned: Planned,
        pack: StoredPack,
    ) -> web.StreamResponse:
        band, head = planned.plan.side_band, planned.plan.head
        end = encode_end(band)
        headers = answer_headers(RESULT_TYPE, admitted)
        pieces = slices(pack.framed)
        if band is not STORED:
            pieces = [memoryview(Reframer(band).feed(pack.framed))]
        length = len(head) + sum(map(len, pieces)) + len(end)
        if length <= REPEATED_BYTES_MAX:
            body = b"".join((head, *pieces, end))
            if admitted.stale_seconds is None and not planned.by_name:
                self._offer(request, hosted, admitted, planned, pack, body)
            _log_served(planned.pack, pack.pack_bytes)
            # In slices: who is told to end waits for what is still to be sent.
            return await whole_answer(request, body, headers)
        response = web.StreamResponse(headers=headers)
        response.content_length = length
        await response.prepare(request)
        await send(response, head)
        for piece in pieces:
            await later(request)
            await send(response, piece)
        await send(response, end)
        _log_served(planned.pack, pack.pack_bytes)
        return response

    def _offer(
        self,
        request: web.Request,
        hosted: Hosted,
        admitted: Admitted,
        planned: Planned,
        pack: StoredPack,
        body: bytes,
    ) -> None:
        """Let an answer be given again, without a handler, for as long as the refs are the same."""
        gate, shown = hosted.gate, ref(admitted.snapshot)

        def is_valid() -> bool:
            snapshot = shown()
            return snapshot is not None and gate.is_shown(snapshot)

        def on_repeat() -> None:
            self._count(hosted, planned, "hit")
            self._packs.use(pack)
            _log_served(planned.pack, pack.pack_bytes)

        request[REPEATABLE] = Repeatable(body, is_valid, on_repeat)

    async def _send_build(
        self,
        request: web.Request,
        hosted: Hosted,
        admitted: Admitted,
        planned: Planned,
        build: PackBuild,
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=answer_headers(RESULT_TYPE, admitted))
        band = planned.plan.side_band
        framed = build.follow(idle_seconds=KEEPALIVE_SECONDS, turn=partial(later, request))
        reframer = Reframer(band)
        async with aclosing(framed):
            try:
                # The first piece decides: an error before it can still be told as an ERR.
                piece = await anext(framed, None)
                if (whole := build.whole()) is not None:
                    return await self._send_stored(request, hosted, admitted, planned, whole)
                await response.prepare(request)
                await send(response, planned.plan.head)
                while piece is not None:
                    check_connected(request)
                    await send(response, reframer.feed(piece))
                    piece = await anext(framed, None)
                await send(response, encode_end(band))
            except MirrorError as error:
                if not response.prepared:
                    raise
                request[OUTCOME] = error.label
                _tell_of_damage(hosted, error)
                logger.warning("pack_broke_off", kind=error.label, error=str(error))
                if band is SideBand.NONE:
                    raise ConnectionAbortedError("no side-band to tell an error by") from error
                await send(response, encode_band_error(str(error), band))
                response.force_close()
                return response
        _log_served(planned.pack, build.pack_bytes)
        return response


def _plan(admitted: Admitted, command: FetchRequest | UploadPackRequest) -> FetchPlan:
    """Plan the answer; blocking.

    Raises:
        NotOurRef: A want is not here.
    """
    fetch = command.fetch if isinstance(command, UploadPackRequest) else command
    missing = first_missing(admitted.repository, fetch.wants)
    if missing is not None:
        raise NotOurRef(f"not our ref {missing.decode()}")
    if isinstance(command, UploadPackRequest):
        return plan_v0(admitted.repository, admitted.snapshot, command)
    return plan_v2(admitted.repository, admitted.snapshot, command)


def _wants_all_in_band(command: FetchRequest | UploadPackRequest) -> bool:
    return isinstance(command, FetchRequest) and command.sideband_all


def _tell_of_damage(hosted: Hosted, error: MirrorError) -> None:
    """Have the repository looked through, and mended, when an answer may have met damage."""
    if isinstance(error, PackError):
        hosted.refresher.request(Trigger.DAMAGE)


async def _refuse(
    request: web.Request, error: MirrorError, admitted: Admitted | None, *, in_band: bool
) -> web.StreamResponse:
    """Tell an error in place of an answer, as git does: of a ref, without the program's name."""
    request[OUTCOME] = error.label
    log = logger.warning if isinstance(error, LocalError) else logger.info
    log("refused", kind=error.label, error=str(error))
    message = str(error) if isinstance(error, UnknownRef) else f"upload-pack: {error}"
    answer = encode_band_error(message, STORED) if in_band else encode_error(message)
    return await whole_answer(request, answer, answer_headers(RESULT_TYPE, admitted))


def _log_served(pack: PackRequest, pack_bytes: int) -> None:
    logger.info(
        "served",
        wants=[oid.decode() for oid in pack.wants[:WANTS_LOGGED_MAX]],
        want_count=len(pack.wants),
        have_count=len(pack.haves),
        shallow_count=len(pack.shallow),
        filter=pack.filter.spec().decode() if pack.filter else None,
        pack_bytes=pack_bytes,
    )
