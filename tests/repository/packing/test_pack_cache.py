"""Equal requests share one pack: from memory, from disk, or from the build that makes it."""

import asyncio
import errno
import gc
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import IO, cast

import pytest

from mirror.errors import LocalError, MirrorError, Overloaded, PackError
from mirror.metrics import Metrics
from mirror.repository.bare import BareRepository
from mirror.repository.packing import window
from mirror.repository.packing.engine import IndexProgress, PackEngine, PackRequest
from mirror.repository.packing.framing import Reframer, frame
from mirror.repository.packing.pack_cache import PackCache, slices
from mirror.repository.packing.pack_store import PackStore, StoredPack
from mirror.repository.packing.spool import MEMORY_BYTES_MAX, PackSpool
from mirror.repository.quarantine import Quarantine
from mirror.space import Reserve, Room, Space
from mirror.wire.names import ObjectId
from mirror.wire.pktline import decode_all
from mirror.wire.requests import SideBand
from tests.repository.packing.processes import open_files

IDLE = 30.0
MIB = 1 << 20


class ScriptedEngine:
    """Builds what the test hands it, when the test does.

    Attributes:
        began: The large builds that were begun.
        ended: Those that ended, however.
        small: What is made at once.
        changed: Given at each of these.
        ends: Whether a build may come to its end, once it is over.
    """

    name = "scripted"
    version = "0"
    copies_packs = False

    def __init__(self) -> None:
        self.began: list[PackRequest] = []
        self.ended: list[PackRequest] = []
        self.small: dict[PackRequest, bytes] = {}
        self.changed = asyncio.Condition()
        self.ends = asyncio.Event()
        self.ends.set()
        self._chunks: dict[PackRequest, asyncio.Queue[bytes | BaseException | None]] = {}

    def hand(self, request: PackRequest, *chunks: bytes | BaseException | None) -> None:
        """Give chunks, errors, and `None` for the end."""
        for chunk in chunks:
            self._queue(request).put_nowait(chunk)

    def _queue(self, request: PackRequest) -> "asyncio.Queue[bytes | BaseException | None]":
        return self._chunks.setdefault(request, asyncio.Queue())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def build_small(self, repository: BareRepository, request: PackRequest) -> bytes | None:
        return self.small.get(request)

    async def build_pack(
        self, repository: BareRepository, request: PackRequest
    ) -> AsyncGenerator[bytes, None]:
        self.began.append(request)
        await self._tell()
        try:
            while (chunk := await self._queue(request).get()) is not None:
                if isinstance(chunk, BaseException):
                    raise chunk
                yield chunk
        finally:
            self.ended.append(request)
            await self._tell()
            await self.ends.wait()

    async def index_pack(
        self, quarantine: Quarantine, *, progress: IndexProgress | None = None
    ) -> None:
        raise NotImplementedError

    async def check_connected(
        self,
        quarantine: Quarantine,
        tips: Sequence[ObjectId],
        *,
        known: Sequence[ObjectId] = (),
        onto: ObjectId | None = None,
    ) -> bool:
        raise NotImplementedError

    async def repack(self, repository: BareRepository) -> None:
        raise NotImplementedError

    async def index(
        self, repository: BareRepository, *, without: Collection[str] = frozenset()
    ) -> None:
        raise NotImplementedError

    async def unreachable_bytes(
        self, repository: BareRepository, tips: Sequence[ObjectId], *, live: Sequence[ObjectId]
    ) -> int:
        raise NotImplementedError

    async def pack_reachable(
        self,
        quarantine: Quarantine,
        tips: Sequence[ObjectId],
        *,
        without: Sequence[ObjectId] = (),
    ) -> None:
        raise NotImplementedError

    async def check_alone(
        self,
        repository: BareRepository,
        objects: Path,
        tips: Sequence[ObjectId],
        *,
        known: Sequence[ObjectId],
    ) -> None:
        raise NotImplementedError


