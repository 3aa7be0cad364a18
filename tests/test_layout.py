"""The version of the data directory: made, brought up to date, or refused with advice."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirror.durable import fsync_directory
from mirror.errors import LocalError
from mirror.layout import LAYOUT_VERSION, MIGRATIONS, LayoutRefused, bring_up_to_date, check_version
from mirror.places import SET_ASIDE_MAX, DataDirectory


class Crash(BaseException):
    """The machine stops here."""


def old(root: Path) -> DataDirectory:
    """Make a directory as it was before versions."""
    (root / "repositories" / "acme" / "app.git").mkdir(parents=True)
    return DataDirectory(root)


def test_there_is_a_step_from_each_version_to_the_next() -> None:
    assert sorted(MIGRATIONS) == list(range(LAYOUT_VERSION))


def test_a_new_directory_is_of_todays_version(tmp_path: Path) -> None:
    places = DataDirectory(tmp_path / "deep" / "data")
    assert check_version(places.root) is None
    for _ in range(2):
        with places.held():
            assert (places.root / "version").read_bytes() == b"git-mirror data 1\n"
            assert check_version(places.root) == LAYOUT_VERSION


def test_a_directory_from_before_versions_is_brought_up_to_date(tmp_path: Path) -> None:
    places = old(tmp_path / "data")
    assert check_version(places.root) == 0
    with places.held():
        assert check_version(places.root) == LAYOUT_VERSION
        assert places.repository("acme/app").is_dir()


def test_a_newer_version_is_refused_with_advice_and_nothing_is_touched(tmp_path: Path) -> None:
    places = old(tmp_path / "data")
    (places.root / "version").write_bytes(b"git-mirror data 7\n")
    left = places.root / "staging" / "a.git"
    left.mkdir(parents=True)
    said = r"of data version 7, and this git-mirror knows 1 .*: upgrade git-mirror, or restore"
    with pytest.raises(LayoutRefused, match=said), places.held():
        pass
    assert left.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1\n",
        b"git-mirror data 1",
        b"git-mirror data 0\n",
        b"git-mirror data 1\n\0",
        bytes(99),
    ],
)
def test_a_damaged_version_is_refused_with_advice(tmp_path: Path, content: bytes) -> None:
    places = old(tmp_path / "data")
    (places.root / "version").write_bytes(content)
    with pytest.raises(LayoutRefused, match=r"is damaged: .* restore it .* move .* away"):
        check_version(places.root)


def test_a_version_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "version").mkdir()
    with pytest.raises(LocalError, match="can't read"):
        check_version(tmp_path)


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_migration_that_is_cut_off_anywhere_is_done_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Each of three steps has part of its work done already when it is done again."""

    def stepping(number: int) -> Callable[[Path], None]:
        def migrate(root: Path) -> None:
            (root / f"old-{number}").unlink(missing_ok=True)
            fsync_directory(root)
            (root / f"new-{number}").write_bytes(b"")

        return migrate

    migrations = {number: stepping(number) for number in range(3)}
    real: Callable[..., object] = os.fsync if step == "fsync" else Path.rename
    cuts = 0
    for at in range(20):
        root = old(tmp_path / f"data-{at}").root
        for number in range(3):
            (root / f"old-{number}").touch()
        calls = iter(range(100))

        def crashing(*arguments: object, at: int = at, calls: Iterator[int] = calls) -> object:
            if next(calls) == at:
                raise Crash
            return real(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(os if step == "fsync" else Path, step, crashing)
            try:
                bring_up_to_date(root, migrations)
            except Crash:
                cuts += 1
        bring_up_to_date(root, migrations)
        assert sorted(path.name for path in root.iterdir()) == [
            "new-0", "new-1", "new-2", "repositories", "version",
        ]  # fmt: skip
        assert (root / "version").read_bytes() == b"git-mirror data 3\n"
    assert cuts == (9 if step == "fsync" else 3)


def test_only_the_last_few_that_were_set_aside_are_kept(tmp_path: Path) -> None:
    places = DataDirectory(tmp_path)
    with places.held():
        for number in range(SET_ASIDE_MAX + 3):
            (places.set_aside / f"{number}.git" / "objects").mkdir(parents=True)
            os.utime(places.set_aside / f"{number}.git")
    (places.set_aside / "relays.db.1").touch()
    with places.held():
        left = sorted(path.name for path in places.set_aside.iterdir())
    assert left == ["4.git", "5.git", "6.git", "7.git", "relays.db.1"]


def test_what_a_killed_token_command_left_is_cleared(tmp_path: Path) -> None:
    places = DataDirectory(tmp_path)
    with places.held():
        (tmp_path / "tokens.json.new").touch()
    with places.held():
        assert not (tmp_path / "tokens.json.new").exists()
