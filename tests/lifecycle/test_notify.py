"""What is said to a service manager."""

import time
from pathlib import Path

import pytest

from mirror.notify import NOBODY, Manager
from tests.lifecycle.manager import fake_manager


@pytest.mark.parametrize("abstract", [True, False])
def test_it_is_told_at_its_path_or_abstract_name(abstract: bool, tmp_path: Path) -> None:
    with fake_manager("" if abstract else str(tmp_path / "notify")) as manager:
        Manager(manager.address).ready("serving\n2 repositories")
        manager.take()
    assert manager.heard == [{"READY": "1", "STATUS": "serving 2 repositories"}]


def test_a_reload_says_when_it_began_on_the_monotonic_clock() -> None:
    with fake_manager() as manager:
        before = time.monotonic_ns() // 1000
        Manager(manager.address).reloading("reading the configuration")
        manager.take()
    (heard,) = manager.heard
    assert heard["RELOADING"] == "1"
    assert before <= int(heard["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000


def test_a_manager_that_is_gone_or_was_never_there_is_no_reason_to_fail(tmp_path: Path) -> None:
    NOBODY.ready("serving")
    Manager(str(tmp_path / "gone")).alive()


def test_half_of_the_watchdogs_time_is_used() -> None:
    assert Manager("@x", watchdog_seconds=30.0).ping_seconds == 15.0
    assert NOBODY.ping_seconds is None
