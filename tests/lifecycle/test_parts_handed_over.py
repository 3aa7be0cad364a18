"""A hand-over with everything under way at once: TLS and certificates, a Unix socket, relays, LFS
downloads, pushes, clones below a place of `upstreams`.
"""

import asyncio
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from mirror.demo.forge import HttpBackend
from tests.certificates import Authority
from tests.e2e.day.process import MirrorProcess
from tests.git_client import GitClient, Upstream
from tests.lfs_server import LFS_TYPE, LfsServer, lfs_server, noise, oid_of
from tests.lifecycle.load import (
    POLL_V0,
    UNHURRIED,
    Seen,
    SlowClone,
    answer,
    asking,
    by_path,
    by_port,
    poll,
)
from tests.lifecycle.manager import WAIT_SECONDS_MAX, fake_manager
from tests.lifecycle.serving import beside, managed, mirrored, run
from tests.mirror_service import NAME, OTHER, configuration, github_headers, github_push
from tests.ports import free_port
from tests.pull_through import AT
from tests.refresh.relay.receiving import Receiver, receiving, relays

PULLED = f"{AT}/{OTHER}"
BIG = {f"big/{number}": os.urandom(1 << 20) for number in range(4)}
OBJECT = noise(300_000)


@dataclass
class Place:
    """Where all of it is."""

    directory: Path
    port: int
    tls: ssl.SSLContext
    forge: HttpBackend
    lfs: LfsServer
    receiver: Receiver
    file: Path
    pem: Path
    authority: Authority
    session: aiohttp.ClientSession = field(init=False)

    @property
    def unix(self) -> Path:
        return self.directory / "http.sock"

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def git(self) -> GitClient:
        own = {"http.sslCAInfo": str(self.authority.file), "http.sslCert": str(self.pem)}
        return GitClient(self.directory / "git", config=own)

    async def push(self, upstream: Upstream, seen: Seen) -> None:
        """Push behind the mirror's back, and deliver the webhook."""
        before = upstream.oid()
        seen.tips.append(after := upstream.commit())
        body = github_push(self.forge.repository_url(NAME), "refs/heads/main", before, after)
        url = f"{self.url}/webhooks/github"
        async with self.session.post(url, data=body, headers=github_headers(body)) as answer:
            assert answer.status == 202
        seen.latest = len(seen.tips) - 1

    async def batch(self) -> None:
        """Have the object granted."""
        asked = {"operation": "download", "objects": [{"oid": oid_of(OBJECT), "size": len(OBJECT)}]}
        headers = {"Accept": LFS_TYPE, "Content-Type": LFS_TYPE}
        url = f"{self.url}/{NAME}.git/info/lfs/objects/batch"
        async with self.session.post(url, data=json.dumps(asked), headers=headers) as answer:
            assert answer.status == 200
            assert "error" not in (await answer.json(content_type=None))["objects"][0]

    async def download(self) -> bytes:
        """Download it, on a connection of its own."""
        url = f"{self.url}/{NAME}.git/info/lfs/objects/{oid_of(OBJECT)}"
        headers = {"Connection": "close"}
        async with self.session.get(url, headers=headers) as answer:
            assert answer.status == 200
            return await answer.read()


@asynccontextmanager
async def place(forge: HttpBackend, directory: Path, *, workers: int) -> AsyncIterator[Place]:
    authority = Authority.make(directory)
    served, shown = authority.issue(directory), authority.issue(directory, name="argocd")
    tls = ssl.create_default_context(cafile=str(authority.file))
    tls.load_cert_chain(shown)
    port = free_port()
    async with (
        lfs_server(forge) as lfs,
        receiving() as receiver,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session,
    ):
        told = relays(directory / "m", argo=f"argocd {receiver.url}/api/webhook")
        keys = f"certificate_file: {served}, key_file: {served}, client_ca_file: {authority.file}"
        file = configuration(
            forge,
            directory / "m",
            workers=workers,
            listen=f"127.0.0.1:{port}",
            server=f"unix_socket: {directory / 'http.sock'}, tls: {{{keys}}}, {UNHURRIED}",
            repository="access: [readers]\npush: proxy",
            sections=f"upstreams:\n  - {{at: /{AT}, from: '{forge.url}', repositories: ['**'],"
            " forge: github, access: [anonymous]}\n"
            f"readers: {{certificates: {{argo: {{subject: CN=argocd, repositories: ['*']}}}}}}\n"
            f"{told}",
        )
        both = Place(directory, port, tls, forge, lfs, receiver, file, shown, authority)
        both.session = session
        yield both


class Hook:
    """A hook of the upstream that holds a push until it is let go on.

    It opens two pipes, of which this process has both ends, so that it waits for nobody here.
    """

    def __init__(self, upstream: Upstream, directory: Path) -> None:
        names = directory / "began", directory / "go-on"
        for name in names:
            os.mkfifo(name)
        self._began, self._go_on = (os.open(name, os.O_RDWR | os.O_NONBLOCK) for name in names)
        hook = upstream.path / "hooks" / "pre-receive"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\necho > {names[0]}\nread _ < {names[1]}\n")
        hook.chmod(0o755)

    async def began(self) -> None:
        """Wait until a push is held."""
        loop, is_held = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._began, is_held.set)
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                await is_held.wait()
        finally:
            loop.remove_reader(self._began)

    def go_on(self) -> None:
        """Let it go on."""
        os.write(self._go_on, b"\n")

    def close(self) -> None:
        """Hold nobody any more."""
        self.go_on()
        os.close(self._began)
        os.close(self._go_on)


