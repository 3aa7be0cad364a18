"""Tells the service manager that all is well, as long as it is: READY, STATUS and WATCHDOG.

The watchdog is told only after a request of our own was answered, in every process: not by a timer
of its own, which would go on while nothing else does.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

from mirror.errors import MirrorError
from mirror.notify import Manager

STATUS_SECONDS: Final = 10.0
"""How often the status line is looked at where no watchdog sets the pace."""

CANARY_SECONDS_MAX: Final = 10.0
"""An answer to our own request takes a millisecond; not longer than half a watchdog's interval."""

TRY_AGAIN_SECONDS: Final = 1.0
"""After one that was not answered."""

START_EXTENSION_SECONDS: Final = 30.0
"""Opening thousands of mirrors takes longer than a unit's TimeoutStartSec, perhaps."""

Canary = Callable[[float], Awaitable[None]]
"""Puts a request to ourselves; raises a `MirrorError` if it is not answered in so many seconds."""

logger = structlog.stdlib.get_logger()


async def keep_told(manager: Manager, canary: Canary, status: Callable[[], str]) -> None:
    """Tell `manager` how things are, until cancelled.

    Args:
        manager: The service manager.
        canary: Whether all is well.
        status: Returns a line for people.
    """
    told = ""
    pause = manager.ping_seconds or STATUS_SECONDS
    while manager.address is not None:
        seconds = pause
        if manager.ping_seconds is not None:
            try:
                await canary(min(CANARY_SECONDS_MAX, manager.ping_seconds))
            except MirrorError as error:
                logger.error("canary_not_answered", error=str(error))  # noqa: TRY400
                seconds = min(pause, TRY_AGAIN_SECONDS)
            else:
                manager.alive()
        if (line := status()) != told:
            manager.status(line)
            told = line
        await asyncio.sleep(seconds)


@asynccontextmanager
async def keeping_told(
    manager: Manager, canary: Canary, status: Callable[[], str]
) -> AsyncIterator[None]:
    """`keep_told` meanwhile."""
    telling = asyncio.create_task(keep_told(manager, canary, status), name="watchdog")
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.wait((telling,))


@asynccontextmanager
async def starting(manager: Manager) -> AsyncIterator[None]:
    """Ask for more time for as long as a start takes."""

    async def extend() -> None:
        while True:
            manager.extend(START_EXTENSION_SECONDS)
            await asyncio.sleep(START_EXTENSION_SECONDS / 3)

    extending = asyncio.create_task(extend(), name="extend the start")
    try:
        yield
    finally:
        extending.cancel()
        await asyncio.wait((extending,))
