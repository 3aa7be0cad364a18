"""A reload as the service manager sees it, and one that comes while a process takes over."""

import signal
import sys
from contextlib import AsyncExitStack, closing
from pathlib import Path

from mirror.demo.forge import HttpBackend
from tests.git_client import Upstream
from tests.lifecycle.load import BIG, UNHURRIED, SlowClone, slowly
from tests.lifecycle.manager import fake_manager
from tests.lifecycle.serving import beside, managed, mirrored, run
from tests.mirror_service import NAME, configuration
from tests.ports import free_port


async def test_the_manager_is_told_of_a_reload_whatever_comes_of_it(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    file = configuration(forge, tmp_path / "mirror", server="reload_on_change: false")
    good = file.read_text()
    with fake_manager() as manager:
        async with managed(file, manager) as process:
            for content, by_signal in ((good + "nonsense: 1\n", True), (good, False)):
                file.write_text(content)
                if by_signal:
                    process.send(signal.SIGHUP)
                else:
                    command = (sys.executable, "-m", "mirror", "reload", "--config", str(file))
                    reloaded = await run(*command)
                    assert reloaded.returncode == 0, reloaded.stderr
                said = await manager.until(lambda said: "RELOADING" in said)
                assert said["MONOTONIC_USEC"].isdigit()
                await manager.until(lambda said: said.get("READY") == "1")
            assert await process.stop() == 0


async def test_a_reload_between_two_processes_is_the_next_ones_which_finds_what_changed_too(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.commit(files=BIG)
    port = free_port()
    # A clone that lasts keeps the old process there, however long it takes to send it the signal.
    listen = f"127.0.0.1:{port}"
    file = configuration(forge, tmp_path / "mirror", listen=listen, server=UNHURRIED)
    with fake_manager() as manager:
        async with managed(file, manager) as process, AsyncExitStack() as stack:
            await mirrored(process)
            slow = await SlowClone.begin(slowly(port), NAME, upstream.oid())
            clone = stack.enter_context(closing(slow))
            since = len(process.log)
            upgrading = beside(
                stack, run(sys.executable, "-m", "mirror", "upgrade", "--config", str(file))
            )
            await process.logged(since, lambda event: event["event"] == "upgrading")
            process.send(signal.SIGHUP)
            reloading = beside(
                stack, run(sys.executable, "-m", "mirror", "reload", "--config", str(file))
            )
            upgraded = await upgrading
            assert upgraded.returncode == 0, upgraded.stderr
            said = await manager.until(lambda said: "MAINPID" in said)
            process.successor = int(said["MAINPID"])
            await process.logged(since, lambda event: event["event"] == "reload_passed_on")
            await process.logged(since, lambda event: event["event"] == "configuration_reloaded")
            reloaded = await reloading
            assert reloaded.returncode == 0, reloaded.stderr
            assert reloaded.stdout == f"{file}: unchanged\n"
            assert await clone.finish() > sum(map(len, BIG.values()))
            manager.forget()
            file.write_text(file.read_text() + "# changed meanwhile\n")
            await manager.until(lambda said: "RELOADING" in said)
            await manager.until(lambda said: said.get("READY") == "1")
            assert await process.ended() == 0
