"""Mirrors of real upstreams, with each engine."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from mirror.config import EngineChoice
from mirror.demo.forge import HttpBackend
from mirror.repository.packing.engine import PackEngine
from mirror.stores import open_engine
from mirror.upstream.connect import open_session
from tests.engines import AUTO
from tests.git_client import Upstream
from tests.refresh.bench import Bench


@pytest.fixture(params=["git", "dulwich", AUTO])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[PackEngine]:
    async with open_engine(EngineChoice(request.param)) as opened:
        yield opened


MakeBench = Callable[..., Bench]


@pytest.fixture
async def make_bench(forge: HttpBackend, tmp_path: Path) -> AsyncIterator[MakeBench]:
    """Make benches: by default with the git engine, which is the quicker one in tests."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(open_session())
        git = await stack.enter_async_context(open_engine(EngineChoice.GIT))

        def make(upstream: Upstream, *, engine: PackEngine | None = None, **settings: Any) -> Bench:
            data = tmp_path / "data"
            bench = Bench(forge, upstream, session, engine or git, data, **settings)
            stack.callback(bench.close)
            return bench

        yield make


@pytest.fixture
def rich(upstream: Upstream) -> Upstream:
    """An upstream with two branches and a tag."""
    upstream.history(5, "develop")
    upstream.tag("v1")
    return upstream