class Place:
    """All that the cache needs to know of a repository."""

    def __init__(self, name: str = "mirror", url: str = "http://forge.invalid/mirror.git") -> None:
        self.path = Path("/nowhere") / f"{name}.git"
        self.upstream_url = url


REPOSITORY = cast("BareRepository", Place())


def request(number: int = 0) -> PackRequest:
    return PackRequest(wants=(ObjectId(b"%040d" % number),))


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("0")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "packs"


def store_in(directory: Path, *, bytes_max: int = 64 * MIB, memory: int = 8 * MIB) -> PackStore:
    store = PackStore(directory, bytes_max=bytes_max, memory_bytes_max=memory)
    store.prepare()
    return store


def cache_on(
    store: PackStore, engine: ScriptedEngine, metrics: Metrics, *, is_shared: bool = False
) -> PackCache:
    """Two builds at once and two more that wait."""
    _: PackEngine = engine
    return PackCache(
        engine, store, builds_max=2, queued_max=2, is_shared=is_shared, metrics=metrics
    )


@pytest.fixture
async def cache(
    engine: ScriptedEngine, metrics: Metrics, directory: Path
) -> AsyncIterator[PackCache]:
    running = cache_on(store_in(directory), engine, metrics)
    tasks = len(asyncio.all_tasks())
    yield running
    await running.close()
    if (directory / "tmp").exists():
        assert not list((directory / "tmp").iterdir())
    assert len(asyncio.all_tasks()) == tasks
    assert f"{0.0}" in metric(metrics, "git_mirror_pack_builds_running")


def metric(metrics: Metrics, name: str) -> str:
    lines = metrics.exposition().decode().splitlines()
    return "\n".join(line for line in lines if line.startswith(name))


async def read(
    cache: PackCache,
    asked: PackRequest,
    *,
    repository: BareRepository = REPOSITORY,
    idle_seconds: float = IDLE,
) -> AsyncGenerator[bytes, None]:
    """Yield the pack as it comes, without its framing."""
    reframer = Reframer(SideBand.NONE)
    async with cache.open(repository, asked, cache.key(repository, asked)) as found:
        if isinstance(found, StoredPack):
            for piece in slices(found.framed):
                yield bytes(reframer.feed(piece))
            return
        async with aclosing(found.follow(idle_seconds=idle_seconds)) as pieces:
            async for built in pieces:
                yield bytes(reframer.feed(built))


async def read_all(
    cache: PackCache, asked: PackRequest, *, repository: BareRepository = REPOSITORY
) -> bytes:
    return b"".join([piece async for piece in read(cache, asked, repository=repository)])


async def begun(
    cache: PackCache, engine: ScriptedEngine, number: int
) -> AsyncGenerator[bytes, None]:
    """Start a reader and return it after its first piece."""
    reader = read(cache, request(number))
    engine.hand(request(number), b"first")
    assert await anext(reader) == b"first"
    return reader


async def test_readers_of_the_same_request_share_one_build(
    cache: PackCache, engine: ScriptedEngine, metrics: Metrics
) -> None:
    """Also those that come when half of it is out: they get it from the beginning."""
    first = await begun(cache, engine, 0)
    late = [asyncio.create_task(read_all(cache, request())) for _ in range(3)]
    second = read(cache, request())
    assert await anext(second) == b"first"
    engine.hand(request(), b"two", None)
    assert [piece async for piece in first] == [b"two"]
    assert [piece async for piece in second] == [b"two"]
    assert await asyncio.gather(*late) == [b"firsttwo"] * 3
    assert engine.began == [request()]
    assert 'outcome="ok"' in metric(metrics, "git_mirror_pack_build_seconds_count")
    assert metric(metrics, "git_mirror_pack_bytes_total").endswith(" 8.0")


