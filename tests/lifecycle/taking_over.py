"""A service that takes over from another, in this process; the test is the other's voice."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mirror.config import load
from mirror.handover.messages import PROTOCOL, Channel
from mirror.handover.predecessor import KnownFreshness, Predecessor
from mirror.service import Service
from tests.mirror_service import MirrorService


@asynccontextmanager
async def successor(mirror: MirrorService, file: Path) -> AsyncIterator[tuple[Service, Channel]]:
    """Have another service, of this process, take over by `file`.

    Provides it before it has said anything, but has read the file.
    """
    near, far = socket.socketpair()
    channel = await Channel.open(near)
    handed = mirror.service.upgrading
    assert handed is not None
    # Descriptors of its own, as a child process would have.
    listeners = [os.dup(one.fileno()) for one in handed._handed.listeners.all]
    lock = os.dup(handed._handed.hold.descriptor)
    channel.tell("hello", protocol=PROTOCOL, listeners=listeners, lock=lock)
    service = Service(load(file), predecessor=await Predecessor.meet(far.detach()))
    try:
        yield service, channel
    finally:
        channel.close()


async def begin(service: Service, channel: Channel, known: Any, announced: Sequence[str]) -> None:
    """Have it become the service, while the old process still shows refs."""
    starting = asyncio.create_task(service.__aenter__())
    await channel.expect("prepared")
    channel.tell("yours", repositories=known)
    await channel.expect("serving")
    channel.tell("main", announced=announced)
    await starting


@asynccontextmanager
async def taken_over(
    mirror: MirrorService, file: Path, *, announced: Sequence[str] = ()
) -> AsyncIterator[tuple[Service, Channel]]:
    """Provide one that has become the service; the old process still shows refs."""
    known = {
        one.mirror.name: asdict(KnownFreshness.of(one.mirror.freshness))
        for one in mirror.service.registry
    }
    async with successor(mirror, file) as (service, channel):
        await begin(service, channel, known, announced)
        try:
            yield service, channel
        finally:
            await service.__aexit__()


class Next:
    """The next process, as the test wants it: in the place of `mirror.upgrading.Successor`."""

    pid = 1

    def __init__(self) -> None:
        self.is_started = asyncio.Event()
        self.is_taking_over = asyncio.Event()
        self.is_serving: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.told: asyncio.Queue[str] = asyncio.Queue()
        self.more: dict[str, Any] = {}

    async def start(self, *_: Any, **__: Any) -> "Next":
        return self

    async def prepared(self) -> None:
        self.is_started.set()

    async def take_over(self, repositories: Any) -> None:
        del repositories
        self.is_taking_over.set()
        await self.is_serving

    def tell(self, what: str, **more: Any) -> None:
        self.more |= more
        self.told.put_nowait(what)

    async def announce(self, repositories: Any) -> None:
        del repositories

    async def end(self) -> None:
        pass

    async def let_go(self) -> None:
        pass
