"""A receiver for each test."""

from collections.abc import AsyncIterator

import pytest

from mirror.refresh.relay import outbox
from tests.refresh.relay.receiving import Receiver, receiving


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the pauses after failures be short: how long they are is tested with the outbox."""
    monkeypatch.setattr(outbox, "PASSING_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(outbox, "LASTING_SECONDS", (0.01, 0.02))
