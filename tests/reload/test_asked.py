"""A reload that somebody asks for is done, whatever the processes are at when it is asked for."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from mirror import upgrading
from mirror.cli.ending import Ending
from mirror.cli.reload import _ask_whoever_serves
from mirror.demo.forge import HttpBackend
from mirror.errors import HandedOver
from mirror.handover.messages import HandOverFailed
from mirror.reload import reloader
from mirror.serving import open_runner
from tests.git_client import Upstream
from tests.lifecycle.taking_over import Next, taken_over
from tests.mirror_service import MirrorService, configuration, serving

QUIET = "reload_on_change: false"
HELD = "hold: 17s"


def is_held(mirror: Any) -> bool:
    return bool(mirror.settings.hold_seconds == 17.0)


class Asked:
    """A service as far as signals are about it."""

    def __init__(self) -> None:
        self.handed_over = asyncio.Event()
        self.is_asked = asyncio.Event()
        self.is_upgraded = asyncio.Event()

    def reload_soon(self) -> None:
        self.is_asked.set()

    async def upgrade(self) -> int:
        self.is_upgraded.set()
        return 1

    async def wait(self) -> None:
        await asyncio.get_running_loop().create_future()


async def test_signals_that_come_before_it_serves_count_when_it_does() -> None:
    loop, later = asyncio.get_running_loop(), asyncio.Event()
    numbers = (signal.SIGHUP, signal.SIGUSR2, signal.SIGUSR1)
    others = signal.SIGTERM, signal.SIGINT
    before = {number: signal.getsignal(number) for number in (*numbers, *others)}
    loop.add_signal_handler(signal.SIGUSR1, later.set)
    service: Any = Asked()
    try:
        ending = Ending()
        for number in numbers:
            os.kill(os.getpid(), number)
        await later.wait()  # so those before it are heard as well
        waiting = asyncio.create_task(ending.wait(service))
        await service.is_asked.wait()
        await service.is_upgraded.wait()
        service.handed_over.set()
        await waiting
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


async def asked_between(
    mirror: MirrorService, file: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Next, "asyncio.Task[int]", "asyncio.Task[dict[str, Any]]"]:
    """Ask for a reload, in both ways, after another process has read the file as it was."""
    following = Next()
    monkeypatch.setattr(upgrading, "Successor", following)
    handing = asyncio.create_task(mirror.service.upgrade())
    await following.is_started.wait()
    configuration(mirror.forge, file.parent, server=QUIET, defaults=HELD)
    mirror.service.reload_soon()
    return following, handing, asyncio.create_task(mirror.service.reload())


async def test_one_that_is_asked_for_in_an_upgrade_that_fails_is_done_by_the_old_process(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del upstream
    file = configuration(forge, tmp_path / "m", server=QUIET)
    async with serving(file, forge) as mirror:
        await mirror.mirrored()
        following, handing, asked = await asked_between(mirror, file, monkeypatch)
        following.is_serving.set_exception(HandOverFailed("it fell over"))
        with pytest.raises(HandOverFailed):
            await handing
        assert (await asked)["outcome"] in {"applied", "unchanged"}
        assert is_held(mirror.mirror())


async def test_one_that_is_asked_for_in_an_upgrade_is_passed_on(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del upstream
    file = configuration(forge, tmp_path / "m", server=QUIET)
    async with serving(file, forge) as mirror:
        await mirror.mirrored()
        following, handing, asked = await asked_between(mirror, file, monkeypatch)
        following.is_serving.set_result(None)
        await handing
        with pytest.raises(HandedOver):
            await asked
        assert [await following.told.get() for _ in range(2)] == ["main", "reload"]
        mirror.service.reload_soon()  # as long as it lives
        assert await following.told.get() == "reload"


async def test_the_command_asks_the_process_that_it_is_handed_over_to(tmp_path: Path) -> None:
    """There may be no socket for a moment, and then another one in its place."""
    control, is_asked = tmp_path / "control.sock", asyncio.Event()

    @asynccontextmanager
    async def listening(answer: dict[str, Any]) -> AsyncIterator[None]:
        async def reload(_: web.Request) -> web.Response:
            is_asked.set()
            return web.json_response(answer)

        app = web.Application()
        app.add_routes([web.post("/reload", reload)])
        async with AsyncExitStack() as stack:
            runner = await open_runner(stack, app)
            control.unlink(missing_ok=True)
            await web.UnixSite(runner, str(control)).start()
            yield

    async with listening({"outcome": "error", "error": "x", "ask_again": True}):
        asking = asyncio.create_task(_ask_whoever_serves(control))
        await is_asked.wait()
    control.unlink(missing_ok=True)
    async with listening({"outcome": "applied"}):
        assert await asking == {"outcome": "applied"}


def by_signal(service: Any, _: Any) -> None:
    service.reload_soon()


def passed_on(_: Any, channel: Any) -> None:
    channel.tell("reload")


@pytest.mark.parametrize("ask", [by_signal, passed_on])
async def test_one_that_is_asked_for_while_it_takes_over_is_done_after_that(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, ask: Callable[[Any, Any], None]
) -> None:
    del upstream
    file = configuration(forge, tmp_path / "m", server=QUIET)
    async with serving(file, forge) as mirror:
        await mirror.mirrored()
        async with taken_over(mirror, file) as (service, channel):
            configuration(forge, tmp_path / "m", server=QUIET, defaults=HELD)
            ask(service, channel)
            channel.tell("silent")
            await MirrorService(service, forge, mirror.session).until(is_held)


async def test_a_look_at_the_file_that_breaks_is_not_the_last(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the machine has no thread left for it."""
    del upstream
    look, is_broken = reloader._stamp_of, asyncio.Event()
    loop = asyncio.get_running_loop()

    def breaks(source: Path) -> Any:
        if is_broken.is_set():
            return look(source)
        loop.call_soon_threadsafe(is_broken.set)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(reloader, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(reloader, "_stamp_of", breaks)
    file = configuration(forge, tmp_path / "m")
    async with serving(file, forge) as mirror:
        await mirror.mirrored()
        await is_broken.wait()
        configuration(forge, tmp_path / "m", defaults=HELD)
        await mirror.until(is_held)


async def test_one_that_hangs_is_in_the_log(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del upstream
    log_long, is_told = reloader._log_long, asyncio.Event()

    def tell(source: Path) -> None:
        log_long(source)
        is_told.set()

    monkeypatch.setattr(reloader, "LONG_SECONDS", 0.01)
    monkeypatch.setattr(reloader, "_log_long", tell)
    file = configuration(forge, tmp_path / "m", server=QUIET)
    async with serving(file, forge) as mirror:
        await mirror.mirrored()
        pulling = mirror.service.pulling
        assert pulling is not None
        with capture_logs() as said:
            async with pulling.tidier.still():  # as while a mirror is removed
                configuration(forge, tmp_path / "m", server=QUIET, defaults=HELD)
                asked = asyncio.create_task(mirror.service.reload())
                await is_told.wait()
                assert not asked.done()
            assert (await asked)["outcome"] == "applied"
        assert [one for one in said if one["event"] == "reload_takes_long"]
