"""A supervisor that waits for one worker only a moment, and for the others as ever."""

import asyncio

import pytest

from mirror.workers.managed import ManagedWorker
from mirror.workers.messages import Reply


def impatient_with(pid: int, monkeypatch: pytest.MonkeyPatch, *, seconds: float = 0.2) -> None:
    """Give up a process so soon: a busy machine keeps the others waiting for longer."""
    patiently = ManagedWorker.acknowledged

    async def acknowledged(
        self: ManagedWorker, answer: "asyncio.Future[Reply]", seconds_max: float
    ) -> None:
        await patiently(self, answer, seconds if self.process.pid == pid else seconds_max)

    monkeypatch.setattr(ManagedWorker, "acknowledged", acknowledged)
