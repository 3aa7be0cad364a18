"""Decides what comes when: long lives of the service with storms and calms, and series of kills.

A storm is the load with events in it, one after the other. In a calm the load pauses: late
webhooks are delivered, and all must be well again within `WELL_SECONDS_MAX`; what the service takes
is looked up, and each repository is cloned and compared with the upstream.
"""

import asyncio
import functools
import shutil
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import aiohttp
import pygit2
from aiohttp import web

from tests.clients.operations import ClientFailed
from tests.git_client import GitFailed
from tests.mirror_service import ZERO_ID
from tests.soak import breaking, flooding, operating
from tests.soak.asking import Asking, Refused, Wrong, asking
from tests.soak.clients import KINDS, Kind, Reader
from tests.soak.estate import DISK_LIMITS, Estate, Repository, set_up
from tests.soak.events import EVENTS, Event, Scene, choose
from tests.soak.judges import SHOWN, words_of_damage
from tests.soak.ledger import Ledger, Life, Trouble
from tests.soak.log_lines import LogJudge
from tests.soak.pushing import Pusher, Webhooks
from tests.soak.resources import (
    Process,
    bytes_by_kind,
    calm_mistakes,
    disk_mistakes,
    is_alive,
    leftovers,
    memory_mistakes,
    sample_of,
    tree_of,
    waited_seconds,
    zombie_mistakes,
)

MORE_EVENTS: Final = (breaking, flooding, operating)
"""They register theirs."""

SAMPLE_SECONDS: Final = 2.0
STARVED_SECONDS: Final = 1.0
STARVED_SHARE: Final = 0.5
"""Of a second, for which this process, which needs a third of a processor, waits for one."""

PAUSE_SECONDS_MAX: Final = 120.0
"""How long the load may take to pause: what is under way is ended."""

WELL_SECONDS_MAX: Final = 90.0
"""Backoffs go up to a minute, and half of that beyond."""

CLEAN_SECONDS_MAX: Final = 40.0
"""For what is under way on disk to end, and for what was removed to go: half a minute is usual."""

SET_ASIDE_BYTES: Final = 32_000_000

PUSHES_EACH_MINUTE: Final = 60.0
THROUGH_EACH_MINUTE: Final = 6.0

