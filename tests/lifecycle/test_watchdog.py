"""The watchdog is told only while requests are answered, by every process."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from mirror.errors import LocalError
from mirror.notify import Manager
from mirror.watchdog import keeping_told
from tests.git_client import Upstream
from tests.lifecycle.manager import FakeManager, fake_manager
from tests.lifecycle.serving import managed
from tests.mirror_service import configuration

WATCHDOG = {"WATCHDOG_USEC": "2000000"}


def is_alive(said: dict[str, str]) -> bool:
    return said.get("WATCHDOG") == "1"


async def test_a_canary_without_an_answer_leaves_the_watchdog_alone_until_there_is_one() -> None:
    said_when_asked: list[list[dict[str, str]]] = []

    def manager_says() -> FakeManager:
        manager.take()
        return manager

    async def canary(_: float) -> None:
        said_when_asked.append(list(manager_says().heard))
        if len(said_when_asked) <= 2:
            raise LocalError("no answer")

    with fake_manager() as manager:
        watched = Manager(manager.address, watchdog_seconds=0.02)
        async with keeping_told(watched, canary, lambda: "serving"):
            await manager.until(is_alive)
    # Asked three times at least; before the third answer nothing was said of being alive.
    assert len(said_when_asked) >= 3
    assert not any(map(is_alive, said_when_asked[2]))


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_process_that_hangs_is_not_called_alive(
    workers: int, forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    """The only one, or one of two workers, stands still, until it is back or replaced."""
    del upstream
    file = configuration(forge, tmp_path / "mirror", workers=workers)
    with fake_manager() as manager:
        async with managed(file, manager, **WATCHDOG) as process:
            await manager.until(is_alive)
            hung = process.pid
            assert hung is not None
            if workers > 1:
                hung = next(
                    event["pid"] for event in process.events if event["event"] == "worker_serves"
                )
            since = len(process.log)
            os.kill(hung, signal.SIGSTOP)
            if workers == 1:
                # It may be in the middle of saying so.
                await asyncio.to_thread(os.waitid, os.P_PID, hung, os.WSTOPPED | os.WNOWAIT)
            manager.forget()
            if workers == 1:
                # Whatever was said before it stood still is heard by now: the rest is silence.
                assert not await manager.says_within(2.5, is_alive)
                os.kill(hung, signal.SIGCONT)
            else:
                await process.logged(since, lambda one: one["event"] == "canary_not_answered")
                manager.take()
                assert len([one for one in manager.heard if is_alive(one)]) <= 1
            await manager.until(is_alive)
