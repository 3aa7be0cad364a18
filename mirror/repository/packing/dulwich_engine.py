"""The pack engine that needs no git: dulwich's objects and indexer, our selection and pack writer.

What a push brings is mostly small, and goes a quicker way: `small_pack`, `small_check`. The rest is
right for small repositories and for machines without git; on large ones git is many times faster.
All of it is blocking work and runs in a thread pool of its own, a step at a time.
"""

import asyncio
import re
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import dulwich
from dulwich.object_store import DiskObjectStore

from mirror.durable import fsync_directory
from mirror.errors import LocalError, PackError
from mirror.repository.bare import BareRepository
from mirror.repository.graph import CommitGraph
from mirror.repository.maintenance import count_to_merge
from mirror.repository.objects import PACK_DAMAGE, ObjectSource
from mirror.repository.packing.engine import OBJECT_BYTES_MAX, IndexProgress, PackRequest
from mirror.repository.packing.pack_sizes import check_sizes
from mirror.repository.packing.pack_writer import Form, write_pack
from mirror.repository.packing.selection import Abandoned, Selection, select_objects
from mirror.repository.packing.small_check import is_increment
from mirror.repository.packing.small_pack import NotSmall, SmallPack, Stored, index_small_pack
from mirror.repository.quarantine import Quarantine
from mirror.repository.threads import to_its_end
from mirror.wire.names import ObjectId

THREADS_MAX: Final = 4
SMALL_THREADS_MAX: Final = 2
SMALL_SECONDS_MAX: Final = 0.005
"""Of a thread's own time: Python in a thread that takes longer shows in the answers of others."""

SMALL_COMMITS_MAX: Final = 16
"""To try with more costs more than it gains."""

SMALL_STEPS_MAX: Final = 500
"""Commits and trees looked at for a small pack."""

SMALL_BYTES_MAX: Final = 1 << 20
SMALL_REPOSITORY_OBJECTS_MAX: Final = 500
"""A repository up to here is small work as a whole."""

REPACKED_OBJECTS_MAX: Final = 100_000
"""Written anew at once; each takes some 100 bytes of memory meanwhile, and 40 microseconds."""

COUNTED_STEPS_MAX: Final = 20_000
"""Commits and trees looked at to count what nothing reaches."""

KNOWN_TIPS_MAX: Final = 1000
"""Branch tips from which the check of new objects learns what was there before."""

_PROGRESS: Final = re.compile(rb"(\d+)/(\d+)")

P = ParamSpec("P")
T = TypeVar("T")


