"""Our server with each engine, and how many cases to compare."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mirror.config import EngineChoice
from tests.differential.servers import Ours, our_server


@pytest.fixture
async def ours(tmp_path: Path) -> AsyncIterator[list[Ours]]:
    """Our server with each engine, and nothing in its cache."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(our_server(choice, tmp_path / choice.value))
            for choice in EngineChoice
        ]
