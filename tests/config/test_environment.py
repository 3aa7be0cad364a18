from pathlib import Path

import pytest

from mirror.config import Environment, environment


def test_the_configuration_file_is_named_by_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GIT_MIRROR_CONFIG", "here/mirror.yaml")
    assert environment() == Environment(config_path=Path("here/mirror.yaml"))


def test_without_a_name_the_configuration_file_is_the_one_in_etc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GIT_MIRROR_CONFIG", raising=False)
    assert environment().config_path == Path("/etc/git-mirror/mirror.yaml")
    monkeypatch.setenv("GIT_MIRROR_CONFIG", "")
    assert environment().config_path == Path("/etc/git-mirror/mirror.yaml")
