"""A service manager as far as a service sees it: the socket that it is told things on."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WAIT_SECONDS_MAX = 60.0
"""A test fails after that instead of hanging; nothing is to take so long."""


class FakeManager:
    """Takes what a service says, in order."""

    def __init__(self, bound: socket.socket, address: str) -> None:
        self.address = address
        self._bound = bound
        self.heard: list[dict[str, str]] = []
        self._position = 0  # behind what `until` has returned

    @property
    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address}

    def take(self) -> None:
        """Take what was said until now."""
        while True:
            try:
                said = self._bound.recv(4096).decode()
            except BlockingIOError:
                return
            self.heard.append(dict(line.split("=", 1) for line in said.splitlines()))

    def forget(self) -> None:
        """Forget what was said until now."""
        self.take()
        self.heard.clear()
        self._position = 0

    async def until(self, met: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Return the first message, of those not yet heard, that is as `met` wants it."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while True:
                self.take()
                while self._position < len(self.heard):
                    message = self.heard[self._position]
                    self._position += 1
                    if met(message):
                        return message
                readable = loop.create_future()
                loop.add_reader(self._bound, readable.set_result, None)
                try:
                    await readable
                finally:
                    loop.remove_reader(self._bound)

    async def says_within(self, seconds: float, met: Callable[[dict[str, str]], bool]) -> bool:
        """Tell whether a message as `met` wants it comes in that time, which passes otherwise."""
        try:
            async with asyncio.timeout(seconds):
                await self.until(met)
        except TimeoutError:
            return False
        return True


@contextmanager
def fake_manager(name: str = "") -> Iterator[FakeManager]:
    """Listen as a service manager does; by default at an abstract address."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        address = name or f"@git-mirror-test-{os.getpid()}-{id(bound)}"
        bound.bind("\0" + address[1:] if address.startswith("@") else address)
        bound.setblocking(False)
        yield FakeManager(bound, address)
