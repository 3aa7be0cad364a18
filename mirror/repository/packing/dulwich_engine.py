"""The pack engine that needs no git: dulwich's objects and indexer, our selection and pack writer.

Right for small repositories and for machines without git; on large ones git is many times faster.
All of it is blocking work and runs in a thread pool of its own, a step at a time.
"""

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Final, ParamSpec, TypeVar

import dulwich
from dulwich.errors import ApplyDeltaError, ChecksumMismatch, ObjectFormatException
from dulwich.object_store import DiskObjectStore
from dulwich.pack import UnresolvedDeltas

from mirror.errors import LocalError, PackError
from mirror.repository.bare import BareRepository, Quarantine
from mirror.repository.graph import CommitGraph
from mirror.repository.objects import ObjectSource
from mirror.repository.packing.engine import IndexProgress, PackRequest
from mirror.repository.packing.pack_writer import Form, write_pack
from mirror.repository.packing.selection import Selection, select_objects
from mirror.wire.names import ObjectId

THREADS_MAX: Final = 4
KNOWN_TIPS_MAX: Final = 1000
"""Branch tips from which the check of new objects learns what was there before."""

_DAMAGE: Final = (
    ApplyDeltaError,
    AssertionError,  # dulwich's word for a pack that ends early
    ChecksumMismatch,
    EOFError,
    KeyError,
    ObjectFormatException,
    UnresolvedDeltas,
    ValueError,
    zlib.error,
)
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
        chunks = _build_pack(repository, request)
        while (chunk := await self._in_thread(next, chunks, b"")) != b"":
            yield chunk

    async def repack(self, repository: BareRepository) -> None:
        """See `PackEngine.repack`: all packs become one."""
        await self._in_thread(_repack, repository)

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a step in a thread; whatever dulwich raises about bad data becomes a `PackError`."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, partial(function, *args, **kwargs))
        except _DAMAGE as error:
            raise PackError(f"the pack is damaged: {type(error).__name__}: {error}") from error
        except OSError as error:
            raise PackError(f"the pack could not be written: {error.strerror}") from error


def _index_pack(quarantine: Quarantine, progress: IndexProgress | None) -> None:
    def report(message: bytes) -> None:
        if progress is not None and (counts := _PROGRESS.search(message)):
            progress(int(counts[1]), int(counts[2]))

    with (
        closing(DiskObjectStore(quarantine.objects, fsync_object_files=True)) as store,
        quarantine.received.open("rb") as pack,
    ):
        store.add_thin_pack(pack.read, pack.read, progress=report)


def _check_connected(quarantine: Quarantine, tips: Sequence[ObjectId]) -> None:
    known = quarantine.repository.read_refs().refs.values()
    branches = [ref.oid for ref in known if ref.name.startswith(b"refs/heads/")]
    with closing(DiskObjectStore(quarantine.objects)) as store:
        source = ObjectSource(store)
        request = PackRequest(wants=tuple(tips), haves=tuple(branches[:KNOWN_TIPS_MAX]))
        try:
            selection = select_objects(source, CommitGraph(source), request)
        except LocalError as error:
            raise PackError(f"what was received is not complete: {error}") from error
        for oid in selection.oids:
            if not source.contains(oid):
                raise PackError(f"what was received is not complete: {oid.decode()} is missing")


def _build_pack(repository: BareRepository, request: PackRequest) -> Iterator[bytes]:
    selection = select_objects(repository.source, repository.graph, request)
    # A reader with a filter may lack the very object that a thin delta would build on.
    form = Form(thin=request.thin and request.filter is None, ofs_delta=request.ofs_delta)
    yield from write_pack(repository.source, selection, form)


def _repack(repository: BareRepository) -> None:
    old = repository.pack_files()
    if len(old) < 2:
        return
    selection = Selection(oids=dict.fromkeys(repository.source.all_ids()))
    with repository.quarantine() as quarantine:
        with quarantine.received.open("wb") as file:
            file.writelines(
                write_pack(repository.source, selection, Form(thin=False, ofs_delta=True))
            )
        _index_pack(quarantine, None)
        new = {file.name for file in (quarantine.objects / "pack").glob("pack-*.pack")}
        quarantine.migrate()
    for pack in old:
        if pack.name not in new:
            for suffix in (".idx", ".rev", ".pack"):
                pack.with_suffix(suffix).unlink(missing_ok=True)
