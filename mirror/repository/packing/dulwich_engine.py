"""The pack engine that needs no git: dulwich's objects and indexer, our selection and pack writer.

Right for small repositories and for machines without git; on large ones git is many times faster.
All of it is blocking work and runs in a thread pool of its own, a step at a time.
"""

import asyncio
import re
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Final, ParamSpec, TypeVar

import dulwich
from dulwich.object_store import DiskObjectStore

from mirror.errors import LocalError, PackError
from mirror.repository.bare import BareRepository, Quarantine, fsync_directory
from mirror.repository.graph import CommitGraph
from mirror.repository.objects import PACK_DAMAGE
from mirror.repository.packing.engine import IndexProgress, PackRequest
from mirror.repository.packing.pack_writer import Form, write_pack
from mirror.repository.packing.selection import Selection, select_objects
from mirror.wire.names import ObjectId

THREADS_MAX: Final = 4
KNOWN_TIPS_MAX: Final = 1000
"""Branch tips from which the check of new objects learns what was there before."""

_PROGRESS: Final = re.compile(rb"(\d+)/(\d+)")

P = ParamSpec("P")
T = TypeVar("T")


class DulwichEngine:
    """Makes and indexes packs in this process."""

    name = "dulwich"
    version = ".".join(str(part) for part in dulwich.__version__)

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="dulwich")

    def close(self) -> None:
        """Wait for what still runs."""
        self._threads.shutdown(cancel_futures=True)

    async def index_pack(
        self, quarantine: Quarantine, *, progress: IndexProgress | None = None
    ) -> None:
        """See `PackEngine.index_pack`."""
        await self._in_thread(_index_pack, quarantine, progress)

    async def check_connected(self, quarantine: Quarantine, tips: Sequence[ObjectId]) -> None:
        """See `PackEngine.check_connected`."""
        await self._in_thread(_check_connected, quarantine, tips)

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
        """See `PackEngine.repack`: all packs become one."""
        await self._in_thread(_repack, repository)

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a step in a thread; whatever dulwich raises about bad data becomes a `PackError`."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, partial(function, *args, **kwargs))
        except PackError:
            raise
        except LocalError as error:
            raise PackError(str(error)) from error
        except PACK_DAMAGE as error:
            raise PackError(f"the pack is damaged: {type(error).__name__}: {error}") from error
        except OSError as error:
            raise PackError(f"the pack could not be written: {error.strerror}") from error


def _index_pack(quarantine: Quarantine, progress: IndexProgress | None) -> None:
    with (
        closing(DiskObjectStore(quarantine.objects, fsync_object_files=True)) as store,
        quarantine.received.open("rb") as pack,
    ):
        report = _Report(progress) if progress is not None else None
        store.add_thin_pack(pack.read, pack.read, progress=report)
        if pack.read(1):
            raise PackError("the pack is damaged: something follows its end")
    fsync_directory(quarantine.objects / "pack")


class _Report:
    """Passes on dulwich's progress, which comes for each object, a hundred times in all."""

    def __init__(self, progress: IndexProgress) -> None:
        self._progress = progress
        self._step = -1

    def __call__(self, message: bytes) -> None:
        if counts := _PROGRESS.search(message):
            done, total = int(counts[1]), int(counts[2])
            step = 100 * done // max(total, 1)
            if step != self._step:
                self._step = step
                self._progress(done, total)


def _check_connected(quarantine: Quarantine, tips: Sequence[ObjectId]) -> None:
    known = quarantine.repository.read_refs().refs.values()
    branches = [ref.oid for ref in known if ref.name.startswith(b"refs/heads/")]
    request = PackRequest(wants=tuple(tips), haves=tuple(branches[:KNOWN_TIPS_MAX]))
    try:
        with closing(quarantine.source()) as source:
            selection = select_objects(source, CommitGraph(source), request)
            missing = next((oid for oid in selection.oids if not source.contains(oid)), None)
    except LocalError as error:
        raise PackError(f"what was received is not complete: {error}") from error
    if missing is not None:
        raise PackError(f"what was received is not complete: {missing.decode()} is missing")


def _build_pack(
    repository: BareRepository, request: PackRequest, is_abandoned: Callable[[], bool]
) -> Iterator[bytes]:
    selection = select_objects(
        repository.source, repository.graph, request, is_abandoned=is_abandoned
    )
    form = Form(thin=request.thin, ofs_delta=request.ofs_delta)
    yield from write_pack(repository.source, selection, form)


def _repack(repository: BareRepository) -> None:
    old = repository.source.packs()
    if len(old) < 2:
        return
    selection = Selection(oids=dict.fromkeys(oid for pack in old for oid in pack.ids()))
    with repository.quarantine() as quarantine:
        with quarantine.received.open("wb") as file:
            file.writelines(
                write_pack(repository.source, selection, Form(thin=False, ofs_delta=True))
            )
        _index_pack(quarantine, None)
        new = {file.name for file in (quarantine.objects / "pack").glob("pack-*.pack")}
        quarantine.migrate()
    for pack in old:
        if pack.path.name not in new:
            for suffix in (".idx", ".rev", ".pack"):
                pack.path.with_suffix(suffix).unlink(missing_ok=True)
    repository.source.rescan()
