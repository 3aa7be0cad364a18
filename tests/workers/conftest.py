"""A service with two workers: real processes, in front of a real forge."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from mirror.workers.supervisor import Supervisor
from tests.git_client import Upstream
from tests.mirror_service import MirrorService, mirroring
from tests.workers.connections import Connection, one_to_each

WORKERS = 2


@pytest.fixture
async def mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> AsyncIterator[MirrorService]:
    """The service, with the upstream mirrored."""
    names = [upstream.name]
    async with mirroring(forge, tmp_path / "mirror", names=names, workers=WORKERS) as running:
        yield running


@pytest.fixture
def supervisor(mirror: MirrorService) -> Supervisor:
    """What keeps the workers of `mirror`."""
    assert mirror.service.supervisor is not None
    return mirror.service.supervisor


@pytest.fixture
async def workers(
    mirror: MirrorService, supervisor: Supervisor
) -> AsyncIterator[dict[int, Connection]]:
    """A connection to each worker, by its pid."""
    async with one_to_each(mirror.service.url, supervisor.pids) as connections:
        yield connections
