"""A service that tells receivers, and what a test does with it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mirror.demo.forge import HttpBackend
from mirror.refresh.refresher import Trigger
from tests.git_client import Upstream
from tests.mirror_service import WAIT_SECONDS_MAX, MirrorService, mirroring
from tests.refresh.relay.receiving import relays


@asynccontextmanager
async def telling(
    forge: HttpBackend, directory: Path, *, workers: int = 1, **urls: str
) -> AsyncIterator[MirrorService]:
    """Run the service with the relays `urls`, as `relays` has them."""
    sections = relays(directory / "mirror", **urls)
    async with mirroring(
        forge, directory / "mirror", sections=sections, workers=workers
    ) as running:
        yield running


async def push(mirror: MirrorService, upstream: Upstream, **files: str) -> str:
    """Push a commit to main, and deliver its webhook."""
    after = upstream.commit(files=files or None)
    await mirror.announce(upstream)
    return after


async def refresh(mirror: MirrorService) -> None:
    """Poll the upstream."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        await asyncio.shield(mirror.hosted().refresher.request(Trigger.POLL))


async def status(mirror: MirrorService, relay: str) -> dict[str, Any]:
    found: dict[str, Any] = (await mirror.get("/status.json")).json["relays"][relay]
    return found


async def failed(mirror: MirrorService, relay: str, error: str = "") -> str:
    """Wait until the status shows an error of a receiver with these words in it, and return it."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while True:
            shown = (await status(mirror, relay))["last_error"]
            if shown is not None and error in shown:
                return str(shown)


async def all_told(mirror: MirrorService, relay: str) -> dict[str, Any]:
    """Wait until a receiver is to be told nothing more, and return its status."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while (shown := await status(mirror, relay))["pending"]:
            pass
    return shown
