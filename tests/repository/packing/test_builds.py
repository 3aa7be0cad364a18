"""Readers of one pack share its build, which lasts as long as one of them does."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import cast

import pytest

from mirror.errors import LocalError, MirrorError, Overloaded, PackError
from mirror.metrics import Metrics
from mirror.repository.bare import BareRepository, Quarantine
from mirror.repository.packing.builds import MEMORY_BYTES_MAX, READ_BYTES, PackBuilds, PackSpool
from mirror.repository.packing.engine import IndexProgress, PackEngine, PackRequest
from mirror.wire.names import ObjectId
from tests.repository.packing.processes import open_files, settle

IDLE = 30.0


class ScriptedEngine:
    """Builds what the test hands it, when the test does."""

    name = "scripted"
    version = "0"

    def __init__(self) -> None:
        self.began: list[PackRequest] = []
        self.ended: list[PackRequest] = []
        self._chunks: dict[PackRequest, asyncio.Queue[bytes | BaseException | None]] = {}

    def hand(self, request: PackRequest, *chunks: bytes | BaseException | None) -> None:
        """Give chunks, errors, and `None` for the end."""
        for chunk in chunks:
            self._queue(request).put_nowait(chunk)

    def _queue(self, request: PackRequest) -> "asyncio.Queue[bytes | BaseException | None]":
        return self._chunks.setdefault(request, asyncio.Queue())

    async def build_pack(
        self, repository: BareRepository, request: PackRequest
    ) -> AsyncGenerator[bytes, None]:
        self.began.append(request)
        try:
            while (chunk := await self._queue(request).get()) is not None:
                if isinstance(chunk, BaseException):
                    raise chunk
                yield chunk
        finally:
            self.ended.append(request)

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


class Place:
    """All that a build needs to know of a repository."""

    path = Path("/nowhere/mirror.git")


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
async def builds(
    engine: ScriptedEngine, metrics: Metrics, tmp_path: Path
) -> AsyncIterator[PackBuilds]:
    """Two builds at once and two more that wait."""
    _: PackEngine = engine
    running = PackBuilds(engine, directory=tmp_path, builds_max=2, queued_max=2, metrics=metrics)
    tasks = len(asyncio.all_tasks())
    yield running
    await running.close()
    assert not list(tmp_path.iterdir())
    assert len(asyncio.all_tasks()) == tasks
    assert f"{0.0}" in metric(metrics, "git_mirror_pack_builds_running")


def metric(metrics: Metrics, name: str) -> str:
    lines = metrics.exposition().decode().splitlines()
    return "\n".join(line for line in lines if line.startswith(name))


def read(builds: PackBuilds, asked: PackRequest) -> AsyncGenerator[bytes, None]:
    return builds.read(REPOSITORY, asked, idle_seconds=IDLE)


async def read_all(builds: PackBuilds, asked: PackRequest) -> bytes:
    return b"".join([piece async for piece in read(builds, asked)])


async def begun(
    builds: PackBuilds, engine: ScriptedEngine, number: int
) -> AsyncGenerator[bytes, None]:
    """Start a reader and return it after its first piece."""
    reader = read(builds, request(number))
    engine.hand(request(number), b"first")
    assert await anext(reader) == b"first"
    return reader


async def test_readers_of_the_same_request_share_one_build(
    builds: PackBuilds, engine: ScriptedEngine, metrics: Metrics
) -> None:
    """Also those that come when half of it is out: they get it from the beginning."""
    early = [asyncio.create_task(read_all(builds, request())) for _ in range(3)]
    await settle()
    engine.hand(request(), b"PACK", b"one")
    await settle()
    late = [asyncio.create_task(read_all(builds, request())) for _ in range(3)]
    await settle()
    engine.hand(request(), b"two", None)
    assert await asyncio.gather(*early, *late) == [b"PACKonetwo"] * 6
    assert engine.began == [request()]
    assert 'outcome="ok"' in metric(metrics, "git_mirror_pack_build_seconds_count")
    assert metric(metrics, "git_mirror_pack_bytes_total").endswith(" 10.0")


async def test_different_requests_have_builds_of_their_own(
    builds: PackBuilds, engine: ScriptedEngine
) -> None:
    for number in range(2):
        engine.hand(request(number), b"%d" % number, None)
    packs = await asyncio.gather(*(read_all(builds, request(number)) for number in range(2)))
    assert packs == [b"0", b"1"]
    assert set(engine.began) == {request(0), request(1)}


async def test_a_finished_pack_is_not_handed_to_who_comes_later(
    builds: PackBuilds, engine: ScriptedEngine
) -> None:
    for number in range(2):
        engine.hand(request(), b"build %d" % number, None)
        assert await read_all(builds, request()) == b"build %d" % number


async def test_a_reader_that_leaves_cancels_nothing(
    builds: PackBuilds, engine: ScriptedEngine
) -> None:
    leaving = await begun(builds, engine, 0)
    staying = asyncio.create_task(read_all(builds, request(0)))
    await settle()
    await leaving.aclose()
    assert engine.ended == []
    engine.hand(request(0), b"rest", None)
    assert await staying == b"firstrest"


async def test_the_last_reader_that_leaves_ends_the_build(
    builds: PackBuilds, engine: ScriptedEngine, metrics: Metrics
) -> None:
    readers = [await begun(builds, engine, 0)]
    readers.append(read(builds, request(0)))
    assert await anext(readers[1]) == b"first"
    for reader in readers:
        assert engine.ended == []
        await reader.aclose()
    await settle()
    assert engine.ended == [request(0)]
    assert 'outcome="abandoned"' in metric(metrics, "git_mirror_pack_build_seconds_count")
    again = await begun(builds, engine, 0)
    await again.aclose()
    assert len(engine.began) == 2


async def test_a_reader_that_is_cancelled_is_one_that_leaves(
    builds: PackBuilds, engine: ScriptedEngine
) -> None:
    tasks = [asyncio.create_task(read_all(builds, request())) for _ in range(2)]
    await settle()
    engine.hand(request(), b"PACK")
    await settle()
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    assert engine.ended == []
    tasks[1].cancel()
    await asyncio.wait(tasks)
    await settle()
    assert engine.ended == [request()]


@pytest.mark.parametrize("error", [PackError("no pack"), LocalError("no disk")])
async def test_a_build_that_fails_fails_for_all_its_readers(
    builds: PackBuilds, engine: ScriptedEngine, metrics: Metrics, error: MirrorError
) -> None:
    tasks = [asyncio.create_task(read_all(builds, request())) for _ in range(3)]
    await settle()
    engine.hand(request(), b"half", error)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results == [error] * 3
    assert f'outcome="{error.label}"' in metric(metrics, "git_mirror_pack_build_seconds_count")
    engine.hand(request(), b"whole", None)
    assert await read_all(builds, request()) == b"whole"


async def test_what_was_built_before_the_failure_is_read_first(
    builds: PackBuilds, engine: ScriptedEngine
) -> None:
    engine.hand(request(), b"half", PackError("no more"))
    reader = read(builds, request())
    assert await anext(reader) == b"half"
    with pytest.raises(PackError, match="no more"):
        await anext(reader)


async def test_a_mistake_of_ours_is_an_error_too_and_not_a_reader_that_waits_for_ever(
    builds: PackBuilds, engine: ScriptedEngine, metrics: Metrics
) -> None:
    engine.hand(request(), ZeroDivisionError())
    with pytest.raises(PackError, match="unexpected ZeroDivisionError"):
        await read_all(builds, request())
    assert 'outcome="internal"' in metric(metrics, "git_mirror_pack_build_seconds_count")


async def test_so_many_build_so_many_wait_and_more_are_refused(
    builds: PackBuilds, engine: ScriptedEngine
) -> None:
    tasks = [asyncio.create_task(read_all(builds, request(number))) for number in range(4)]
    await settle()
    assert len(engine.began) == 2
    with pytest.raises(Overloaded):
        await read_all(builds, request(4))
    # Who asks for what is being built already needs no place.
    tasks.append(asyncio.create_task(read_all(builds, request(3))))
    await settle()
    engine.hand(request(0), None)
    await settle()
    assert len(engine.began) == 3
    for number in range(1, 4):
        engine.hand(request(number), b"%d" % number, None)
    assert await asyncio.gather(*tasks) == [b"", b"1", b"2", b"3", b"3"]
    engine.hand(request(4), b"4", None)
    assert await read_all(builds, request(4)) == b"4"


async def test_a_reader_that_leaves_the_queue_makes_room_in_it(
    builds: PackBuilds, engine: ScriptedEngine
) -> None:
    tasks = [asyncio.create_task(read_all(builds, request(number))) for number in range(4)]
    await settle()
    tasks[3].cancel()
    await asyncio.wait(tasks[3:])
    await settle()
    assert request(3) not in engine.began
    tasks[3] = asyncio.create_task(read_all(builds, request(5)))
    await settle()
    for number in (0, 1, 2, 5):
        engine.hand(request(number), None)
    assert await asyncio.gather(*tasks) == [b""] * 4


async def test_a_slow_reader_does_not_hold_the_place_of_a_build(
    builds: PackBuilds, engine: ScriptedEngine
) -> None:
    """What it has not read yet waits in the spool."""
    slow = [await begun(builds, engine, number) for number in range(2)]
    for number in range(2):
        engine.hand(request(number), b"x" * MEMORY_BYTES_MAX, b"end", None)
    await settle()
    await settle()
    assert len(engine.ended) == 2
    engine.hand(request(7), b"quick", None)
    assert await read_all(builds, request(7)) == b"quick"
    for reader in slow:
        rest = b"".join([piece async for piece in reader])
        assert rest == b"x" * MEMORY_BYTES_MAX + b"end"


async def test_a_large_pack_goes_to_a_file_without_a_name(
    builds: PackBuilds, engine: ScriptedEngine, tmp_path: Path
) -> None:
    chunks = [bytes([number]) * 300_000 for number in range(10)]
    before = len(open_files())
    reader = read(builds, request())
    engine.hand(request(), chunks[0])
    pieces = [await anext(reader)]
    assert len(open_files()) == before
    engine.hand(request(), *chunks[1:], None)
    pieces.append(await anext(reader))
    await settle()
    spools = [name for name in open_files() if name.startswith(os.fspath(tmp_path))]
    assert len(spools) == 1
    assert list(tmp_path.iterdir()) == []
    pieces += [piece async for piece in reader]
    assert b"".join(pieces) == b"".join(chunks)
    assert max(map(len, pieces)) <= READ_BYTES
    assert len(open_files()) == before


async def test_a_reader_is_shown_a_sign_of_life_while_nothing_comes(
    builds: PackBuilds, engine: ScriptedEngine
) -> None:
    async with aclosing(builds.read(REPOSITORY, request(), idle_seconds=0.0)) as reader:
        assert [await anext(reader) for _ in range(3)] == [b""] * 3
        engine.hand(request(), b"PACK", None)
        pieces = [piece async for piece in reader]
    assert b"".join(pieces) == b"PACK"


async def test_closing_ends_what_runs_and_what_waits_and_tells_the_readers(
    builds: PackBuilds, engine: ScriptedEngine
) -> None:
    tasks = [asyncio.create_task(read_all(builds, request(number))) for number in range(4)]
    await settle()
    just_come = asyncio.create_task(read_all(builds, request(0)))
    await builds.close()
    results = await asyncio.gather(*tasks, just_come, return_exceptions=True)
    assert all(isinstance(result, PackError) for result in results)
    assert len(engine.ended) == len(engine.began) == 2


async def test_a_build_that_is_ended_before_it_began_tells_its_reader(
    builds: PackBuilds, engine: ScriptedEngine
) -> None:
    reader = asyncio.create_task(read_all(builds, request()))
    await asyncio.sleep(0)
    await builds.close()
    with pytest.raises(PackError, match="stopping"):
        await reader
    assert engine.began == []


async def test_a_disk_that_is_full_ends_the_build(
    builds: PackBuilds, engine: ScriptedEngine, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    reader = asyncio.create_task(read_all(builds, request()))
    await settle()
    engine.hand(request(), b"x" * 10)
    await settle()
    tmp_path.rmdir()
    engine.hand(request(), b"x" * MEMORY_BYTES_MAX)
    with pytest.raises(LocalError, match="can't spool a pack"):
        await reader
    tmp_path.mkdir()
    await settle()
    assert engine.ended == [request()]


def test_a_spool_gives_back_its_file_even_where_the_disk_is_full() -> None:
    """What could not be written is tried once more when a file is closed."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")

    async def story() -> None:
        spool = PackSpool(Path("/tmp"))  # noqa: S108 - never written to
        spool._file = full.open("r+b")  # noqa: ASYNC230 - a device
        with pytest.raises(LocalError, match="No space left"):
            spool.append(b"x" * 100)
        before = len(open_files())
        spool.close()
        assert len(open_files()) == before - 1

    asyncio.run(story())
