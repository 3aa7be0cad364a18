"""The service is killed at any moment, with pushes going on: what receivers hear of it."""

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import web

from mirror.demo.forge import HttpBackend
from tests.git_client import Upstream
from tests.mirror_service import (
    NAME,
    UPLOAD_PACK_HEADERS,
    WAIT_SECONDS_MAX,
    configuration,
    git_protocol,
    github_headers,
    github_push,
    mirroring,
    serving,
)
from tests.ports import free_port
from tests.refresh.relay.receiving import Receiver, receiving, relays
from tests.web.asking import command, fetch_v2, read_answer

BRANCHES: Final = ("main", "develop", "release")


class Story:
    """What was pushed, and the mirror that is killed again and again.

    Attributes:
        tips: The commits of each branch, the oldest first.
        unfetchable: The events whose commit the mirror did not have when they arrived.
    """

    def __init__(self, forge: HttpBackend, upstream: Upstream, port: int) -> None:
        self.forge = forge
        self.upstream = upstream
        self.url = f"http://127.0.0.1:{port}"
        self.tips: dict[str, list[str]] = {name: [upstream.commit(name)] for name in BRANCHES}
        self.unfetchable: list[Any] = []
        self._chance = random.Random(5)

    async def push(self, session: aiohttp.ClientSession) -> None:
        """Push to one branch; its webhook arrives when there is somebody to take it."""
        name = self._chance.choice(BRANCHES)
        before, after = self.tips[name][-1], self.upstream.commit(name)
        self.tips[name].append(after)
        url = self.forge.repository_url(self.upstream.name)
        body = github_push(url, f"refs/heads/{name}", before, after)
        try:
            headers = github_headers(body)
            async with session.post(f"{self.url}/webhooks/github", data=body, headers=headers):
                pass
        except aiohttp.ClientError:
            pass  # lost, as webhooks are: the next start looks at the upstream

    async def check(self, event: Any) -> web.StreamResponse:
        """Fetch what an event tells of, at once; without a mirror there is no acknowledgement."""
        try:
            async with aiohttp.ClientSession() as session:
                listed = await self._ask(session, command("ls-refs", "ref-prefix refs/heads/"))
                answer = await self._ask(session, fetch_v2(event["after"], more=["deepen 1"]))
        except (aiohttp.ClientError, ConnectionError):
            return web.Response(status=500)
        name = event["ref"].removeprefix("refs/heads/")
        newer = self.tips[name][self.tips[name].index(event["after"]) :]
        is_listed = any(f"{oid} {event['ref']}\n".encode() in listed for oid in newer)
        if not is_listed or not read_answer(answer).pack.startswith(b"PACK"):
            self.unfetchable.append(event)
        return web.Response()

    async def _ask(self, session: aiohttp.ClientSession, body: bytes) -> bytes:
        async with session.post(
            f"{self.url}/{NAME}/git-upload-pack",
            data=body,
            headers=UPLOAD_PACK_HEADERS | git_protocol(2),
        ) as response:
            if response.status != 200:
                raise ConnectionError(f"{response.status} {await response.text()}")
            return await response.read()

    def is_told(self, receiver: Receiver) -> bool:
        """Tell whether the receiver knows the latest of each branch that was pushed to."""
        known = {event.step[0]: event.step[2] for event in receiver.taken}
        return all(
            known.get(f"refs/heads/{name}", tips[0]) == tips[-1] for name, tips in self.tips.items()
        )


@asynccontextmanager
async def killed_at_the_end(file: Path) -> AsyncIterator[None]:
    """Run `git-mirror serve` until the block ends, then kill it."""
    process = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-m", "mirror", "serve", "--config", str(file)],
        stderr=subprocess.PIPE,
    )
    stderr = process.stderr
    assert stderr is not None
    try:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while line := await asyncio.to_thread(stderr.readline):
                if line.startswith(b"{") and json.loads(line)["event"] == "serving":
                    break
        reading = asyncio.create_task(asyncio.to_thread(stderr.read))
        yield
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)
    await reading
    stderr.close()


@pytest.mark.parametrize(("workers", "kills"), [(1, 3), (2, 1)])
async def test_killed_again_and_again_nothing_is_lost_out_of_order_or_told_too_early(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, workers: int, kills: int
) -> None:
    port = free_port()
    story = Story(forge, upstream, port)
    async with receiving() as receiver, aiohttp.ClientSession() as session:
        receiver.answer = story.check
        directory = tmp_path / "mirror"
        section = relays(directory, one=f"argocd {receiver.url}/x")
        file = configuration(forge, directory, sections=section, workers=workers)
        file.write_text(file.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        async with killed_at_the_end(file):
            await until_mirrored(session, story.url)
        for kill in range(kills):
            async with killed_at_the_end(file):
                heard = len(receiver.taken)
                for _ in range(4):
                    await story.push(session)
                await receiver.came(heard + kill)  # killed a little later each time
            await story.push(session)
        async with killed_at_the_end(file):
            await receiver.until(story.is_told)
    assert story.unfetchable == []
    for name, tips in story.tips.items():
        known = tips[0]
        for event in receiver.taken:
            ref, before, after = event.step
            if ref != f"refs/heads/{name}":
                continue
            # What was acknowledged just before the end may be told once more.
            assert tips.index(before) <= tips.index(known)
            assert tips.index(after) >= tips.index(known)
            known = after


async def until_mirrored(session: aiohttp.ClientSession, url: str) -> None:
    """Wait for the first clone, whose end is what readers see of it."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while True:
            async with session.get(f"{url}/status.json") as response:
                found = (await response.json())["repositories"][NAME]
            if found["refs"]:
                return


@pytest.mark.parametrize("damage", ["header", "page"])
async def test_where_it_was_lost_what_receivers_know_they_are_told_of_all_there_is(
    damage: str, forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.branches({f"topic-{number}": "main" for number in range(3)})
    async with receiving() as receiver:
        sections = relays(tmp_path / "mirror", argo=f"argocd {receiver.url}/api/webhook")
        async with mirroring(forge, tmp_path / "mirror", sections=sections):
            pass
        assert not receiver.taken, "it was set up a moment ago"
        ledger = tmp_path / "mirror" / "data" / "relays.db"
        content = bytearray(ledger.read_bytes())
        at = 0 if damage == "header" else 4096
        content[at : at + 40] = bytes(40)
        ledger.write_bytes(content)
        file = configuration(forge, tmp_path / "mirror", sections=sections)
        wanted = {name: oid for name, oid in upstream.refs().items() if "heads" in name}
        async with serving(file, forge):
            await receiver.until(
                lambda one: (
                    {event.json["ref"]: event.json["after"] for event in one.taken} == wanted
                )
            )
        count = len(receiver.taken)
        async with serving(file, forge):
            pass
        assert len(receiver.taken) == count, "once is enough"
    (aside,) = (tmp_path / "mirror" / "data" / "set-aside").iterdir()
    assert aside.name.startswith("relays.db.")
