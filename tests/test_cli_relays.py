"""Receivers of events on the command line."""

import socket
from pathlib import Path

from mirror.demo.forge import HttpBackend
from tests.git_client import Upstream
from tests.mirror_service import NAME, configuration, mirroring
from tests.refresh.relay.receiving import receiving, refuse, relays
from tests.test_cli import run


async def test_status_shows_each_receiver_and_fails_while_one_does_not_take_its_events(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with receiving() as well, receiving() as ill:
        ill.answer = refuse(*[404] * 99)
        sections = relays(
            tmp_path / "mirror", well=f"argocd {well.url}/x", ill=f"flux {ill.url}/hook/x"
        )
        async with mirroring(forge, tmp_path / "mirror", sections=sections) as mirror:
            healthy = await run("status", "--url", mirror.service.url)
            assert healthy.returncode == 0, healthy.stdout
            upstream.commit()
            await mirror.announce(upstream)
            await well.came(1)
            await ill.until(lambda one: one.events)
            shown = await run("status", "--url", mirror.service.url)
    assert shown.returncode == 1
    lines = {line.split()[0]: line.split() for line in shown.stdout.splitlines() if line.strip()}
    assert lines["well"][1:3] == ["argocd", "0"]
    assert lines["ill"][1:3] == ["flux", "1"]
    assert "answered 404" in " ".join(shown.stdout.split())


async def test_check_online_says_which_receiver_can_not_be_reached(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    assert upstream.name == NAME
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        gone = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with receiving() as there:
            sections = relays(
                tmp_path, there=f"argocd {there.url}/x", gone=f"argocd {gone}/api/webhook"
            )
            file = configuration(forge, tmp_path, sections=sections)
            done = await run("check", "--config", str(file), "--online")
    assert done.returncode == 1
    assert done.stderr == f"relays.gone: {gone} can't be reached: Connection refused\n"
    assert "ok       relays.there" in done.stdout
    assert there.events == []