async def test_different_requests_have_builds_of_their_own(
    cache: PackCache, engine: ScriptedEngine
) -> None:
    for number in range(2):
        engine.hand(request(number), b"%d" % number, None)
    packs = await asyncio.gather(*(read_all(cache, request(number)) for number in range(2)))
    assert packs == [b"0", b"1"]
    assert set(engine.began) == {request(0), request(1)}


@pytest.mark.parametrize("size", [100, 100_000, MEMORY_BYTES_MAX, 3 * MEMORY_BYTES_MAX])
async def test_a_finished_pack_is_there_for_who_comes_later(
    cache: PackCache, engine: ScriptedEngine, metrics: Metrics, size: int
) -> None:
    pack = os.urandom(size)
    engine.hand(request(), pack[: size // 2], pack[size // 2 :], None)
    assert await read_all(cache, request()) == pack
    assert await read_all(cache, request()) == pack
    assert engine.began == [request()]


@pytest.mark.parametrize("size", [100, 3 * MEMORY_BYTES_MAX])
async def test_a_pack_is_there_after_a_restart(
    engine: ScriptedEngine, metrics: Metrics, directory: Path, size: int
) -> None:
    pack = os.urandom(size)
    for _ in range(2):
        running = cache_on(store_in(directory), engine, metrics)
        engine.hand(request(), pack, None)
        assert await read_all(running, request()) == pack
        await finished(running)
        await running.close()
    assert engine.began == [request()]


async def joined(cache: PackCache, readers: int) -> None:
    """Wait until so many read what is being built: the look for a file is a thread's."""
    while sum(build.readers for build in cache._running.values()) < readers:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def finished(cache: PackCache) -> None:
    """Wait until what was built is kept."""
    await asyncio.gather(*cache._tasks)


async def test_a_pack_never_crosses_from_one_repository_to_another(
    cache: PackCache, engine: ScriptedEngine
) -> None:
    """Neither by its place nor, when another upstream is put in its place, by its name."""
    places = [Place(), Place("other"), Place(url="http://elsewhere.invalid/mirror.git")]
    for number, place in enumerate(places):
        engine.hand(request(), b"%d" % number, None)
        repository = cast("BareRepository", place)
        assert await read_all(cache, request(), repository=repository) == b"%d" % number


async def test_what_is_little_work_waits_for_nothing(
    cache: PackCache, engine: ScriptedEngine
) -> None:
    waiting = [asyncio.create_task(read_all(cache, request(number))) for number in range(3)]
    await engine.until(lambda: len(engine.began) == 2)
    engine.small[request(9)] = b"small"
    assert await read_all(cache, request(9)) == b"small"
    assert await read_all(cache, request(9)) == b"small"
    for number in range(3):
        engine.hand(request(number), None)
    await asyncio.gather(*waiting)


async def test_a_pack_that_was_made_elsewhere_is_the_answer(
    cache: PackCache, engine: ScriptedEngine
) -> None:
    await cache.keep(REPOSITORY, request(), b"from the upstream")
    assert await read_all(cache, request()) == b"from the upstream"
    assert engine.began == []


async def test_a_pack_is_prepared_once(cache: PackCache, engine: ScriptedEngine) -> None:
    engine.hand(request(), b"pack", None)
    assert await cache.prepare(REPOSITORY, request()) == len(frame(b"pack"))
    await finished(cache)
    assert await cache.prepare(REPOSITORY, request()) is None
    assert engine.began == [request()]


@pytest.mark.parametrize("spoilt", ["bit", "short", "empty", "longer"])
async def test_a_file_that_is_damaged_is_never_served(
    engine: ScriptedEngine, metrics: Metrics, directory: Path, spoilt: str
) -> None:
    running = cache_on(store_in(directory), engine, metrics)
    engine.hand(request(), b"pack" * 1000, None)
    await read_all(running, request())
    await finished(running)
    (file,) = directory.glob("??/*")
    content = bytearray(file.read_bytes())
    match spoilt:
        case "bit":
            content[500] ^= 1
        case "short":
            del content[100:200]
        case "empty":
            content.clear()
        case _:
            content += b"x"
    file.write_bytes(content)
    again = cache_on(store_in(directory), engine, metrics)
    engine.hand(request(), b"anew", None)
    assert await read_all(again, request()) == b"anew"
    await finished(again)
    third = cache_on(store_in(directory), engine, metrics)
    assert await read_all(third, request()) == b"anew"


async def test_what_was_used_least_recently_goes_first(
    engine: ScriptedEngine, metrics: Metrics, directory: Path
) -> None:
    """And all the files together keep to the limit, but for what was written since a sweep."""
    store = store_in(directory, bytes_max=100_000, memory=0)
    running = cache_on(store, engine, metrics)
    for number in range(30):
        engine.hand(request(number), os.urandom(6000), None)
        await read_all(running, request(number))
        await finished(running)
        for file in directory.glob("??/*"):  # as if that was a while ago
            status = file.stat()
            os.utime(file, (status.st_atime, status.st_mtime - 1000))
        if number == 10:
            await asyncio.to_thread(store.open, running.key(REPOSITORY, request(0)))
            [kept] = directory.glob(f"??/{running.key(REPOSITORY, request(0))}")
            os.utime(kept)
    sizes = [file.stat().st_size for file in directory.glob("??/*")]
    assert 50_000 < sum(sizes) <= 107_000
    engine.hand(request(1), b"anew", None)
    assert await read_all(running, request(1)) == b"anew"
    began = len(engine.began)
    assert len(await read_all(running, request(29))) == 6000
    assert len(engine.began) == began


def test_what_a_killed_process_left_behind_is_removed(directory: Path) -> None:
    """At the start all of it; later what is hours old, for another process may be at work."""
    store = store_in(directory)
    old, new = directory / "tmp" / "1-1", directory / "tmp" / "2-1"
    for file in (old, new):
        file.write_bytes(b"half a pack")
    os.utime(old, (0, 0))
    store.sweep()
    assert not old.exists()
    assert new.exists()
    store.prepare()
    assert not new.exists()


async def test_memory_keeps_to_its_limit(
    engine: ScriptedEngine, metrics: Metrics, directory: Path
) -> None:
    store = store_in(directory, memory=50_000)
    running = cache_on(store, engine, metrics)
    for number in range(10):
        engine.hand(request(number), bytes(10_000), None)
        await read_all(running, request(number))
        await finished(running)
    at_hand = [store.find(running.key(REPOSITORY, request(number))) for number in range(10)]
    assert [pack is not None for pack in at_hand] == [False] * 6 + [True] * 4
    assert len(await read_all(running, request(0))) == 10_000
    assert len(engine.began) == 10


async def test_a_cache_of_no_size_still_shares_builds(
    engine: ScriptedEngine, metrics: Metrics, directory: Path
) -> None:
    store = store_in(directory, bytes_max=0, memory=0)
    running = cache_on(store, engine, metrics)
    for _ in range(2):
        tasks = [asyncio.create_task(read_all(running, request())) for _ in range(3)]
        await joined(running, 3)
        engine.hand(request(), b"pack", None)
        assert await asyncio.gather(*tasks) == [b"pack"] * 3
        await finished(running)
    assert len(engine.began) == 2
    assert not list(directory.glob("??/*"))


async def test_processes_that_share_a_directory_build_once(
    engine: ScriptedEngine, metrics: Metrics, directory: Path
) -> None:
    """A second store with its own memory stands for the second process."""
    store = store_in(directory)
    caches = [
        cache_on(store, engine, metrics, is_shared=True),
        cache_on(
            PackStore(directory, bytes_max=MIB, memory_bytes_max=MIB),
            engine,
            metrics,
            is_shared=True,
        ),
    ]
    tasks = [asyncio.create_task(read_all(one, request())) for one in caches for _ in range(3)]
    await engine.until(lambda: bool(engine.began))
    engine.hand(request(), b"pack", None)
    assert await asyncio.gather(*tasks) == [b"pack"] * 6
    assert engine.began == [request()]
    for one in caches:
        await finished(one)
    assert not list((directory / "tmp").iterdir())


async def test_a_process_whose_builder_fails_builds_itself(
    engine: ScriptedEngine, metrics: Metrics, directory: Path
) -> None:
    store = store_in(directory)
    caches = [cache_on(store, engine, metrics, is_shared=True) for _ in range(2)]
    tasks = [asyncio.create_task(read_all(one, request())) for one in caches]
    await engine.until(lambda: bool(engine.began))
    engine.hand(request(), PackError("no luck"), b"pack", None)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(map(str, results)) == ["b'pack'", "no luck"]


async def test_a_reader_that_leaves_cancels_nothing(
    cache: PackCache, engine: ScriptedEngine
) -> None:
    """Nor the last one: it will be back."""
    readers = [await begun(cache, engine, 0), read(cache, request(0))]
    assert await anext(readers[1]) == b"first"
    for reader in readers:
        await reader.aclose()
    assert engine.ended == []
    engine.hand(request(0), b"rest", None)
    assert await read_all(cache, request(0)) == b"firstrest"
    assert engine.began == [request(0)]


async def test_a_pack_too_long_to_keep_is_not_built_for_nobody(
    engine: ScriptedEngine, metrics: Metrics, directory: Path
) -> None:
    running = cache_on(store_in(directory, bytes_max=MIB), engine, metrics)
    reader = await begun(running, engine, 0)
    await reader.aclose()
    engine.hand(request(0), bytes(MIB), b"more")
    await engine.until(lambda: bool(engine.ended))
    await finished(running)
    assert not list((directory / "tmp").iterdir())
    assert 'outcome="pack_error"' in metric(metrics, "git_mirror_pack_build_seconds_count")


@pytest.mark.parametrize("error", [PackError("no pack"), LocalError("no disk")])
async def test_a_build_that_fails_fails_for_all_its_readers_and_is_not_kept(
    cache: PackCache, engine: ScriptedEngine, metrics: Metrics, error: MirrorError
) -> None:
    tasks = [asyncio.create_task(read_all(cache, request())) for _ in range(3)]
    await joined(cache, 3)
    engine.hand(request(), b"half", error)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results == [error] * 3
    assert f'outcome="{error.label}"' in metric(metrics, "git_mirror_pack_build_seconds_count")
    engine.hand(request(), b"whole", None)
    assert await read_all(cache, request()) == b"whole"


async def test_what_was_built_before_the_failure_is_read_first(
    cache: PackCache, engine: ScriptedEngine
) -> None:
    reader = await begun(cache, engine, 0)
    engine.hand(request(), PackError("no more"))
    with pytest.raises(PackError, match="no more"):
        await anext(reader)


async def test_a_mistake_of_ours_is_an_error_too_and_not_a_reader_that_waits_for_ever(
    cache: PackCache, engine: ScriptedEngine, metrics: Metrics
) -> None:
    engine.hand(request(), ZeroDivisionError())
    with pytest.raises(PackError, match="unexpected ZeroDivisionError"):
        await read_all(cache, request())
    assert 'outcome="internal"' in metric(metrics, "git_mirror_pack_build_seconds_count")


async def test_so_many_build_so_many_wait_and_more_are_refused(
    cache: PackCache, engine: ScriptedEngine
) -> None:
    readers = [read(cache, request(number)) for number in range(4)]
    firsts = [asyncio.ensure_future(anext(reader)) for reader in readers[:2]]
    await engine.until(lambda: len(engine.began) == 2)
    firsts += [asyncio.ensure_future(anext(reader)) for reader in readers[2:]]
    await joined(cache, 4)
    with pytest.raises(Overloaded):
        await read_all(cache, request(4))
    # Who asks for what is being built already needs no place.
    also = asyncio.create_task(read_all(cache, request(3)))
    await joined(cache, 5)
    engine.hand(request(0), b"0", None)
    await engine.until(lambda: len(engine.began) == 3)
    for number in range(1, 4):
        engine.hand(request(number), b"%d" % number, None)
    assert await asyncio.gather(*firsts) == [b"0", b"1", b"2", b"3"]
    assert await also == b"3"
    for reader in readers:
        await reader.aclose()
    await finished(cache)
    engine.hand(request(4), b"4", None)
    assert await read_all(cache, request(4)) == b"4"


async def test_a_reader_that_leaves_the_queue_makes_room_in_it(
    cache: PackCache, engine: ScriptedEngine
) -> None:
    tasks = [asyncio.create_task(read_all(cache, request(number))) for number in range(4)]
    await engine.until(lambda: len(engine.began) == 2)
    await joined(cache, 4)
    left = next(number for number in range(4) if request(number) not in engine.began)
    tasks[left].cancel()
    await asyncio.wait([tasks[left]])
    tasks[left] = asyncio.create_task(read_all(cache, request(5)))
    for number in range(6):
        engine.hand(request(number), None)
    assert await asyncio.gather(*tasks) == [b""] * 4
    assert request(left) not in engine.began


async def test_a_slow_reader_does_not_hold_the_place_of_a_build(
    cache: PackCache, engine: ScriptedEngine
) -> None:
    """What it has not read yet waits in the spool."""
    slow = [await begun(cache, engine, number) for number in range(2)]
    for number in range(2):
        engine.hand(request(number), b"x" * MEMORY_BYTES_MAX, b"end", None)
    await engine.until(lambda: len(engine.ended) == 2)
    engine.hand(request(7), b"quick", None)
    assert await read_all(cache, request(7)) == b"quick"
    for reader in slow:
        rest = b"".join([piece async for piece in reader])
        assert rest == b"x" * MEMORY_BYTES_MAX + b"end"


async def test_a_large_pack_goes_to_a_file_and_leaves_no_descriptor_but_its_map(
    cache: PackCache, engine: ScriptedEngine, directory: Path
) -> None:
    before = len(open_files())
    packs = [os.urandom(2 * MIB) for _ in range(3)]
    for number, pack in enumerate(packs):
        engine.hand(request(number), pack, None)
        assert await read_all(cache, request(number)) == pack
        await finished(cache)
    assert len(list(directory.glob("??/*"))) == 3
    assert len(open_files()) <= before + 3  # Python before 3.13 keeps one for each map


async def test_a_reader_is_shown_a_sign_of_life_while_nothing_comes(
    cache: PackCache, engine: ScriptedEngine
) -> None:
    key = cache.key(REPOSITORY, request())
    async with cache.open(REPOSITORY, request(), key) as found:
        assert not isinstance(found, StoredPack)
        async with aclosing(found.follow(idle_seconds=0.0)) as reader:
            assert [await anext(reader) for _ in range(3)] == [b""] * 3
            engine.hand(request(), b"PACK", None)
            pieces = [bytes(piece) async for piece in reader]
    assert b"".join(pieces) == b"0009\x01PACK"


async def test_closing_ends_what_runs_and_what_waits_and_tells_the_readers(
    cache: PackCache, engine: ScriptedEngine
) -> None:
    tasks = [asyncio.create_task(read_all(cache, request(number))) for number in range(4)]
    await engine.until(lambda: len(engine.began) == 2)
    await joined(cache, 4)
    await cache.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, PackError) for result in results)
    assert len(engine.ended) == len(engine.began) == 2


