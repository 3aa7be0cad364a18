"""What befalls the service: a registry; a new event is a function more.

An event does its mischief, undoes it, and returns: a calm follows, in which all must be well again.
It says with `estate.conditions.during` what it explains. One that `ends` a life leaves the service
running anew.
"""

import asyncio
import functools
import os
import random
import shutil
import signal
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from mirror.demo.forge import Faults, ForgeRequest
from tests.soak.asking import Asking
from tests.soak.estate import RTT_SECONDS, Estate
from tests.soak.ledger import Trouble
from tests.soak.pushing import Pusher
from tests.soak.resources import tree_of

SIGTERM_STATUS: Final = 0


@dataclass(slots=True)
class Scene:
    """What events have at hand.

    Attributes:
        workers: How many the next life has.
    """

    estate: Estate
    asking: Asking
    pusher: Pusher
    workers: int = 1

    @property
    def chance(self) -> random.Random:
        return self.estate.chance

    async def last(self, least: float = 2.0, most: float = 7.0) -> None:
        """Let it last for so many seconds."""
        await asyncio.sleep(self.chance.uniform(least, most))


Happening = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Event:
    """An event.

    Attributes:
        weight: How often it is chosen, among others of its sort.
        ends: Whether the service is another one afterwards.
        may: Whether it can be had now.
        needs_disk: Whether the data is to have a small disk of its own.
    """

    name: str
    weight: float
    happen: Happening
    ends: bool
    may: Callable[[Estate], bool]
    needs_disk: bool = False


EVENTS: Final[dict[str, Event]] = {}


def event(
    name: str,
    *,
    weight: float = 1.0,
    ends: bool = False,
    may: Callable[[Estate], bool] = lambda _: True,
    needs_disk: bool = False,
) -> Callable[[Happening], Happening]:
    """Register an event."""

    def register(happen: Happening) -> Happening:
        EVENTS[name] = Event(name, weight, happen, ends, may, needs_disk)
        return happen

    return register


def choose(estate: Estate, among: Collection[str], *, ends: bool) -> Event:
    """Choose one of those that can be had.

    Args:
        estate: All parts.
        among: Names; all where there is none.
        ends: Whether a life is to end with it.
    """
    there = [
        one
        for one in EVENTS.values()
        if one.ends == ends and one.may(estate) and not (one.needs_disk and estate.disk is None)
    ]
    found = [one for one in there if one.name in among] or (
        [EVENTS["killed" if ends else "quiet"]] if among else there
    )
    (one,) = estate.chance.choices(found, [each.weight for each in found])
    return one


# --- the upstream --------------------------------------------------------------------------------


@event("quiet", weight=3)
async def _quiet(scene: Scene) -> None:
    """Nothing but the load."""
    await scene.last()


@event("outage", weight=2)
async def _outage(scene: Scene) -> None:
    """Nothing listens at the forge's address."""
    with scene.estate.conditions.during(Trouble.UPSTREAM):
        await scene.estate.line.close()
        try:
            await scene.last()
        finally:
            await scene.estate.line.start()


async def _faulty(scene: Scene, faults: Faults) -> None:
    with scene.estate.conditions.during(Trouble.UPSTREAM):
        scene.estate.forge.faults = faults
        try:
            await scene.last()
        finally:
            scene.estate.forge.faults = Faults()
            if faults.stall is not None:
                faults.stall.set()


@event("status", weight=3)
async def _status(scene: Scene) -> None:
    """The forge answers something else than asked for."""
    status = scene.chance.choice([401, 403, 404, 429, 429, 500, 502, 503, 503])
    await _faulty(scene, Faults(status=status, retry_after=scene.chance.choice([None, "1"])))


@event("cut pack", weight=2)
async def _cut_pack(scene: Scene) -> None:
    size = scene.chance.choice([0, 1, 4, 100, 1000, 20_000])
    await _faulty(scene, Faults(cut_after_bytes=size, only=ForgeRequest.is_fetch))


@event("cut answer")
async def _cut_answer(scene: Scene) -> None:
    size = scene.chance.choice([0, 1, 30, 300])
    await _faulty(scene, Faults(cut_after_bytes=size))


@event("stall")
async def _stall(scene: Scene) -> None:
    after = scene.chance.choice([None, 0, 10, 1000])
    await _faulty(scene, Faults(stall=asyncio.Event(), stall_after_bytes=after))