_TROUBLE: Final = (
    OSError,
    aiohttp.ClientError,
    GitFailed,
    ClientFailed,
    TimeoutError,
    asyncio.IncompleteReadError,
    pygit2.GitError,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a soak goes.

    Attributes:
        seconds: How long it lasts, about; calms that are under way are ended.
        load: How often clients and pushes come, as a factor.
        long_seconds: How long a life is let alone, for its memory to be judged.
        storm_seconds: How long the load goes on between two calms.
        kills: How many lives after it are short.
        short_seconds: How long such a life is at most.
        clients: The kinds that come; all where none is named.
        events: Those that may happen; all where none is named.
    """

    seconds: float
    load: float = 1.0
    long_seconds: float = 240.0
    storm_seconds: float = 45.0
    kills: int = 8
    short_seconds: float = 10.0
    clients: frozenset[str] = frozenset()
    events: frozenset[str] = frozenset()

    @classmethod
    def lasting(cls, seconds: float, load: float = 1.0) -> "Plan":
        """Return a plan for so long: the two kinds of lives, in either mode, come about twice."""
        plan = cls(seconds, load)
        if seconds >= 900:
            return replace(plan, long_seconds=max(plan.long_seconds, seconds / 12))
        return replace(plan, long_seconds=seconds / 3, storm_seconds=min(45, seconds / 5), kills=4)


class Soak:
    """Conducts one."""

    def __init__(self, estate: Estate, asking: Asking, plan: Plan) -> None:
        self.estate = estate
        self.plan = plan
        self._asking = asking
        self._ledger = estate.ledger
        self._pusher = Pusher(estate, asking, Webhooks(estate, asking))
        self._scene = Scene(estate, asking, self._pusher)
        self._load_is_on = asyncio.Event()
        self._under_way = 0
        self._all_paused = asyncio.Condition()
        self._long_workers = 1
        self._life: Life | None = None
        self._until = time.monotonic() + plan.seconds
        self._log = LogJudge(estate)
        estate.mirror.on_line = self._log.judge
        for name, receiver in estate.receivers.items():
            receiver.answer = functools.partial(self._hear, name)

    async def run(self) -> None:
        """Do it all; ends early where the ledger says so."""
        watcher = asyncio.create_task(self._play())
        stopped = asyncio.create_task(self._ledger.is_stopped.wait())
        try:
            await asyncio.wait([watcher, stopped], return_when=asyncio.FIRST_COMPLETED)
            if watcher.done() and (error := watcher.exception()) is not None:
                # Such as a service that does not start.
                self._ledger.violate("the soak", "".join(traceback.format_exception(error)))
        finally:
            for task in (watcher, stopped):
                task.cancel()
            await asyncio.gather(watcher, stopped, return_exceptions=True)
            self._end_life("the end")
            self._log.close()

    async def _play(self) -> None:
        estate = self.estate
        with estate.conditions.during(Trouble.SERVICE):
            await estate.start(1 + estate.seed % 2)
        self._begin_life()
        async with asyncio.TaskGroup() as tasks:
            loops = [tasks.create_task(one) for one in self._loops()]
            await self._mirrored()
            self._until = time.monotonic() + self.plan.seconds
            while self._left() > 0:
                await self._long_life()
                await self._series()
            await self._stop()
            for loop in loops:
                loop.cancel()

    async def _long_life(self) -> None:
        """Let the service live, from storm to storm."""
        self._long_workers = self.estate.workers
        until = time.monotonic() + min(self.plan.long_seconds, self._left())
        while time.monotonic() < until:
            await self._storm(min(self.plan.storm_seconds, until - time.monotonic()))
            await self._calm()

    async def _series(self) -> None:
        """End one life after the other, under load."""
        for left in reversed(range(self.plan.kills)):
            if self._left() <= 0 and self._life is not self._ledger.lives[0]:
                break
            self._load_is_on.set()
            # The next long life is in the other mode than the one before.
            self._scene.workers = (
                self.estate.chance.choice([1, 2]) if left else 3 - self._long_workers
            )
            await asyncio.sleep(self.estate.chance.uniform(0.1, self.plan.short_seconds))
            await self._end(choose(self.estate, self.plan.events, ends=True))
        await self._calm()

    def _left(self) -> float:
        return self._until - time.monotonic()

    # --- storms --------------------------------------------------------------------------------

    async def _storm(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._load_is_on.set()
        while time.monotonic() < until:
            one = choose(self.estate, self.plan.events, ends=False)
            self._ledger.phase = one.name
            self._ledger.events[one.name] += 1
            await one.happen(self._scene)
            self._ledger.phase = "after events"
            await asyncio.sleep(self.estate.chance.uniform(0.2, 2))

    async def _end(self, one: Event) -> None:
        """Have the service end, and begin a new life."""
        self._ledger.phase = one.name
        self._ledger.events[one.name] += 1
        pid = self.estate.mirror.pid
        before = [] if pid is None else await asyncio.to_thread(tree_of, pid)
        self._end_life(one.name)
        await one.happen(self._scene)
        self._begin_life()
        self._ledger.phase = "after events"
        await self._look_for_orphans(before)

    async def _look_for_orphans(self, before: list[Process]) -> None:
        """What a life left behind is to end soon."""
        if self.estate.mirror.pid in {one.pid for one in before}:
            return  # an upgrade that failed
        until, left = time.monotonic() + CLEAN_SECONDS_MAX, before
        while (  # noqa: ASYNC110 - nobody tells when a process of others ends
            left := [one for one in left if is_alive(one)]
        ) and time.monotonic() < until:
            await asyncio.sleep(0.2)
        self._ledger.judged["orphans"] += 1
        for one in left:
            self._ledger.violate("orphans", f"{one} outlives the service")

    # --- the load ------------------------------------------------------------------------------

    def _loops(self) -> list[Coroutine[Any, Any, None]]:
        plan = self.plan
        kinds = [
            one
            for one in KINDS.values()
            if one.is_there() and (not plan.clients or one.name in plan.clients)
        ]
        for name in sorted(set(KINDS) - {one.name for one in kinds}):
            self._ledger.notes.append(f"{name}: left out")
        return [
            *(self._come(one) for one in kinds),
            self._again(PUSHES_EACH_MINUTE, self._push),
            self._again(THROUGH_EACH_MINUTE, self._push_through),
            self._sample(),
            self._starve(),
        ]

    async def _push(self) -> None:
        await self._pusher.push(self.estate.chance.choice(list(self.estate.repositories.values())))

    async def _push_through(self) -> None:
        name = self.estate.chance.choice(["acme/app", "acme/strict", "acme/lfs"])
        await self._pusher.push_through(self.estate.repositories[name])

    async def _come(self, kind: Kind) -> None:
        reader = Reader(kind.name.replace(" ", "-"), self._asking)

        async def work() -> None:
            await self._work(kind, reader)

        await self._again(kind.each_minute, work)

    async def _again(self, each_minute: float, do: Callable[[], Awaitable[None]]) -> None:
        """Do something again and again, while the load is on and the service is there."""
        while True:
            pause = self.estate.chance.expovariate(each_minute * self.plan.load / 60)
            await asyncio.sleep(min(pause, 60))
            await self._load_is_on.wait()
            await self.estate.mirror.up.wait()
            self._under_way += 1
            try:
                await do()
            finally:
                self._under_way -= 1
                async with self._all_paused:
                    self._all_paused.notify_all()

    async def _work(self, kind: Kind, reader: Reader) -> None:
        began, ledger = time.monotonic(), self._ledger
        ledger.clients[kind.name] += 1
        try:
            await kind.work(reader)
        except* Refused as errors:
            ledger.excused[f"{kind.name}: {_first(errors)}"] += 1
        except* Wrong as errors:
            ledger.violate(kind.name, str(_first(errors)))
        except* _TROUBLE as errors:
            error = _first(errors)
            words = f"{type(error).__name__}: {error}"
            one = reader.at
            is_full = "pull_through_repositories_max" in words  # it was evicted in between
            if (
                one is not None
                and ("503" in words or is_full)
                and (one.may_refuse or one.is_pulled)
            ):
                ledger.excused[f"{kind.name}: 503"] += 1
            elif self._is_wrong(kind, one, began, words):
                ledger.violate(kind.name, words)
            else:
                ledger.excused[kind.name] += 1
            reader.forget()
        except* Exception as errors:  # noqa: BLE001 - a client that breaks is a finding
            ledger.violate(kind.name, "".join(traceback.format_exception(_first(errors))))
        what = "real client" if kind.is_real else "client in process"
        ledger.took(what, time.monotonic() - began)

    def _is_wrong(self, kind: Kind, one: Repository | None, began: float, words: str) -> bool:
        """Tell whether nothing explains a client's failure."""
        explain = self.estate.conditions.explain
        if "error: 500" in words or words.startswith("GitFailed: git fsck"):
            return True
        if explain(began, *kind.excuses):
            return False
        is_damaged = one is not None and explain(began, Trouble.DAMAGE, of=one.name)
        # A client that had to find that out by itself was handed what is damaged.
        return not is_damaged or bool(words_of_damage(words))

    # --- calms ---------------------------------------------------------------------------------

    async def _calm(self) -> None:
        self._load_is_on.clear()
        self._ledger.phase = "calm"
        async with asyncio.timeout(PAUSE_SECONDS_MAX), self._all_paused:
            await self._all_paused.wait_for(lambda: self._under_way == 0)
        await self._pusher.webhooks.flush()
        for one in self._kept():
            await self._pusher.announce_for_sure(one)
        for one in self.estate.repositories.values():
            await self._until_well(f"{one.name} shows", functools.partial(self._difference, one))
        await self._until_well("receivers know", self._not_told)
        await self._until_well("the disk is clean", self._leftovers, CLEAN_SECONDS_MAX)
        self._ledger.phase = "calm"
        await self._compare()
        await self._measure()
        self.estate.trim()

    def _kept(self) -> list[Repository]:
        return [one for one in self.estate.repositories.values() if not one.is_pulled]

    async def _mirrored(self) -> None:
        """Wait for the first clones."""
        for one in self._kept():
            difference = functools.partial(self._difference, one)
            await self._until_well(f"{one.name} is mirrored", difference)

    async def _until_well(
        self, what: str, trouble: Callable[[], Awaitable[str]], seconds: float = WELL_SECONDS_MAX
    ) -> None:
        """Wait until there is no trouble; a violation if that takes too long."""
        until = time.monotonic() + seconds
        self._ledger.phase = f"calm, until {what}"
        while found := await trouble():
            if time.monotonic() > until:
                self._ledger.violate(what, f"not within {seconds:.0f} s: {found}")
                break
            await asyncio.sleep(0.25)
        self._ledger.judged["becomes well"] += 1

    async def _difference(self, one: Repository) -> str:
        """Return how what is shown differs from the upstream."""
        try:
            shown, is_stale = await self._asking.look(one, 2)
        except Refused as error:
            # Below the place there may be no room: what was read within a minute is not evicted.
            return "" if one.is_pulled else f"refused: {error}"
        except (Wrong, OSError, aiohttp.ClientError) as error:
            return f"{type(error).__name__}: {error}"
        wanted = one.watch.history.tips()
        found = {name: oid for name, oid in shown.items() if name in wanted or _is_ref(name)}
        if found != wanted:
            return f"it shows {sorted(found.items() ^ wanted.items())}"
        return "it is marked as stale" if is_stale else ""

    async def _not_told(self) -> str:
        """Return what receivers do not know."""
        return "; ".join(
            f"{receiver} of {name}: {missing}"
            for (receiver, name), one in self.estate.hearings.items()
            for missing in one.missing()
        )

    async def _leftovers(self) -> str:
        return ", ".join(await asyncio.to_thread(leftovers, self.estate.data))

    async def _compare(self) -> None:
        """Clone each repository, and compare it with the upstream; look at the mirror on disk."""
        judge = self.estate.git("judge")
        path = judge.workdir / "clone"
        for one in self._kept():
            wanted = await asyncio.to_thread(one.upstream.refs)
            wanted = {name: oid for name, oid in wanted.items() if _is_ref(name)}
            if wanted != one.watch.history.tips():
                self._ledger.violate(one.name, "the soak itself is wrong about the upstream")
            mirror = self.estate.data / "repositories" / f"{one.name}.git"
            try:
                await judge.run("clone", "--quiet", "--mirror", self.estate.url(one), str(path))
                found = await judge.refs(path)
                if found != wanted:
                    self._ledger.violate(
                        one.name, f"a clone differs: {sorted(found.items() ^ wanted.items())}"
                    )
                await judge.fsck(path)
                await judge.run(
                    "fsck", "--strict", "--connectivity-only", "--no-dangling", cwd=mirror
                )
            except GitFailed as error:
                self._ledger.violate(f"{one.name}, compared", str(error))
            finally:
                await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
            self._ledger.judged["clones compared"] += 1

    async def _measure(self) -> None:
        life = self._life
        assert life is not None
        sample = await self._look()
        if sample is not None:
            life.calms.append(sample)
        ledger, now = self._ledger, await asyncio.to_thread(bytes_by_kind, self.estate.data)
        ledger.disk.append(now)
        # The damaged files of each repository are kept for a look, until the next time.
        limits = DISK_LIMITS | (
            {"set-aside": SET_ASIDE_BYTES} if ledger.events["bit flipped"] else {}
        )
        mistakes = disk_mistakes(
            ledger.disk[0], now, pushes=sum(ledger.pushes.values()), limits=limits
        )
        ledger.violate("disk", *mistakes)
        ledger.judged["disk"] += 1

    async def _look(self) -> Any:
        pid, life = self.estate.mirror.pid, self._life
        if pid is None or life is None:
            return None
        tree = await asyncio.to_thread(tree_of, pid)
        return sample_of(tree, self._ledger.seconds - life.began) if tree else None

    async def _sample(self) -> None:
        """Look at the processes every few seconds."""
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            self.estate.manager.forget()
            life, sample = self._life, await self._look()
            if sample is None or life is None or life is not self._life:
                continue
            if life.samples:
                self._ledger.violate("children", *zombie_mistakes(life.samples[-1], sample))
            life.samples.append(sample)
            self._ledger.judged["samples"] += 1

    async def _starve(self) -> None:
        """Look whether the machine has processors for the service, too."""
        before, at = waited_seconds(), time.monotonic()
        while True:
            await asyncio.sleep(STARVED_SECONDS)
            waited, now = waited_seconds(), time.monotonic()
            if waited - before > STARVED_SHARE * (now - at):
                self.estate.conditions.note(Trouble.MACHINE)
                self._ledger.starved += now - at
            before, at = waited, now

    # --- lives ---------------------------------------------------------------------------------

    def _begin_life(self) -> None:
        ledger = self._ledger
        self._life = Life(len(ledger.lives) + 1, self.estate.workers, ledger.seconds)
        ledger.lives.append(self._life)

    def _end_life(self, by: str) -> None:
        life, self._life = self._life, None
        if life is None:
            return
        life.ended_by, life.lasted = by, self._ledger.seconds - life.began
        mistakes = [*memory_mistakes(life.samples), *calm_mistakes(life.calms)]
        self._ledger.violate(f"life {life.number}, {life.workers} workers", *mistakes)
        self._ledger.judged["lives"] += 1

    async def _stop(self) -> None:
        """End the service in peace: nothing explains an error in the log now."""
        before = await asyncio.to_thread(tree_of, self.estate.mirror.pid or 0)
        self._end_life("SIGTERM at the end")
        status = await self.estate.mirror.stop()
        if status != 0:
            self._ledger.violate("SIGTERM", f"the service ended with status {status}")
        await self._look_for_orphans(before)

    # --- what comes by itself ------------------------------------------------------------------

    async def _hear(self, name: str, value: Any) -> web.StreamResponse:
        """Take an event, as a receiver."""
        told = value.get("refs", [value])
        repository = value["repository"]
        full_name = repository if isinstance(repository, str) else repository["full_name"]
        one = self.estate.repositories[full_name]
        if name == "moody" and self.estate.chance.random() < 0.2:
            return web.Response(status=500)
        for each in told:
            ref, after = each["ref"], each["after"] or ZERO_ID
            hearing = self.estate.hearings[name, full_name]
            mistakes = [
                *hearing.hear(ref, after, self.estate.restarts),
                *one.watch.judge_told(ref, after),
            ]
            self._ledger.violate(f"{name}, told of {full_name}", *mistakes)
            self._ledger.judged["events"] += 1
        return web.Response()


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _is_ref(name: str) -> bool:
    return name.startswith(SHOWN) and not name.endswith("^{}")


@asynccontextmanager
async def prepared(directory: Path, plan: Plan, ledger: Ledger) -> AsyncIterator[Soak]:
    """Set everything up."""
    async with AsyncExitStack() as stack:
        events = plan.events or EVENTS.keys()
        has_small_disk = any(EVENTS[name].needs_disk for name in events)
        estate = await stack.enter_async_context(
            set_up(directory, seed=ledger.seed, ledger=ledger, has_small_disk=has_small_disk)
        )
        ask = await stack.enter_async_context(asking(estate))
        yield Soak(estate, ask, plan)
