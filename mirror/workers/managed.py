"""One worker as the main process sees it: its process, its channel, and what it acknowledges."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from mirror.workers.figures import Family, load
from mirror.workers.frames import ChannelError
from mirror.workers.link import Link
from mirror.workers.messages import CountsWanted, Reply
from mirror.workers.process import WorkerProcess

COUNTS_SECONDS_MAX: Final = 1.0
"""A worker that is slower is shown as it was when last asked."""

END_SECONDS_MAX: Final = 2.0
"""A worker without a channel ends by itself within that; who needs it dead sooner kills it."""

logger = structlog.stdlib.get_logger()


@dataclass(slots=True)
class ManagedWorker:
    """A worker's process and its channel.

    Attributes:
        is_serving: From the moment it is told to listen.
        is_listening: Once it does.
    """

    number: int
    process: WorkerProcess
    link: Link
    is_serving: bool = False
    is_listening: bool = False
    counts: list[Family] = field(default_factory=list)

    async def acknowledged(self, answer: "asyncio.Future[Reply]", seconds_max: float) -> None:
        """Wait until it has acknowledged, or is dead."""
        try:
            async with asyncio.timeout(seconds_max):
                await answer
        except TimeoutError:
            # Without a traceback: it would be that of our own wait.
            logger.error(  # noqa: TRY400
                "worker_does_not_answer", worker=self.number, seconds=seconds_max
            )
            await self.process.end()
        except ChannelError:
            await self.process.end()

    async def count(self) -> None:
        """Ask it for its own metrics."""
        try:
            async with asyncio.timeout(COUNTS_SECONDS_MAX):
                self.counts = load((await self.link.ask(CountsWanted())).text)
        except (TimeoutError, ChannelError):
            logger.warning("worker_not_counted", worker=self.number)

    async def ends_by_itself(self) -> None:
        """Give it the time to kill its children, once it is without a channel."""
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS_MAX):
                await self.process.ended.wait()


def text_of(answer: "asyncio.Future[Reply]") -> str:
    """Return what an answer says; nothing where there is none."""
    if not answer.done() or answer.cancelled() or answer.exception() is not None:
        return ""
    return answer.result().text
