"""`make bench`: run the rows, print the table, say where a figure is short of its target.

Exit code 0 when everything that could be measured was, and every answer was right; 1 when a row
failed. A figure that is short of its target is a finding, not a failure.
"""

import argparse
import contextlib
import datetime as dt
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import ModuleType

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks import report, tools
from benchmarks.figures import Measurement, Skipped
from benchmarks.machine import describe
from benchmarks.notes import NOTES
from benchmarks.peers import open_peer
from benchmarks.processes import allow_open_files
from benchmarks.repositories import Repositories
from benchmarks.rows import ROWS
from benchmarks.run import Run
from benchmarks.scale import FULL, SMALL

console = Console(highlight=False, soft_wrap=True)


def main() -> int:
    """Measure and print."""
    arguments = _parse()
    allow_open_files()
    scale = FULL if arguments.full else SMALL
    rows = [row for row in ROWS if not arguments.rows or row.NUMBER in arguments.rows]
    overrides = dict(_override(text) for text in arguments.set)
    facts = {
        "machine": describe(),
        "date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d}",
        "scale": scale.name,
        "overrides": overrides,
    }
    results: list[Measurement | Skipped] = []
    # Everything is served by nginx, the mirror's upstreams too.
    if advice := tools.missing(("git", "nginx", "fcgiwrap")):
        results = [Skipped(row.NUMBER, advice) for row in rows]
    else:
        with contextlib.ExitStack() as stack:
            directory = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="git-mirror-bench-"))
            )
            (root := directory / "upstream").mkdir()
            peer = stack.enter_context(open_peer(directory / "peer", root))
            repositories = Repositories(arguments.cache.absolute(), root)
            run = Run(scale, directory, peer, repositories, overrides)
            for row in rows:
                results += _measure(row, run)
    if arguments.json:
        report.write(arguments.json, report.render_json(results, **facts))
    if arguments.markdown:
        report.write(arguments.markdown, report.render_page(results, notes=NOTES, **facts))
    _print(results)
    return int(any(isinstance(each, Skipped) and each.is_failure for each in results))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    numbers = [row.NUMBER for row in ROWS]
    parser.add_argument("--full", action="store_true", help="measure everything at full size")
    parser.add_argument(
        "--rows",
        type=lambda text: {int(part) for part in text.split(",")},
        help=f"only these, such as 1,3 (of {numbers[0]} to {numbers[-1]})",
    )
    parser.add_argument("--json", type=Path, help="also write the raw figures to this file")
    parser.add_argument("--markdown", type=Path, help="also write the page to this file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="configure every mirror, such as engine=dulwich or limits.pack_builds_max=2",
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".bench"), help="where repositories are kept"
    )
    arguments = parser.parse_args()
    if unknown := (arguments.rows or set()) - set(numbers):
        parser.error(f"there is no row {', '.join(map(str, sorted(unknown)))}")
    return arguments


def _override(text: str) -> tuple[str, object]:
    key, found, value = text.partition("=")
    if not found:
        raise SystemExit(f"--set {text}: expected KEY=VALUE")
    return key, yaml.safe_load(value)


def _measure(row: ModuleType, run: Run) -> list[Measurement | Skipped]:
    """Measure one row; what goes wrong in it does not end the others."""
    if advice := tools.missing(row.NEEDS):
        return [Skipped(row.NUMBER, advice)]
    began_at = time.monotonic()
    console.print(f"row {row.NUMBER} ...", style="dim")
    results: list[Measurement | Skipped] = []
    try:
        for result in row.measure(run):
            results.append(result)
            console.print("  " + "  ".join(filter(None, _cells(result)[1:])))
    except Exception as error:  # noqa: BLE001 - told below, and in the table
        traceback.print_exc()
        results.append(
            Skipped(row.NUMBER, f"{type(error).__name__}: {error}"[:300], is_failure=True)
        )
    console.print(f"  {time.monotonic() - began_at:.0f} s", style="dim")
    return results


def _cells(result: Measurement | Skipped) -> list[str]:
    return report.cells(result, is_markdown=False)


def _print(results: list[Measurement | Skipped]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, justify in zip(
        report.HEADINGS,
        ["right", "left", "right", "left", "right", "right", "left", "left"],
        strict=True,
    ):
        table.add_column(heading, justify=justify)
    for each in results:
        table.add_row(*_cells(each))
    console.print()
    # A pipe has no width: tables there are as wide as they need to be.
    (console if console.is_terminal else Console(width=200, highlight=False)).print(table)
    console.print(report.render_notes(results, NOTES).replace("**", ""))


if __name__ == "__main__":
    sys.exit(main())
