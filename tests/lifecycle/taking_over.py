"""A service that takes over from another, in this process; the test is the other's voice."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mirror.config import load
from mirror.handover.messages import PROTOCOL, Channel
from mirror.handover.predecessor import Predecessor
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


async def begin(service: Service, channel: Channel) -> None:
    """Have it become the service, while the old process still shows refs."""
    starting = asyncio.create_task(service.__aenter__())
    await channel.expect("prepared")
    channel.tell("yours", repositories={})
    await channel.expect("serving")
    channel.tell("main")
    await starting


@asynccontextmanager
async def taken_over(mirror: MirrorService, file: Path) -> AsyncIterator[tuple[Service, Channel]]:
    """Provide one that has become the service; the old process still shows refs."""
    async with successor(mirror, file) as (service, channel):
        await begin(service, channel)
        try:
            yield service, channel
        finally:
            await service.__aexit__()
