"""Webhooks while one process takes over from another: taken by the one that will refresh.

One is acknowledged only when nobody is shown what was before it as fresh, by either of the two. So
it waits, in both, until the old one shows no refs any more: 2 to 5 seconds, of the 10 that forges
give. Then the new one takes it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from mirror.refresh.announcements import Announcement, Announcer

Forward = Callable[[Sequence[str]], Awaitable[None]]


class HeldAnnouncer:
    """An `Announcer` that can be stopped, and let go on, here or elsewhere."""

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer
        self._open = asyncio.Event()
        self._open.set()
        self._forward: Forward | None = None

    def hold(self) -> None:
        """Take nothing from now on: all who come wait."""
        self._open.clear()

    def go_on(self, forward: Forward | None = None) -> None:
        """Take all, or hand it to `forward`, with the names of its repositories."""
        self._forward = forward
        self._open.set()

    async def announce(self, announcement: Announcement) -> bool:
        """See `Announcer.announce`."""
        await self._open.wait()
        if self._forward is None:
            return await self._announcer.announce(announcement)
        await self._forward(announcement.repositories)
        return True
