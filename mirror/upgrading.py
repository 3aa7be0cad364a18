"""A hand-over as the service goes through it: as the process that gives, and as the one that takes.

See `mirror.handover` for what happens in which order, and why.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import structlog

from mirror.handover.held import HeldAnnouncer, anew
from mirror.handover.messages import HandOverFailed
from mirror.handover.predecessor import KnownFreshness, Predecessor
from mirror.handover.successor import Successor
from mirror.mirroring import Mirroring
from mirror.notify import Manager
from mirror.places import Hold
from mirror.pulling import PullThrough
from mirror.refresh.lfs import LargeFiles
from mirror.reload.changeover import Changeover
from mirror.reload.reloader import Reloader
from mirror.web.listeners import Listeners
from mirror.work import Work

SETTLE_SECONDS_MAX: Final = 3.0
"""What refreshes under way get to end before the next process takes over; it begins them anew."""

TAKEN_OVER_SECONDS_MAX: Final = 20.0
"""The process before is silent within 8 seconds; then what it stored is counted."""

logger = structlog.stdlib.get_logger()


@dataclass(slots=True, kw_only=True)
class Handed:
    """What goes from one process to the next, and what has to rest meanwhile."""

    listeners: Listeners
    hold: Hold
    manager: Manager
    mirroring: Mirroring
    pulling: PullThrough
    lfs: LargeFiles
    announcer: HeldAnnouncer
    changeover: Changeover
    reloader: Reloader
    work: Work


class Upgrading:
    """Gives all to the installed program, when asked to.

    Attributes:
        handed_over: Set once another process serves.
        successor: That process.
    """

    def __init__(self, handed: Handed) -> None:
        self.handed_over = asyncio.Event()
        self.successor: Successor | None = None
        self._handed = handed
        self._upgrading: asyncio.Task[int] | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether another process is about to take over, or has."""
        upgrading = self._upgrading
        return self.handed_over.is_set() or (upgrading is not None and not upgrading.done())

    async def ended(self) -> None:
        """Wait until none is under way, or this process has handed over."""
        if self._upgrading is not None:
            await asyncio.wait((self._upgrading,))

    async def upgrade(self) -> int:
        """See `Service.upgrade`."""
        if self._upgrading is None or (self._upgrading.done() and not self.handed_over.is_set()):
            self._upgrading = asyncio.create_task(self._hand_over(), name="upgrade")
        return await asyncio.shield(self._upgrading)

    async def _hand_over(self) -> int:
        handed = self._handed
        logger.info("upgrading")
        await self._taken_over()
        handed.manager.status("starting the installed version")
        # What the file says from now on is the successor's to find, once it works.
        await handed.reloader.pause()
        successor: Successor | None = None
        has_paused = False
        try:
            handed.changeover.check_settled()
            successor = await Successor.start(
                handed.listeners.all,
                handed.hold.descriptor,
                by_manager=handed.listeners.by_manager,
            )
            await successor.prepared()
            has_paused = True
            await self._pause()
            await successor.take_over(
                {
                    one.mirror.name: asdict(KnownFreshness.of(one.mirror.freshness))
                    for one in handed.mirroring.registry
                }
            )
        except BaseException as error:
            if successor is not None:
                await asyncio.shield(successor.end())
            if has_paused:
                handed.hold.take_back()
                self._resume()
            else:
                handed.reloader.start()
            pid = None if successor is None else successor.pid
            logger.error("upgrade_failed", error=str(error), pid=pid)  # noqa: TRY400
            handed.manager.ready(f"serving; an upgrade failed: {error}")
            raise
        await handed.changeover.close()  # what was removed is the successor's to remove
        self.successor = successor
        handed.listeners.handed_over = handed.hold.handed_over = True
        handed.manager.replaced_by(successor.pid)
        successor.tell("main", announced=handed.announcer.late)
        handed.announcer.go_on(successor.announce)
        logger.info("handed_over", to=successor.pid)
        self.handed_over.set()
        return successor.pid

    async def _taken_over(self) -> None:
        """Wait until what this process took over is its own to give.

        Raises:
            HandOverFailed: It never is.
        """
        try:
            async with asyncio.timeout(TAKEN_OVER_SECONDS_MAX):
                await self._handed.work.begun.wait()
        except TimeoutError:
            reason = "the last hand-over is not over yet; try again in some seconds"
            logger.error("upgrade_failed", error=reason, pid=None)  # noqa: TRY400 - that says all
            raise HandOverFailed(reason) from None

    async def _pause(self) -> None:
        """Change nothing any more, on disk or for readers, who are served all the same."""
        handed = self._handed
        handed.announcer.hold()
        handed.pulling.pause()
        await handed.mirroring.pause(settle_seconds=SETTLE_SECONDS_MAX)
        await handed.pulling.close()
        await handed.work.end()

    def _resume(self) -> None:
        """Undo `_pause`."""
        handed = self._handed
        handed.pulling.resume()
        handed.mirroring.resume()
        handed.work.start()
        handed.announcer.go_on()


class TakingOver:
    """Takes all from another process."""

    def __init__(self, handed: Handed, predecessor: Predecessor) -> None:
        self._handed = handed
        self._predecessor = predecessor

    async def serving(self, reload_soon: Callable[[], None]) -> None:
        """Say that this process serves; returns once it is the service, and there is no way back.

        Nothing that the old one had was taken away until then. `reload_soon` is called when the
        old one was asked to read the configuration, which is this one's now.
        """
        await self._predecessor.serving(self._announced_before, reload_soon)
        if self._predecessor.late:
            await self._handed.announcer.hold_readers(self._predecessor.late)
        self._handed.listeners.is_certain = True

    async def finish(self) -> list["asyncio.Task[None]"]:
        """Begin to change what is served, once nobody is served by the old process any more.

        Returns:
            The tasks that refresh, none of which should ever end.
        """
        handed = self._handed
        await self._predecessor.silent()
        await handed.lfs.count_again()
        left = handed.mirroring.take_charge()
        refreshing = handed.mirroring.start()
        handed.changeover.replace(left)
        handed.work.start()
        handed.announcer.go_on()
        logger.info("took_over")
        return refreshing

    async def tidy(self) -> None:
        """Remove what this process does not want, once the old one's last answer has ended."""
        await self._predecessor.is_gone.wait()
        await self._handed.pulling.tidier.sweep()

    async def _announced_before(self, repositories: Sequence[str]) -> None:
        """Take a webhook that the old process was sent."""
        await self._handed.announcer.announce(anew(repositories))
