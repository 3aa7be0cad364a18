"""One refresh: what the upstream lists becomes what we hold.

In this order, so that a crash at any point leaves a repository that is whole: list the refs, and
receive meanwhile what webhooks announced; receive what is missing, into a quarantine; index and
check it; join it to the repository; replace the refs. Publishing is the caller's. No lock is held:
the repository's one refresher is the only writer.
"""

import asyncio
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, ParamSpec, TypeVar
from urllib.parse import quote

from mirror.errors import LocalError
from mirror.refresh.mirror import Mirror, Progress
from mirror.refresh.patterns import patterns_of
from mirror.refresh.receiving import Known, Receiver, Speculation, speculating
from mirror.repository.bare import BareRepository, StoredRefs, fsync_directory
from mirror.repository.packing.engine import PackEngine, PackRequest
from mirror.repository.snapshot import RefSnapshot
from mirror.upstream.forges import UNKNOWN, RefChange
from mirror.upstream.remote import Remote
from mirror.wire.client import Listing
from mirror.wire.names import ObjectId, Ref, RefName

WARMING_SECONDS_MAX: Final = 1.0
"""A refresh that is done waits no longer than that for a request made in passing."""

KEPT_SECONDS: Final = 24 * 3600
"""Old tips stay fetchable that long after a force-push or a deletion."""

SPECULATED_MAX: Final = 16
"""Of the tips that webhooks announced, the latest are asked for before they are listed."""

HAVES_MAX: Final = 256
"""The tips we tell the upstream of; those of the refs that change come first."""

ANCESTORS_LOOKED_AT_MAX: Final = 5_000
"""To tell a fast-forward from a force-push; when in doubt the old tip is kept."""

