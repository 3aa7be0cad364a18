"""One process takes over from another while readers, clones and webhooks come and go."""

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, closing
from pathlib import Path

import aiohttp
import pytest

from mirror.demo.forge import HttpBackend
from tests.git_client import Upstream
from tests.lifecycle.load import BIG, UNHURRIED, Seen, SlowClone, by_port, poll, slowly
from tests.lifecycle.manager import fake_manager
from tests.lifecycle.serving import managed, mirrored, run
from tests.mirror_service import NAME, configuration, github_headers, github_push
from tests.ports import free_port

READERS = 3
"""Of each kind; each asks ten times a second."""


async def push(forge: HttpBackend, upstream: Upstream, port: int, seen: Seen) -> None:
    """Push a commit, and announce it as GitHub does; from its 202 on, nobody may be shown less."""
    before = upstream.oid()
    seen.tips.append(after := upstream.commit())
    body = github_push(forge.repository_url(upstream.name), "refs/heads/main", before, after)
    url = f"http://127.0.0.1:{port}/webhooks/github"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=body, headers=github_headers(body)) as answer,
    ):
        assert answer.status == 202
    seen.latest = len(seen.tips) - 1


def parent(pid: int) -> int:
    """Return the process whose child one is."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid:"))


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_upgrade_under_load_drops_nothing_and_takes_nothing_back(
    workers: int,
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if workers == 1 and not request.config.getoption("--lifecycle"):
        pytest.skip("in `make lifecycle`: test_parts_handed_over.py has one process")
    upstream.commit(files=BIG)
    port = free_port()
    listen = f"127.0.0.1:{port}"
    file = configuration(
        forge, tmp_path / "mirror", workers=workers, listen=listen, server=UNHURRIED
    )
    seen = Seen(tips=[upstream.oid()])
    with fake_manager() as manager:
        async with managed(file, manager) as process, AsyncExitStack() as stack:
            await mirrored(process)
            slow = await SlowClone.begin(slowly(port), NAME, upstream.oid())
            clone = stack.enter_context(closing(slow))
            async with asyncio.TaskGroup() as readers:
                for number in range(4 * READERS):
                    version, kept = (0, 2)[number % 2], number % 4 < 2
                    readers.create_task(
                        poll(
                            seen, by_port(port), NAME, version=version, kept=kept, pause_seconds=0.1
                        )
                    )
                await push(forge, upstream, port, seen)
                for _ in range(request.config.getoption("--upgrades")):
                    since = len(process.log)
                    upgrading = readers.create_task(
                        run(sys.executable, "-m", "mirror", "upgrade", "--config", str(file))
                    )
                    await process.logged(since, lambda event: event["event"] == "upgrading")
                    await push(forge, upstream, port, seen)
                    upgraded = await upgrading
                    assert upgraded.returncode == 0, upgraded.stderr
                    said = await manager.until(lambda said: "MAINPID" in said)
                    await manager.until(lambda said: said.get("READY") == "1")
                    process.successor = int(said["MAINPID"])
                    # systemd kills a main process at once, where it is another's child.
                    assert parent(process.successor) not in {process.pid, os.getpid()}
                    assert upgraded.stdout == f"process {said['MAINPID']} serves now\n"
                    await process.logged(since, lambda event: event["event"] == "took_over")
                    await push(forge, upstream, port, seen)
                seen.is_over.set()
            assert await clone.finish() > sum(map(len, BIG.values()))
            assert await process.ended() == 0
    assert seen.failures == []
    assert len(seen.answers) == 4
    assert not [event for event in process.events if event["event"] == "cut_off"]


async def test_where_the_new_one_does_not_come_up_the_old_one_goes_on(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    port = free_port()
    # Else what is wrong with the file would be told as a reload as well.
    server = "reload_on_change: false"
    file = configuration(forge, tmp_path / "mirror", listen=f"127.0.0.1:{port}", server=server)
    good = file.read_text()
    with fake_manager() as manager:
        async with managed(file, manager) as process:
            await mirrored(process)
            seen = Seen(tips=[upstream.oid()])
            # A mistake that is found at once; one that is found with the data directory in hand.
            bad = (
                good + "nonsense: 1\n",
                good.replace("server: {", "server: {unix_socket: /no/x, "),
            )
            for content in bad:
                file.write_text(content)
                process.send(signal.SIGUSR2)
                said = await manager.until(lambda said: said.get("READY") == "1")
                assert "an upgrade failed: the new process is not" in said["STATUS"]
                file.write_text(good)
                # It refreshes, and serves what it refreshed.
                await push(forge, upstream, port, seen)
                async with asyncio.TaskGroup() as readers:
                    readers.create_task(
                        poll(seen, by_port(port), NAME, version=2, kept=False, pause_seconds=0.0)
                    )
                    await seen.answered.wait()
                    seen.is_over.set()
                seen.is_over.clear()
                seen.answered.clear()
            assert seen.failures == []
            assert await process.stop() == 0
