"""Foresight: the packs that readers will ask for after a push, made before they ask.

Which shapes a repository is asked in is learned from its readers (`shapes`). At each push the packs
of these shapes are made for the new tips, the likeliest first, within bounds; a push that comes
meanwhile ends the work for the one before. What the upstream itself sent is kept as the answer to
the readers that come from where we came from.

Nobody waits for this: it never delays a publication, nor a reader.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from mirror.errors import ClientError, MirrorError
from mirror.metrics import Metrics
from mirror.refresh.mirror import Mirror
from mirror.refresh.shapes import Shape, Shapes
from mirror.refresh.update import ReadyPack, Updated
from mirror.repository.bare import BareRepository
from mirror.repository.fetching import plan_v2
from mirror.repository.packing.engine import PackRequest
from mirror.repository.packing.pack_cache import PackCache
from mirror.repository.packing.pack_store import PackKey
from mirror.repository.snapshot import RefSnapshot
from mirror.wire.names import ObjectId, RefName
from mirror.wire.requests import FetchRequest

PACKS_MAX: Final = 12
"""Packs made for one push."""

BYTES_MAX: Final = 512 << 20
"""Of packs made for one push; what is left then is made when it is asked for."""

SECONDS_MAX: Final = 60.0
"""Of work for one push; a pack that was begun is finished."""

AT_ONCE: Final = 2
"""Pushes worked for at the same time: readers' own packs come first."""

SMALL_REFS_MAX: Final = 2000
"""In a repository with more refs, only HEAD and the refs that changed are recognised."""

FIRST_FETCHES_MAX: Final = 1000
"""Kinds of fetches that are told apart after one push."""

logger = structlog.stdlib.get_logger()


@dataclass(slots=True)
class _Watched:
    """What is known of one repository's readers."""

    shapes: Shapes = field(default_factory=Shapes)
    snapshot: RefSnapshot | None = None  # what the next two were made from
    names: Mapping[ObjectId, RefName] = field(default_factory=dict)
    everything: frozenset[ObjectId] = frozenset()
    new_tips: frozenset[ObjectId] = frozenset()  # of the last push
    seen: set[PackKey] = field(default_factory=set)  # asked for since
    work: "asyncio.Task[None] | None" = None


