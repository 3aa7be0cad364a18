"""What a running `git-mirror serve` is told by signals."""

import asyncio
import os
import signal
from contextlib import suppress
from functools import partial
from typing import Final

import structlog

from mirror.errors import MirrorError
from mirror.service import Service

AT_ONCE_STATUS: Final = 130

logger = structlog.stdlib.get_logger()


class Ending:
    """SIGTERM and SIGINT, from now on: the first asks for an end, the second is one.

    Once `wait` is called, SIGHUP has the configuration read again, and SIGUSR2 has the installed
    program take over; those that came before count then.
    """

    def __init__(self) -> None:
        self._told = asyncio.Event()
        self._upgrading: asyncio.Task[None] | None = None
        self._early: set[signal.Signals] = set()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._tell)
        for number in (signal.SIGHUP, signal.SIGUSR2):
            loop.add_signal_handler(number, self._early.add, number)

    def _tell(self) -> None:
        if not self._told.is_set():
            self._told.set()
            return
        logger.warning("ending_at_once")
        # What a kill leaves is cleared up at the next start; workers end with their channel.
        os._exit(AT_ONCE_STATUS)

    async def wait(self, service: Service) -> None:
        """Wait until the service is to end, or another process has taken over.

        Raises:
            Exception: What broke the service.
        """
        loop = asyncio.get_running_loop()
        for number, do in (
            (signal.SIGHUP, service.reload_soon),
            (signal.SIGUSR2, partial(self._upgrade, service)),
        ):
            loop.add_signal_handler(number, do)
            if number in self._early:
                do()
        waiting = [
            asyncio.create_task(self._told.wait()),
            asyncio.create_task(service.handed_over.wait()),
            broken := asyncio.create_task(service.wait()),
        ]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if broken.done():
                broken.result()
        finally:
            for one in waiting:
                one.cancel()
        self._told.set()  # the next signal is the second

    def _upgrade(self, service: Service) -> None:
        if self._upgrading is None or self._upgrading.done():
            self._upgrading = asyncio.create_task(_upgrade(service), name="upgrade")


async def _upgrade(service: Service) -> None:
    with suppress(MirrorError):  # the service has logged it, and goes on
        await service.upgrade()