WallClock = Callable[[], float]
P = ParamSpec("P")
T = TypeVar("T")


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
        answers: Packs that can be passed on to readers as they came.
    """

    repository: BareRepository
    snapshot: RefSnapshot
    received_bytes: int
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
        now: WallClock = time.time,
    ) -> None:
        self._engine = engine
        self._staging = staging
        self._agent = agent
        self._now = now

    async def update(
        self, mirror: Mirror, remote: Remote, announced: Sequence[RefChange] = ()
    ) -> Updated:
        """Refresh one repository.

        Args:
            mirror: The repository.
            remote: Its upstream.
            announced: What webhooks said that changed, the latest last. Hints: they make it
                quicker, and what the upstream lists is true.

        Raises:
            UpstreamError: The upstream did not answer as it should.
            LocalError: Something on this machine failed.
        """
        mirror.report(Progress("asking"))
        receiver = Receiver(self._engine, mirror, remote)
        try:
            if mirror.repository is None:
                listing = await self._list(mirror, remote)
                async with _warming(mirror, remote):
                    return await self._clone(mirror, receiver, listing)
            async with self._speculating(mirror, remote, receiver, announced) as speculation:
                listing = await self._list(mirror, remote)
                return await self._refresh(
                    mirror, mirror.repository, receiver, listing, speculation
                )
        except OSError as error:
            raise LocalError(str(error)) from error
        finally:
            mirror.report(None)

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
        haves = _choose_haves(before, [change.ref for change in announced])
        async with speculating(receiver, repository, wants, haves) as speculation:
            yield speculation

    def mirrors(self, mirror: Mirror, name: RefName) -> bool:
        """Tell whether a ref of the upstream is one that this repository mirrors."""
        return patterns_of(mirror.settings.refs).matches(name)

    def open(self, repository: BareRepository) -> RefSnapshot:
        """Make the first snapshot of a repository that is on disk already.

        Raises:
            LocalError: Its refs can't be read, or name objects that are not there.
        """
        stored = repository.read_refs()
        for ref in stored.refs.values():
            if not repository.source.contains(ref.oid):
                raise LocalError(
                    f"{repository.path}: {ref.name.decode()} names an object that is missing"
                )
        return self._snapshot(1, stored).prepare()

    async def _list(self, mirror: Mirror, remote: Remote) -> Listing:
        """Ask for the refs. An empty answer that is news is asked for once more."""
        patterns = patterns_of(mirror.settings.refs)
        listing = await remote.list_refs(patterns.prefixes())
        is_empty = not any(patterns.matches(ref.name) for ref in listing.refs)
        if is_empty and (mirror.snapshot is None or not mirror.snapshot.is_empty):
            remote.forget()
            listing = await remote.list_refs(patterns.prefixes())
        mirror.moved_to = remote.moved_to
        return listing

    async def _clone(self, mirror: Mirror, receiver: Receiver, listing: Listing) -> Updated:
        """Clone into the staging directory and rename: a half-finished clone is never served."""
        place = self._staging / f"{quote(mirror.name, safe='')}.{secrets.token_hex(4)}.git"
        url = mirror.settings.upstream
        try:
            with closing(await _in_thread(_create, place, url)) as staged:
                updated = await self._refresh(mirror, staged, receiver, listing, None)
            await _in_thread(_put_in_place, staged, mirror.path)
        finally:
            await _in_thread(shutil.rmtree, place, ignore_errors=True)
        repository = await asyncio.to_thread(BareRepository.open, mirror.path)
        return Updated(repository, updated.snapshot, updated.received_bytes)

    async def _refresh(
        self,
        mirror: Mirror,
        repository: BareRepository,
        receiver: Receiver,
        listing: Listing,
        speculation: Speculation | None,
    ) -> Updated:
        patterns = patterns_of(mirror.settings.refs)
        listed = {ref.name: ref.oid for ref in listing.refs if patterns.matches(ref.name)}
        detached = listing.head if listing.head_target is None else None
        before = mirror.snapshot
        if before is not None and _is_same(before, listed, listing.head_target, detached):
            return Updated(repository, before, 0)
        tips = {*listed.values(), *([detached] if detached else [])}
        missing = await asyncio.to_thread(_missing, repository, tips)
        received = Received()
        if missing:
            moves = _moves(before, listed) if before is not None else {}
            haves = _choose_haves(before, moves) if before is not None else []
            known = Known(haves, _moved_from(moves, listed, missing))
            received = await self._receive(
                mirror, repository, receiver, missing, known, speculation
            )
        number = before.number + 1 if before is not None else 1
        snapshot = await _in_thread(
            self._replace_refs, repository, listed, listing.head_target, detached, number
        )
        return Updated(repository, snapshot, received.size, received.answers)

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
            await _in_thread(quarantine.migrate)
        return Received(size, _answers(missing, known, data) if is_enough else ())

    def _replace_refs(
        self,
        repository: BareRepository,
        listed: dict[RefName, ObjectId],
        head_target: RefName | None,
        detached: ObjectId | None,
        number: int,
    ) -> RefSnapshot:
        """Write the refs and make the snapshot; blocking."""
        old = repository.read_refs()
        graph = repository.graph
        refs = {}
        for name, oid in listed.items():
            was = old.refs.get(name)
            if was is not None and was.oid == oid:
                refs[name] = was
                continue
            peeled = graph.peel(oid)
            refs[name] = Ref(name, oid, peeled if peeled != oid else None)
        now = int(self._now())
        kept = {oid: until for oid, until in old.kept.items() if until > now}
        for name, ref in old.refs.items():
            new = listed.get(name)
            if new != ref.oid and not (new and _is_fast_forward(repository, ref.oid, new)):
                kept[ref.oid] = now + KEPT_SECONDS
        stored = StoredRefs(refs, head_target, detached, kept)
        repository.write_refs(stored)
        return self._snapshot(number, stored).prepare()

    def _snapshot(self, number: int, stored: StoredRefs) -> RefSnapshot:
        return RefSnapshot(
            number,
            stored.refs.values(),
            head_target=stored.head_target,
            detached_head=stored.head,
            agent=self._agent,
        )


def _is_same(
    before: RefSnapshot,
    listed: dict[RefName, ObjectId],
    head_target: RefName | None,
    detached: ObjectId | None,
) -> bool:
    return (
        before.head_target == head_target
        and (head_target is not None or before.head == detached)
        and listed == {ref.name: ref.oid for ref in before.refs}
    )


def _missing(repository: BareRepository, tips: Iterable[ObjectId]) -> list[ObjectId]:
    return [tip for tip in sorted(tips) if not repository.source.contains(tip)]


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


def _moves(
    before: RefSnapshot, listed: Mapping[RefName, ObjectId]
) -> dict[RefName, ObjectId | None]:
    """Return the refs that are not what they were, and what each was."""
    moves: dict[RefName, ObjectId | None] = {
        ref.name: ref.oid for ref in before.refs if listed.get(ref.name) != ref.oid
    }
    moves.update((name, None) for name in listed if name not in before.by_name)
    return moves


def _moved_from(
    moves: Mapping[RefName, ObjectId | None],
    listed: Mapping[RefName, ObjectId],
    missing: Sequence[ObjectId],
) -> ObjectId | None:
    """Return from where refs move to the one missing tip, when that is one place."""
    places = {old for name, old in moves.items() if old and listed.get(name) in missing}
    return places.pop() if len(missing) == len(places) == 1 else None


def _answers(
    missing: Sequence[ObjectId], known: Known, data: bytes | None
) -> tuple[ReadyPack, ...]:
    if data is None or known.onto is None:
        return ()
    request = PackRequest(wants=tuple(missing), haves=(known.onto,), thin=True, ofs_delta=True)
    return (ReadyPack(request, data),)


def _choose_haves(before: RefSnapshot, changed: Iterable[RefName]) -> list[ObjectId]:
    """Choose the tips that say most: those of refs that change now, HEAD, and others by name."""
    names = chain(changed, [before.head_target] if before.head_target else [])
    first = (ref for name in names if (ref := before.by_name.get(name)) is not None)
    chosen: dict[ObjectId, None] = {}
    for ref in chain(first, before.refs):
        chosen[ref.oid] = None
        if len(chosen) == HAVES_MAX:
            break
    return list(chosen)


def _is_fast_forward(repository: BareRepository, old: ObjectId, new: ObjectId) -> bool:
    return repository.graph.is_ancestor(
        old, repository.graph.peel(new), commits_max=ANCESTORS_LOOKED_AT_MAX
    )


def _create(place: Path, url: str) -> BareRepository:
    return BareRepository.create(place, upstream_url=url)


async def _in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking step. A cancelled caller waits for its end: nobody is to work behind it."""
    step = asyncio.create_task(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        await asyncio.wait((step,))
        step.exception()  # seen: the cancellation says enough
        raise


def _put_in_place(staged: BareRepository, path: Path) -> None:
    staged.make_durable()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    shutil.rmtree(path, ignore_errors=True)  # of a clone that was given up at this very moment
    staged.path.rename(path)
    fsync_directory(path.parent)
