"""What of docs/openapi.yaml was asked for in a run, how often, and what came of it."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tests.httpfuzz.description import kind_of, operations

WEBHOOKS: Final = "/webhooks/"
TAKEN: Final = "accepted"

DELIVERIES_MIN: Final = 100
"""Of so many from one forge one is taken, however short the run was."""


class Asked:
    """The tally of all requests."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        """Expect what this description tells of."""
        self._document = document
        self._operations = operations(document)
        self._came: dict[tuple[str, str], Counter[str]] = {
            operation: Counter() for operation in self._operations
        }

    def take(self, file: Path) -> None:
        """Add what hooks.py wrote of a run: operation, what came of it, and how often."""
        for asked, came, count in json.loads(file.read_text()):
            method, _, path = asked.partition(" ")
            if (method, path) in self._came:  # and no method that is not described
                self._came[method, path][came] += count

    def lines(self, kind: str) -> Iterator[str]:
        """Tell of the operations with a tag."""
        of_kind = {
            operation: came
            for operation, came in self._came.items()
            if kind_of(self._document, *operation) == kind
        }
        counts = [came.total() for came in of_kind.values()]
        yield (
            f"{kind}: {sum(counts)} requests of {len(counts)} operations,"
            f" {min(counts)} to {max(counts)} of each: {_told(sum(of_kind.values(), Counter()))}"
        )
        if kind == "webhooks":
            for (_, path), came in sorted(of_kind.items()):
                yield f"  {path}: {_told(came)}"

    def starved(self) -> Iterator[str]:
        """Say what was not asked, and which forge had no delivery taken."""
        for (method, path), came in sorted(self._came.items()):
            if not came:
                yield f"{method} {path} was never asked"
            elif path.startswith(WEBHOOKS) and not came[TAKEN] and came.total() >= DELIVERIES_MIN:
                yield f"none of {came.total()} deliveries to {path} was {TAKEN}"


def _told(came: Counter[str]) -> str:
    return ", ".join(f"{what} {count}" for what, count in sorted(came.items())) or "none"
