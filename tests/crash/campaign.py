"""Many crashes, one after the other, and a count of what became of them."""

import asyncio
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from tests.crash.control import Call, Op
from tests.crash.machine import End
from tests.crash.replay import Bytes, Disk, Names
from tests.crash.story import World

_PACK: Final = re.compile(r"\.git/objects/pack/pack-[0-9a-f]+\.pack\Z")

STORY_SECONDS: Final = 0.8
"""About what the story takes: a kill at a random instant comes within that, and a bit after."""

MAIN_ONLY_SHARE: Final = 0.3
"""Of the kills: the children live on, as when the kernel kills the largest process."""


@dataclass(slots=True)
class Tally:
    """What was tried; whatever went wrong is an error and not counted."""

    kills: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        width = max(map(len, self.kills), default=0)
        lines = [f"{what:<{width}}  {count:>5}" for what, count in sorted(self.kills.items())]
        lines.append(f"{'in all':<{width}}  {self.kills.total():>5}, {len(self.wrong)} wrong")
        return "\n".join([*lines, *self.wrong])


async def kill_at_random(world: World, count: int, seed: int) -> Tally:
    """Kill the service `count` times at random instants; half of the time it goes on from there."""
    chance, tally = random.Random(seed), Tally()
    is_running = False
    for number in range(count):
        if not is_running or chance.random() < 0.5:
            if is_running:
                await _end(world)
            what = _prepare(world, chance.choice(["fresh", "crowded"]))
            await world.machine.start(recording=True)
        else:
            what = "continued"
        is_running = False
        main_only = chance.random() < MAIN_ONLY_SHARE
        seconds = chance.uniform(0, STORY_SECONDS * 1.2)
        loop = asyncio.get_running_loop()
        killing = loop.call_later(seconds, _kill, world, main_only)
        try:
            await world.play()
        finally:
            killing.cancel()
        await world.machine.kill(main_only=main_only)
        name = f"random instant, {what}, {'without children' if main_only else 'all processes'}"
        is_running = await _judge(
            world, tally, name, f"{number} of seed {seed}", catch_up=number % 3 == 0
        )
    if is_running:
        await _end(world)
    return tally


async def kill_at_points(
    world: World, choose: Callable[[Sequence[Call]], Sequence[int]], seed: int
) -> Tally:
    """Kill the service after certain calls of a first clone, and of a merge of packs.

    `choose` gets all calls of a run that was not killed, and returns numbers from 1 on.
    """
    chance, tally = random.Random(seed), Tally()
    for kind in ("fresh", "crowded"):
        for number in choose(await record(world, kind)):
            _prepare(world, kind)
            end = End(number, half=chance.random() < 0.5, main_only=chance.random() < 0.3)
            await world.machine.start(end, recording=True)
            await world.play()
            last = _last(world)
            await world.machine.kill()
            name = f"{last.op.name.lower()}, {kind}"
            where = f"after call {number} {last.path} {last.to} of {kind}, {end}"
            if await _judge(world, tally, name, where, catch_up=number % 5 == 0):
                await _end(world)
    return tally


async def cut_power(world: World, count: int, seed: int, model: Names) -> Tally:
    """Cut the power at `count` moments of a first clone, and as many of a merge of packs."""
    chance, tally = random.Random(seed), Tally()
    for kind in ("fresh", "crowded"):
        disk = Disk(model)
        calls = await record(world, kind, disk)
        is_merged = any(one.op is Op.UNLINK and _PACK.search(one.path) for one in calls)
        assert is_merged == (kind == "crowded"), "packs were to be merged in one of them"
        history, seen = list(world.history), list(world.seen)
        moments = sorted(chance.choices(range(1, len(calls) + 1), k=count))
        for number, (before, at) in enumerate(pairwise([0, *moments])):
            disk.take(calls[before:at])
            fate = chance.choice(list(Bytes))
            shutil.rmtree(world.data)
            disk.cut(world.data, fate, chance)
            world.history = [*history, *world.history[len(history) :]]
            at_start = 0 if kind == "crowded" else -1
            world.published = max((state for calls, state in seen if calls <= at), default=at_start)
            last = calls[at - 1]
            where = f"cut after call {at} {last.op.name} {last.path} {last.to} of {kind}, {fate}"
            if await _judge(world, tally, f"{model}, {fate}", where, catch_up=number % 10 == 0):
                await _end(world)
    return tally


async def record(world: World, kind: str, disk: Disk | None = None) -> list[Call]:
    """Return all calls of a run of the whole story; `disk` takes what is there before."""
    _prepare(world, kind)
    if disk is not None and world.data.exists():
        disk.load(world.data)
    world.seen.clear()
    await world.machine.start(recording=True)
    await world.play()
    calls = list(world.machine.control.calls())
    await _end(world)
    strange = {call.path for call in calls if call.op in {Op.MAPPED, Op.UNKNOWN}}
    assert strange <= {"relays.db-shm"}, "writes that can't be followed"  # SQLite makes it anew
    return calls


def _kill(world: World, main_only: bool) -> None:
    world.machine.kill_now(main_only=main_only)


def _prepare(world: World, kind: str) -> str:
    world.wipe() if kind == "fresh" else world.crowd()
    return kind


def _last(world: World) -> Call:
    return list(world.machine.control.calls())[-1]


async def _judge(world: World, tally: Tally, name: str, where: str, *, catch_up: bool) -> bool:
    """Count a kill and look at what is there; tells whether the service runs, with all well."""
    tally.kills[name] += 1
    try:
        await world.judge()
        if catch_up:
            await world.catch_up()
    except Exception as error:  # noqa: BLE001 - whatever is wrong is counted
        kept = world.place / f"wrong-{time.time_ns()}"
        await _end(world)
        shutil.copytree(world.data, kept, symlinks=True, ignore=_no_sockets)
        (kept / "log").write_text("\n".join(world.machine.lines))
        tally.wrong.append(f"WRONG {where}: {type(error).__name__}: {error} ({kept})")
        return False
    finally:
        (world.place / "tally").write_text(f"{tally}\n")  # for who looks at a long run
    return True


async def _end(world: World) -> None:
    await world.machine.kill()
    await world.machine.end_children()


def _no_sockets(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(directory, name).is_socket()]
