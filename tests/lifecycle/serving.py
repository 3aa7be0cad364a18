"""`git-mirror serve` as a service manager runs it, and what it says there."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from tests.e2e.day.process import MirrorProcess
from tests.lifecycle.manager import FakeManager

T = TypeVar("T")

RUN_SECONDS_MAX: Final = 150.0
"""More than an upgrade may take: then its own message says why it did not come to an end."""


async def run(*command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return await asyncio.to_thread(
        subprocess.run,
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_SECONDS_MAX,
    )


def beside(stack: AsyncExitStack, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Begin what goes on beside; where the test fails, it is given up with the rest of `stack`."""
    task = asyncio.create_task(work)

    async def give_up() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(give_up)
    return task


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