async def test_readers_get_all_of_a_pack_that_no_disk_takes(
    cache: PackCache, engine: ScriptedEngine, directory: Path
) -> None:
    """More than the window holds: the writer waits for the slower of two."""
    (directory / "tmp").rmdir()
    quick, slow = await begun(cache, engine, 0), read(cache, request())
    came = bytearray(await anext(slow))
    pieces = [os.urandom(MIB) for _ in range(12)]
    engine.hand(request(), *pieces, None)

    async def rest(reader: AsyncGenerator[bytes, None]) -> bytes:
        return b"".join([piece async for piece in reader])

    quickly = asyncio.create_task(rest(quick))
    while len(came) < 3 * MIB:
        came += await anext(slow)
    assert not quickly.done(), "the writer went on without the other reader"
    came += await rest(slow)
    assert bytes(came).endswith(b"".join(pieces))
    assert (await quickly).endswith(b"".join(pieces))
    await finished(cache)
    assert engine.began == [request()]


async def test_who_comes_too_late_for_a_passing_pack_begins_another(
    cache: PackCache, engine: ScriptedEngine, directory: Path
) -> None:
    (directory / "tmp").rmdir()
    first = await begun(cache, engine, 0)
    pieces = [os.urandom(MIB) for _ in range(9)]
    engine.hand(request(), *pieces)
    came = 0
    while came < 7 * MIB:
        came += len(await anext(first))
    late = asyncio.create_task(read_all(cache, request()))
    await engine.until(lambda: len(engine.began) == 2)
    await first.aclose()
    engine.hand(request(), None, None)
    await late
    await finished(cache)


