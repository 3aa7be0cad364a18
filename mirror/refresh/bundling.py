"""Makes the bundles of all repositories on a schedule, one at a time.

Bundles are a help and never the truth: what they lack a client fetches. So whatever fails here
leaves what was offered before, except where that must not be handed out any longer: then nothing is
offered. What is offered is checked against its checksums each time.

There is one of these per data directory, in the process that refreshes.
"""

import asyncio
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final

import structlog

from mirror.config import RepositorySettings
from mirror.errors import DiskFull, LocalError, MirrorError, PackError
from mirror.metrics import Metrics
from mirror.places import DataDirectory
from mirror.refresh.bundle_plan import BUNDLED, BundlePlan, Step, plan_bundles
from mirror.refresh.mirror import Mirror
from mirror.refresh.patterns import patterns_of
from mirror.repository.bare import BareRepository
from mirror.repository.bundles import BundleDraft, BundleShelf
from mirror.repository.frontier import find_frontier
from mirror.repository.integrity import Damage, Kind, OnRead
from mirror.repository.packing.engine import PackEngine, PackRequest
from mirror.repository.snapshot import RefSnapshot
from mirror.repository.threads import run_to_end
from mirror.space import Room
from mirror.wire.bundles import Bundle, BundleList, encode_header
from mirror.wire.names import ObjectId, RefName

RETRY_SECONDS: Final = 600.0
"""After a failure, or sooner where the interval is shorter."""

COMMITS_LOOKED_AT_MAX: Final = 20_000
"""To tell whether an old tip is still reachable; when in doubt a new base is made."""

_PACK_HEAD_BYTES: Final = 12

logger = structlog.stdlib.get_logger()


@dataclass(slots=True)
class _Bundled:
    """One repository with bundles.

    Attributes:
        due_at: When it is looked at next; monotonic, `None` until it is mirrored.
    """

    mirror: Mirror
    shelf: BundleShelf
    interval_seconds: float
    due_at: float | None = None


