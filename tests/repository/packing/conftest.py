"""The engines; each test of the contract runs with each."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing

import pytest

from mirror.repository.packing.auto_engine import AutoEngine
from mirror.repository.packing.dulwich_engine import DulwichEngine
from mirror.repository.packing.engine import PackEngine
from mirror.repository.packing.git_engine import GitEngine
from mirror.repository.packing.spawner import Spawner
from tests.engines import AUTO


@pytest.fixture(params=["git", "dulwich", AUTO])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[PackEngine]:
    async with AsyncExitStack() as stack:
        spawner = stack.enter_context(closing(Spawner()))
        in_process = stack.enter_context(closing(DulwichEngine()))
        if request.param == "dulwich":
            yield in_process
        elif request.param == "git":
            yield await GitEngine.find(spawner)
        else:
            yield AutoEngine(await GitEngine.find(spawner), in_process)
