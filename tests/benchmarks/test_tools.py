"""What happens where a program is not installed."""

import subprocess
from typing import Any

import pytest

from benchmarks import tools


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A machine without wrk and fcgiwrap; returns what is run on it."""
    ran: list[list[str]] = []

    def run(arguments: list[str], **_: Any) -> None:
        ran.append(arguments)

    lacking = {"wrk", "fcgiwrap"}
    monkeypatch.setattr(tools, "path_of", lambda each: None if each in lacking else f"/bin/{each}")
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/apt-get")
    tools._install.cache_clear()
    return ran


def test_a_user_is_told_which_packages_to_install(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert tools.missing(("nginx", "fcgiwrap", "wrk")) == ("run: sudo apt-get install fcgiwrap wrk")
    assert commands == []


def test_root_gets_only_what_is_missing_installed_and_only_once(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    for _ in range(2):
        # It still is not there: the row is to be skipped with the same advice.
        assert tools.missing(("nginx", "wrk")) == "run: sudo apt-get install wrk"
    assert [arguments[1] for arguments in commands] == ["update", "install"]
    assert commands[1][-1] == "wrk"
    assert "nginx-light" not in commands[1]


def test_nothing_is_done_where_all_is_there(commands: list[list[str]]) -> None:
    assert tools.missing(("git", "nginx")) == ""
    assert commands == []
