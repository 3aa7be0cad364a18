"""The soak itself: a few seconds of what `make soak` does for hours."""

import re
from pathlib import Path

import pytest

from tests.soak.__main__ import main
from tests.soak.conducting import Plan, prepared
from tests.soak.ledger import Ledger

pytestmark = pytest.mark.timeout(300)  # on a busy machine: each wait has a limit of its own

SHORT = Plan(
    seconds=6,
    load=0.7,
    long_seconds=3,
    storm_seconds=3,
    kills=1,
    short_seconds=1.5,
    clients=frozenset(
        {"poll v0", "poll v2", "poll and fetch", "every ref", "pulled", "git fetch", "git clone"}
    ),
    events=frozenset({"burst", "killed"}),
)


async def test_a_short_soak_finds_nothing_wrong(tmp_path: Path) -> None:
    ledger = Ledger(2, stops=False)
    async with prepared(tmp_path, SHORT, ledger) as soak:
        await soak.run()
    assert ledger.violations == [], ledger.report()
    assert ledger.events["killed"] >= 1
    for kind in ("polls", "packs", "events", "log lines", "clones compared", "samples", "orphans"):
        assert ledger.judged[kind] > 0, ledger.report()
    assert ledger.lives[0].ended_by == "killed"
    assert re.search(r"\| repositories \| [0-9.]+ / ", ledger.report())


def test_a_kind_that_is_not_there_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--events", "earthquake"])
    assert "invalid choice: 'earthquake'" in capsys.readouterr().err
