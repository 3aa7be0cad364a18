"""The signal that readers wait for."""

import asyncio

from mirror.refresh.mirror import Signal
from tests.refresh.bench import soon


async def test_all_who_wait_are_woken_and_later_ones_wait_for_the_next() -> None:
    signal = Signal()
    signal.give()  # to nobody
    waiting = [asyncio.create_task(signal.wait(20)) for _ in range(3)]
    await soon(lambda: len(signal._waiters) == 3)
    signal.give()
    signal.give()  # before they had their turn
    await asyncio.gather(*waiting)
    later = asyncio.create_task(signal.wait(20))
    await soon(lambda: signal._waiters)
    assert not later.done()
    signal.give()
    await later
    assert not signal._waiters


async def test_the_wait_ends_when_the_time_runs_out() -> None:
    signal = Signal()
    await signal.wait(0.001)
    await signal.wait(0)
    assert not signal._waiters


async def test_one_who_goes_away_is_forgotten() -> None:
    signal = Signal()
    waiting = asyncio.create_task(signal.wait(20))
    await soon(lambda: signal._waiters)
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert waiting.cancelled()
    assert not signal._waiters
    signal.give()
