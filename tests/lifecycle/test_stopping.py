"""SIGTERM: what is under way is let finish, idle connections end, a second one ends all."""

import asyncio
import signal
import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mirror.demo.forge import HttpBackend
from mirror.workers.supervisor import LEAVE_SECONDS_MAX
from tests.e2e.day.process import Adopted, MirrorProcess
from tests.git_client import Upstream
from tests.lifecycle.load import BIG, POLL_V0, UNHURRIED, SlowClone, answer, asking, by_port, slowly
from tests.lifecycle.manager import fake_manager
from tests.lifecycle.serving import managed, mirrored, run
from tests.lifecycle.taking_over import taken_over
from tests.mirror_service import NAME, configuration, serving
from tests.ports import free_port

AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""

HEALTH = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_clone_under_way_is_finished_and_idle_connections_end(
    workers: int, forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.commit(files=BIG)
    port = free_port()
    listen = f"127.0.0.1:{port}"
    file = configuration(
        forge, tmp_path / "mirror", workers=workers, listen=listen, server=UNHURRIED
    )
    with fake_manager() as manager:
        async with managed(file, manager) as process:
            await mirrored(process)
            with closing(await SlowClone.begin(slowly(port), NAME, upstream.oid())) as clone:
                async with asking(by_port(port), POLL_V0.format(name=NAME)) as reader:
                    _, stays = await answer(reader)
                    assert stays
                    process.send(signal.SIGTERM)
                    await manager.until(lambda said: said.get("STOPPING") == "1")
                    assert await reader.read() == b""  # idle: closed without a reset
                assert await clone.finish() > sum(map(len, BIG.values()))
            assert await process.ended() == 0
    assert not [event for event in process.events if event["event"] == "cut_off"]


async def test_what_lasts_longer_than_the_drain_is_cut_and_counted(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.commit(files=BIG)
    port = free_port()
    file = configuration(
        forge, tmp_path / "mirror", listen=f"127.0.0.1:{port}", server="drain_timeout: 100ms"
    )
    with fake_manager() as manager:
        async with managed(file, manager) as process:
            await mirrored(process)
            with closing(await SlowClone.begin(slowly(port), NAME, upstream.oid())):
                process.send(signal.SIGTERM)
                assert await process.ended() == 0
    (cut,) = [event for event in process.events if event["event"] == "cut_off"]
    assert (cut["requests"], cut["operations"]) == (1, {"fetch": 1})


async def test_a_second_signal_ends_it_at_once(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.commit(files=BIG)
    port = free_port()
    file = configuration(forge, tmp_path / "mirror", listen=f"127.0.0.1:{port}")
    with fake_manager() as manager:
        async with managed(file, manager) as process:
            await mirrored(process)
            with closing(await SlowClone.begin(slowly(port), NAME, upstream.oid())):
                process.send(signal.SIGTERM)
                await manager.until(lambda said: said.get("STOPPING") == "1")
                process.send(signal.SIGTERM)
                assert await process.ended() == 130
            await process.start()  # what it left is no hindrance
            await mirrored(process)


async def test_connections_wait_in_a_socket_of_systemds_while_nobody_serves(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    del upstream
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
        file = configuration(forge, tmp_path / "mirror", listen=f"127.0.0.1:{port}")
        process = MirrorProcess(
            file,
            "",
            prefix=[sys.executable, "-c", AS_SYSTEMD, str(bound.fileno())],
            inherits=[bound.fileno()],
        )
        try:
            for _ in range(2):  # a start, and a restart
                async with asking(
                    by_port(port), "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
                ) as reader:
                    await process.start()
                    body, _ = await answer(reader)
                    assert b"ok" in body
                assert await process.stop() == 0
        finally:
            await process.close()


@pytest.mark.parametrize("has_readers", [True, False])
async def test_a_stop_lets_the_process_before_finish(
    has_readers: bool, forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    """A service manager kills what is left of the old one once the new one has ended."""
    del upstream
    file = configuration(forge, tmp_path / "mirror", server="drain_timeout: 100ms")
    async with serving(file, forge) as mirror:
        await mirror.mirrored()
        async with taken_over(mirror, file) as (service, channel):
            channel.tell("silent")
            if not has_readers:
                channel.close()
            with capture_logs() as said:
                await service.drain()
            given_up = [one for one in said if one["event"] == "predecessor_not_waited_for"]
            assert len(given_up) == has_readers


@pytest.mark.usefixtures("only_in_full")
async def test_a_stop_just_after_an_upgrade_cuts_no_clone_of_the_old_process(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    """The old process is killed with the end of the new one, as systemd does that."""
    upstream.commit(files=BIG)
    port = free_port()
    file = configuration(forge, tmp_path / "mirror", listen=f"127.0.0.1:{port}")
    with fake_manager() as manager:
        async with managed(file, manager) as process:
            await mirrored(process)
            clone = await SlowClone.begin(slowly(port), NAME, upstream.oid())
            upgraded = await run(sys.executable, "-m", "mirror", "upgrade", "--config", str(file))
            assert upgraded.returncode == 0, upgraded.stderr
            said = await manager.until(lambda said: "MAINPID" in said)
            process.successor = int(said["MAINPID"])
            successor = Adopted(process.successor)
            await process.logged(0, lambda event: event["event"] == "took_over")
            successor.send_signal(signal.SIGTERM)
            ending = asyncio.create_task(asyncio.to_thread(successor.wait))
            ending.add_done_callback(lambda _: process.send(signal.SIGKILL))
            await asyncio.wait((ending,), timeout=LEAVE_SECONDS_MAX)
            assert await clone.finish() > sum(map(len, BIG.values()))
            await ending
            process.successor = None
            await process.ended()
