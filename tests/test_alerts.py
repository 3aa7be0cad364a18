"""The alerts that docs/operations.md names are about metrics that there are."""

import re
from pathlib import Path

import aiohttp

from mirror.demo.forge import HttpBackend
from tests.git_client import Upstream
from tests.mirror_service import mirroring

GUIDE = Path(__file__).parents[1] / "docs" / "operations.md"


async def test_every_metric_of_an_alert_is_one_of_the_service(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    alerts = GUIDE.read_text().split("### Alerts")[1].split("\n## ")[0]
    named = set(re.findall(r"\bgit_mirror_[a-z_]+\b", alerts))
    assert len(named) > 10
    async with (
        mirroring(forge, tmp_path, names=[upstream.name]) as mirror,
        aiohttp.ClientSession() as session,
        session.get(f"{mirror.service.url}/metrics") as response,
    ):
        known = set(re.findall(r"^# TYPE (\S+)", await response.text(), re.MULTILINE))
    assert {name for name in named if name not in known} == set()
