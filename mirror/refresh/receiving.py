"""Packs on their way from an upstream into a quarantine.

Also before the upstream has listed what is in them: a webhook names the new tips, and these are
asked for at the same time as the listing, so that a push costs one round trip. Such a pack is a
guess. It counts only for what the listing then shows; what nobody lists never leaves its
quarantine, and when the guess fails, the listing is followed as if there had been none.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from mirror.errors import LocalError, MirrorError, Trouble, UpstreamUnavailable
from mirror.refresh.bounds import Bounds, Share
from mirror.refresh.mirror import Mirror, Progress
from mirror.repository.bare import BareRepository
from mirror.repository.graph import CommitGraph
from mirror.repository.packing.engine import IndexProgress, PackEngine
from mirror.repository.quarantine import Quarantine
from mirror.upstream.remote import Remote
from mirror.wire.names import ObjectId

PACK_KEPT_BYTES_MAX: Final = 1 << 20
"""A pack up to that size stays in memory until its refresh is published: it may be an answer."""

ANCESTORS_LOOKED_AT_MAX: Final = 200
"""Between a tip that was announced and a later one that is listed."""

logger = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class Receipt:
    """A pack that was received and indexed.

    Attributes:
        size: In bytes.
        data: The pack as it came; `None` when it was over `PACK_KEPT_BYTES_MAX`.
    """

    size: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Known:
    """What was whole before, for the check of what comes.

    Attributes:
        tips: The likeliest first; they are what the upstream is told that we have.
        onto: The one tip that has moved, where it is only one.
    """

    tips: Sequence[ObjectId]
    onto: ObjectId | None = None


class Receiver:
    """Receives packs for one refresh."""

    def __init__(self, engine: PackEngine, mirror: Mirror, remote: Remote, bounds: Bounds) -> None:
        self._bounds = bounds
        self._engine = engine
        self._mirror = mirror
        self._remote = remote

    async def receive(
        self, quarantine: Quarantine, wants: Sequence[ObjectId], haves: Sequence[ObjectId]
    ) -> Receipt:
        """Receive a pack into the quarantine and index it there.

        Raises:
            UpstreamError: It did not come as it should.
            PackError: It is damaged.
            LocalError: The disk, or what may be taken of it, does not suffice.
        """

        def receiving(received: int, message: bytes) -> None:
            text = message.decode("utf-8", "replace")
            self._mirror.report(Progress("receiving", received, None, text))

        loop = asyncio.get_running_loop()

        def show(progress: Progress) -> None:
            if self._mirror.progress is not None:  # a thread may be behind what was cut short
                self._mirror.report(progress)

        def indexing(done: int, total: int) -> None:
            loop.call_soon_threadsafe(show, Progress("indexing", done, total))

        is_clone = self._mirror.snapshot is None
        with self._bounds.taken(self._mirror.settings, wants, is_clone=is_clone) as share:
            before = quarantine.bytes_on_disk()  # a guess that brought a part of it
            chunks = self._remote.fetch_pack(wants, haves, progress=receiving)
            receipt = await self._receive(quarantine, chunks, share, indexing)
            share.check_indexed(quarantine.bytes_on_disk() - before)
        return receipt

    async def _receive(
        self,
        quarantine: Quarantine,
        chunks: AsyncGenerator[bytes, None],
        share: Share,
        indexing: IndexProgress,
    ) -> Receipt:
        size = 0
        kept: list[bytes] | None = []
        async with aclosing(chunks):
            with quarantine.received.open("wb") as file:
                async for chunk in chunks:
                    share.check(size + len(chunk))
                    size += file.write(chunk)
                    if size > PACK_KEPT_BYTES_MAX:
                        kept = None
                    if kept is not None:
                        kept.append(chunk)
        share.check_all()
        if size == 0:
            raise UpstreamUnavailable(
                "the upstream sent no pack for what it had listed", trouble=Trouble.BAD_PACK
            )
        await self._engine.index_pack(quarantine, progress=indexing)
        quarantine.received.unlink()
        return Receipt(size, b"".join(kept) if kept is not None else None)

    async def is_whole(
        self, quarantine: Quarantine, tips: Sequence[ObjectId], known: Known
    ) -> bool:
        """Check that all that `tips` reach is there; returns as `PackEngine.check_connected`.

        Raises:
            PackError: Something is missing.
        """
        return await self._engine.check_connected(
            quarantine, tips, known=known.tips, onto=known.onto
        )


@dataclass(frozen=True, slots=True)
class Guessed:
    """A speculation that came true.

    Attributes:
        quarantine: Where its pack is.
        receipt: The pack.
        tips: Those of the listed tips that it brought; all that they reach is there.
        is_enough: What the check of them returned.
    """

    quarantine: Quarantine
    receipt: Receipt
    tips: list[ObjectId]
    is_enough: bool


class Speculation:
    """One pack that was asked for before its tips were listed."""

    def __init__(
        self,
        receiver: Receiver,
        repository: BareRepository,
        announced: Collection[ObjectId],
        haves: Sequence[ObjectId],
    ) -> None:
        self._receiver = receiver
        self._repository = repository
        self._announced = announced
        self._haves = haves
        self._wants: list[ObjectId] = []
        self._places = ExitStack()
        self._task: asyncio.Task[tuple[Quarantine, Receipt] | None] = asyncio.create_task(
            self._receive()
        )

    async def _receive(self) -> tuple[Quarantine, Receipt] | None:
        self._wants = [tip for tip in self._announced if not self._repository.source.contains(tip)]
        if not self._wants:
            return None
        quarantine = self._places.enter_context(self._repository.quarantine())
        try:
            return quarantine, await self._receiver.receive(quarantine, self._wants, self._haves)
        except (MirrorError, OSError) as error:
            logger.debug("speculation_failed", error=str(error))
            return None

    async def outcome(self, missing: Sequence[ObjectId], known: Known) -> Guessed | None:
        """Return what it brought of the listed tips that are `missing`; `None` if that is no help.

        It is waited for only if something of it was listed.
        """
        await asyncio.sleep(0)  # let it say what it wants, if it has not begun yet
        if not set(self._wants).intersection(missing):
            return None
        brought = await asyncio.shield(self._task)
        if brought is None:
            return None
        quarantine, receipt = brought
        try:
            tips = await asyncio.to_thread(self._listed, quarantine, missing)
            if not tips:
                return None
            is_enough = await self._receiver.is_whole(quarantine, tips, known)
        except LocalError as error:
            logger.debug("speculation_failed", error=str(error))
            return None
        return Guessed(quarantine, receipt, tips, is_enough)

    def _listed(self, quarantine: Quarantine, missing: Sequence[ObjectId]) -> list[ObjectId]:
        """Return which of `missing` came; none if something came that nothing listed reaches."""
        unlisted = [tip for tip in self._wants if tip not in missing]
        if not unlisted and len(self._wants) == len(missing):
            return list(missing)
        source = quarantine.source()
        try:
            graph = CommitGraph(source)
            came = [tip for tip in missing if source.contains(tip)]
            peeled = [graph.peel(tip) for tip in came]
            for tip in unlisted:
                if not any(
                    graph.is_ancestor(tip, new, commits_max=ANCESTORS_LOOKED_AT_MAX)
                    for new in peeled
                ):
                    return []
            return came
        finally:
            source.close()

    async def close(self) -> None:
        """Give up what is still under way, and remove what was not taken."""
        self._task.cancel()
        await asyncio.wait((self._task,))
        if not self._task.cancelled():
            self._task.exception()  # seen: who did not wait for it does not need it
        self._places.close()


@asynccontextmanager
async def speculating(
    receiver: Receiver,
    repository: BareRepository,
    announced: Collection[ObjectId],
    haves: Sequence[ObjectId],
) -> AsyncIterator[Speculation]:
    """Ask for `announced` tips while the listing is asked for."""
    speculation = Speculation(receiver, repository, announced, haves)
    try:
        yield speculation
    finally:
        await speculation.close()
