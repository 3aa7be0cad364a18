import os
from pathlib import Path

import pytest

from mirror.doctor.data import data_version, examine_data, left_over, who_may
from mirror.doctor.finding import Verdict
from mirror.layout import LAYOUT_VERSION
from mirror.places import DataDirectory
from mirror.repository.bare import BareRepository

URL = "https://forge.example/acme/app.git"


@pytest.fixture
def places(tmp_path: Path) -> DataDirectory:
    found = DataDirectory(tmp_path / "data")
    with found.held():
        for name in ("acme/app", "acme/old"):
            BareRepository.create(found.repository(name), upstream_url=URL).close()
    return found


def test_what_the_service_makes_is_as_it_should_be(places: DataDirectory) -> None:
    findings = list(examine_data(places.root, lambda _: True))
    assert [one.verdict for one in findings] == [Verdict.OK] * 3, findings
    assert findings[0].figure == str(LAYOUT_VERSION)


def test_a_directory_that_is_not_there_is_no_finding(tmp_path: Path) -> None:
    assert list(examine_data(tmp_path / "not-yet", lambda _: True)) == []


@pytest.mark.parametrize(
    ("content", "verdict", "said", "advice"),
    [
        (b"git-mirror data 7\n", Verdict.PROBLEM, "version 7", "upgrade git-mirror"),
        (b"what?\n", Verdict.PROBLEM, "is damaged", "restore it from a backup"),
        (None, Verdict.NOTE, "0, and", "the next start"),
    ],
)
def test_the_version_is_told(
    places: DataDirectory, content: bytes | None, verdict: Verdict, said: str, advice: str
) -> None:
    if content is None:
        (places.root / "version").unlink()
    else:
        (places.root / "version").write_bytes(content)
    found = data_version(places.root)
    assert (found.verdict, found.subject) == (verdict, "data directory")
    assert said in found.figure
    assert advice in found.advice


def test_mirrors_that_nobody_configures_any_more_are_named(places: DataDirectory) -> None:
    found = left_over(places, lambda name: name == "acme/app")
    assert found.verdict is Verdict.NOTE
    assert found.figure == "mirrors that are not configured: acme/old"
    assert "remove" in found.advice
    (places.set_aside / "acme%2Fapp.123.git").mkdir()
    found = left_over(places, lambda _: True)
    assert found.figure == "set aside: acme%2Fapp.123.git"
    assert found.data["set_aside"] == 1


@pytest.mark.parametrize(
    ("name", "mode", "verdict", "said"),
    [
        (".", 0o755, Verdict.WARNING, "others may read: ."),
        (".", 0o777, Verdict.PROBLEM, "everybody may write: ."),
        ("tokens.json", 0o640, Verdict.WARNING, "others may read: tokens.json"),
        ("repositories/acme/app.git/packed-refs", 0o666, Verdict.PROBLEM, "app.git/packed-refs"),
        ("repositories/acme/app.git/objects/pack", 0o757, Verdict.PROBLEM, "objects/pack"),
    ],
)
def test_who_may_read_and_write_it_is_looked_at(
    places: DataDirectory, name: str, mode: int, verdict: Verdict, said: str
) -> None:
    path = places.root / name
    if not path.exists():
        path.touch()
    path.chmod(mode)
    found = who_may(places)
    assert found.verdict is verdict
    assert said in found.figure
    assert found.advice


def test_a_link_is_a_problem(places: DataDirectory, tmp_path: Path) -> None:
    (places.repository("acme/app") / "objects" / "info" / "x").touch()
    (places.root / "elsewhere").symlink_to(tmp_path)
    found = who_may(places)
    assert found.verdict is Verdict.PROBLEM
    assert "links, which git-mirror never makes: elsewhere" in found.figure


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_belongs_to_another_is_a_problem(places: DataDirectory) -> None:
    os.chown(places.repository("acme/app") / "config", 12345, -1)
    found = who_may(places)
    assert found.verdict is Verdict.PROBLEM
    assert "of another owner: repositories/acme/app.git/config" in found.figure
