"""Failures that are over soon."""

import pytest

from mirror.refresh.relay import outbox


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the pauses after failures be short: how long they are is tested with the outbox."""
    monkeypatch.setattr(outbox, "PASSING_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(outbox, "LASTING_SECONDS", (0.01, 0.02))
