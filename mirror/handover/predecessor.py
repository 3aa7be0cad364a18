"""The process that this one takes over from: what it hands over, and when it is silent."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from mirror.handover.messages import PROTOCOL, Channel, HandOverFailed
from mirror.refresh.freshness import Freshness
from mirror.refresh.registry import Registry

SILENT_SECONDS_MAX: Final = 8.0
"""The old process says within 5 seconds that it shows no refs any more, unless it hangs."""

HELLO_SECONDS_MAX: Final = 10.0

Announce = Callable[[Sequence[str]], Awaitable[object]]
"""Takes note of a webhook about these repositories."""

logger = structlog.stdlib.get_logger()


@dataclass(frozen=True, slots=True)
class KnownFreshness:
    """How fresh a repository was in the old process; times of the machine's monotonic clock."""

    is_pending: bool
    has_failed: bool
    confirmed_at: float | None

    @classmethod
    def of(cls, freshness: Freshness) -> "KnownFreshness":
        """Take it from the old process."""
        return cls(
            freshness.is_pending,
            freshness.is_pending and freshness.failed >= freshness.announced,
            freshness.confirmed_at,
        )

    def put_into(self, freshness: Freshness) -> None:
        """Put it into the new one: what was fresh there is not doubted here."""
        freshness.confirmed_at = self.confirmed_at
        if not self.is_pending:
            freshness.satisfied = freshness.announced
        elif self.has_failed:
            freshness.failed = freshness.announced


def apply(known: Mapping[str, KnownFreshness], registry: Registry) -> None:
    """Put what the old process knew into the mirrors, where these are on disk as it left them."""
    for mirror in (one.mirror for one in registry):
        if mirror.snapshot is not None and mirror.name in known:
            known[mirror.name].put_into(mirror.freshness)


class Predecessor:
    """The old process.

    Attributes:
        sockets: The listening sockets.
        lock: The descriptor of the data directory's lock.
        by_manager: systemd bound the sockets.
        is_silent: Set once it shows no refs any more, or is gone.
        is_main: Set once the service manager knows that this process is the service now.
        is_gone: Set once it has no readers any more at all.
        late: Repositories of which there are news that only it was told; once `is_main`.
    """

    def __init__(
        self, channel: Channel, sockets: list[socket.socket], lock: int, *, by_manager: bool
    ) -> None:
        self.sockets = sockets
        self.by_manager = by_manager
        self.lock = lock
        self.is_silent = asyncio.Event()
        self.is_main = asyncio.Event()
        self.is_gone = asyncio.Event()
        self.late: tuple[str, ...] = ()
        self._channel = channel
        self._hearing: asyncio.Task[None] | None = None

    @classmethod
    async def meet(cls, descriptor: int) -> "Predecessor":
        """Take what the process at the other end of `descriptor` hands over.

        Raises:
            HandOverFailed: There is none, or it is of another kind.
        """
        try:
            os.set_inheritable(descriptor, False)  # noqa: FBT003
            channel = await Channel.open(socket.socket(fileno=descriptor))
        except OSError as error:
            raise HandOverFailed(f"there is nobody to take over from: {error}") from error
        async with asyncio.timeout(HELLO_SECONDS_MAX):
            hello = await channel.expect("hello")
        if hello.get("protocol") != PROTOCOL:
            raise HandOverFailed(
                "the running version hands over in another way; stop it and start this one"
            )
        for inherited in (*hello["listeners"], hello["lock"]):
            os.set_inheritable(inherited, False)  # noqa: FBT003
        sockets = [socket.socket(fileno=each) for each in hello["listeners"]]
        by_manager = bool(hello.get("by_manager"))  # versions before did not say
        return cls(channel, sockets, hello["lock"], by_manager=by_manager)

    async def take_over(self) -> dict[str, KnownFreshness]:
        """Say that this process is prepared; returns how fresh each repository is.

        From then on the data directory is this process's.

        Raises:
            HandOverFailed: It is not given.
        """
        self._channel.tell("prepared")
        yours = await self._channel.expect("yours")
        return {name: KnownFreshness(**known) for name, known in yours["repositories"].items()}

    def fail(self, error: BaseException) -> None:
        """Say why this process will not take over, unless it has."""
        if not self.is_main.is_set():
            self._channel.tell("failed", error=str(error) or type(error).__name__)

    async def serving(self, announce: Announce, reload_soon: Callable[[], None]) -> None:
        """Say that this process serves; returns once it is the service.

        Webhooks that the old one still has go to `announce`; `reload_soon` is called when it was
        asked to read the configuration again.
        """
        self._channel.tell("serving")
        hearing = self._hear(announce, reload_soon)
        self._hearing = asyncio.create_task(hearing, name="predecessor")
        await self.is_main.wait()

    async def silent(self) -> None:
        """Wait until it shows no refs any more."""
        try:
            async with asyncio.timeout(SILENT_SECONDS_MAX):
                await self.is_silent.wait()
        except TimeoutError:
            logger.warning("predecessor_not_silent", seconds=SILENT_SECONDS_MAX)
            self.is_silent.set()

    async def gone(self, seconds_max: float) -> None:
        """Wait until it has no readers any more, for so long at most."""
        try:
            async with asyncio.timeout(seconds_max):
                await self.is_gone.wait()
        except TimeoutError:
            logger.warning("predecessor_not_waited_for", seconds=seconds_max)

    async def close(self) -> None:
        """Hear no more of it, and let go of its sockets."""
        for one in self.sockets:
            one.close()
        if self._hearing is not None:
            self._hearing.cancel()
            await asyncio.gather(self._hearing, return_exceptions=True)
        self._channel.close()

    async def _hear(self, announce: Announce, reload_soon: Callable[[], None]) -> None:
        try:
            async with asyncio.TaskGroup() as announcing:
                while (message := await self._channel.hear()) is not None:
                    match message["what"]:
                        case "main":
                            self.late = tuple(message.get("announced", ()))
                            self.is_main.set()
                        case "silent":
                            self.is_silent.set()
                        case "announce":
                            announcing.create_task(self._announce(message, announce))
                        case "reload":
                            reload_soon()
                        case _:
                            pass  # of a later version
        except HandOverFailed as error:
            logger.warning("predecessor_makes_no_sense", error=str(error))
        finally:
            self.is_main.set()
            self.is_silent.set()
            self.is_gone.set()

    async def _announce(self, message: Mapping[str, Any], announce: Announce) -> None:
        try:
            await announce(message["repositories"])
        except Exception:  # the forge is not told that it was taken
            logger.exception("announcement_not_taken")
            return
        self._channel.tell("announced", number=message["number"])
