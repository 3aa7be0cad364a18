"""The first reader waits for the clone with an answer that has begun."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.demo.forge import Faults, ForgeRequest, HttpBackend
from mirror.web import finding, first_clone
from mirror.wire.advertise import encode_waiting_line
from tests.git_client import GitClient, GitFailed, Upstream
from tests.mirror_service import NAME, MirrorService, git_protocol
from tests.pull_through import AT, pulling

PULLED = f"{AT}/{NAME}"
INFO_REFS = f"/{PULLED}/info/refs?service=git-upload-pack"


@pytest.fixture
async def mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MirrorService]:
    """A service whose first clones wait for `forge.faults.stall`."""
    monkeypatch.setattr(first_clone, "QUIET_SECONDS", 0.01)
    stall = asyncio.Event()
    forge.faults = Faults(stall=stall, only=ForgeRequest.is_fetch)
    async with pulling(forge, tmp_path / "mirror") as running:
        try:
            yield running
        finally:
            stall.set()


def go_on(forge: HttpBackend, **faults: int) -> None:
    """Let the upstream answer."""
    stall = forge.faults.stall
    assert stall is not None
    forge.faults = Faults(only=ForgeRequest.is_fetch, **faults)  # type: ignore[arg-type]
    stall.set()


async def begun(mirror: MirrorService) -> bytes:
    """Ask as git does, and return what comes before the clone is done."""
    async with mirror.session.get(
        mirror.service.url + INFO_REFS, headers=git_protocol(2)
    ) as response:
        assert response.status == 200
        return await response.content.readuntil(b"x-mirroring-3=wait\n")


async def test_a_client_of_v2_gets_lines_that_it_ignores_until_the_clone_is_done(
    mirror: MirrorService, forge: HttpBackend, upstream: Upstream, git_client: GitClient
) -> None:
    cloning = asyncio.create_task(git_client.clone(mirror.url(PULLED)))
    beginning = await begun(mirror)
    assert beginning.startswith(b"001e# service=git-upload-pack\n0000000eversion 2\n")
    assert b"x-mirroring-1=wait\n0017x-mirroring-2=wait\n0017x-mirroring-3=wait\n" in beginning
    assert not beginning.endswith(b"0000")
    go_on(forge)
    clone = await cloning
    assert await git_client.rev_parse(clone, "HEAD") == upstream.oid()
    await git_client.fsck(clone)


async def test_a_clone_that_fails_meanwhile_is_an_error_and_never_empty(
    mirror: MirrorService,
    forge: HttpBackend,
    git_client: GitClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits = asyncio.Event()

    def noted(number: int) -> bytes:
        waits.set()
        return encode_waiting_line(number)

    monkeypatch.setattr(first_clone, "encode_waiting_line", noted)
    cloning = asyncio.create_task(git_client.clone(mirror.url(PULLED)))
    await waits.wait()
    go_on(forge, status=500)
    with pytest.raises(GitFailed, match="remote error: code/acme/gitops-repo can't be mirrored"):
        await cloning
    waited = await mirror.metric(
        "git_mirror_request_seconds_count", operation="capabilities", outcome="not_yet_mirrored"
    )
    assert waited == 1


async def test_a_reader_that_leaves_cancels_nothing(
    mirror: MirrorService, forge: HttpBackend, upstream: Upstream, git_client: GitClient
) -> None:
    await begun(mirror)  # and leaves
    go_on(forge)
    clone = await git_client.clone(mirror.url(PULLED))
    assert await git_client.rev_parse(clone, "HEAD") == upstream.oid()
    assert sum(one.is_fetch() for one in forge.requests) == 1


async def test_who_asks_for_the_head_alone_gets_no_lines(
    mirror: MirrorService, forge: HttpBackend, upstream: Upstream
) -> None:
    answer = await mirror.ask("HEAD", INFO_REFS, headers=git_protocol(2))
    assert (answer.status, answer.body) == (200, b"")
    go_on(forge)
    assert upstream.oid().encode() in (await mirror.get(INFO_REFS)).body


@pytest.mark.parametrize("version", [0, 1])
async def test_a_client_of_v0_is_held_and_told_to_come_again(
    mirror: MirrorService,
    forge: HttpBackend,
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
    version: int,
) -> None:
    monkeypatch.setattr(finding, "FIRST_WAIT_SECONDS_MAX", 0.01)
    answer = await mirror.get(INFO_REFS, headers=git_protocol(version))
    assert answer.status == 503
    assert answer.headers["Retry-After"] == "5"
    monkeypatch.undo()
    go_on(forge)
    answer = await mirror.get(INFO_REFS, headers=git_protocol(version))
    assert upstream.oid().encode() in answer.body
