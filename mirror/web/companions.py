"""Requests that wait for the answer to an equal one, which aiohttp is making at this moment.

After a push hundreds of readers ask the same within milliseconds, and nobody's answer is known by
heart yet. The first one's is made; the others wait for it, a moment at the most, and then take it
or go the long way themselves. Knows no connection and never writes.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final

WAIT_SECONDS_MAX: Final = 0.02
"""A first one that takes longer is held, or starts a build: then each is to wait in its own way."""

RELEASED_AT_ONCE: Final = 32
"""Each costs the event loop some 20 microseconds, with a long body more."""

_MARK: Final = b"git-upload-pack"
_MARKED_WITHIN: Final = 512

Resume = Callable[[], None]


def is_read(data: bytes) -> bool:
    """Tell whether a request looks like a reader's; a wrong guess costs it a moment at the most."""
    return _MARK in data[:_MARKED_WITHIN]


class Companions:
    """Who waits for whom, by question."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[Resume]] = {}
        self._timers: dict[Hashable, asyncio.TimerHandle] = {}

    def lead(self, question: Hashable) -> bool:
        """Begin to be the one whose answer others wait for; `False` when there is one."""
        if question in self._waiting:
            return False
        self._waiting[question] = deque()
        return True

    def follow(self, question: Hashable, resume: Resume) -> None:
        """Wait for the end of the one who leads; `resume` is called then, or when it takes long."""
        waiting = self._waiting[question]
        waiting.append(resume)
        if question not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[question] = loop.call_later(WAIT_SECONDS_MAX, self.end, question)

    def end(self, question: Hashable) -> None:
        """Let go of all who wait; nobody leads any more."""
        waiting = self._waiting.pop(question, None)
        timer = self._timers.pop(question, None)
        if timer is not None:
            timer.cancel()
        if waiting:
            self._release(waiting)

    def _release(self, waiting: deque[Resume]) -> None:
        for _ in range(min(RELEASED_AT_ONCE, len(waiting))):
            waiting.popleft()()
        if waiting:
            asyncio.get_running_loop().call_soon(self._release, waiting)
