"""The service is killed anywhere: nothing that a reader saw is lost, and nothing is left lying."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.crash import campaign
from tests.crash.control import Call, compiled
from tests.crash.replay import Names
from tests.crash.story import world


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    library = compiled(tmp_path)
    if library is None:
        pytest.skip("there is no C compiler on this machine (Debian: gcc libc6-dev)")
    return library


async def test_a_kill_at_any_instant_loses_nothing_and_leaves_nothing(
    shim: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    kills, seed = pytestconfig.getoption("--crash-kills"), pytestconfig.getoption("--crash-seed")
    shares = [("git", 1, kills - kills // 4 - kills // 8), ("dulwich", 1, kills // 4)]
    if kills >= 100:
        shares.append(("auto", 2, kills // 8))  # a worker takes a second to start
    wrong = []
    for engine, workers, count in shares:
        place = tmp_path / engine
        async with world(place, shim, engine=engine, workers=workers, seed=seed) as one:
            await one.make_crowded()
            tally = await campaign.kill_at_random(one, count, seed)
        print(f"{engine}, {workers} workers, seed {seed}\n{tally}")
        wrong += tally.wrong
    assert not wrong, "\n".join(wrong)


async def test_a_kill_after_any_file_system_call_loses_nothing_and_leaves_nothing(
    shim: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    count, seed = pytestconfig.getoption("--crash-points"), pytestconfig.getoption("--crash-seed")
    chance = random.Random(seed)

    def choose(calls: Sequence[Call]) -> Sequence[int]:
        every = range(1, len(calls) + 1)
        return sorted(chance.sample(every, min(count, len(every)))) if count else every

    async with world(tmp_path / "world", shim, seed=seed) as one:
        await one.make_crowded()
        tally = await campaign.kill_at_points(one, choose, seed)
    print(f"seed {seed}\n{tally}")
    assert not tally.wrong, "\n".join(tally.wrong)


async def test_a_power_cut_anywhere_loses_nothing_that_was_published(
    shim: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    count, seed = pytestconfig.getoption("--crash-cuts"), pytestconfig.getoption("--crash-seed")
    wrong = []
    async with world(tmp_path / "world", shim, seed=seed) as one:
        await one.make_crowded()
        for model in Names:
            tally = await campaign.cut_power(one, count, seed, model)
            print(f"seed {seed}\n{tally}")
            wrong += tally.wrong
    assert not wrong, "\n".join(wrong)
