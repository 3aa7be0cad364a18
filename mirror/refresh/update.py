"""One refresh: what the upstream lists becomes what we hold.

In this order, so that a crash at any point leaves a repository that is whole: list the refs;
receive what is missing into a quarantine; index and check it; join it to the repository; replace
the refs. Publishing is the caller's. No lock is held: the repository's one refresher is the only
writer.
"""

import asyncio
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, ParamSpec, TypeVar
from urllib.parse import quote

from mirror.errors import LocalError, UpstreamUnavailable
from mirror.refresh.changes import ListedChange, choose_haves, find_changes
from mirror.refresh.mirror import Mirror, Progress
from mirror.repository.bare import (
    BareRepository,
    Quarantine,
    StoredRefs,
    fsync_directory,
)
from mirror.repository.packing.engine import PackEngine
from mirror.repository.snapshot import RefSnapshot
from mirror.upstream.remote import Remote
from mirror.wire.client import Listing
from mirror.wire.names import ObjectId, Ref, RefName
from mirror.wire.ref_table import RefTable

KEPT_SECONDS: Final = 24 * 3600
"""Old tips stay fetchable that long after a force-push or a deletion."""

HAVES_MAX: Final = 256
"""The tips we tell the upstream of; those of the refs that change come first."""

ANCESTORS_LOOKED_AT_MAX: Final = 5_000
"""To tell a fast-forward from a force-push; when in doubt the old tip is kept."""

OWN_NAMESPACE: Final = b"refs/git-mirror/"
"""The mirror's own: never taken from an upstream, which may be a mirror itself."""

HIDDEN_NAMESPACES: Final = (
    b"refs/pull/",
    b"refs/merge-requests/",
    b"refs/keep-around/",
    b"refs/pipelines/",
    b"refs/environments/",
    b"refs/remotes/",
    b"refs/tmp/",
)
"""What forges keep for themselves: mirrored only where a pattern names the namespace."""

WallClock = Callable[[], float]
P = ParamSpec("P")
T = TypeVar("T")


class RefPatterns:
    """The `refs:` of a repository: which of the upstream's refs are mirrored."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = tuple(pattern.encode() for pattern in patterns)
        self._regex = [
            (re.compile(re.escape(pattern).replace(rb"\*", rb".+")), pattern)
            for pattern in self._patterns
        ]

    def prefixes(self) -> list[bytes]:
        """Return what to ask an upstream for: the patterns up to their star."""
        return sorted({pattern.partition(b"*")[0] for pattern in self._patterns})

    def matches(self, name: RefName) -> bool:
        """Tell whether a ref is mirrored."""
        if name.startswith(OWN_NAMESPACE):
            return False
        hidden = next((space for space in HIDDEN_NAMESPACES if name.startswith(space)), None)
        return any(
            regex.fullmatch(name) and (hidden is None or pattern.startswith(hidden))
            for regex, pattern in self._regex
        )


@cache
def _patterns(refs: tuple[str, ...]) -> RefPatterns:
    """Compile a repository's patterns once."""
    return RefPatterns(refs)