@event("wrong type")
async def _wrong_type(scene: Scene) -> None:
    await _faulty(scene, Faults(content_type="text/html"))


@event("old forge")
async def _old_forge(scene: Scene) -> None:
    """Protocol v2 is not to be had any more."""
    await _faulty(scene, Faults(force_protocol_v0=True))


@event("cut line", weight=2)
async def _cut_line(scene: Scene) -> None:
    """Every connection to the forge breaks, again and again."""
    with scene.estate.conditions.during(Trouble.UPSTREAM):
        for _ in range(scene.chance.randrange(3, 10)):
            scene.estate.line.cut()
            await scene.last(0.1, 0.8)


@event("slow line")
async def _slow_line(scene: Scene) -> None:
    line = scene.estate.line
    with scene.estate.conditions.during(Trouble.UPSTREAM):
        line.rtt_seconds = scene.chance.choice([0.3, 1.0])
        await scene.last()
        line.rtt_seconds = RTT_SECONDS


@event("trickle")
async def _trickle(scene: Scene) -> None:
    line = scene.estate.line
    with scene.estate.conditions.during(Trouble.UPSTREAM):
        line.chunk_bytes = scene.chance.choice([16, 256])
        await scene.last()
        line.chunk_bytes = type(line).chunk_bytes
        line.cut()


@event("refs vanished", weight=1.5)
async def _refs_vanished(scene: Scene) -> None:
    """The forge lists no refs at all, as where its disk is not mounted; then they are back.

    That is no deletion: it explains nothing, and readers are shown all of them meanwhile.
    """
    # Nobody pushes to these but who holds the lock.
    one = scene.estate.repositories[scene.chance.choice(["acme/private", "acme/large"])]
    webhooks = scene.pusher.webhooks
    async with one.pushing:
        # One that is late may announce the deletion of a ref that came again since.
        webhooks.is_held = True
        refs = await asyncio.to_thread(one.upstream.refs)
        since = scene.estate.mirror.lines
        try:
            lines = "".join(f"delete {name}\n" for name in refs)
            await asyncio.to_thread(one.upstream.git, "update-ref", "--stdin", stdin=lines)
            await scene.estate.mirror.logged(
                since,
                lambda said: (
                    said["event"] == "refs_vanished" and said.get("repository") == one.name
                ),
            )
            await scene.last(1, 5)
        finally:
            await asyncio.to_thread(one.upstream.branches, refs)
            webhooks.is_held = False


# --- pushes and readers --------------------------------------------------------------------------


@event("burst", weight=2)
async def _burst(scene: Scene) -> None:
    """Pushes one right after the other."""
    one = scene.chance.choice(list(scene.estate.repositories.values()))
    for _ in range(scene.chance.randrange(10, 25)):
        await scene.pusher.push(one)


@event("many refs")
async def _many_refs(scene: Scene) -> None:
    await scene.pusher.many(scene.estate.repositories["acme/app"])


@event("force-pushes")
async def _force_pushes(scene: Scene) -> None:
    one = scene.chance.choice(list(scene.estate.repositories.values()))
    for _ in range(5):
        async with one.pushing:
            await scene.pusher.force(one)
        scene.estate.ledger.pushes["force-push"] += 1
        await scene.last(0.1, 0.5)


@event("webhooks again")
async def _webhooks_again(scene: Scene) -> None:
    for _ in range(10):
        await scene.pusher.webhooks.flush()


