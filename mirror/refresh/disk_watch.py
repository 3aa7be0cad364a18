"""Watches the room on the disk: makes what can be made again yield, and says when there is some.

There is one of these per data directory, in the process that refreshes; what others keep there is
files that it removes. Processes that write look before they do (`Room`); this is for what nobody
foresaw, such as another program that fills the disk, and for the end of it: refreshes that failed
for want of room are begun anew as soon as there is more, or the disk is writable again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import structlog

from mirror.errors import DiskFull, DiskReadOnly
from mirror.metrics.disk import DiskFigures
from mirror.refresh.refresher import Refresher, Trigger
from mirror.space import Room, Space

LOOK_SECONDS: Final = 2.0
MEASURE_SECONDS: Final = 60.0
"""So often it is looked at how much of what there is: that takes a look at every file."""

GROWN_BYTES: Final = 1 << 20
"""Refreshes that failed are tried again when so much more is free than there was at the least."""

WAKE_SECONDS_MIN: Final = 10.0
"""No sooner than that after the last time: other programs free a little now and again."""

_WAITING: Final = frozenset({DiskFull.label, DiskReadOnly.label})

logger = structlog.stdlib.get_logger()


class Yielding(NamedTuple):
    """What makes room: removes so many bytes of a kind, and tells how many it was."""

    kind: str
    give: Callable[[int], Awaitable[int]]


class DiskWatch:
    """The watch over one data directory's disk."""

    def __init__(
        self,
        room: Room,
        figures: DiskFigures,
        *,
        yielding: Sequence[Yielding],
        refreshers: Callable[[], Iterable[Refresher]],
        used: Callable[[], Awaitable[Mapping[str, int]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch nothing yet.

        Args:
            room: Of the data directory.
            figures: Told what is found.
            yielding: What makes room, the first to go first.
            refreshers: All there are.
            used: Returns the bytes of all there is, by kind.
            clock: Monotonic seconds.
        """
        self._room = room
        self._figures = figures
        self._yielding = yielding
        self._refreshers = refreshers
        self._used_by_kind = used
        self._clock = clock
        self._space: Space | None = None
        self._is_short = False
        self._least_free: int | None = None
        self._woken_at = float("-inf")
        self._measured_at = float("-inf")
        self._used: Mapping[str, int] = {}

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception:  # whatever it is, there are readers to serve
                logger.exception("disk_watch_broke")
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Look at the disk once, and do what is to be done."""
        space = await asyncio.to_thread(self._room.look)
        if space is None:
            return
        if not space.is_read_only:
            await self._make_room()
        after = await asyncio.to_thread(self._room.look) or space
        self._tell(after)
        self._wake(after)
        if self._clock() - self._measured_at >= MEASURE_SECONDS:
            self._measured_at = self._clock()
            self._used = await self._used_by_kind()
            self._figures.set_used(self._used)

    async def _make_room(self) -> None:
        for kind, give in self._yielding:
            lacking = await asyncio.to_thread(self._room.lacking)
            if not lacking:
                return
            given = await give(lacking)
            if given > 0:
                self._figures.record_yielded(kind, given)
                logger.warning("disk_yielded", what=kind, bytes=given, lacking_bytes=lacking)

    def _tell(self, space: Space) -> None:
        before, self._space = self._space, space
        reserve = self._room.reserve_bytes(space)
        was_short, self._is_short = self._is_short, space.free_bytes < reserve
        self._figures.set_space(
            free_bytes=space.free_bytes,
            reserve_bytes=reserve,
            is_short=self._is_short,
            is_read_only=space.is_read_only,
        )
        amounts = {"free_bytes": space.free_bytes, "reserve_bytes": reserve}
        was_read_only = before is not None and before.is_read_only
        if space.is_read_only and not was_read_only:
            logger.error("disk_read_only", advice="what is here is served; nothing new is mirrored")
        if was_read_only and not space.is_read_only:
            logger.info("disk_writable_again")
        if self._is_short and not was_short:
            advice = "nothing is left that could make room: make some, or the mirrors fall behind"
            logger.error("disk_short", **amounts, advice=advice)
        if was_short and not self._is_short:
            logger.info("disk_has_room_again", **amounts)
        if was_read_only and not space.is_read_only:
            self._least_free = -GROWN_BYTES  # whatever is free is more

    def _wake(self, space: Space) -> None:
        """Begin refreshes anew that had no room, where there is more than there was."""
        least = space.free_bytes if self._least_free is None else self._least_free
        self._least_free = least = min(least, space.free_bytes)
        now = self._clock()
        has_grown = space.free_bytes >= least + GROWN_BYTES and not space.is_read_only
        if not has_grown or now - self._woken_at < WAKE_SECONDS_MIN:
            return
        waiting = [one for one in self._refreshers() if one.mirror.last.kind in _WAITING]
        self._least_free = space.free_bytes
        if waiting:
            self._woken_at = now
            logger.info("refreshes_resumed", count=len(waiting), free_bytes=space.free_bytes)
        for one in waiting:
            one.request(Trigger.ROOM)

    def describe(self) -> dict[str, Any] | None:
        """Return what to show of the disk; `None` where that is not known yet."""
        space = self._space
        if space is None:
            return None
        return {
            "total_bytes": space.total_bytes,
            "free_bytes": space.free_bytes,
            "reserve_bytes": self._room.reserve_bytes(space),
            "is_short": self._is_short,
            "is_read_only": space.is_read_only,
            "used_bytes": dict(self._used),
        }
