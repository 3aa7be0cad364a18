"""The control socket: `git-mirror sync` of a running service."""

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from mirror.demo.forge import Faults
from mirror.web import control
from tests.git_client import Upstream
from tests.mirror_service import MirrorService


@pytest.fixture
async def session(mirror: MirrorService) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that speaks to the socket."""
    socket = mirror.service.settings.data_dir / "control.sock"
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session:
        yield session


async def sync(session: aiohttp.ClientSession, name: str) -> tuple[int, list[dict[str, Any]]]:
    """Ask for a refresh; returns the status and every line."""
    async with session.post(f"http://control/sync/{name}") as response:
        lines = (await response.text()).splitlines()
        return response.status, [json.loads(line) for line in lines]


async def test_a_sync_asks_the_upstream_and_ends_with_the_new_state(
    mirror: MirrorService, upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    commit = upstream.commit()
    status, lines = await sync(session, upstream.name)
    assert status == 200
    assert lines[-1]["outcome"] == "ok"
    assert lines[-1]["repository"]["head_commit"] == commit
    refreshes = "git_mirror_refresh_seconds_count"
    assert await mirror.metric(refreshes, trigger="manual", outcome="changed") == 1


async def test_progress_is_told_while_it_lasts(
    mirror: MirrorService,
    upstream: Upstream,
    session: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control, "REPORT_SECONDS", 0.001)
    mirror.forge.faults.stall = asyncio.Event()
    async with session.post(f"http://control/sync/{upstream.name}.git") as response:
        first = json.loads(await response.content.readline())
        assert first["progress"]["phase"] == "asking"
        mirror.forge.faults.stall.set()
        last = (await response.text()).splitlines()[-1]
        assert json.loads(last)["outcome"] == "ok"


async def test_a_sync_that_fails_says_why(
    mirror: MirrorService, upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    mirror.forge.faults = Faults(status=401)
    status, lines = await sync(session, upstream.name)
    assert status == 200
    assert lines[-1]["outcome"] == "error"
    assert "it wants credentials" in lines[-1]["error"]


async def test_an_unknown_repository_is_404(session: aiohttp.ClientSession) -> None:
    status, lines = await sync(session, "acme/nothing")
    assert (status, lines[0]["outcome"]) == (404, "error")


async def test_whoever_leaves_does_not_end_the_refresh(
    mirror: MirrorService, upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    mirror.forge.faults.stall = asyncio.Event()
    asked = len(mirror.forge.requests)
    upstream.commit()
    async with session.post(f"http://control/sync/{upstream.name}"):
        await mirror.forge.wait_for_requests(asked + 1)
    mirror.forge.faults.stall.set()
    await mirror.caught_up(upstream)


async def test_the_socket_is_for_its_owner_alone(mirror: MirrorService) -> None:
    socket = mirror.service.settings.data_dir / "control.sock"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600


async def test_the_network_does_not_reach_it(mirror: MirrorService) -> None:
    answer = await mirror.ask("POST", "/sync/acme/gitops-repo")
    assert answer.status == 404


async def test_a_sync_that_the_end_of_the_service_cuts_short_says_so(
    mirror: MirrorService, upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    asked = len(mirror.forge.requests)
    mirror.forge.faults.stall = asyncio.Event()
    syncing = asyncio.create_task(sync(session, upstream.name))
    await mirror.forge.wait_for_requests(asked + 1)
    tasks = asyncio.all_tasks()
    (refreshing,) = [one for one in tasks if one.get_name() == f"refresh {upstream.name}"]
    refreshing.cancel()
    _, lines = await syncing
    assert lines[-1]["outcome"] == "error"
    assert "stopped" in lines[-1]["error"]
