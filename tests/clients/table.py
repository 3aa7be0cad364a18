"""The table of cells that is printed when the run ends.

A test notes its cell on its item; the note comes with the report from whichever worker ran it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import pytest
from _pytest.terminal import TerminalReporter

from tests.clients.matrix import ENGINES, ROWS, Row
from tests.clients.operations import Operation

CELL: Final = "matrix cell"
VERSION: Final = "matrix version"

_MARKS: Final = {"failed": "FAILED", "error": "FAILED", "skipped": "skipped", "passed": "ok"}
"""By outcome; of a test with two, such as an error after its pass, the first counts."""


def record_cell(item: pytest.Item, row: Row, operation: Operation, engine: str) -> None:
    """Note which cell the test is of."""
    item.user_properties.append((CELL, f"{row.name}|{operation}|{engine}"))


def record_version(item: pytest.Item, row: Row, version: str) -> None:
    """Note what the client of a row called its version."""
    item.user_properties.append((VERSION, f"{row.name}|{version}"))


def write(reporter: TerminalReporter) -> None:
    """Write the table, if any of its cells was run."""
    lines = table_of(reporter.stats)
    if lines:
        reporter.section("clients x operations, by the engines " + ", ".join(ENGINES))
        for line in lines:
            reporter.line(line)


def table_of(reports: Mapping[str, Sequence[object]]) -> list[str]:
    """Return the lines of the table; none where no cell was run.

    Args:
        reports: The tests' reports by their outcome.
    """
    cells: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    versions: dict[str, str] = {}
    for outcome, mark in _MARKS.items():
        for report in reports.get(outcome, []):
            for key, value in getattr(report, "user_properties", []):
                if key == CELL:
                    row, operation, engine = value.split("|")
                    cells[row, operation].setdefault(engine, mark)
                elif key == VERSION:
                    row, version = value.split("|", 1)
                    versions[row] = version
    return list(_lines(cells, versions)) if cells else []


def _lines(cells: dict[tuple[str, str], dict[str, str]], versions: dict[str, str]) -> Iterable[str]:
    table = [["client", *Operation, "version"]]
    for row in ROWS:
        marks = [_mark(row, operation, cells[row.name, operation]) for operation in Operation]
        table.append([row.name, *marks, versions.get(row.name, "")])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells_of_line in table:
        line = zip(cells_of_line, widths, strict=True)
        yield "  ".join(text.ljust(width) for text, width in line).rstrip()


def _mark(row: Row, operation: Operation, by_engine: dict[str, str]) -> str:
    if operation in row.limits:
        return "-"
    marks = [by_engine.get(engine, ".") for engine in ENGINES]
    return marks[0] if len(set(marks)) == 1 else "/".join(marks)
