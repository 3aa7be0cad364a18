import os
from pathlib import Path

import pytest

from mirror.doctor import host
from mirror.doctor.finding import Verdict
from mirror.doctor.host import FILES_FIXED, examine_host, file_limit, free_space, sync_latency
from mirror.space import Reserve, Space


def test_writes_to_the_disk_are_timed_and_leave_nothing_behind(tmp_path: Path) -> None:
    found = sync_latency(tmp_path)
    assert 0 < float(found.data["p50_ms"] or 0) <= float(found.data["p99_ms"] or 0)
    assert 0 < int(found.data["count"] or 0) <= 200
    assert list(tmp_path.iterdir()) == []


def test_a_data_directory_that_is_not_there_yet_is_looked_at_where_it_will_be(
    tmp_path: Path,
) -> None:
    place = tmp_path / "not" / "yet"
    findings = list(examine_host(place, reserve=Reserve(0, None), repositories=1, pid=None))
    assert [one.verdict for one in findings].count(Verdict.PROBLEM) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_can_not_be_written_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    found = sync_latency(tmp_path)
    assert found.verdict is Verdict.PROBLEM
    assert "No space left on device" in found.figure


@pytest.mark.parametrize(
    ("free", "verdict"),
    [(6 << 30, Verdict.OK), (2 << 30, Verdict.WARNING), (1 << 20, Verdict.PROBLEM)],
)
def test_a_disk_that_fills_up_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: Verdict
) -> None:
    monkeypatch.setattr(host, "look_at", lambda _: Space(100 << 30, free))
    found = free_space(tmp_path, Reserve())
    assert found.verdict is verdict
    assert "1.0 GiB kept free" in found.figure


def test_a_disk_that_is_read_only_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "look_at", lambda _: Space(100 << 30, 50 << 30, is_read_only=True))
    found = free_space(tmp_path, Reserve())
    assert found.verdict is Verdict.PROBLEM
    assert "read-only" in found.advice


def test_the_file_limit_is_that_of_the_running_service() -> None:
    found = file_limit(repositories=1, pid=os.getpid())
    assert found.check == "open files"
    assert int(found.data["used"] or 0) > 2
    many = file_limit(repositories=10**9, pid=os.getpid())
    assert many.verdict is (Verdict.OK if many.data["limit"] is None else Verdict.WARNING)
    assert many.data["needed"] == FILES_FIXED + 100 * 10**9
    assert "no service runs" in file_limit(repositories=1, pid=None).check
