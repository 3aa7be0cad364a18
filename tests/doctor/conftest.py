"""The doctor on a machine that others use, too."""

import math
from dataclasses import replace

import pytest

from mirror.doctor import git, host


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no time for a problem: how long the disk or a poll takes here is not the doctor's."""
    monkeypatch.setattr(git, "_MIRROR", replace(git._MIRROR, problem_ms=math.inf))
    monkeypatch.setattr(host, "SYNC_PROBLEM_MS", math.inf)