async def test_a_reader_that_stalls_is_let_go_for_the_others(
    cache: PackCache,
    engine: ScriptedEngine,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window, "STALL_SECONDS_MAX", 0.05)
    (directory / "tmp").rmdir()
    stalled, other = await begun(cache, engine, 0), read(cache, request())
    await anext(other)
    pieces = [os.urandom(MIB) for _ in range(12)]
    engine.hand(request(), *pieces, None)
    whole = b"".join([piece async for piece in other])
    assert whole.endswith(b"".join(pieces))
    with pytest.raises(window.TooSlow, match="did not keep up"):
        async for _ in stalled:
            pass
    await finished(cache)


async def test_a_passing_pack_that_nobody_reads_is_given_up(
    cache: PackCache, engine: ScriptedEngine, directory: Path
) -> None:
    (directory / "tmp").rmdir()
    reader = await begun(cache, engine, 0)
    await reader.aclose()
    engine.hand(request(), *[bytes(MIB)] * 3)
    await engine.until(lambda: engine.ended == [request()])


async def test_who_comes_while_a_pack_is_given_up_begins_another(
    cache: PackCache, engine: ScriptedEngine, directory: Path
) -> None:
    """Not the error of one that nobody waits for."""
    (directory / "tmp").rmdir()
    engine.ends.clear()
    reader = await begun(cache, engine, 0)
    await reader.aclose()
    engine.hand(request(), bytes(MIB))
    await engine.until(lambda: engine.ended == [request()])
    late = asyncio.create_task(read_all(cache, request()))
    await engine.until(lambda: len(engine.began) == 2)
    engine.ends.set()
    engine.hand(request(), b"all of it", None)
    assert await late == b"all of it"


