"""Every client whose list of capabilities is drawn out waits for a first clone, and has it then."""

import asyncio
from pathlib import Path

import pytest

from mirror.demo.forge import Faults, ForgeRequest, HttpBackend
from mirror.web import first_clone
from mirror.wire.advertise import encode_waiting_line
from tests.clients.matrix import ROWS, Row
from tests.clients.operations import Unavailable
from tests.git_client import Upstream
from tests.mirror_service import WAIT_SECONDS_MAX
from tests.pull_through import AT, pulling

# The first to ask for a program builds it.
pytestmark = pytest.mark.timeout(900)

WAITING = [row for row in ROWS if row.protocol == 2 and row.name != "Argo CD"]
"""Those that begin with v2. Argo CD lists with go-git v5, and is held and refused as v0 is."""


@pytest.mark.parametrize("row", WAITING, ids=[row.name for row in WAITING])
async def test_the_client_takes_what_is_sent_meanwhile_for_no_answer(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    row: Row,
) -> None:
    try:
        client = row.build(tmp_path / "home")
    except Unavailable as error:
        pytest.skip(str(error))
    drawn_out = asyncio.Event()

    def counted(number: int) -> bytes:
        if number == 3:
            drawn_out.set()
        return encode_waiting_line(number)

    monkeypatch.setattr(first_clone, "QUIET_SECONDS", 0.01)
    monkeypatch.setattr(first_clone, "encode_waiting_line", counted)
    stall = asyncio.Event()
    forge.faults = Faults(stall=stall, only=ForgeRequest.is_fetch)
    async with pulling(forge, tmp_path / "mirror") as mirror, asyncio.TaskGroup() as tasks:
        url, clone = mirror.url(f"{AT}/{upstream.name}"), tmp_path / "clone"
        cloning = tasks.create_task(client.clone_shallow(url, clone))
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            await drawn_out.wait()
        stall.set()
        revision = await cloning
        assert upstream.git(f"--git-dir={_git_dir(clone)}", "rev-parse", revision) == upstream.oid()


def _git_dir(clone: Path) -> Path:
    return clone / ".git" if (clone / ".git").exists() else clone
