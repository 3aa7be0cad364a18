"""The systemd units: correct, and as tight as promised."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mirror.config import ServerSettings

UNITS = Path(__file__).parents[2] / "systemd"
EXPOSURE_MAX = 1.5

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is not here: it comes with Debian's package systemd",
)


def test_the_units_are_correct(tmp_path: Path) -> None:
    for unit in UNITS.iterdir():
        # The program is installed elsewhere here: any that can be run will do.
        text = unit.read_text().replace("/opt/git-mirror/bin/git-mirror", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    units = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said = [line for line in done.stderr.splitlines() if "git-mirror" in line]
    assert (done.returncode, said) == (0, [])


def test_the_service_is_exposed_as_little_as_promised() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(UNITS / "git-mirror.service")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout
    assert float(found[1]) <= EXPOSURE_MAX, done.stdout


def test_the_stop_is_given_more_time_than_the_drain_takes_by_default() -> None:
    text = (UNITS / "git-mirror.service").read_text()
    found = re.search(r"^TimeoutStopSec=(\d+)s$", text, re.MULTILINE)
    assert found is not None
    assert int(found[1]) >= ServerSettings().drain_timeout_seconds + 20
