"""Repositories below a place upstream come on their first request, and go again."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from structlog.testing import capture_logs

from mirror.demo.forge import Faults, ForgeRequest, HttpBackend
from tests.git_client import GitClient, GitFailed, Upstream
from tests.mirror_service import (
    NAME,
    MirrorService,
)
from tests.pull_through import (
    AT,
    PULLED,
    clones_asked,
    closing_connection,
    later,
    mirrored_names,
    mirrors_on_disk,
    puller,
    pulling,
    read,
)
from tests.upstream.scripted import scripted


@pytest.fixture
async def mirror(forge: HttpBackend, tmp_path: Path) -> AsyncIterator[MirrorService]:
    """A service that mirrors nothing yet."""
    async with pulling(forge, tmp_path / "mirror") as running:
        yield running


# The first request.


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_first_clone_is_what_a_clone_of_the_upstream_is(
    forge: HttpBackend, upstream: Upstream, upstream_root: Path, tmp_path: Path, workers: int
) -> None:
    other = Upstream(upstream_root, "acme/group/other")
    other.history(3)
    place = tmp_path / "mirror"
    async with pulling(forge, place, workers=workers, place="max_age: 0s") as mirror:
        for version, one in [(2, upstream), (0, other)]:
            git = GitClient(tmp_path / f"v{version}", version)
            clone = await git.clone(mirror.url(f"{AT}/{one.name}.git"))
            assert await git.rev_parse(clone, "HEAD") == one.oid()
            await git.fsck(clone)
            tip = one.commit()
            await git.fetch(clone)
            assert await git.rev_parse(clone, "origin/main") == tip


async def test_two_first_readers_share_one_clone(
    mirror: MirrorService, forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    forge.faults = Faults(stall=asyncio.Event(), only=ForgeRequest.is_fetch)
    clients = [GitClient(tmp_path / f"v{version}", version) for version in (2, 0)]
    async with asyncio.TaskGroup() as clones:
        for git in clients:
            clones.create_task(git.clone(mirror.url(PULLED)))
        await forge.wait_for_requests(1, "fetch")
        assert forge.faults.stall is not None
        forge.faults.stall.set()
    assert clones_asked(forge) == 1


async def test_what_the_upstream_denies_is_not_found_and_not_asked_for_again_at_once(
    mirror: MirrorService, forge: HttpBackend, tmp_path: Path, git_client: GitClient
) -> None:
    with pytest.raises(GitFailed, match="not found"):
        await git_client.clone(mirror.url(PULLED))
    asked = len(forge.requests)
    assert (await mirror.info_refs(PULLED, version=0)).status == 404
    assert len(forge.requests) == asked
    assert mirrored_names(mirror) == []
    assert mirrors_on_disk(tmp_path / "mirror") == []
    repository = Upstream(tmp_path / "forge")
    repository.commit()
    later(mirror, 31)
    assert await read(mirror) == repository.refs()
    assert await mirror.metric(FIRST_CLONES, outcome="not_there") == 1
    assert await mirror.metric(FIRST_CLONES, outcome="ok") == 1


FIRST_CLONES = "git_mirror_pull_through_first_clones_total"


async def test_a_first_clone_that_fails_is_a_503_never_an_empty_repository(
    mirror: MirrorService, forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    forge.faults = Faults(cut_after_bytes=100, only=ForgeRequest.is_fetch)
    answer = await mirror.info_refs(PULLED)
    assert answer.status == 503
    assert "Retry-After" in answer.headers
    assert mirrored_names(mirror) == []
    assert mirrors_on_disk(tmp_path / "mirror") == []
    forge.faults = Faults()
    later(mirror, 6)
    assert await read(mirror) == upstream.refs()


async def test_a_first_clone_waits_as_long_as_the_upstream_asks_for(
    mirror: MirrorService, forge: HttpBackend, upstream: Upstream
) -> None:
    forge.faults = Faults(status=429, retry_after="300")
    assert (await mirror.info_refs(PULLED)).status == 503
    forge.faults = Faults()
    asked = len(forge.requests)
    later(mirror, 299)
    assert (await mirror.info_refs(PULLED)).status == 503
    assert len(forge.requests) == asked
    later(mirror, 301)
    assert await read(mirror) == upstream.refs()


async def test_an_upstream_that_wants_credentials_denies_what_there_is(
    upstream: Upstream, upstream_root: Path, tmp_path: Path
) -> None:
    async with (
        HttpBackend(upstream_root, basic_auth=("git", "secret")) as forge,
        pulling(forge, tmp_path / "mirror") as mirror,
    ):
        assert (await mirror.info_refs(PULLED)).status == 404


async def test_a_configured_repository_is_not_pulled_through(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with pulling(forge, tmp_path / "mirror", names=[NAME]) as mirror:
        await mirror.mirrored()
        assert (await read(mirror, NAME)) == upstream.refs()
        assert mirror.mirror().settings.place is None
        later(mirror, 1e9)
        await puller(mirror).tidier.tidy()
        assert mirrored_names(mirror) == [NAME]


async def test_a_push_makes_no_mirror(
    mirror: MirrorService, forge: HttpBackend, upstream: Upstream
) -> None:
    answer = await mirror.get(f"/{PULLED}/info/refs?service=git-receive-pack")
    assert answer.status == 403
    assert forge.repository_url(NAME) in answer.text
    assert forge.requests == []


async def test_first_clones_have_a_rate(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    limits = "pull_through_per_client_per_minute: 2"
    async with pulling(forge, tmp_path / "mirror", limits=limits) as mirror:
        statuses = [(await mirror.info_refs(f"{AT}/no/{number}")).status for number in range(3)]
        assert statuses == [404, 404, 503]
        asked = len(forge.requests)
        assert (await mirror.info_refs(PULLED)).status == 503
        assert len(forge.requests) == asked
        later(mirror, 31)
        assert await read(mirror) == upstream.refs()


# Names, and where they lead.


TRICKS = [
    "..%2F..%2Fetc%2Fpasswd",
    "%2e%2e/acme/gitops-repo",
    "acme/../gitops-repo",
    "acme/%2e%2e%2fother",
    "@evil.example/acme/app",
    "acme%40evil.example/app",
    "evil.example:80@/app",
    "acme%5Capp",
    "acme\\..\\app",
    "http:%2F%2F169.254.169.254/latest",
    "acme/app%3Fservice=x",
    "acme/app%23x",
    "acme/app%00",
    "acme/app%0d%0aHost:%20evil.example",
    "acme/app%20x",
    "acme/.git/app",
    "acme/app.lock/x",
    "-option/app",
    "acme/%C2%B5/app",
    "acme/" + "x" * 300,
    "a/" * 80 + "app",
]


async def test_no_name_leads_out_of_the_place(mirror: MirrorService, forge: HttpBackend) -> None:
    async with closing_connection(mirror) as connection:
        for trick in TRICKS:
            path = f"/{AT}/{trick}/info/refs?service=git-upload-pack"
            answer = await connection.get(path)
            assert answer.status in {400, 404}, trick
        assert forge.requests == []
        for slashes in ("/", "%2F%2F"):  # count once: that is a name like any other
            path = f"/{AT}/{slashes}evil.example/app/info/refs?service=git-upload-pack"
            assert (await connection.get(path)).status == 404
    assert {one.path for one in forge.requests} == {"/evil.example/app.git/info/refs"}
    assert mirrored_names(mirror) == []


async def test_what_the_patterns_take_away_is_not_found_and_not_asked_for(
    mirror: MirrorService, forge: HttpBackend, upstream_root: Path
) -> None:
    Upstream(upstream_root, "acme/secret-plans").commit()
    assert (await mirror.info_refs(f"{AT}/acme/secret-plans")).status == 404
    assert forge.requests == []


async def test_a_redirect_stays_within_the_place(
    mirror: MirrorService, forge: HttpBackend, upstream: Upstream, upstream_root: Path
) -> None:
    Upstream(upstream_root, "acme/secret-plans").commit()
    forge.faults = Faults(redirect=("acme/old", NAME))
    assert await read(mirror, f"{AT}/acme/old") == upstream.refs()
    forge.faults = Faults(redirect=("acme/older", "acme/secret-plans"))
    with capture_logs() as logged:
        answer = await mirror.info_refs(f"{AT}/acme/older")
    assert answer.status == 503
    assert "secret-plans" not in answer.text
    assert any("acme/secret-plans.git, which is no" in one.get("error", "") for one in logged)
    assert {one.path for one in forge.requests if "secret" in one.path} == set()


@pytest.mark.parametrize("host", ["169.254.169.254", "localhost", "other.example"])
async def test_a_redirect_to_another_host_is_not_followed(
    upstream_root: Path, tmp_path: Path, host: str
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        port = request.url.port
        return web.Response(
            status=302, headers={"Location": f"http://{host}:{port}{request.path}?x=1"}
        )

    async with (
        HttpBackend(upstream_root) as forge,
        scripted(answer) as server,
        pulling(forge, tmp_path / "mirror", source=server.url) as mirror,
    ):
        assert (await mirror.info_refs(PULLED)).status == 503
        assert len(server.requests) == 1


class Resolver(AbstractResolver):
    """Says that every name leads to one address."""

    address = "127.0.0.1"
    asked: ClassVar[list[str]] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        return [
            ResolveResult(
                hostname=host, host=self.address, port=port, family=family, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        pass


async def test_a_name_that_leads_to_this_machine_is_not_followed_unless_that_is_said(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aiohttp, "ThreadedResolver", Resolver)
    source = f"http://code.example:{forge.port}"
    async with pulling(forge, tmp_path / "open", source=source) as mirror:
        with capture_logs() as logged:
            assert (await mirror.info_refs(PULLED)).status == 503
        assert any("code.example leads to 127.0.0.1" in one.get("error", "") for one in logged)
        assert forge.requests == []
    place = "private: true"
    async with pulling(forge, tmp_path / "private", source=source, place=place) as mirror:
        assert await read(mirror) == upstream.refs()
    assert set(Resolver.asked) == {"code.example"}
