"""Events: crowds of clients that misbehave. They explain nothing: others are served as ever."""

import asyncio
import time
from contextlib import suppress
from typing import Final

from tests.mirror_service import UPLOAD_PACK_HEADERS
from tests.soak.asking import Wrong, raw_connection
from tests.soak.clients import KINDS, Reader
from tests.soak.events import Scene, event
from tests.soak.judges import MAIN
from tests.web.asking import fetch_v0

GARBAGE_AT_ONCE: Final = 20
SLOW_AT_ONCE: Final = 80
IDLE_AT_ONCE: Final = 300
FLOOD_SECONDS: Final = 4.0

_FAILURES: Final = (OSError, TimeoutError, asyncio.IncompleteReadError)
"""Who floods may be cut off."""


@event("flood of garbage")
async def _garbage(scene: Scene) -> None:
    until = time.monotonic() + FLOOD_SECONDS
    work, ledger = KINDS["garbage"].work, scene.estate.ledger

    async def send() -> None:
        reader = Reader("flood", scene.asking)
        while time.monotonic() < until:
            ledger.clients["garbage in floods"] += 1
            try:
                await work(reader)
            except Wrong as error:
                ledger.violate("flood of garbage", str(error))
            except _FAILURES:
                await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(GARBAGE_AT_ONCE):
            tasks.create_task(send())


@event("readers that stop")
async def _readers_that_stop(scene: Scene) -> None:
    """They ask for a pack of megabytes, and take its beginning."""
    one = scene.estate.repositories["acme/large"]
    body = fetch_v0(one.watch.history.refs[MAIN][one.watch.ask().seen.get(MAIN, 1)])
    lines = "".join(f"{name}: {value}\r\n" for name, value in UPLOAD_PACK_HEADERS.items())
    head = f"POST /{one.name}/git-upload-pack HTTP/1.1\r\nHost: x\r\n{lines}"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    seconds = scene.chance.uniform(2, 6)

    async def stop() -> None:
        scene.estate.ledger.clients["readers that stop"] += 1
        with suppress(*_FAILURES):
            async with raw_connection(scene.estate, receive_bytes=4096) as (back, forth):
                forth.write(request)
                await back.readexactly(1000)
                await asyncio.sleep(seconds)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(SLOW_AT_ONCE):
            tasks.create_task(stop())


@event("idle connections")
async def _idle(scene: Scene) -> None:
    seconds = scene.chance.uniform(1, 4)

    async def idle() -> None:
        scene.estate.ledger.clients["idle connections"] += 1
        with suppress(*_FAILURES):
            async with raw_connection(scene.estate) as (_, forth):
                forth.write(
                    scene.chance.choice([b"", b"GET /acme/app/inf", b"POST / HTTP/1.1\r\n"])
                )
                await asyncio.sleep(seconds)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(IDLE_AT_ONCE):
            tasks.create_task(idle())
