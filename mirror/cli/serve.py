"""`git-mirror serve`, its worker processes, and `git-mirror demo`."""

import gc
import os
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import click
import structlog

from mirror import logs
from mirror.cli.ending import Ending
from mirror.cli.root import main
from mirror.cli.running import CONFIG_OPTION, configure_logs, keep_files_private, load, run, watch
from mirror.config import LogSettings, Settings, environment, forget_sockets
from mirror.handover.predecessor import Predecessor
from mirror.notify import NOBODY, Manager
from mirror.progress import Display, display_for_stderr
from mirror.service import Service
from mirror.watchdog import keeping_told, starting
from mirror.web.listeners import Inherited

FIRST_SOCKET: Final = 3
"""Where the descriptors that systemd passes on begin (sd_listen_fds(3))."""

logger = structlog.stdlib.get_logger()


@main.command()
@CONFIG_OPTION
def serve(config_path: Path | None) -> None:
    """Run the mirror.

    SIGTERM and Ctrl-C end it: answers under way are finished first, for `server.drain_timeout` at
    most; a second one ends it at once. The configuration is read again on SIGHUP, and when the file
    has changed. SIGUSR2 does what `git-mirror upgrade` does.
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
    told = environment()
    forget_sockets()
    manager = Manager(told.notify_socket, told.watchdog_seconds)
    bound = [socket.socket(fileno=FIRST_SOCKET + each) for each in range(told.listening_sockets)]
    ending = Ending()
    async with AsyncExitStack() as stack:
        predecessor = None
        if told.predecessor is not None:
            predecessor = await Predecessor.meet(told.predecessor)
        service = Service(
            settings,
            watch=watch(display),
            configure_logs=configure_logs,
            manager=manager,
            inherited=Inherited(bound, by_manager=True),
            predecessor=predecessor,
        )
        # Until it is the service's main process, this one is not to be heard.
        async with starting(manager if predecessor is None else NOBODY):
            await stack.enter_async_context(service)
        # What is here now stays: the collector need not look at it again, which for 1,000
        # repositories takes 40 to 80 ms each time, with the event loop standing still.
        gc.collect()
        gc.freeze()
        manager.ready(service.status_line())
        async with keeping_told(manager, service.canary, service.status_line):
            await ending.wait(service)
        if not service.handed_over.is_set():
            manager.stopping("finishing answers under way")
        logger.info("stopping")
        await service.drain()


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
@click.option("--listener", type=int, multiple=True, help="A descriptor to accept from.")
def worker(channel: int, listener: tuple[int, ...]) -> None:
    """Serve as a worker process of `git-mirror serve`, which starts it."""
    from mirror.workers.worker import Worker  # noqa: PLC0415 - only this command pays for it

    keep_files_private()
    configure_logs(LogSettings())  # until its setup says otherwise

    async def work() -> None:
        inherited = [socket.socket(fileno=each) for each in listener]
        if not await Worker(configure_logs, inherited).run(socket.socket(fileno=channel)):
            os._exit(1)  # at once, whatever its threads are at

    run(work())
