"""Every worker offers and serves the bundles that the main process makes."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from mirror.workers.supervisor import Supervisor
from tests.git_client import Upstream
from tests.mirror_service import NAME, MirrorService, mirroring
from tests.web.asking import read_lines
from tests.workers.conftest import WORKERS
from tests.workers.connections import Connection, one_to_each
from tests.workers.test_accidents import restarted

INFO_REFS = f"/{NAME}/info/refs?service=git-upload-pack"
V2 = {"Git-Protocol": "version=2"}
LIST = f"/{NAME}/bundles/list"


@pytest.fixture
async def mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> AsyncIterator[MirrorService]:
    """The service, with a bundle."""
    defaults = "bundle_interval: 300d\nbundle_bytes_min: 0"
    async with mirroring(forge, tmp_path, workers=WORKERS, defaults=defaults) as running:
        await running.until(lambda one: one.bundles is not None)
        yield running


async def offers(worker: Connection) -> bool:
    """Tell whether a worker offers bundles; all that it says must agree."""
    announced = "bundle-uri" in read_lines((await worker.get(INFO_REFS, V2)).body)
    assert (await worker.get(LIST)).status == (200 if announced else 404)
    return announced


async def test_every_worker_offers_and_serves_what_the_main_process_made(
    mirror: MirrorService, workers: dict[int, Connection], upstream: Upstream
) -> None:
    listed = mirror.mirror().bundles
    assert listed is not None
    (bundle,) = listed.bundles
    for worker in workers.values():
        assert await offers(worker)
        answer = await worker.get(f"/{NAME}/bundles/{bundle.name}", {"Range": "bytes=0-15"})
        assert (answer.status, answer.body) == (206, b"# v2 git bundle\n")
    upstream.delete_ref("main")
    await mirror.announce(upstream)
    await mirror.caught_up(upstream)
    assert mirror.service.bundler is not None
    assert await mirror.service.bundler.bundle(NAME)
    for worker in workers.values():
        assert not await offers(worker)


async def test_a_new_worker_offers_what_the_others_do(
    mirror: MirrorService, supervisor: Supervisor
) -> None:
    victim = supervisor.pids[0]
    os.kill(victim, signal.SIGKILL)
    pids = await restarted(supervisor, victim)
    async with one_to_each(mirror.service.url, pids) as workers:
        assert len(workers) == WORKERS
        for worker in workers.values():
            assert await offers(worker)
