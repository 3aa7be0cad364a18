"""docs/compatibility.md, written from the matrix: `python -m tests.clients.page` prints it.

Versions are those that are pinned; what the machine brings is named by where it comes from.
"""

import re
import sys
from collections.abc import Iterator
from typing import Final

from tests.clients.builds import HERE
from tests.clients.matrix import ROWS, Row
from tests.clients.operations import Operation

_OPERATIONS: Final = {
    Operation.LIST: "every ref, HEAD, and what annotated tags peel to",
    Operation.CLONE: "the whole history, with all branches and tags if the client asks for them",
    Operation.SHALLOW: "one commit with all its files, and a boundary that says so",
    Operation.NEWS: "a fetch right after the webhook of a push",
    Operation.FORCED: "a fetch right after the webhook of a push that rewrote the branch",
    Operation.TAG: "a new annotated tag, fetched right after its webhook",
    Operation.COMMIT: "a commit that no ref points to, by its id",
}

_PINS: Final = r"(?:^|[\s\">]){name}(?: v|==|\": \"|</artifactId>\s*<version>)([0-9][^\s\\\"<]*)"
"""How go.mod, a lock of Python's, package.json and pom.xml name a version."""


def page() -> str:
    """Return the page."""
    return (
        (HERE / "page.md")
        .read_text()
        .format(
            table="\n".join(_table()),
            reasons="\n".join(f"{at}. {reason}" for at, reason in enumerate(_reasons(), start=1)),
            operations="\n".join(f"* **{name}**: {text}." for name, text in _OPERATIONS.items()),
            notes="\n".join(f"* **{row.name}**: {row.note}" for row in ROWS if row.note),
        )
    )


def _table() -> Iterator[str]:
    yield f"| client | version | protocol | {' | '.join(Operation)} |"
    yield "|" + " --- |" * (3 + len(Operation))
    reasons = _reasons()
    for row in ROWS:
        cells = " | ".join(_cell(row, operation, reasons) for operation in Operation)
        yield f"| {row.name} | {_version(row)} | v{row.protocol} | {cells} |"


def _cell(row: Row, operation: Operation, reasons: list[str]) -> str:
    reason = row.limits.get(operation)
    return "yes" if reason is None else f"never ({reasons.index(reason) + 1})"


def _reasons() -> list[str]:
    """Return every reason once, in the order of the table."""
    return list(dict.fromkeys(reason for row in ROWS for reason in row.limits.values()))


def _version(row: Row) -> str:
    """Return what is pinned for a row, or where its client comes from."""
    if row.pin is None:
        return row.source
    file, name = row.pin
    found = re.search(_PINS.replace("{name}", re.escape(name)), (HERE / file).read_text())
    assert found, f"{file} pins no {name}"
    return found[1]


if __name__ == "__main__":
    sys.stdout.write(page())
