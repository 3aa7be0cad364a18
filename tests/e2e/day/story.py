"""The day: bursts of pushes, and what befalls them, in an order that the seed decides."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

from tests.e2e.day.controllers import Poller
from tests.e2e.day.place import Place
from tests.e2e.day.pushing import MAIN, Ci, Webhook
from tests.e2e.day.receivers import Receivers
from tests.e2e.day.rules import Sighting

COMMITS: Final = 50
"""On main, in all; those of release and feature come on top."""

BURSTS: Final = 11
"""Seven incidents, each after a burst, and four of them with one in the middle."""

THROUGH: Final = 0.15
"""The share of pushes to main that go through the mirror."""

RELEASE, FEATURE = "refs/heads/release", "refs/heads/feature"


class Story:
    """Plays the day."""

    def __init__(self, place: Place, ci: Ci, poller: Poller, receivers: Receivers) -> None:
        self._place = place
        self._ci = ci
        self._poller = poller
        self._receivers = receivers
        self._bursts = _shares(COMMITS, BURSTS, place.chance)

    async def play(self) -> None:
        """Play it all, until everybody knows everything."""
        incidents: list[Callable[[], Awaitable[None]]] = [
            self._force_push,
            self._killed,
            self._overloaded,
            self._cut_off,
            self._token_expires,
            self._release,
            self._feature,
        ]
        self._place.chance.shuffle(incidents)
        for incident in incidents:
            await self._burst()
            await incident()
        await self._receivers.until_all_told()

    async def _burst(
        self, *, is_direct: bool = False, meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """Push some commits to main, one right after the other.

        Args:
            is_direct: None of them goes through the mirror.
            meanwhile: Called before one of them.
        """
        chance = self._place.chance
        count = self._bursts.pop()
        moment = chance.randrange(count)
        for number in range(count):
            if number == moment:
                meanwhile()
            is_through = not is_direct and chance.random() < THROUGH
            self._put(await (self._ci.push() if is_through else self._ci.commit()))
            if chance.random() < 0.5:
                self._ci.webhooks.send()
        self._ci.webhooks.send()

    def _put(self, *webhooks: Webhook) -> None:
        for one in webhooks:
            self._ci.webhooks.put(one)

    # --- what befalls them ---------------------------------------------------------------------

    async def _force_push(self) -> None:
        self._put(await self._ci.force())

    async def _killed(self) -> None:
        """Kill the service while a burst goes on, at any moment; what comes meanwhile is lost."""
        mirror = self._place.mirror
        async with asyncio.TaskGroup() as tasks:
            await self._burst(is_direct=True, meanwhile=lambda: tasks.create_task(mirror.kill()))
        await self._ci.webhooks.deliver(await self._ci.commit())
        await mirror.start()

    async def _overloaded(self) -> None:
        """The forge answers 503 for a while."""
        faults = self._place.forge.faults
        faults.status = 503
        await self._burst(is_direct=True)
        await self._told_for_sure()
        await self._poller.until(lambda seen: seen.is_stale)
        faults.status = None
        await self._well_again()

    async def _cut_off(self) -> None:
        """Nothing listens at the forge's address for a while."""
        line = self._place.line
        await line.close()
        await self._burst(is_direct=True)
        await self._told_for_sure()
        await self._poller.until(lambda seen: seen.is_stale)
        await line.start()
        await self._well_again()

    async def _token_expires(self) -> None:
        """The forge takes the mirror's token no more; pushes go through, with CI's own."""
        self._place.expire_forge_token()
        await self._burst(is_direct=True)
        await self._told_for_sure()
        await self._poller.until(lambda seen: seen.is_stale)
        if RELEASE in self._place.record.history.refs:
            self._put(await self._ci.push(RELEASE))
        self._place.rotate_forge_token()
        await self._well_again()

    async def _release(self) -> None:
        """A release is made of what the mirror has, and tagged."""
        self._put(await self._ci.push(RELEASE), await self._ci.tag("v1.0", "release"))
        self._put(await self._ci.push(RELEASE), await self._ci.tag("v1.1", "release"))

    async def _feature(self) -> None:
        """A branch comes and goes."""
        self._put(await self._ci.commit(FEATURE), await self._ci.commit(FEATURE))
        self._ci.webhooks.send()
        self._put(await self._ci.delete(FEATURE))

    # --- waiting -------------------------------------------------------------------------------

    async def _told_for_sure(self) -> None:
        """Push once more, with a webhook that arrives."""
        await self._ci.webhooks.deliver(await self._ci.commit())

    async def _well_again(self) -> None:
        """Push once more, and wait until readers see it and are told that it is fresh."""
        await self._told_for_sure()
        history = self._place.record.history

        def is_current(seen: Sighting) -> bool:
            return not seen.is_stale and seen.refs[MAIN] == history.tip(MAIN)

        await self._poller.until(is_current)


def _shares(total: int, parts: int, chance: random.Random) -> list[int]:
    """Return `parts` numbers that make `total` together, each at least 2."""
    shares = [2] * parts
    for _ in range(total - sum(shares)):
        shares[chance.randrange(parts)] += 1
    return shares
