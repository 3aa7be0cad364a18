"""A service of each test's own, in front of the forge, spoken to over plain HTTP."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from mirror.config import EngineChoice
from mirror.demo.forge import HttpBackend
from mirror.repository.bare import BareRepository
from mirror.repository.packing.dulwich_engine import DulwichEngine
from mirror.repository.packing.engine import PackEngine, PackRequest
from tests.git_client import Upstream
from tests.mirror_service import MirrorService, mirroring

StartMirror = Callable[..., Awaitable[MirrorService]]


@pytest.fixture(params=[True, False], ids=["fast-lane", "no-fast-lane"])
def fast_lane(request: pytest.FixtureRequest) -> bool:
    """Whether `mirror` has a fast lane: nothing else may depend on it."""
    return bool(request.param)


@pytest.fixture
async def mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, fast_lane: bool
) -> AsyncIterator[MirrorService]:
    """The service, with the upstream mirrored."""
    names = [upstream.name]
    async with mirroring(forge, tmp_path / "mirror", names=names, fast_lane=fast_lane) as running:
        yield running


class SteppedEngine(DulwichEngine):
    """Makes packs in steps, each when the test says so.

    Attributes:
        begin: Let the first bytes out.
        finish: Let the rest out.
        failure: What goes wrong after the first bytes, or before them where `fails_at_once`.
        filling: How many bytes to add at the end, for a pack that is long if nothing else.
        builds: How many packs were begun.
        begun: Set when a build has begun.
        ended: Set when one has ended, however.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begin = asyncio.Event()
        self.finish = asyncio.Event()
        self.failure: Exception | None = None
        self.fails_at_once = False
        self.filling = 0
        self.builds = 0
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def build_small(self, repository: BareRepository, request: PackRequest) -> bytes | None:
        return None

    async def build_pack(
        self, repository: BareRepository, request: PackRequest
    ) -> AsyncGenerator[bytes, None]:
        self.builds += 1
        self.begun.set()
        try:
            await self.begin.wait()
            if self.failure and self.fails_at_once:
                raise self.failure
            async with aclosing(super().build_pack(repository, request)) as chunks:
                async for chunk in chunks:
                    yield chunk[:12]
                    await self.finish.wait()
                    if self.failure:
                        raise self.failure
                    yield chunk[12:]
            yield bytes(self.filling)
        finally:
            self.ended.set()


@pytest.fixture
async def stepped(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SteppedEngine]:
    """The engine of a `mirror` that is asked for after this fixture."""
    engine = SteppedEngine()

    @asynccontextmanager
    async def open_engine(_: EngineChoice, **__: object) -> AsyncIterator[PackEngine]:
        yield engine

    monkeypatch.setattr("mirror.service.open_engine", open_engine)
    yield engine
    engine.close()
