"""The two engines; each test of the contract runs with both."""

from collections.abc import AsyncIterator

import pytest

from mirror.repository.packing.dulwich_engine import DulwichEngine
from mirror.repository.packing.engine import PackEngine
from mirror.repository.packing.git_engine import GitEngine
from mirror.repository.packing.spawner import Spawner


@pytest.fixture(params=["git", "dulwich"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[PackEngine]:
    if request.param == "dulwich":
        in_process = DulwichEngine()
        yield in_process
        in_process.close()
    else:
        spawner = Spawner()
        yield await GitEngine.find(spawner)
        spawner.close()