class DulwichEngine:
    """Makes and indexes packs in this process."""

    name = "dulwich"
    copies_packs = False
    version = ".".join(str(part) for part in dulwich.__version__)

    def __init__(self) -> None:
        self._small: WeakKeyDictionary[Quarantine, list[SmallPack]] = WeakKeyDictionary()
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="dulwich")
        self._quick = ThreadPoolExecutor(SMALL_THREADS_MAX, thread_name_prefix="dulwich-quick")

    def close(self) -> None:
        """Wait for what still runs."""
        self._threads.shutdown(cancel_futures=True)
        self._quick.shutdown(cancel_futures=True)

    async def index_pack(
        self, quarantine: Quarantine, *, progress: IndexProgress | None = None
    ) -> None:
        """See `PackEngine.index_pack`."""
        if await self.index_small_pack(quarantine):
            return
        left = threading.Event()
        try:
            await self._in_thread(_index_pack, quarantine, progress, left.is_set)
        finally:
            left.set()  # the thread of one that was cancelled ends soon

    async def index_small_pack(self, quarantine: Quarantine) -> bool:
        """Do as `PackEngine.index_pack` if that is quickly done; else nothing, and tell so."""
        before = self._small.pop(quarantine, [])
        if len(before) != len(list((quarantine.objects / "pack").glob("*.idx"))):
            return False  # a large one is there too, of which we know nothing
        try:
            pack = await self._soon(_index_small_pack, quarantine, before)
        except NotSmall:
            return False
        self._small[quarantine] = [*before, pack]
        return True

    async def check_connected(
        self,
        quarantine: Quarantine,
        tips: Sequence[ObjectId],
        *,
        known: Sequence[ObjectId] = (),
        onto: ObjectId | None = None,
    ) -> bool:
        """See `PackEngine.check_connected`."""
        found = await self.check_small_packs(quarantine, tips, known=known, onto=onto)
        if found is None:
            await self._in_thread(_check_connected, quarantine, tips)
            return False
        return found

    async def check_small_packs(
        self,
        quarantine: Quarantine,
        tips: Sequence[ObjectId],
        *,
        known: Sequence[ObjectId],
        onto: ObjectId | None,
    ) -> bool | None:
        """Do as `PackEngine.check_connected` if that is quickly done and all is well.

        Returns `None` when it takes somebody else to say.
        """
        packs = self._small.get(quarantine)
        if packs is None:
            return None
        try:
            return await self._soon(_check_small_packs, quarantine, packs, tips, known, onto)
        except NotSmall:
            return None

    async def build_small(self, repository: BareRepository, request: PackRequest) -> bytes | None:
        """See `PackEngine.build_small`."""
        if not _may_be_small(repository, request):
            return None
        return await self._run(self._quick, partial(_build_small, repository, request))

    async def build_pack(
        self, repository: BareRepository, request: PackRequest
    ) -> AsyncGenerator[bytes, None]:
        """See `PackEngine.build_pack`."""
        left = threading.Event()
        chunks = _build_pack(repository, request, left.is_set)
        try:
            while (chunk := await self._in_thread(next, chunks, b"")) != b"":
                yield chunk
        finally:
            left.set()  # a step that is under way in a thread ends early

    async def repack(self, repository: BareRepository) -> None:
        """See `PackEngine.repack`: there is nothing to index with."""
        await to_its_end(self._in_thread(_repack, repository))

    async def index(
        self, repository: BareRepository, *, without: Collection[str] = frozenset()
    ) -> None:
        """See `PackEngine.index`: dulwich reads neither bitmaps nor git's index of commits."""

    async def unreachable_bytes(
        self, repository: BareRepository, tips: Sequence[ObjectId], *, live: Sequence[ObjectId]
    ) -> int:
        """See `PackEngine.unreachable_bytes`: by the average size of an object."""
        request = PackRequest(wants=tuple(tips), haves=tuple(live))
        return await to_its_end(self._in_thread(_unreachable_bytes, repository, request))

    async def pack_reachable(
        self,
        quarantine: Quarantine,
        tips: Sequence[ObjectId],
        *,
        without: Sequence[ObjectId] = (),
    ) -> None:
        """See `PackEngine.pack_reachable`. Of a large repository it is too much work here.

        Raises:
            PackError: For that too.
        """
        await to_its_end(self._in_thread(_pack_reachable, quarantine, tips, without))

    async def check_alone(
        self,
        repository: BareRepository,
        objects: Path,
        tips: Sequence[ObjectId],
        *,
        known: Sequence[ObjectId],
    ) -> None:
        """See `PackEngine.check_alone`."""
        del repository
        await to_its_end(self._in_thread(_check_alone, objects, tips, known))

    async def _soon(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a short step to its end."""
        return await to_its_end(self._run(self._quick, partial(function, *args, **kwargs)))

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(self._threads, partial(function, *args, **kwargs))

    async def _run(self, pool: ThreadPoolExecutor, step: Callable[[], T]) -> T:
        """Run a step in a thread; whatever dulwich raises about bad data becomes a `PackError`."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(pool, step)
        except PackError:
            raise
        except LocalError as error:
            raise PackError(str(error)) from error
        except PACK_DAMAGE as error:
            raise PackError(f"the pack is damaged: {type(error).__name__}: {error}") from error
        except OSError as error:
            raise PackError(f"the pack could not be written: {error.strerror}") from error


def _index_small_pack(quarantine: Quarantine, before: Sequence[SmallPack]) -> SmallPack:
    def look_up(oid: ObjectId) -> Stored | None:
        found = next((stored for pack in before if (stored := pack.objects.get(oid))), None)
        source = quarantine.repository.source
        return found or (source.raw(oid) if source.contains(oid) else None)

    return index_small_pack(quarantine.received, quarantine.objects / "pack", look_up)


def _check_small_packs(
    quarantine: Quarantine,
    packs: Sequence[SmallPack],
    tips: Sequence[ObjectId],
    known: Sequence[ObjectId],
    onto: ObjectId | None,
) -> bool:
    known = known or _branch_tips(quarantine)
    return is_increment(packs, quarantine.repository, tips, known=known, onto=onto)


def _index_pack(
    quarantine: Quarantine, progress: IndexProgress | None, is_abandoned: Callable[[], bool]
) -> None:
    check_sizes(quarantine.received, object_bytes_max=OBJECT_BYTES_MAX, is_abandoned=is_abandoned)
    with (
        closing(DiskObjectStore(quarantine.objects, fsync_object_files=True)) as store,
        quarantine.received.open("rb") as pack,
    ):
        report = _Report(progress, is_abandoned)
        store.add_thin_pack(pack.read, pack.read, progress=report)
        if pack.read(1):
            raise PackError("the pack is damaged: something follows its end")
    fsync_directory(quarantine.objects / "pack")


class _Report:
    """Passes on dulwich's progress, which comes for each object, a hundred times in all."""

    def __init__(self, progress: IndexProgress | None, is_abandoned: Callable[[], bool]) -> None:
        self._progress = progress
        self._is_abandoned = is_abandoned
        self._step = -1

    def __call__(self, message: bytes) -> None:
        if self._is_abandoned():
            raise PackError("nobody waits for this pack any more")
        if self._progress is None:
            return
        if counts := _PROGRESS.search(message):
            done, total = int(counts[1]), int(counts[2])
            step = 100 * done // max(total, 1)
            if step != self._step:
                self._step = step
                self._progress(done, total)


def _check_connected(quarantine: Quarantine, tips: Sequence[ObjectId]) -> None:
    with closing(quarantine.source()) as source:
        _check_whole(source, tips, _branch_tips(quarantine))


def _check_alone(objects: Path, tips: Sequence[ObjectId], known: Sequence[ObjectId]) -> None:
    with closing(ObjectSource(objects)) as source:
        _check_whole(source, tips, known)


def _check_whole(source: ObjectSource, tips: Sequence[ObjectId], known: Sequence[ObjectId]) -> None:
    request = PackRequest(wants=tuple(tips), haves=tuple(known))
    try:
        selection = select_objects(source, CommitGraph(source), request)
        missing = next((oid for oid in selection.oids if not source.contains(oid)), None)
    except LocalError as error:
        raise PackError(f"what was received is not complete: {error}") from error
    if missing is not None:
        raise PackError(f"what was received is not complete: {missing.decode()} is missing")


def _branch_tips(quarantine: Quarantine) -> list[ObjectId]:
    known = quarantine.repository.read_refs().refs.values()
    return [ref.oid for ref in known if ref.name.startswith(b"refs/heads/")][:KNOWN_TIPS_MAX]


def _build_pack(
    repository: BareRepository, request: PackRequest, is_abandoned: Callable[[], bool]
) -> Iterator[bytes]:
    selection = select_objects(
        repository.source, repository.graph, request, is_abandoned=is_abandoned
    )
    form = Form(thin=request.thin, ofs_delta=request.ofs_delta)
    yield from write_pack(repository.source, selection, form)


def _may_be_small(repository: BareRepository, request: PackRequest) -> bool:
    if request.commits is not None and request.commits > SMALL_COMMITS_MAX:
        return False
    if request.haves:
        return True
    objects = sum(map(len, repository.source.packs()))
    return objects <= SMALL_REPOSITORY_OBJECTS_MAX


class _Allowance:
    """What a small pack may cost; ends the work when it is used up."""

    def __init__(self) -> None:
        self._ends_at = time.thread_time() + SMALL_SECONDS_MAX
        self._steps = 0

    def __call__(self) -> bool:
        self._steps += 1
        return self._steps > SMALL_STEPS_MAX or time.thread_time() > self._ends_at


def _build_small(repository: BareRepository, request: PackRequest) -> bytes | None:
    is_used_up = _Allowance()
    pack = bytearray()
    try:
        for chunk in _build_pack(repository, request, is_used_up):
            pack += chunk
            if len(pack) > SMALL_BYTES_MAX or is_used_up():
                return None
    except Abandoned:
        return None
    return bytes(pack)


def _repack(repository: BareRepository) -> None:
    packs = sorted(repository.source.packs(), key=len)
    count = count_to_merge([len(pack) for pack in packs], objects_max=REPACKED_OBJECTS_MAX)
    old = packs[:count]
    if not old:
        return
    selection = Selection(oids=dict.fromkeys(oid for pack in old for oid in pack.ids()))
    with repository.quarantine() as quarantine:
        _write_pack(quarantine, selection)
        new = {file.name for file in (quarantine.objects / "pack").glob("pack-*.pack")}
        quarantine.migrate()
    repository.remove_packs({pack.path.name for pack in old} - new)


def _write_pack(quarantine: Quarantine, selection: Selection) -> None:
    source = quarantine.repository.source
    with quarantine.received.open("wb") as file:
        file.writelines(write_pack(source, selection, Form(thin=False, ofs_delta=True)))
    _index_pack(quarantine, None, lambda: False)
    quarantine.received.unlink()


def _pack_reachable(
    quarantine: Quarantine, tips: Sequence[ObjectId], without: Sequence[ObjectId]
) -> None:
    repository = quarantine.repository
    if (count := sum(map(len, repository.source.packs()))) > REPACKED_OBJECTS_MAX:
        raise PackError(f"{count} objects are too many to write anew without git")
    request = PackRequest(wants=tuple(tips), haves=tuple(without))
    selection = select_objects(repository.source, repository.graph, request)
    if selection.oids:
        _write_pack(quarantine, selection)


def _unreachable_bytes(repository: BareRepository, request: PackRequest) -> int:
    packs = repository.source.packs()
    objects, size = sum(map(len, packs)), repository.bytes_on_disk()
    steps = iter(range(COUNTED_STEPS_MAX))
    try:
        selection = select_objects(
            repository.source,
            repository.graph,
            request,
            is_abandoned=lambda: next(steps, None) is None,
        )
    except Abandoned:
        return size  # there is a lot of it
    return size * len(selection.oids) // max(1, objects)
