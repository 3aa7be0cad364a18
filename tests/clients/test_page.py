"""docs/compatibility.md says what the matrix says."""

from pathlib import Path

from tests.clients.matrix import ROWS
from tests.clients.page import page

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"


def test_the_page_of_the_matrix_is_up_to_date() -> None:
    assert DOCUMENT.read_text() == page(), "run make docs"


def test_every_client_has_a_row_of_its_own_and_a_version() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert all((row.pin is None) == bool(row.source) for row in ROWS)
