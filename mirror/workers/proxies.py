"""What a worker asks the main process for, in the place of what does it there."""

import asyncio
from typing import Final, Literal

from mirror.config import RepositorySettings
from mirror.errors import NotYetMirrored, Overloaded, UnknownRepository
from mirror.refresh.announcements import PATIENCE_SECONDS, Announcement
from mirror.refresh.refresher import Trigger
from mirror.refresh.registry import Hosted, Registry
from mirror.workers.frames import ChannelError
from mirror.workers.link import Link
from mirror.workers.messages import (
    Delivered,
    FiguresWanted,
    Message,
    MirrorWanted,
    RefreshWanted,
    Reply,
)
from mirror.workers.state import packed_changes

REPEATED: Final = "repeated"
"""The answer to a delivery that was taken before."""

BUSY: Final = "busy"
"""The answer of a worker that keeps a mirror, because somebody reads it."""

_REFUSALS: Final = {one.label: one for one in (UnknownRepository, NotYetMirrored, Overloaded)}
"""What a mirror that is wanted may be refused with, by label."""

ANSWER_SECONDS_MAX: Final = PATIENCE_SECONDS
"""Whatever is asked: the main process answers within what it gives a worker to acknowledge."""


class RefreshProxy:
    """Asks for the refreshes of one repository: one question under way, and one after it.

    Who comes while one is under way may be too late for the refresh that it began, and shares the
    next.
    """

    def __init__(self, link: Link, name: str) -> None:
        self._link = link
        self._name = name
        self._is_asking = False
        self._next: tuple[asyncio.Future[None], Trigger] | None = None

    def request(self, trigger: Trigger) -> "asyncio.Future[None]":
        """See `Refresher.request`."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future(), trigger
        outcome, _ = self._next
        if not self._is_asking:
            self._ask_next()
        return outcome

    def _ask_next(self) -> None:
        if self._next is None:
            return
        (outcome, trigger), self._next = self._next, None
        self._is_asking = True
        answer = self._link.ask(RefreshWanted(self._name, trigger))
        answer.add_done_callback(lambda answer: self._answered(answer, outcome))

    def _answered(self, answer: "asyncio.Future[Reply]", outcome: "asyncio.Future[None]") -> None:
        self._is_asking = False
        error = answer.exception()
        if outcome.done():
            pass
        elif error is not None:
            outcome.set_exception(error)
            outcome.exception()  # seen: nobody has to be waiting
        else:
            outcome.set_result(None)
        self._ask_next()


class OpenerProxy:
    """Has repositories below `upstreams` mirrored: one question for all who wait for the same."""

    def __init__(self, link: Link, registry: Registry) -> None:
        self._link = link
        self._registry = registry
        self._opening: dict[str, asyncio.Future[Hosted]] = {}

    def open(self, settings: RepositorySettings, client: str | None) -> "asyncio.Future[Hosted]":
        """See `Opener.open`."""
        name = settings.name
        opening = self._opening.get(name)
        if opening is None:
            opening = self._opening[name] = asyncio.get_running_loop().create_future()
            answer = self._link.ask(MirrorWanted(name, client or ""))
            answer.add_done_callback(lambda answer: self._answered(name, answer))
        return opening

    def _answered(self, name: str, answer: "asyncio.Future[Reply]") -> None:
        opening = self._opening.pop(name)
        if opening.done():
            return
        hosted = self._registry.get(name)
        if (broken := answer.exception()) is not None:
            opening.set_exception(NotYetMirrored(f"{name} can't be mirrored now: {broken}"))
        elif text := answer.result().text:
            label, _, message = text.partition(" ")
            opening.set_exception(_REFUSALS.get(label, NotYetMirrored)(message))
        elif hosted is None:
            opening.set_exception(NotYetMirrored(f"{name} was removed again; try again"))
        else:
            opening.set_result(hosted)
            return
        opening.exception()  # seen: nobody has to be waiting


class AnnouncerProxy:
    """Hands announcements to the main process."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def announce(self, announcement: Announcement) -> bool:
        """See `Announcer.announce`."""
        reply = await _ask(
            self._link,
            Delivered(
                announcement.forge,
                announcement.delivery,
                announcement.repositories,
                packed_changes(announcement.changes),
            ),
            announcement.patience_seconds,
        )
        return reply.text != REPEATED


class FiguresProxy:
    """Gets the figures of the whole service from the main process."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def exposition(self) -> bytes:
        """See `Figures.exposition`."""
        return await self._get("metrics")

    async def status(self) -> bytes:
        """See `Figures.status`."""
        return await self._get("status")

    async def _get(self, what: Literal["metrics", "status"]) -> bytes:
        return (await _ask(self._link, FiguresWanted(what))).text.encode()


async def _ask(link: Link, message: Message, seconds_max: float = ANSWER_SECONDS_MAX) -> Reply:
    """Wait for an answer.

    Raises:
        ChannelError: There is none.
    """
    try:
        async with asyncio.timeout(seconds_max):
            return await link.ask(message)
    except TimeoutError:
        raise ChannelError("the main process does not answer; try again") from None
