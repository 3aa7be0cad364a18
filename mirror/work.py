"""All that changes what is served or on disk, but for the refreshes: begun and ended together.

Of two processes of a hand-over only one does any of it. So what is removed because nobody wants it
any more is removed here, and not when it is opened: a process that may yet have to give all back
must have taken nothing away.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from mirror.pulling import PullThrough
from mirror.refresh.bundling import Bundler
from mirror.refresh.disk_watch import DiskWatch
from mirror.refresh.maintenance import Maintainer
from mirror.refresh.relay.relays import Relays
from mirror.refresh.scrub import Scrubber
from mirror.reload.reloader import Reloader

Own = Callable[..., None]
"""Takes tasks that should never end, but where they are cancelled."""


class Work:
    """The parts that work by themselves.

    Attributes:
        begun: Set between `start` and `end`.
    """

    def __init__(
        self,
        own: Own,
        *,
        bundler: Bundler,
        relays: Relays,
        pulling: PullThrough,
        maintainer: Maintainer,
        disk: DiskWatch,
        reloader: Reloader,
        scrubber_of: Callable[[], Scrubber | None],
    ) -> None:
        """Begin nothing yet; `scrubber_of` makes a new scrubber, where one is wanted."""
        self.begun = asyncio.Event()
        self._own = own
        self._bundler = bundler
        self._relays = relays
        self._pulling = pulling
        self._maintainer = maintainer
        self._disk = disk
        self._reloader = reloader
        self._scrubber_of = scrubber_of
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_going_on(self) -> bool:
        """Whether it has begun."""
        return self.begun.is_set()

    def start(self) -> None:
        """Begin all of it."""
        self._own(self._bundler.start())
        self._own(*self._relays.start())
        self._pulling.tidier.start()
        self._begin(self._maintainer.run(), "maintenance")
        self._begin(self._disk.run(), "disk")
        scrubber = self._scrubber_of()
        if scrubber is not None:
            self._begin(scrubber.run(), "scrub")
        self.begun.set()
        self._reloader.start()

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.append(task)
        self._own(task)

    async def end(self) -> None:
        """End what `start` began; it can be started again."""
        self.begun.clear()
        await self._reloader.close()
        await self._pulling.tidier.stop()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._relays.stop()
        await self._bundler.close()
