"""Children of a process that was killed alone: the next start does not work beside them."""

import os
import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mirror import orphans
from mirror.errors import LocalError
from mirror.orphans import OrphansLeft
from mirror.places import DataDirectory


def left_running(places: DataDirectory, *command: str) -> "subprocess.Popen[bytes]":
    """Start a child as the spawner does, and leave without ending it."""
    with places.held() as hold:
        assert hold.children is not None
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[hold.children]
        )


def test_a_git_that_was_left_running_is_ended_by_the_next_start(tmp_path: Path) -> None:
    places = DataDirectory(tmp_path / "data")
    with left_running(places, "git", "hash-object", "--stdin") as child:
        with capture_logs() as logs, places.held() as hold:
            assert child.wait(60) == -9
            assert hold.children is not None
        assert [(log["event"], log["pid"]) for log in logs] == [("orphan_ended", child.pid)]
        with capture_logs() as logs, places.held():
            assert logs == []


def test_what_is_not_git_is_named_and_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "END_SECONDS_MAX", 0.0)
    places = DataDirectory(tmp_path / "data")
    with left_running(places, "cat") as child:
        for _ in range(2):
            said = rf"cat \({child.pid}\).*end it, and start"
            with pytest.raises(OrphansLeft, match=said), places.held():
                pass
        assert child.poll() is None
        child.communicate()
        with places.held():
            pass


def test_a_process_that_takes_over_leaves_the_children_of_the_one_before(tmp_path: Path) -> None:
    places = DataDirectory(tmp_path / "data")
    with left_running(places, "git", "hash-object", "--stdin") as child:
        with (tmp_path / "data" / "lock").open("ab") as lock:
            inherited = os.dup(lock.fileno())
            with pytest.raises(LocalError, match="another"), places.held(inherited=0):
                pass
            with places.held(inherited=inherited) as hold:
                assert hold.children is not None
                assert child.poll() is None
        child.communicate()
