"""`git-mirror serve` as a service manager runs it, and what it says there."""

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.e2e.day.process import MirrorProcess
from tests.lifecycle.manager import FakeManager


def free_port() -> int:
    """Return a port of this machine that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def run(*command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, timeout=60
    )


@asynccontextmanager
async def managed(file: Path, manager: FakeManager, **more: str) -> AsyncIterator[MirrorProcess]:
    """Run the service with `file`, and wait until it is ready."""
    process = MirrorProcess(file, "", environment={**manager.environment, **more})
    try:
        await process.start()
        await manager.until(lambda said: said.get("READY") == "1")
        yield process
    finally:
        await process.close()


async def mirrored(process: MirrorProcess) -> None:
    """Wait until the service has looked at its upstream since it was started."""
    await process.logged(0, lambda event: event["event"] == "published")