def room_of(free: list[int], *, reserve: int = 10 * MIB) -> Room:
    """Return the room on a disk that is as `free` says."""
    return Room(Path(), Reserve(reserve, None), look=lambda _: Space(100 * MIB, free[0]))


async def test_packs_that_are_kept_leave_the_reserve_alone(
    engine: ScriptedEngine, metrics: Metrics, directory: Path
) -> None:
    """They go before it is touched, and then a new one is not kept, but read all the same."""
    free = [50 * MIB]
    store = PackStore(directory, bytes_max=64 * MIB, memory_bytes_max=0, room=room_of(free))
    store.prepare()
    cache = cache_on(store, engine, metrics)
    packs = [os.urandom(2 * MIB) for _ in range(3)]
    for number in range(2):
        engine.hand(request(number), packs[number], None)
        await read_all(cache, request(number))
        await finished(cache)
    assert len(list(directory.glob("??/*"))) == 2
    free[0] = 9 * MIB
    engine.hand(request(2), packs[2][:MIB], packs[2][MIB:], None)
    assert await read_all(cache, request(2)) == packs[2]
    await finished(cache)
    assert not list(directory.glob("??/*"))
    assert not list((directory / "tmp").iterdir())
    await cache.close()


async def test_a_file_that_another_process_removed_gives_its_room_back(
    engine: ScriptedEngine, metrics: Metrics, directory: Path
) -> None:
    """A mapped file takes room until nobody maps it."""
    store = store_in(directory)
    cache = cache_on(store, engine, metrics)
    engine.hand(request(), os.urandom(2 * MIB), None)
    await read_all(cache, request())
    await finished(cache)
    (path,) = directory.glob("??/*")
    store.let_go()
    assert store.has(cache.key(REPOSITORY, request()))
    assert mapped(path)
    path.unlink()
    store.let_go()
    assert not store.has(cache.key(REPOSITORY, request()))
    gc.collect()
    assert not mapped(path)
    await cache.close()


