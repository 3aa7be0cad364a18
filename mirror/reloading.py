"""Reloads that somebody asks for, done by the one process whose the configuration is.

While one process takes over from another it is not clear yet which of the two that will be: who
asks then, waits. The old one, once it has handed over, passes a signal on; a command is told to ask
again, and finds the new one. So what was written before it was asked for always counts afterwards,
by whichever of them.
"""

import asyncio
from typing import Final

import structlog

from mirror.errors import HandedOver, LocalError
from mirror.reload.reloader import Reloaded, Reloader
from mirror.upgrading import Upgrading
from mirror.work import Work

UNCLEAR_SECONDS_MAX: Final = 180.0
"""A new process gets 60 seconds to be prepared and 60 to take over; some more for what rests."""

logger = structlog.stdlib.get_logger()


class Reloading:
    """Has the configuration read again where that is to be done."""

    def __init__(self, reloader: Reloader, upgrading: Upgrading, work: Work) -> None:
        self._reloader = reloader
        self._upgrading = upgrading
        self._work = work
        self._asked: asyncio.Task[None] | None = None

    async def reload(self) -> Reloaded:
        """Read the file after now; returns what came of it.

        Raises:
            HandedOver: It is another process's.
            LocalError: It does not become clear whose it is.
        """
        if not await self._is_ours():
            raise HandedOver("another process serves now: ask that one")
        return await asyncio.shield(self._reloader.reload())

    def reload_soon(self) -> None:
        """Read the file after now, or have that done; the log tells what came of it."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(self._reload_soon(), name="reload that was asked for")

    async def _reload_soon(self) -> None:
        try:
            is_ours = await self._is_ours()
        except LocalError as error:
            logger.error("not_reloaded", reason=str(error))  # noqa: TRY400 - that says all
            return
        # Without a pause from here on: who asks later begins anew.
        successor = self._upgrading.successor
        if is_ours:
            self._reloader.reload()
        elif successor is not None:
            successor.tell("reload")
            logger.info("reload_passed_on", to=successor.pid)

    async def _is_ours(self) -> bool:
        """Wait until it is clear whose the configuration is.

        Raises:
            LocalError: It does not become so.
        """
        try:
            async with asyncio.timeout(UNCLEAR_SECONDS_MAX):
                while not self._upgrading.handed_over.is_set():
                    if self._upgrading.is_under_way:
                        await self._upgrading.ended()
                    elif self._work.is_going_on:
                        return True
                    else:  # this process is still taking over
                        await self._work.begun.wait()
        except TimeoutError:
            raise LocalError(
                f"for {UNCLEAR_SECONDS_MAX:.0f} seconds no process has the configuration: an"
                " upgrade hangs; see what the log says of it"
            ) from None
        return False

    async def close(self) -> None:
        """Give up what waits."""
        if self._asked is not None:
            self._asked.cancel()
            await asyncio.wait((self._asked,))
