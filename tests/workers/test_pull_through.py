"""With several workers, a repository below a place upstream comes and goes in all of them."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from mirror.refresh.refresher import Trigger
from mirror.workers.supervisor import Supervisor
from tests.git_client import Upstream
from tests.mirror_service import NAME, WAIT_SECONDS_MAX, MirrorService
from tests.pull_through import AT, later, mirrored_names, puller, pulling
from tests.workers.connections import one_to_each
from tests.workers.test_accidents import BIG, begin_fetch, end_fetch, restarted

PULLED = f"{AT}/{NAME}"
INFO_REFS = f"/{PULLED}/info/refs?service=git-upload-pack"


@pytest.fixture
async def mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> AsyncIterator[MirrorService]:
    """A service with two workers."""
    upstream.commit(files={"noise": BIG})
    async with pulling(forge, tmp_path / "mirror", workers=2, place="max_age: never") as running:
        yield running


@pytest.fixture
def supervisor(mirror: MirrorService) -> Supervisor:
    """What keeps the workers of `mirror`."""
    assert mirror.service.supervisor is not None
    return mirror.service.supervisor


async def test_all_workers_have_it_and_keep_it_while_one_reads_it_and_lose_it_together(
    mirror: MirrorService, supervisor: Supervisor, upstream: Upstream, forge: HttpBackend
) -> None:
    async with one_to_each(mirror.service.url, supervisor.pids) as workers:
        reading, idle = workers.values()
        for one in workers.values():
            assert upstream.oid().encode() in (await one.get(INFO_REFS)).body
        end = await begin_fetch(reading, upstream, PULLED)
        later(mirror, 1e7)
        await puller(mirror).tidier.tidy()
        assert mirrored_names(mirror) == [PULLED]
        tip = upstream.commit()
        await mirror.hosted(PULLED).refresher.request(Trigger.MANUAL)
        assert tip.encode() in (await idle.get(INFO_REFS)).body
        await end_fetch(reading, end)
        assert tip.encode() in (await reading.get(INFO_REFS)).body
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while mirrored_names(mirror):
                await puller(mirror).tidier.tidy()
        asked = len(forge.requests)
        tip = upstream.commit()
        answers = await asyncio.gather(*(one.get(INFO_REFS) for one in workers.values()))
        assert all(tip.encode() in answer.body for answer in answers)
        assert forge.operations[asked:].count("fetch") == 1


async def test_a_worker_that_comes_later_has_what_there_is(
    mirror: MirrorService, supervisor: Supervisor, upstream: Upstream, forge: HttpBackend
) -> None:
    assert (await mirror.info_refs(PULLED)).status == 200
    asked = len(forge.requests)
    victim, _ = supervisor.pids
    os.kill(victim, signal.SIGKILL)
    async with one_to_each(mirror.service.url, await restarted(supervisor, victim)) as workers:
        for one in workers.values():
            assert upstream.oid().encode() in (await one.get(INFO_REFS)).body
    assert len(forge.requests) == asked
