"""`git-mirror serve`, its worker processes, and `git-mirror demo`."""

import asyncio
import gc
import os
import signal
import socket
import sys
from pathlib import Path

import click
import structlog

from mirror import logs
from mirror.cli.root import main
from mirror.cli.running import (
    CONFIG_OPTION,
    configure_logs,
    keep_files_private,
    load,
    run,
    watch,
)
from mirror.config import LogSettings, Settings
from mirror.progress import Display, display_for_stderr
from mirror.service import Service

logger = structlog.stdlib.get_logger()


@main.command()
@CONFIG_OPTION
def serve(config_path: Path | None) -> None:
    """Run the mirror.

    Ends cleanly on SIGTERM and Ctrl-C: answers under way are finished first. Reads the
    configuration again on SIGHUP, and when the file has changed.
    """
    settings = load(config_path)
    configure_logs(settings.log)
    keep_files_private()
    display = display_for_stderr()
    try:
        run(_serve(settings, display))
    finally:
        display.close()


async def _serve(settings: Settings, display: Display) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # until there is something to reload
    async with Service(settings, watch=watch(display), configure_logs=configure_logs) as service:
        loop.add_signal_handler(signal.SIGHUP, service.reload_soon)
        # What is here now stays: the collector need not look at it again, which for 1,000
        # repositories takes 40 to 80 ms each time, with the event loop standing still.
        gc.collect()
        gc.freeze()
        stopping = asyncio.create_task(stop.wait())
        broken = asyncio.create_task(service.wait())
        await asyncio.wait((stopping, broken), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if broken.done():
            broken.result()
        broken.cancel()
        logger.info("stopping")


@main.command()
@click.option("--keep", is_flag=True, help="Leave everything running afterwards.")
def demo(*, keep: bool) -> None:
    """Play a whole deployment on this machine, with real parts.

    An upstream behind a 100 ms round trip, the mirror in front of it, a push as CI would make it,
    its webhook, and the real git client: what a poll and a fetch cost directly and through the
    mirror. Needs git; touches nothing outside a temporary directory.
    """
    from mirror.demo.scenario import play  # noqa: PLC0415 - only this command pays for it

    logs.configure(json=False, level="warning")
    if not run(play(keep=keep)):
        sys.exit(1)


@main.command(hidden=True)
@click.option("--channel", type=int, required=True, help="The descriptor of the channel.")
@click.option("--listener", type=int, help="The descriptor of a Unix socket to listen on.")
def worker(channel: int, listener: int | None) -> None:
    """Serve as a worker process of `git-mirror serve`, which starts it."""
    from mirror.workers.worker import Worker  # noqa: PLC0415 - only this command pays for it

    keep_files_private()
    configure_logs(LogSettings())  # until its setup says otherwise

    async def work() -> None:
        inherited = None if listener is None else socket.socket(fileno=listener)
        if not await Worker(configure_logs, inherited).run(socket.socket(fileno=channel)):
            os._exit(1)  # at once, whatever its threads are at

    run(work())
