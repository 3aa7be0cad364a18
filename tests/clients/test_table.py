"""The table at the end of a run."""

from types import SimpleNamespace

from tests.clients.matrix import ENGINES, ROWS
from tests.clients.operations import Operation
from tests.clients.table import CELL, VERSION, table_of

ROW = next(row for row in ROWS if not row.limits)
NEVER = next(row for row in ROWS if Operation.LIST in row.limits)


def reports(operation: Operation, *engines: str) -> list[SimpleNamespace]:
    """Return reports of a row's cells, as they come from the workers."""
    return [
        SimpleNamespace(user_properties=[(CELL, f"{ROW.name}|{operation}|{engine}")])
        for engine in engines
    ]


def cells_of(lines: list[str], name: str) -> list[str]:
    line = next(line for line in lines if line.startswith(f"{name} "))
    return line.removeprefix(name).split()


def test_a_run_without_a_cell_prints_no_table() -> None:
    assert table_of({"passed": [SimpleNamespace(user_properties=[])], "failed": [object()]}) == []


def test_a_cell_shows_one_word_where_every_engine_agrees_and_one_for_each_where_not() -> None:
    first, *others = ENGINES
    lines = table_of(
        {
            "passed": [*reports(Operation.LIST, *ENGINES), *reports(Operation.CLONE, *others)],
            "failed": reports(Operation.CLONE, first),
            "skipped": reports(Operation.SHALLOW, *ENGINES),
        }
    )
    listed, cloned, shallow, news, *_ = cells_of(lines, ROW.name)
    assert listed == "ok"
    assert cloned == "/".join(["FAILED"] + ["ok"] * len(others))
    assert shallow == "skipped"
    assert news == "."
    assert cells_of(lines, NEVER.name)[0] == "-"


def test_an_error_while_a_cell_is_taken_down_is_no_pass() -> None:
    cell = reports(Operation.LIST, *ENGINES)
    assert cells_of(table_of({"passed": cell, "error": cell}), ROW.name)[0] == "FAILED"


def test_the_version_that_the_client_names_ends_its_line() -> None:
    (report,) = reports(Operation.LIST, ENGINES[0])
    report.user_properties.append((VERSION, f"{ROW.name}|1.2.3, patched"))
    assert cells_of(table_of({"passed": [report]}), ROW.name)[-2:] == ["1.2.3,", "patched"]