@event("packs removed")
async def _packs_removed(scene: Scene) -> None:
    """They may be removed at any time, as the data directory's description says."""
    packs = scene.estate.data / "packs"
    found = [one for one in packs.rglob("*") if one.is_file() and "tmp" not in one.parts]
    for one in scene.chance.sample(found, len(found) // 2):
        with suppress(FileNotFoundError):
            await asyncio.to_thread(one.unlink)
    await scene.last(1, 3)


# --- receivers -----------------------------------------------------------------------------------


@event("receiver down", weight=2)
async def _receiver_down(scene: Scene) -> None:
    """One of the receivers refuses everything, or takes it and never says so."""
    receivers = scene.estate.receivers
    name = scene.chance.choice(sorted(receivers))
    well, hangs = receivers[name].answer, scene.chance.random() < 0.3
    with scene.estate.conditions.during(Trouble.RECEIVER):
        receivers[name].answer = functools.partial(_refuse, hangs=hangs)
        await scene.last(2, 5)
        receivers[name].answer = well


async def _refuse(_: Any, *, hangs: bool) -> web.StreamResponse:
    if hangs:
        await asyncio.sleep(3)
    return web.Response(status=503)


# --- the service ---------------------------------------------------------------------------------


@event("worker killed", weight=2, may=lambda estate: estate.workers > 1)
async def _worker_killed(scene: Scene) -> None:
    """Kill one worker; the main process starts another."""
    pid = scene.estate.mirror.pid
    workers = [one for one in tree_of(pid or 0) if one.parent == pid and one.name[:3] != "git"]
    with scene.estate.conditions.during(Trouble.WORKER):
        if workers:
            os.kill(scene.chance.choice(workers).pid, signal.SIGKILL)
        await scene.last(2, 5)


@event("worker frozen", may=lambda estate: estate.workers > 1)
async def _worker_frozen(scene: Scene) -> None:
    """One worker is not given a processor for a while."""
    pid = scene.estate.mirror.pid
    workers = [one for one in tree_of(pid or 0) if one.parent == pid and one.name[:3] != "git"]
    if not workers:
        return
    frozen = scene.chance.choice(workers).pid
    with scene.estate.conditions.during(Trouble.WORKER):
        os.kill(frozen, signal.SIGSTOP)
        try:
            await scene.last(0.5, 3)
        finally:
            with suppress(ProcessLookupError):
                os.kill(frozen, signal.SIGCONT)


@event("worker hung", may=lambda estate: estate.workers > 1)
async def _worker_hung(scene: Scene) -> None:
    """One worker stands still for good: the canary finds that, and it is replaced."""
    estate = scene.estate
    pid = estate.mirror.pid
    workers = [one for one in tree_of(pid or 0) if one.parent == pid and one.name[:3] != "git"]
    if not workers:
        return
    with estate.conditions.during(Trouble.WORKER):
        since = estate.mirror.lines
        os.kill(scene.chance.choice(workers).pid, signal.SIGSTOP)
        await estate.mirror.logged(since, lambda said: said["event"] == "worker_serves")


@event("frozen")
async def _frozen(scene: Scene) -> None:
    """The main process is not given a processor for a while."""
    mirror = scene.estate.mirror
    with scene.estate.conditions.during(Trouble.SERVICE):
        mirror.send(signal.SIGSTOP)
        try:
            await scene.last(0.5, 4)
        finally:
            mirror.send(signal.SIGCONT)


@event("killed", weight=3, ends=True)
async def _killed(scene: Scene) -> None:
    """Kill the service as the kernel would, and start it anew; its children go by themselves."""
    estate = scene.estate
    with estate.conditions.during(Trouble.SERVICE):
        await estate.mirror.kill()
        await scene.last(0, 1)
        await estate.start(scene.workers)


@event("stopped", ends=True)
async def _stopped(scene: Scene) -> None:
    """End the service as systemd does, and start it anew."""
    estate = scene.estate
    with estate.conditions.during(Trouble.SERVICE):
        status = await estate.mirror.stop()
        if status != SIGTERM_STATUS:
            estate.ledger.violate("SIGTERM", f"the service ended with status {status}")
        await scene.last(0, 1)
        await estate.start(scene.workers)


@event("killed while starting", weight=2, ends=True)
async def _killed_while_starting(scene: Scene) -> None:
    """Kill the service, and once more before it serves again."""
    estate = scene.estate
    with estate.conditions.during(Trouble.SERVICE):
        await estate.mirror.kill()
        starting = asyncio.create_task(estate.start(scene.workers))
        await scene.last(0.3, 1.5)
        if estate.mirror.pid is not None:
            await estate.mirror.kill()
            with suppress(AssertionError):  # it ended before it served
                await starting
            starting = asyncio.create_task(estate.start(scene.workers))
        await starting


@event("packs lost", weight=0.5, ends=True)
async def _packs_lost(scene: Scene) -> None:
    """The cache of packs goes between two runs."""
    estate = scene.estate
    with estate.conditions.during(Trouble.SERVICE):
        await estate.mirror.kill()
        await asyncio.to_thread(shutil.rmtree, estate.data / "packs", ignore_errors=True)
        await estate.start(scene.workers)