def mapped(path: Path) -> bool:
    return os.fspath(path) in Path("/proc/self/maps").read_text(encoding="utf-8")


async def test_a_small_pack_is_served_from_memory_where_the_disk_takes_nothing(
    cache: PackCache, engine: ScriptedEngine, directory: Path
) -> None:
    (directory / "tmp").rmdir()
    engine.hand(request(), b"pack", None)
    assert await read_all(cache, request()) == b"pack"
    await finished(cache)
    assert await read_all(cache, request()) == b"pack"
    assert engine.began == [request()]


async def test_packs_that_are_kept_make_room_for_what_a_reader_waits_for(
    cache: PackCache,
    engine: ScriptedEngine,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk is full as long as there are files of packs."""
    for number in range(3):
        engine.hand(request(number), bytes(100), None)
        await read_all(cache, request(number))
        await finished(cache)
    write_all = PackSpool._write_all

    def on_a_full_disk(spool: PackSpool, file: IO[bytes], data: bytes) -> None:
        write_all(spool, cast("IO[bytes]", FullDisk(file, directory)), data)

    monkeypatch.setattr(PackSpool, "_write_all", on_a_full_disk)
    pack = os.urandom(3 * MIB)
    engine.hand(request(9), pack[:MIB], pack[MIB:], None)
    assert await read_all(cache, request(9)) == pack
    await finished(cache)
    assert [file.name for file in directory.glob("??/*")] == [cache.key(REPOSITORY, request(9))]


class FullDisk:
    """A file on a disk that has no room while there are packs that are kept."""

    def __init__(self, file: IO[bytes], directory: Path) -> None:
        self._file = file
        self._directory = directory

    def write(self, data: memoryview) -> int:
        if list(self._directory.glob("??/*")):
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data[: len(data) // 2 + 1])


async def test_a_spool_gives_back_its_file_even_where_the_disk_is_full() -> None:
    """What could not be written is tried once more when a file is closed."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    spool = PackSpool(full)
    await spool.append(b"x" * (MEMORY_BYTES_MAX + 1))
    assert spool.is_passing
    spool.close()
    assert os.fspath(full) not in open_files()


@pytest.mark.parametrize("side_band", SideBand)
def test_a_pack_is_framed_anew_for_readers_with_another_side_band(side_band: SideBand) -> None:
    pack = os.urandom(200_000)
    reframer = Reframer(side_band)
    framed = b"".join(
        bytes(reframer.feed(frame(pack)[start : start + 999])) for start in range(0, 201_000, 999)
    )
    if side_band is SideBand.NONE:
        assert framed == pack
    else:
        packets = list(decode_all(framed))
        assert all(isinstance(packet, bytes) for packet in packets)
        assert b"".join(cast("bytes", packet)[1:] for packet in packets) == pack
        assert max(len(cast("bytes", packet)) for packet in packets) <= side_band.value - 4
