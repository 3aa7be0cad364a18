"""The table that people read, and the JSON that machines read."""

import json
from typing import Any

from benchmarks.figures import Kind, Measurement, Side, Skipped, Target
from benchmarks.report import render_json, render_notes, render_page, render_table

POLL = Measurement(
    1,
    "poll v0, 64 clients",
    Side(p50=0.4211, p99=1.5, rate=39_123.4),
    "nginx static",
    Side(p50=0.3, p99=0.9, rate=58_500),
    judged="rate",
    unit="requests/s",
    target=Target(Kind.RATE_AT_LEAST, 1.0),
)
MISS = Measurement(
    10,
    "full clone",
    Side(p50=20, p99=22),
    "git upload-pack",
    Side(p50=18, p99=21),
    target=Target(Kind.TIME_AT_MOST, 1.0, plus_ms=3.0),
)
MACHINE = {"processor": "2 x Model T", "git": "2.39.5"}


def test_a_line_shows_both_sides_the_ratio_the_target_and_what_is_missing() -> None:
    assert render_table([POLL]).splitlines()[2] == (
        "| 1 | poll v0, 64 clients | **39,123**/s, 0.421 / 1.5 ms | nginx static"
        " | 58,500/s, 0.3 / 0.9 ms | 0.669x | at least 1x | **short by 1.5x** |"
    )


def test_a_target_that_is_met_says_so() -> None:
    assert render_table([MISS]).splitlines()[2] == (
        "| 10 | full clone | **20** / 22 ms | git upload-pack | 18 / 21 ms | 1.11x"
        " | at most 1x + 3 ms | met |"
    )


def test_a_row_that_was_not_measured_says_why() -> None:
    table = render_table([Skipped(3, "run: sudo apt-get install wrk"), Skipped(4, "a|b", True)])
    assert "| 3 | skipped: run: sudo apt-get install wrk |" in table
    assert "| 4 | failed: a\\|b |" in table


def test_an_explanation_stands_below_the_table_only_while_its_row_is_short() -> None:
    notes = {1: "aiohttp is the ceiling.", 10: "git is started anew."}
    text = render_notes([POLL, MISS, Skipped(3, "no wrk")], notes)
    assert "1 of 2 targets are met." in text
    assert "**Row 1.** aiohttp is the ceiling." in text
    assert "git is started" not in text


def test_the_page_tells_the_machine_the_date_and_the_peers_configuration() -> None:
    page = render_page(
        [POLL, MISS],
        machine=MACHINE,
        date="2026-01-05",
        scale="full",
        overrides={"engine": "git"},
        notes={},
    )
    for text in (
        "* processor: 2 x Model T",
        "* date: 2026-01-05",
        "* size: full",
        "`engine: git`",
        "sendfile on;",
    ):
        assert text in page
    assert render_table([POLL, MISS]) in page


def test_the_json_has_raw_figures_and_verdicts() -> None:
    text = render_json(
        [POLL, Skipped(3, "no wrk")],
        machine=MACHINE,
        date="2026-01-05",
        scale="small",
        overrides={},
    )
    poll, skipped = json.loads(text)["results"]
    expected: dict[str, Any] = {"p50": 0.4211, "p99": 1.5, "rate": 39_123.4, "amount": None}
    assert poll["ours"] == expected
    assert poll["met"] is False
    assert poll["target"]["kind"] == "RATE_AT_LEAST"
    assert skipped["reason"] == "no wrk"
