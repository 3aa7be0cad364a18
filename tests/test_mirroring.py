"""The refreshers are looked after: none of them ends unseen."""

import asyncio
from pathlib import Path

import pytest

from mirror.config import load
from mirror.demo.forge import HttpBackend
from mirror.refresh.refresher import Refresher
from mirror.service import Service
from tests.git_client import Upstream
from tests.mirror_service import WAIT_SECONDS_MAX, configuration


async def test_a_refresher_that_breaks_ends_the_service_with_what_broke_it(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: Refresher) -> float | None:
        raise ZeroDivisionError

    monkeypatch.setattr(Refresher, "_refresh_once", broken)
    async with Service(load(configuration(forge, tmp_path, names=[upstream.name]))) as service:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            with pytest.raises(ZeroDivisionError):
                await service.wait()
