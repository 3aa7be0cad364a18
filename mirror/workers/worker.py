"""A worker's process: serves from its copies, and ends with its channel.

Does as the main process tells: takes its setup, follows the mirrors, listens, stops. Without the
main process nothing that it says could be called fresh, so it ends at once, answers under way or
not. What it serves, once it is set up, is `served`'s.
"""

import asyncio
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from mirror.config import LogSettings, compare, parse
from mirror.workers.frames import ChannelError
from mirror.workers.link import Link
from mirror.workers.messages import Message, Setup, Stop
from mirror.workers.served import Served

ConfigureLogs = Callable[[LogSettings, int], None]
"""Called with how to log and the worker's number."""


class Worker:
    """One worker, in its own process."""

    def __init__(
        self, configure_logs: ConfigureLogs, listeners: Sequence[socket.socket] = ()
    ) -> None:
        """Be ready to run.

        Args:
            configure_logs: Called once it is known how to log.
            listeners: The sockets to accept from, inherited from the main process.
        """
        self._configure_logs = configure_logs
        self._listeners = listeners
        self._drain_seconds: float | None = None  # as configured
        self._link = Link(self._receive)
        self._stopping = asyncio.Event()
        self._served: Served | None = None

    async def run(self, channel: socket.socket) -> bool:
        """Serve until told to stop; `False` when the end came in another way."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        for number in (signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: None)  # a terminal's is the main process's
        await self._link.open(channel)
        lost = asyncio.create_task(self._link.lost.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((lost, stopping), return_when=asyncio.FIRST_COMPLETED)
        if self._served is None:
            return not lost.done()
        if not lost.done():
            draining = asyncio.create_task(self._served.drain(self._drain_seconds))
            await asyncio.wait((lost, draining), return_when=asyncio.FIRST_COMPLETED)
            if draining.done():
                await draining
                self._link.abort()
                await lost
                return True
        await self._served.end_children()
        return False

    def _receive(self, message_id: int, message: Message) -> None:
        """Do what the main process says.

        Raises:
            ChannelError: It makes no sense.
        """
        match message:
            case Setup() if self._served is None:
                source = Path(message.source)
                settings = parse(message.started, source=source)
                if message.content != message.started:
                    settings = compare(settings, parse(message.content, source=source), {}).settings
                self._configure_logs(settings.log, message.number)
                self._served = Served(
                    settings,
                    self._link,
                    workers=message.workers,
                    listeners=self._listeners,
                    configure_logs=lambda log: self._configure_logs(log, message.number),
                )
            case Stop():
                self._drain_seconds = message.drain_seconds
                self._stopping.set()
            case _ if self._served is not None:
                self._served.receive(message_id, message)
            case _:
                raise ChannelError(f"{message.kind!r} before or after its time")
