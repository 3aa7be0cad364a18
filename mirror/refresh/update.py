"""One refresh: what the upstream lists becomes what we hold.

In this order, so that a crash at any point leaves a repository that is whole: list the refs, and
receive meanwhile what webhooks announced; receive what is missing, into a quarantine; index and
check it; join it to the repository; replace the refs. Publishing is the caller's. No lock is held:
the repository's one refresher is the only writer.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from mirror.errors import LocalError
from mirror.refresh.bounds import Bounds
from mirror.refresh.doubt import Doubt
from mirror.refresh.mirror import Mirror, Progress
from mirror.refresh.news import News, choose_haves, compare
from mirror.refresh.patterns import patterns_of
from mirror.refresh.receiving import Known, Receiver, Speculation, speculating
from mirror.refresh.staging import Staging
from mirror.refresh.vanishing import Vanishing
from mirror.repository.bare import BareRepository
from mirror.repository.packing.engine import PackEngine, PackRequest
from mirror.repository.refs import StoredRefs
from mirror.repository.snapshot import RefSnapshot
from mirror.repository.threads import run_to_end
from mirror.space import disk_trouble
from mirror.upstream.forges import UNKNOWN, RefChange
from mirror.upstream.remote import Remote
from mirror.wire.client import Listing
from mirror.wire.names import ObjectId, Ref, RefName
from mirror.wire.ref_table import RefTable

NOTED_EVERY_SECONDS: Final = 60.0
"""So often the time of the last confirmation is kept on disk, for the time after a restart."""

WARMING_SECONDS_MAX: Final = 1.0
"""A refresh that is done waits no longer than that for a request made in passing."""

KEPT_SECONDS: Final = 24 * 3600
"""Old tips stay fetchable that long after a force-push or a deletion; then maintenance gives them
up."""

SPECULATED_MAX: Final = 16
"""Of the tips that webhooks announced, the latest are asked for before they are listed."""

ANCESTORS_LOOKED_AT_MAX: Final = 5_000
"""To tell a fast-forward from a force-push; when in doubt the old tip is kept."""

DOUBTED_AT_ONCE_MAX: Final = 500
"""Changes looked at on the event loop: a millisecond or two."""

WallClock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class ReadyPack:
    """The answer to a request that is sure to come, as the upstream made it.

    Attributes:
        request: What it answers.
        data: The pack; at most `PACK_KEPT_BYTES_MAX`.
    """

    request: PackRequest
    data: bytes


@dataclass(frozen=True, slots=True)
class Updated:
    """What a refresh came to.

    Attributes:
        repository: The bare repository, opened by this refresh when there was none.
        snapshot: What is to be published; the very one before when nothing changed.
        received_bytes: The size of the packs that came.
        changed_refs: How many refs are not what they were.
        answers: Packs that can be passed on to readers as they came.
    """

    repository: BareRepository
    snapshot: RefSnapshot
    received_bytes: int
    changed_refs: int = 0
    answers: tuple[ReadyPack, ...] = ()


@dataclass(frozen=True, slots=True)
class Received:
    """What came of receiving: as in `Updated`."""

    size: int = 0
    answers: tuple[ReadyPack, ...] = ()


class Updater:
    """Refreshes repositories, one call per refresh."""

    def __init__(
        self,
        engine: PackEngine,
        *,
        staging: Path,
        agent: bytes,
        bounds: Bounds | None = None,
        now: WallClock = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bounds = bounds or Bounds()
        self._engine = engine
        self._staging = Staging(staging)
        self._agent = agent
        self._now = now
        self._doubt = Doubt(now=now, clock=clock)

    async def update(
        self,
        mirror: Mirror,
        remote: Remote,
        announced: Sequence[RefChange] = (),
        *,
        accepts_deletions: bool = False,
    ) -> Updated:
        """Refresh one repository.

        Args:
            mirror: The repository.
            remote: Its upstream.
            announced: What webhooks said that changed, the latest last. Hints: they make it
                quicker, and what the upstream lists is true; but for deletions, which they confirm.
            accepts_deletions: An operator says that refs that vanished were deleted.

        Raises:
            UpstreamError: The upstream did not answer as it should.
            LocalError: Something on this machine failed: a `DiskTrouble` where it was the disk.
        """
        mirror.report(Progress("asking"))
        began_at = self._now()
        try:
            updated = await self._update(mirror, remote, announced, accepts_deletions)
            if mirror.noted_at is None or began_at - mirror.noted_at >= NOTED_EVERY_SECONDS:
                mirror.noted_at = began_at
                await run_to_end(updated.repository.note_confirmed, began_at)
        except (OSError, LocalError) as error:
            # Whoever could not write: here it is told apart from what no room would mend.
            if (trouble := disk_trouble(error)) is not None and trouble is not error:
                raise trouble from error
            if isinstance(error, OSError):
                raise LocalError(str(error)) from error
            raise
        finally:
            self.bounds.settle(mirror.name)
            mirror.report(None)
        return updated

    async def _update(
        self,
        mirror: Mirror,
        remote: Remote,
        announced: Sequence[RefChange],
        accepts_deletions: bool,  # noqa: FBT001 - the caller's own
    ) -> Updated:
        receiver = Receiver(self._engine, mirror, remote, self.bounds)
        repository, before = mirror.repository, mirror.snapshot
        if repository is None or before is None:
            everything = await self._list_anew(mirror, remote)
            self._doubt.of_new(mirror, everything, is_accepted=accepts_deletions)
            async with _warming(mirror, remote):
                return await self._clone(mirror, receiver, everything)
        async with self._speculating(mirror, remote, receiver, announced) as speculation:
            listing = await self._list(mirror, remote)
            if listing is None:
                return Updated(repository, before, 0)
            deleted = {change.ref for change in announced if change.after is None}
            return await self._refresh(
                mirror,
                repository,
                receiver,
                listing,
                speculation,
                believed=None if accepts_deletions else deleted,
            )

    @asynccontextmanager
    async def _speculating(
        self, mirror: Mirror, remote: Remote, receiver: Receiver, announced: Sequence[RefChange]
    ) -> AsyncIterator[Speculation | None]:
        """Ask for the announced tips, where that takes one request."""
        tips = [change.after for change in announced if change.after not in {None, UNKNOWN}]
        wants = tuple(dict.fromkeys(reversed(tips)))[:SPECULATED_MAX]
        repository, before = mirror.repository, mirror.snapshot
        if not (wants and repository and before and remote.is_known):
            async with _warming(mirror, remote):
                yield None
            return
        haves = choose_haves(before, [change.ref for change in announced])
        async with speculating(receiver, repository, wants, haves) as speculation:
            yield speculation

    def mirrors(self, mirror: Mirror, name: RefName) -> bool:
        """Tell whether a ref of the upstream is one that this repository mirrors."""
        return patterns_of(mirror.settings.refs).matches(name)

    def open(self, repository: BareRepository) -> RefSnapshot:
        """Make the first snapshot of a repository that is on disk already.

        Raises:
            LocalError: Its refs can't be read.
        """
        return self._snapshot(1, repository.read_refs()).prepare()

    def recall_vanished(self, repository: BareRepository) -> Vanishing | None:
        """Return which refs the upstream did not list any more at the stop; blocking."""
        return self._doubt.recall(repository)

    async def weigh(self, mirror: Mirror, repository: BareRepository) -> None:
        """Take note of what a repository takes on disk."""
        mirror.disk_bytes = await run_to_end(repository.bytes_on_disk)
        self.bounds.note(mirror.name, mirror.disk_bytes)

    async def _list(self, mirror: Mirror, remote: Remote) -> Listing | None:
        """Ask for the refs; `None` means that they are what the snapshot shows."""
        seen = b""
        # That what vanished has come back is news, although it is shown.
        if (
            mirror.vanishing is None
            and mirror.shown is not None
            and mirror.shown[1] is mirror.snapshot
        ):
            seen = mirror.shown[0]
        patterns = patterns_of(mirror.settings.refs)
        listing = await remote.list_news(patterns.prefixes(), seen=seen, known=_known(mirror))
        mirror.moved_to = remote.moved_to
        return listing if listing is None else await self._unless_empty(mirror, remote, listing)

    async def _list_anew(self, mirror: Mirror, remote: Remote) -> Listing:
        prefixes = patterns_of(mirror.settings.refs).prefixes()
        listing = await remote.list_refs(prefixes, known=_known(mirror))
        mirror.moved_to = remote.moved_to
        return await self._unless_empty(mirror, remote, listing)

    async def _unless_empty(self, mirror: Mirror, remote: Remote, listing: Listing) -> Listing:
        """Ask once more where the answer is empty, and that would be news."""
        patterns = patterns_of(mirror.settings.refs)
        is_empty = not any(patterns.matches(ref.name) for ref in listing.refs)
        if is_empty and (mirror.snapshot is None or not mirror.snapshot.is_empty):
            remote.forget()
            listing = await remote.list_refs(patterns.prefixes())
            mirror.moved_to = remote.moved_to
        return listing

    async def _clone(self, mirror: Mirror, receiver: Receiver, listing: Listing) -> Updated:
        """Clone into the staging directory and rename: a half-finished clone is never served."""
        async with self._staged(mirror, receiver, listing) as (staged, updated):
            await self._staging.put_in_place(staged, mirror.path)
        repository = await asyncio.to_thread(BareRepository.open, mirror.path)
        return replace(updated, repository=repository)

    @asynccontextmanager
    async def cloned_beside(
        self, mirror: Mirror, remote: Remote, *, believed: Collection[RefName] | None
    ) -> AsyncIterator[tuple[BareRepository, bytes]]:
        """Clone a repository anew, for what is there is damaged; what is served stays as it is.

        Provides the clone, in the staging directory, which is removed in the end, and the digest of
        what the upstream listed. Of refs that vanished, the deletion of those in `believed` is
        confirmed; `None`: of all.

        Raises:
            RefsVanished: So many refs vanished that their deletion is not believed yet: what is
                served, damaged or not, is all that there is of them.
            UpstreamError: The upstream did not answer as it should.
            LocalError: Something on this machine failed.
        """
        listing = await self._list_anew(mirror, remote)
        if mirror.snapshot is not None:
            await asyncio.to_thread(
                self._doubt.of_whole, mirror, mirror.snapshot, listing, believed
            )
        alone = Mirror(mirror.settings, mirror.path)
        alone.watch = lambda one: mirror.report(one.progress)
        receiver = Receiver(self._engine, alone, remote, self.bounds)
        async with self._staged(alone, receiver, listing) as (staged, _):
            yield staged, listing.digest

    def snapshot_after(self, before: RefSnapshot, stored: StoredRefs) -> RefSnapshot:
        """Make the snapshot that follows one, not prepared yet."""
        return self._snapshot(before.number + 1, stored)

    @asynccontextmanager
    async def _staged(
        self, mirror: Mirror, receiver: Receiver, listing: Listing
    ) -> AsyncIterator[tuple[BareRepository, Updated]]:
        async with self._staging.made(mirror.name, mirror.settings.upstream) as staged:
            yield staged, await self._refresh(mirror, staged, receiver, listing, None)

    async def _refresh(
        self,
        mirror: Mirror,
        repository: BareRepository,
        receiver: Receiver,
        listing: Listing,
        speculation: Speculation | None,
        *,
        believed: Collection[RefName] | None = None,
    ) -> Updated:
        """Bring the repository up to a listing.

        Of refs that vanished, the deletion of those in `believed` is confirmed; `None`: of all.
        """
        before, patterns = mirror.snapshot, mirror.settings.refs
        news = await asyncio.to_thread(compare, mirror, repository, listing)
        if before is not None:
            doubting = partial(
                self._doubt.without_doubtful, mirror, before, listing, news, believed
            )
            is_little = len(news.changes) <= DOUBTED_AT_ONCE_MAX
            was = mirror.vanishing
            try:
                news = doubting() if is_little else await asyncio.to_thread(doubting)
            finally:
                if mirror.vanishing is not was:
                    await run_to_end(self._doubt.keep, repository, mirror.vanishing)
        if before is not None and not news.is_any:
            self._show(mirror, listing, before, patterns)
            return Updated(repository, before, 0)
        received = Received()
        if news.missing:
            haves = choose_haves(before, news.changed) if before is not None else []
            known = Known(haves, news.moved_from())
            received = await self._receive(
                mirror, repository, receiver, news.missing, known, speculation
            )
        snapshot = await run_to_end(self._replace_refs, repository, before, news)
        self._show(mirror, listing, snapshot, patterns)
        return Updated(repository, snapshot, received.size, len(news.changed), received.answers)

    def _show(
        self, mirror: Mirror, listing: Listing, snapshot: RefSnapshot, patterns: tuple[str, ...]
    ) -> None:
        """Note that the snapshot shows what was listed, unless it shows more.

        Or unless other refs are wanted meanwhile than by `patterns`.
        """
        is_all = mirror.vanishing is None and mirror.settings.refs == patterns
        mirror.shown = (listing.digest, snapshot) if is_all else None

    async def _receive(
        self,
        mirror: Mirror,
        repository: BareRepository,
        receiver: Receiver,
        missing: list[ObjectId],
        known: Known,
        speculation: Speculation | None,
    ) -> Received:
        """Bring the missing tips, with all that they reach, into the repository."""
        guessed = await speculation.outcome(missing, known) if speculation is not None else None
        with ExitStack() as stack:
            if guessed is None:
                self.bounds.settle(mirror.name)  # what a guess brought is gone, or going
                came: list[ObjectId] = []
                size, data, is_enough = 0, None, False
                quarantine = stack.enter_context(repository.quarantine())
            else:
                came, is_enough = guessed.tips, guessed.is_enough
                size, data = guessed.receipt.size, guessed.receipt.data
                quarantine = guessed.quarantine
            rest = [tip for tip in missing if tip not in came]
            if rest:
                receipt = await receiver.receive(quarantine, rest, [*came, *known.tips])
                mirror.report(Progress("checking"))
                is_enough = await receiver.is_whole(quarantine, missing, known)
                size, data = size + receipt.size, receipt.data
            await run_to_end(quarantine.migrate)
        await self.weigh(mirror, repository)
        return Received(size, _answers(missing, known, data) if is_enough else ())

    def _replace_refs(
        self, repository: BareRepository, before: RefSnapshot | None, news: News
    ) -> RefSnapshot:
        """Write the refs and make the snapshot; blocking."""
        graph = repository.graph
        old = repository.read_refs()
        now = int(self._now())
        kept = dict(old.kept)  # given up by maintenance, which counts what nothing reaches then
        new: dict[RefName, Ref | None] = {}
        for change in news.changes:
            was, oid = old.refs.get(change.name), change.new.oid if change.new else None
            if was is not None and not (oid and _is_fast_forward(repository, was.oid, oid)):
                kept[was.oid] = now + KEPT_SECONDS
            new[change.name] = None
            if oid is not None:
                peeled = graph.peel(oid)
                graph.node(peeled)  # kept for the fetches that come now
                new[change.name] = Ref(change.name, oid, peeled if peeled != oid else None)
        base = RefTable.of(old.refs.values())
        if before is not None and before.by_name == base:
            base = before.by_name  # whose chunks are compressed; they differ after a first clone
        refs = base.replace(new)
        stored = StoredRefs(refs, news.head_target, news.detached, kept)
        repository.write_refs(stored)
        number = before.number + 1 if before is not None else 1
        return self._snapshot(number, stored).prepare(before)

    def _snapshot(self, number: int, stored: StoredRefs) -> RefSnapshot:
        return RefSnapshot(
            number,
            stored.refs.values(),
            head_target=stored.head_target,
            detached_head=stored.head,
            agent=self._agent,
        )


@asynccontextmanager
async def _warming(mirror: Mirror, remote: Remote) -> AsyncIterator[None]:
    """See to it that there are two open connections when the next push comes."""
    if mirror.settings.webhook_secret_file is None:
        yield
        return
    warming = asyncio.create_task(remote.warm())
    try:
        yield
        await asyncio.wait((warming,), timeout=WARMING_SECONDS_MAX)
    finally:
        warming.cancel()
        await asyncio.wait((warming,))


def _answers(
    missing: Sequence[ObjectId], known: Known, data: bytes | None
) -> tuple[ReadyPack, ...]:
    if data is None or known.onto is None:
        return ()
    request = PackRequest(wants=tuple(missing), haves=(known.onto,), thin=True, ofs_delta=True)
    return (ReadyPack(request, data),)


def _known(mirror: Mirror) -> RefTable:
    return mirror.snapshot.by_name if mirror.snapshot is not None else RefTable()


def _is_fast_forward(repository: BareRepository, old: ObjectId, new: ObjectId) -> bool:
    return repository.graph.is_ancestor(
        old, repository.graph.peel(new), commits_max=ANCESTORS_LOOKED_AT_MAX
    )
