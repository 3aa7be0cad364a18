"""Every client does every operation through the mirror, with either engine, after signed webhooks.

The cells are printed as a table at the end of the run; see `table`.
"""

from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from tests.clients.checks import CHECKS, Check
from tests.clients.conftest import Estate, Through
from tests.clients.matrix import CELLS, ROWS, Row
from tests.clients.operations import Client, Operation, Unavailable
from tests.clients.table import record_cell, record_version
from tests.git_client import Upstream

# The first to ask for a program builds it.
pytestmark = pytest.mark.timeout(900)


def client_of(row: Row, home: Path) -> Client:
    """Return the client, or skip the test with the reason why there is none here."""
    try:
        return row.build(home)
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("row", "operation"), CELLS, ids=[f"{row.name}: {operation}" for row, operation in CELLS]
)
async def test_the_client_has_what_the_upstream_has(
    request: pytest.FixtureRequest, estate: Estate, tmp_path: Path, row: Row, operation: Operation
) -> None:
    record_cell(request.node, row, operation, estate.engine)
    client = client_of(row, tmp_path / "home")
    record_version(request.node, row, await client.version())
    await CHECKS[operation](Check(client, estate.upstream, Through(estate), tmp_path / "through"))


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
async def test_the_client_speaks_the_protocol_that_its_row_names(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, row: Row
) -> None:
    client = client_of(row, tmp_path / "home")
    await client.clone_shallow(forge.repository_url(upstream.name), tmp_path / "clone")
    fetches = [request for request in forge.requests if request.is_fetch()]
    assert fetches
    for request in fetches:
        assert request.git_protocol == (f"version={row.protocol}" if row.protocol else "")