class Foresight:
    """Foresees the packs of all repositories."""

    def __init__(self, packs: PackCache, metrics: Metrics) -> None:
        self._packs = packs
        self._metrics = metrics
        self._places = asyncio.Semaphore(AT_ONCE)
        self._watched: dict[str, _Watched] = {}
        self._ending: set[asyncio.Task[None]] = set()

    # --- learning ------------------------------------------------------------------------------

    def recognise(
        self, name: str, snapshot: RefSnapshot, fetch: FetchRequest, pack: PackRequest
    ) -> Shape | None:
        """Return the shape of a reader's fetch from the repository `name`, if it has one."""
        watched = self._of(name, snapshot)
        haves = pack.haves
        if len(fetch.wants) == 1:
            ref = watched.names.get(fetch.wants[0])
            return watched.shapes.recognise(fetch, ref, haves) if ref is not None else None
        if (
            len(fetch.wants) == len(watched.everything)
            and frozenset(fetch.wants) == watched.everything
        ):
            return watched.shapes.recognise(fetch, None, haves)
        return None

    def asked(self, name: str, shape: Shape | None, pack: PackRequest, key: PackKey) -> bool:
        """Note that a reader asks for a pack; tells whether it is the first of its kind to do so.

        That is: the first since the push that made what it wants.
        """
        watched = self._watched.get(name)
        if watched is None:
            return False
        if shape is not None:
            watched.shapes.note(shape)
        if key in watched.seen or not watched.new_tips.intersection(pack.wants):
            return False
        if len(watched.seen) < FIRST_FETCHES_MAX:
            watched.seen.add(key)
        return True

    def _of(self, name: str, snapshot: RefSnapshot) -> _Watched:
        """Return what is known of a repository, brought up to its refs."""
        watched = self._watched.setdefault(name, _Watched())
        if watched.snapshot is snapshot:
            return watched
        watched.snapshot = snapshot
        if len(snapshot.refs) <= SMALL_REFS_MAX:
            names = {ref.oid: ref.name for ref in snapshot.refs}
            watched.everything = frozenset(names)
        else:
            names = {oid: name for name in watched.shapes.watched() if (oid := snapshot.find(name))}
            watched.everything = frozenset()
        if snapshot.head is not None and snapshot.head_target is not None:
            names[snapshot.head] = snapshot.head_target
        watched.names = names
        return watched

    # --- foreseeing ----------------------------------------------------------------------------

    def published(self, mirror: Mirror, before: RefSnapshot | None, updated: Updated) -> None:
        """Begin to make the packs that will be asked for: an `OnPublished`."""
        self._begin(mirror.name, before, updated.repository, updated.snapshot, updated.answers)

    def followed(
        self,
        mirror: Mirror,
        before: RefSnapshot | None,
        repository: BareRepository,
        snapshot: RefSnapshot,
    ) -> None:
        """Do as `published` where another process refreshes, and keeps what the upstream sent."""
        self._begin(mirror.name, before, repository, snapshot, ())

    def _begin(
        self,
        name: str,
        before: RefSnapshot | None,
        repository: BareRepository,
        snapshot: RefSnapshot,
        answers: Sequence[ReadyPack],
    ) -> None:
        if before is None:
            return
        watched = self._watched.setdefault(name, _Watched())
        tips = {}
        for ref, (old, new) in snapshot.changes_since(before).items():
            if new is not None:
                tips[ref] = new
                if old is not None:
                    watched.shapes.moved(ref, old)
        self._of(name, snapshot)
        watched.new_tips = frozenset(tips.values())
        watched.seen = set()
        requests = watched.shapes.expected(tips, tuple(sorted(watched.everything)))
        if watched.work is not None:
            watched.work.cancel()
        if requests or answers:
            work = self._foresee(name, repository, snapshot, requests, answers)
            watched.work = asyncio.create_task(work, name=f"foresight {name}")

    def forget(self, name: str) -> None:
        """End what is under way for a repository that goes, and forget its readers."""
        watched = self._watched.pop(name, None)
        if watched is not None and watched.work is not None and not watched.work.done():
            watched.work.cancel()
            self._ending.add(watched.work)
            watched.work.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End what is under way."""
        works = [one.work for one in self._watched.values() if one.work is not None]
        works += self._ending
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)

    async def _foresee(
        self,
        name: str,
        repository: BareRepository,
        snapshot: RefSnapshot,
        requests: Sequence[FetchRequest],
        answers: Sequence[ReadyPack],
    ) -> None:
        try:
            for answer in answers:
                await self._packs.keep(repository, answer.request, answer.data)
            async with self._places:
                await self._make(repository, snapshot, requests[:PACKS_MAX])
        except MirrorError as error:
            self._metrics.record_foreseen("failed")
            logger.info("foresight_failed", repository=name, error=str(error))
        except Exception:
            logger.exception("foresight_broke", repository=name)

    async def _make(
        self, repository: BareRepository, snapshot: RefSnapshot, requests: Sequence[FetchRequest]
    ) -> None:
        ends_at = time.monotonic() + SECONDS_MAX
        left = BYTES_MAX
        for fetch in requests:
            if left <= 0 or time.monotonic() > ends_at:
                return
            try:
                plan = await asyncio.to_thread(plan_v2, repository, snapshot, fetch)
            except ClientError:  # what was a question before the push is none any more
                continue
            if plan.pack is None:
                continue
            made = await self._packs.prepare(repository, plan.pack)
            self._metrics.record_foreseen("ready" if made is None else "built")
            left -= made or 0