class Unheard:
    """The receiver's answers: the first event is taken, and never acknowledged.

    Attributes:
        at_once: Events that came while an earlier one's connection was still open.
    """

    def __init__(self, receiver: Receiver) -> None:
        self.began, self.over = asyncio.Event(), asyncio.Event()
        self.at_once = 0
        self._receiver = receiver
        receiver.answer = self.answer

    async def answer(self, _: Any) -> web.StreamResponse:
        *earlier, _ = self._receiver.requests
        self.at_once += sum(not _is_over(one) for one in earlier)
        if not earlier:
            self.began.set()
            await self.over.wait()
        return web.Response()


def _is_over(request: web.Request) -> bool:
    """Tell whether nobody waits for the answer, or it was given."""
    task: asyncio.Task[None] | None = request.task  # none once it has ended
    return request.transport is None or task is None or task.done()


async def upgraded(process: MirrorProcess, file: Path) -> None:
    since = len(process.log)
    done = await run(sys.executable, "-m", "mirror", "upgrade", "--config", str(file))
    assert done.returncode == 0, done.stderr
    process.successor = int(done.stdout.split()[1])
    await process.logged(since, lambda event: event["event"] == "took_over")


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_is_under_way_of_every_kind_survives(
    workers: int,
    forge: HttpBackend,
    upstream: Upstream,
    upstream_root: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if workers > 1 and not request.config.getoption("--lifecycle"):
        pytest.skip("in `make lifecycle`: test_upgrade.py has two workers")
    other = Upstream(upstream_root, OTHER)
    other.commit(files=BIG)
    first = upstream.oid()
    async with place(forge, tmp_path, workers=workers) as at:
        at.lfs.add(NAME, OBJECT)
        stalled = at.lfs.faults.stall = asyncio.Event()
        at.lfs.faults.stall_after_bytes = 100_000
        unheard = Unheard(at.receiver)
        seen = Seen(tips=[first])
        with fake_manager() as manager:
            async with managed(at.file, manager) as process, AsyncExitStack() as stack:
                hook = stack.enter_context(closing(Hook(upstream, tmp_path)))
                await mirrored(process)
                await at.git.ls_remote(f"{at.url}/{PULLED}")  # which waits for its first clone
                # Under way: a push, two downloads, a clone of a pulled mirror, an event, polls.
                clone = await at.git.clone(f"{at.url}/{NAME}")
                pushed = await at.git.commit_file(clone, "a.txt", "pushed\n", "Push")
                command = at.git.run("push", "--quiet", "origin", "HEAD:topic", cwd=clone)
                pushing = beside(stack, command)
                await hook.began()
                await at.batch()
                downloads = [beside(stack, at.download())]
                await at.lfs.wait_for_downloads(1)
                begun = await SlowClone.begin(by_path(at.unix), PULLED, other.oid())
                slow = stack.enter_context(closing(begun))
                async with asyncio.TaskGroup() as readers:
                    for version, kept in ((0, True), (2, True), (2, False)):
                        connect = by_port(at.port, at.tls)
                        work = poll(
                            seen, connect, NAME, version=version, kept=kept, pause_seconds=0.1
                        )
                        readers.create_task(work)
                    await at.push(upstream, seen)
                    async with asyncio.timeout(WAIT_SECONDS_MAX):
                        await unheard.began.wait()
                    await upgraded(process, at.file)
                    downloads.append(beside(stack, at.download()))
                    await at.lfs.wait_for_downloads(2)
                    await at.receiver.until(lambda it: len(it.requests) >= 2)
                    await at.push(upstream, seen)
                    hook.go_on()
                    assert (await pushing).returncode == 0
                    listed = await at.git.ls_remote(f"{at.url}/{NAME}")
                    assert listed["refs/heads/topic"] == pushed
                    seen.is_over.set()
                stalled.set()
                assert await asyncio.gather(*downloads) == [OBJECT, OBJECT]
                assert await slow.finish() > sum(map(len, BIG.values()))
                assert await process.ended() == 0  # the old one
                # The new one: below the place, by the Unix socket, and what receivers were told.
                async with asking(by_path(at.unix), POLL_V0.format(name=PULLED)) as reader:
                    assert other.oid().encode() in (await answer(reader))[0]
                tip = seen.tips[-1]
                await at.receiver.until(lambda it: any(event.step[2] == tip for event in it.events))
                unheard.over.set()
        assert seen.failures == []
        told = [event.step for event in at.receiver.events if event.step[0].endswith("/main")]
        # Each once, in order; what the old process did not hear the end of, once more.
        assert told[0][1] == first
        assert [step[2] for step in told if step[2] != seen.tips[1]] == seen.tips[2:]
        assert unheard.at_once == 0
        stored = list((at.file.parent / "data" / "lfs" / "objects").glob("*/*/*"))
        assert [path.read_bytes() for path in stored] == [OBJECT]
        assert not list((at.file.parent / "data" / "lfs" / "tmp").iterdir())
        assert not [event for event in process.events if event["event"] == "cut_off"]