class Bundler:
    """Keeps the bundles of all repositories."""

    def __init__(
        self,
        engine: PackEngine,
        places: DataDirectory,
        metrics: Metrics,
        *,
        bytes_max: int,
        room: Room | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Make one that has no repositories yet.

        Args:
            engine: Makes the packs.
            places: Where the bundles lie.
            metrics: Told of each bundle.
            bytes_max: The most that all bundles may take; half of it for one repository.
            room: What they must leave free on the disk; `None` for nothing.
            clock: Monotonic seconds.
            wall_clock: Seconds since the epoch.
        """
        self._engine = engine
        self._places = places
        self._metrics = metrics
        self._bytes_max = bytes_max
        self._disk = room
        self._clock = clock
        self._wall_clock = wall_clock
        self._bundled: dict[str, _Bundled] = {}
        self._last_token = 0
        self._due = asyncio.Event()
        self._working = asyncio.Lock()
        self._making: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self, mirrors: Iterable[Mirror]) -> None:
        """Offer what is on disk; what no repository wants any more goes once this is started.

        Raises:
            LocalError: The place of the bundles can't be used.
        """
        for mirror in mirrors:
            await self.add(mirror)

    def resize(self, bytes_max: int) -> None:
        """Keep to another limit from the next bundle on."""
        self._bytes_max = bytes_max

    async def add(self, mirror: Mirror) -> None:
        """Offer what is on disk for a repository, and make more, if it is to have bundles.

        Raises:
            LocalError: The place of the bundles can't be used.
        """
        interval = mirror.settings.bundle_interval_seconds
        if interval is None:
            return
        shelf = BundleShelf(self._places.bundles(mirror.name), source=_source(mirror.settings))
        listed = await asyncio.to_thread(shelf.open)
        self._last_token = max(self._last_token, shelf.last_token)
        one = self._bundled[mirror.name] = _Bundled(mirror, shelf, interval)
        mirror.bundles = listed
        if mirror.snapshot is not None:
            age = self._wall_clock() - listed.built_at if listed is not None else interval
            one.due_at = self._clock() + min(max(0.0, interval - age), interval)

    async def change(self, mirror: Mirror) -> None:
        """Offer what the mirror's settings want now, after what is being made."""
        one = self._bundled.get(mirror.name)
        interval, source = mirror.settings.bundle_interval_seconds, _source(mirror.settings)
        if one is not None and one.mirror is mirror and one.shelf.source == source:
            if interval is not None:
                one.interval_seconds = interval
                if one.due_at is not None:
                    one.due_at = min(one.due_at, self._clock() + interval)
                self._due.set()
                return
        elif one is None and interval is None:
            return
        await _tell(mirror, None)
        if one is not None:
            await self.forget(mirror.name)
        await self.add(mirror)
        if mirror.bundles is not None:
            await _tell(mirror, mirror.bundles)
        self._due.set()

    def is_working_on(self, name: str) -> bool:
        """Tell whether something is being made of a repository."""
        return self._making == name

    async def forget(self, name: str) -> None:
        """Remove the bundles of a repository that was removed, after what is being made of it."""
        if self._bundled.pop(name, None) is not None:
            async with self._working:
                await run_to_end(shutil.rmtree, self._places.bundles(name), ignore_errors=True)

    def start(self) -> "asyncio.Task[None]":
        """Begin; the task should never end."""
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run(), name="bundles")
        return self._task

    async def close(self) -> None:
        """End what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def published(self, mirror: Mirror) -> None:
        """Take note that a repository changed: one that was just cloned gets its first bundle."""
        one = self._bundled.get(mirror.name)
        if one is not None and one.due_at is None:
            one.due_at = self._clock()
            self._due.set()

    async def give(self, size: int) -> int:
        """Offer fewer bundles, the largest not any more, to free so many bytes; returns how many.

        They are made again when there is room.
        """
        given = 0
        async with self._working:
            sizes = await asyncio.to_thread(self._sizes)
            for name, taken in sorted(sizes.items(), key=lambda pair: -pair[1]):
                one = self._bundled.get(name)
                if one is None or not taken or given >= size:
                    continue
                await self._withdraw(one)
                given += taken
                if one.mirror.snapshot is not None:
                    one.due_at = self._clock() + RETRY_SECONDS
        return given

    async def bytes_on_disk(self) -> int:
        """Return what all bundles take."""
        return sum((await asyncio.to_thread(self._sizes)).values())

    def _sizes(self) -> dict[str, int]:
        return {name: one.shelf.bytes_on_disk() for name, one in tuple(self._bundled.items())}

    async def _run(self) -> None:
        wanted = {self._places.bundles(name).name for name in self._bundled}
        await run_to_end(self._places.keep_bundles, wanted)
        while True:
            self._due.clear()
            await self._sweep()
            bundled = self._bundled.values()
            waiting = [(one.due_at, one) for one in bundled if one.due_at is not None]
            due_at, one = min(waiting, key=lambda pair: pair[0], default=(None, None))
            if one is None or due_at is None or due_at > self._clock():
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pause(due_at)):
                        await self._due.wait()
                continue
            is_done = await self.bundle(one.mirror.name)
            interval = one.interval_seconds
            one.due_at = self._clock() + (interval if is_done else min(RETRY_SECONDS, interval))

    def scrub(self, on_read: OnRead) -> Iterator[Damage]:
        """Read all bundles; where one is damaged, have them made anew at once. Blocking."""
        for one in list(self._bundled.values()):
            name = one.shelf.damaged(on_read)
            path = one.shelf.path(name) if name is not None else None
            if path is not None:
                if self._loop is not None:
                    self._loop.call_soon_threadsafe(self._hurry, one)
                yield Damage(Kind.BUNDLE, path, "its checksum is not right")

    def _hurry(self, one: _Bundled) -> None:
        one.due_at = self._clock()
        self._due.set()

    def _pause(self, due_at: float | None) -> float | None:
        """Return the seconds until there is something to do; `None`: until somebody says so."""
        pauses = [
            one.shelf.expires_at - self._wall_clock()
            for one in self._bundled.values()
            if one.shelf.expires_at is not None
        ]
        if due_at is not None:
            pauses.append(due_at - self._clock())
        return max(0.0, min(pauses)) if pauses else None

    async def _sweep(self) -> None:
        """Remove the bundles that were kept for long enough."""
        now = self._wall_clock()
        for one in tuple(self._bundled.values()):
            expires_at = one.shelf.expires_at
            if expires_at is not None and expires_at <= now:
                async with self._working:
                    try:
                        await run_to_end(one.shelf.sweep, now)
                    except LocalError as error:
                        name = one.mirror.name
                        logger.warning("bundles_not_removed", repository=name, error=str(error))

    async def bundle(self, name: str) -> bool:
        """Bring the bundles of a repository up to date; `False` when that failed."""
        one = self._bundled[name]
        log = logger.bind(repository=name)
        async with self._working:
            if self._bundled.get(name) is not one:
                return True  # it was removed meanwhile
            self._making = name
            try:
                await self._bring_up_to_date(one)
            except MirrorError as error:
                log.error("bundles_failed", kind=error.label, error=str(error))  # noqa: TRY400
                return False
            except Exception:
                log.exception("bundles_broke")
                return False
            finally:
                self._making = None
                self._due.set()  # there may be something to remove in a while
        return True

    async def _bring_up_to_date(self, one: _Bundled) -> None:
        mirror, shelf = one.mirror, one.shelf
        repository, snapshot = mirror.repository, mirror.snapshot
        if repository is None or snapshot is None:
            return
        await run_to_end(shelf.sweep, self._wall_clock())
        if (damaged := await asyncio.to_thread(shelf.damaged)) is not None:
            logger.error("bundle_damaged", repository=mirror.name, bundle=damaged)
            await self._withdraw(one)
        size = await asyncio.to_thread(repository.bytes_on_disk)
        if shelf.listed is None and size < mirror.settings.bundle_bytes_min:
            return
        if self._disk is not None and self._disk.lacking(size):
            raise DiskFull(
                "a bundle may take as much as the repository, and the disk has no room for that"
                " beside what limits.disk_reserve keeps free"
            )
        built_at = self._wall_clock()
        plan = await asyncio.to_thread(self._plan, one, repository, snapshot)
        try:
            made = [await self._make(shelf, repository, step) for step in plan.steps]
        except BaseException:
            if plan.is_urgent:
                await self._withdraw(one)
            raise
        bundles = (*plan.keeps, *(bundle for bundle in made if bundle is not None))
        if not bundles:
            if shelf.listed is not None:
                await self._withdraw(one)
            return
        await self._offer(one, BundleList(bundles, built_at))

    def _plan(self, one: _Bundled, repository: BareRepository, snapshot: RefSnapshot) -> BundlePlan:
        """Decide what to make; blocking."""
        offered = one.shelf.listed.bundles if one.shelf.listed is not None else ()
        # Until the first look at the upstream, refs are still there that were mirrored by other
        # settings before the start.
        is_mirrored = patterns_of(one.mirror.settings.refs).matches
        refs = {
            ref.name: ref.oid
            for ref in snapshot.refs
            if ref.name.startswith(BUNDLED) and is_mirrored(ref.name)
        }
        self._last_token = max(self._last_token + 1, int(self._wall_clock()))

        def is_reachable(name: RefName, oid: ObjectId) -> bool:
            if not repository.source.contains(oid):
                return False
            graph = repository.graph
            starts = (refs.get(name), snapshot.head)
            return any(
                graph.is_ancestor(oid, graph.peel(start), commits_max=COMMITS_LOOKED_AT_MAX)
                for start in starts
                if start is not None
            )

        return plan_bundles(
            offered, one.shelf.tips(), refs, token=self._last_token, is_reachable=is_reachable
        )

    async def _make(
        self, shelf: BundleShelf, repository: BareRepository, step: Step
    ) -> Bundle | None:
        """Make a bundle; `None` when there is no object in it, so that nobody needs it.

        Raises:
            LocalError: It could not be made.
        """
        began_at = self._clock()
        outcome, size = "internal", 0
        try:
            room = await asyncio.to_thread(self._room, shelf)
            with shelf.draft(bytes_max=room) as draft:
                is_empty = await self._write(draft, repository, step)
                bundle = None if is_empty else await run_to_end(draft.finish, step.token)
            outcome, size = "ok", draft.size
        except MirrorError as error:
            outcome = error.label
            raise
        except asyncio.CancelledError:
            outcome = "abandoned"
            raise
        finally:
            self._metrics.record_bundle(outcome, self._clock() - began_at, size)
        return bundle

    async def _write(self, draft: BundleDraft, repository: BareRepository, step: Step) -> bool:
        """Write a whole bundle; returns whether its pack is empty."""
        request = await asyncio.to_thread(_pack_request, repository, step)
        await run_to_end(draft.write, encode_header(step.prerequisites, step.refs))
        head = b""
        async with aclosing(self._engine.build_pack(repository, request)) as chunks:
            async for chunk in chunks:
                if len(head) < _PACK_HEAD_BYTES:
                    head = (head + chunk)[:_PACK_HEAD_BYTES]
                await run_to_end(draft.write, chunk)
        if len(head) < _PACK_HEAD_BYTES or not head.startswith(b"PACK"):
            raise PackError("the engine made no pack")
        return int.from_bytes(head[8:]) == 0

    def _room(self, shelf: BundleShelf) -> int:
        """Return how long the next bundle of a repository may be; blocking."""
        own = shelf.bytes_on_disk()
        shelves = [one.shelf for one in tuple(self._bundled.values())]
        total = sum(one.bytes_on_disk() for one in shelves)
        return max(0, min(self._bytes_max - total, self._bytes_max // 2 - own))

    async def _offer(self, one: _Bundled, listed: BundleList) -> None:
        """Publish a list: on disk first, so that a restart offers no less."""
        mirror = one.mirror
        known = one.shelf.listed.bundles if one.shelf.listed is not None else ()
        await run_to_end(one.shelf.publish, listed, self._wall_clock())
        await _tell(mirror, listed)
        if listed.bundles != known:
            logger.info(
                "bundled",
                repository=mirror.name,
                bundles=len(listed.bundles),
                bytes=listed.size,
                new_bytes=sum(bundle.size for bundle in listed.bundles if bundle not in known),
            )

    async def _withdraw(self, one: _Bundled) -> None:
        """Offer nothing any more: told first, for no file may be named that is gone."""
        mirror = one.mirror
        await _tell(mirror, None)
        await run_to_end(one.shelf.clear)
        logger.warning("bundles_withdrawn", repository=mirror.name)


def _pack_request(repository: BareRepository, step: Step) -> PackRequest:
    """Return what the pack of a bundle holds; blocking.

    The common frontier says the same as the prerequisites in fewer words, and how much is new.
    """
    wants, haves = tuple(sorted(set(step.refs.values()))), step.prerequisites
    frontier = find_frontier(repository.graph, wants, haves) if haves else None
    return PackRequest(
        wants=wants,
        haves=haves if frontier is None else frontier.commits,
        thin=bool(haves),
        ofs_delta=True,
        commits=None if frontier is None else len(frontier.new),
    )


async def _tell(mirror: Mirror, listed: BundleList | None) -> None:
    """Offer other bundles in every process."""
    mirror.bundles = listed
    if mirror.replicas is not None:
        await mirror.replicas.bundled(mirror)
    mirror.changed.give()


def _source(settings: RepositorySettings) -> str:
    """Return a digest of what a repository mirrors: other bundles are not its own."""
    parts = "\n".join((settings.upstream, *settings.refs))
    return hashlib.sha256(parts.encode()).hexdigest()