@dataclass(frozen=True, slots=True)
class Updated:
    """What a refresh came to.

    Attributes:
        repository: The bare repository, opened by this refresh when there was none.
        snapshot: What is to be published; the very one before when nothing changed.
        received_bytes: The size of the pack that came.
    """

    repository: BareRepository
    snapshot: RefSnapshot
    received_bytes: int


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

    async def update(self, mirror: Mirror, remote: Remote) -> Updated:
        """Refresh one repository.

        Raises:
            UpstreamError: The upstream did not answer as it should.
            LocalError: Something on this machine failed.
        """
        mirror.report(Progress("asking"))
        try:
            listing = await self._list(mirror, remote)
            if mirror.repository is None:
                return await self._clone(mirror, remote, listing)
            return await self._refresh(mirror, mirror.repository, remote, listing)
        except OSError as error:
            raise LocalError(str(error)) from error
        finally:
            mirror.report(None)

    def mirrors(self, mirror: Mirror, name: RefName) -> bool:
        """Tell whether a ref of the upstream is one that this repository mirrors."""
        return _patterns(mirror.settings.refs).matches(name)

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
        patterns = _patterns(mirror.settings.refs)
        known = mirror.snapshot.by_name if mirror.snapshot is not None else RefTable()
        listing = await remote.list_refs(patterns.prefixes(), known=known)
        is_empty = not any(patterns.matches(ref.name) for ref in listing.refs)
        if is_empty and (mirror.snapshot is None or not mirror.snapshot.is_empty):
            remote.forget()
            listing = await remote.list_refs(patterns.prefixes())
        mirror.moved_to = remote.moved_to
        return listing

    async def _clone(self, mirror: Mirror, remote: Remote, listing: Listing) -> Updated:
        """Clone into the staging directory and rename: a half-finished clone is never served."""
        place = self._staging / f"{quote(mirror.name, safe='')}.{secrets.token_hex(4)}.git"
        url = mirror.settings.upstream
        try:
            with closing(await _in_thread(_create, place, url)) as staged:
                updated = await self._refresh(mirror, staged, remote, listing)
            await _in_thread(_put_in_place, staged, mirror.path)
        finally:
            await _in_thread(shutil.rmtree, place, ignore_errors=True)
        repository = await asyncio.to_thread(BareRepository.open, mirror.path)
        return Updated(repository, updated.snapshot, updated.received_bytes)

    async def _refresh(
        self, mirror: Mirror, repository: BareRepository, remote: Remote, listing: Listing
    ) -> Updated:
        detached = listing.head if listing.head_target is None else None
        before = mirror.snapshot
        known = before.by_name if before is not None else RefTable()
        matches = _patterns(mirror.settings.refs).matches
        changes = await asyncio.to_thread(find_changes, known, listing.refs, matches)
        if (
            before is not None
            and not changes
            and before.head_target == listing.head_target
            and (listing.head_target is not None or before.head == detached)
        ):
            return Updated(repository, before, 0)
        tips = {change.new.oid for change in changes if change.new is not None}
        tips.update([detached] if detached else [])
        missing = await asyncio.to_thread(_missing, repository, tips)
        received = 0
        if missing:
            haves = choose_haves(before, changes, HAVES_MAX) if before is not None else []
            with repository.quarantine() as quarantine:
                received = await self._receive(mirror, remote, quarantine, missing, haves)
                mirror.report(Progress("checking"))
                await self._engine.check_connected(quarantine, missing)
                await _in_thread(quarantine.migrate)
        snapshot = await _in_thread(
            self._replace_refs, repository, changes, listing.head_target, detached, before
        )
        return Updated(repository, snapshot, received)

    async def _receive(
        self,
        mirror: Mirror,
        remote: Remote,
        quarantine: Quarantine,
        wants: list[ObjectId],
        haves: list[ObjectId],
    ) -> int:
        """Receive and index a pack; returns its size in bytes."""

        def receiving(received: int, message: bytes) -> None:
            text = message.decode("utf-8", "replace")
            mirror.report(Progress("receiving", received, None, text))

        loop = asyncio.get_running_loop()

        def show(progress: Progress) -> None:
            if mirror.progress is not None:  # a thread may be behind a refresh that was cut short
                mirror.report(progress)

        def indexing(done: int, total: int) -> None:
            loop.call_soon_threadsafe(show, Progress("indexing", done, total))

        size = 0
        chunks = remote.fetch_pack(wants, haves, progress=receiving)
        with quarantine.received.open("wb") as file:
            async with aclosing(chunks):
                async for chunk in chunks:
                    size += file.write(chunk)
        if size == 0:
            raise UpstreamUnavailable("the upstream sent no pack for what it had listed")
        await self._engine.index_pack(quarantine, progress=indexing)
        quarantine.received.unlink()
        return size

    def _replace_refs(
        self,
        repository: BareRepository,
        changes: Sequence[ListedChange],
        head_target: RefName | None,
        detached: ObjectId | None,
        before: RefSnapshot | None,
    ) -> RefSnapshot:
        """Write the refs and make the snapshot; blocking."""
        old = repository.read_refs()
        graph = repository.graph
        now = int(self._now())
        kept = {oid: until for oid, until in old.kept.items() if until > now}
        new: dict[RefName, Ref | None] = {}
        for change in changes:
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
        stored = StoredRefs(refs, head_target, detached, kept)
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


def _missing(repository: BareRepository, tips: Iterable[ObjectId]) -> list[ObjectId]:
    return [tip for tip in sorted(tips) if not repository.source.contains(tip)]


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
