"""Webhooks while one process takes over from another: taken by the one that will refresh.

One is acknowledged only when nobody is shown what was before it as fresh, by either of the two. So
it waits, in both, until the old one shows no refs any more: 2 to 5 seconds, of the 10 that forges
give. Then the new one takes it.

A push is answered after 30 seconds, whatever becomes of its announcement. Where the other process
comes that late, the old one's readers are held before that, and the new one's from the first.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from mirror.refresh.announcements import Announcement, Announcer

Forward = Callable[[Sequence[str]], Awaitable[None]]

HELD_SECONDS_MAX: Final = 25.0
"""Of the 30 that who pushed waits; workers get 2 to acknowledge."""


class HeldAnnouncer:
    """An `Announcer` that can be stopped, and let go on, here or elsewhere."""

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer
        self._open = asyncio.Event()
        self._open.set()
        self._forward: Forward | None = None
        self._late: dict[str, None] = {}

    @property
    def late(self) -> tuple[str, ...]:
        """The repositories whose news have waited too long since `hold`: nobody may wait any more.

        Their readers are held here, and are to be held by who refreshes them.
        """
        return tuple(self._late)

    def hold(self) -> None:
        """Take nothing from now on: all who come wait."""
        self._open.clear()
        self._late.clear()

    def go_on(self, forward: Forward | None = None) -> None:
        """Take all, or hand it to `forward`, with the names of its repositories."""
        self._forward = forward
        self._open.set()

    async def announce(self, announcement: Announcement) -> bool:
        """See `Announcer.announce`."""
        is_news = None if self._open.is_set() else await self._held(announcement)
        if self._forward is not None:
            await self._forward(announcement.repositories)
            return True
        return await self._announcer.announce(announcement) if is_news is None else is_news

    async def _held(self, announcement: Announcement) -> bool | None:
        """Wait; returns whether it was news where it is taken already, for the readers here."""
        with suppress(TimeoutError):
            async with asyncio.timeout(HELD_SECONDS_MAX):
                await self._open.wait()
        if self._open.is_set():
            return None
        self._late.update(dict.fromkeys(announcement.repositories))
        is_news = await self._announcer.announce(announcement)
        await self._open.wait()
        return is_news

    async def hold_readers(self, repositories: Sequence[str]) -> None:
        """Serve from now on as stale what was before the news of another process, held or not."""
        await self._announcer.announce(anew(repositories))


def anew(repositories: Sequence[str]) -> Announcement:
    """Return an announcement of another process; once more is once too often, not lost."""
    return Announcement("hand-over", "sha256:", tuple(repositories), ())
