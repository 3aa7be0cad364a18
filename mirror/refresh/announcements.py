"""What forges announce: each delivery taken once, and every reader held for it before we say so.

Must never be asked from two processes at once: numbers are given out here, and nowhere else.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from mirror.refresh.mirror import Mirror
from mirror.refresh.refresher import Refresher
from mirror.upstream.forges import RefChange

DELIVERIES_REMEMBERED_MAX: Final = 10_000
"""Ids of deliveries, to recognise one that comes again."""

PATIENCE_SECONDS: Final = 8.0
"""What is announced is noted within what a worker has to acknowledge it; forges give up at 10 s."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """A genuine delivery that says that refs changed.

    Attributes:
        forge: Who sent it.
        delivery: The forge's id of it; see `Push.delivery`.
        repositories: The names of ours that it is about.
        changes: What changed; empty where any ref may have.
        patience_seconds: How long who announces it waits for it to be noted everywhere.
    """

    forge: str
    delivery: str
    repositories: tuple[str, ...]
    changes: tuple[RefChange, ...]
    patience_seconds: float = PATIENCE_SECONDS


class Announcer(Protocol):
    """Takes announcements: here, or where the refreshers are."""

    async def announce(self, announcement: Announcement) -> bool:
        """Take note of an announcement; `False` when the same delivery was taken before.

        On return, refs from before it are served as fresh by no process.

        Raises:
            LocalError: It could not be noted; the forge is to send it again.
        """
        ...


class Announcements:
    """The announcements to all refreshers."""

    def __init__(self, refreshers: Mapping[str, Refresher]) -> None:
        self._refreshers = refreshers
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def announce(self, announcement: Announcement) -> bool:
        """See `Announcer.announce`."""
        is_news = not self._is_repeated(announcement)
        # One that was removed at this very moment has no readers to hold.
        found = map(self._refreshers.get, announcement.repositories)
        refreshers = [one for one in found if one is not None]
        if is_news:
            for refresher in refreshers:
                refresher.announce(announcement.changes)
        # Of a repeated one too: the first may still be on its way to the other processes.
        await _replicate([one.mirror for one in refreshers])
        return is_news

    def _is_repeated(self, announcement: Announcement) -> bool:
        if announcement.delivery.startswith("sha256:"):
            return False  # no id of the forge's: the same change made twice looks the same
        key = (announcement.forge, announcement.delivery)
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > DELIVERIES_REMEMBERED_MAX:
            self._seen.popitem(last=False)
        return False


async def _replicate(mirrors: list[Mirror]) -> None:
    told = [one.replicas.announced(one) for one in mirrors if one.replicas is not None]
    if told:
        await asyncio.gather(*told)
