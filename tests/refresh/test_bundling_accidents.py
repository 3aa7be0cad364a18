"""Bundles through full disks, damage, restarts, kills and other settings."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mirror.demo.forge import HttpBackend
from tests.git_client import GitClient, Upstream, environment
from tests.mirror_service import NAME, WAIT_SECONDS_MAX, configuration, mirroring, serving
from tests.refresh.bundles import (
    BUNDLED,
    bundled,
    bundling,
    directory,
    files,
    offered,
    push,
    remake,
    unbundled,
)


async def test_a_bundle_that_there_is_no_room_for_leaves_what_is_offered_and_is_told(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    sections = "limits: {bundle_bytes_max: 20000}"
    async with bundling(forge, tmp_path, sections=sections) as mirror:
        before = offered(mirror)
        upstream.commit(files={"noise": os.urandom(30_000)})
        await push(mirror, upstream)
        with capture_logs() as logs:
            assert not await remake(mirror)
        (failed,) = (line for line in logs if line["event"] == "bundles_failed")
        assert "limits.bundle_bytes_max" in failed["error"]
        assert offered(mirror) == before
        assert (await mirror.get(f"/{NAME}/bundles/{before[0].name}")).status == 200
        name = "git_mirror_bundle_build_seconds_count"
        assert await mirror.metric(name, outcome="ok") == 1
        assert await mirror.metric(name, outcome="local_error") == 1


async def test_a_damaged_bundle_is_found_and_made_anew(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, git_client: GitClient
) -> None:
    async with bundling(forge, tmp_path) as mirror:
        (before,) = offered(mirror)
        flip_a_bit(directory(tmp_path) / before.name)
        with capture_logs() as logs:
            assert await remake(mirror)
        assert [line["bundle"] for line in logs if line["event"] == "bundle_damaged"] == [
            before.name
        ]
        (after,) = offered(mirror)
        assert after.token > before.token
        await unbundled(mirror, tmp_path, git_client)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 4
    file.write_bytes(content)


async def test_bundles_are_offered_again_after_a_restart_and_tokens_go_on_rising(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with bundling(forge, tmp_path) as mirror:
        before = offered(mirror)
    file = configuration(forge, tmp_path, defaults=BUNDLED)
    async with serving(file, forge) as mirror:
        assert offered(mirror) == before
        upstream.commit()
        await push(mirror, upstream)
        assert await remake(mirror)
        assert offered(mirror)[0] == before[0]
        assert offered(mirror)[1].token > before[0].token


@pytest.mark.parametrize(
    ("defaults", "is_emptied"),
    [
        ("bundle_interval: never", True),
        (BUNDLED + "\nrefs: [refs/heads/*]", False),
    ],
    ids=["never", "other refs"],
)
async def test_bundles_of_another_configuration_are_gone_at_the_next_start(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    git_client: GitClient,
    defaults: str,
    is_emptied: bool,
) -> None:
    upstream.tag("v1")
    async with bundling(forge, tmp_path) as mirror:
        before = offered(mirror)
    async with mirroring(forge, tmp_path, defaults=defaults) as mirror:
        if is_emptied:
            assert offered(mirror) == ()
            async with asyncio.timeout(WAIT_SECONDS_MAX):
                while files(tmp_path):
                    await mirror.get("/healthz")
        else:
            await bundled(mirror)
            assert before[0].name not in files(tmp_path)
            assert offered(mirror)[0].token > before[0].token
            clone = await unbundled(mirror, tmp_path, git_client)
            assert list(await git_client.refs(clone)) == ["refs/heads/main"]


async def test_a_repository_that_was_cloned_anew_from_elsewhere_offers_nothing_of_before(
    forge: HttpBackend, upstream: Upstream, upstream_root: Path, tmp_path: Path
) -> None:
    async with bundling(forge, tmp_path):
        before = files(tmp_path)
    other = Upstream(upstream_root, "acme/other")
    other.commit(files={"other": "yes"})
    file = configuration(forge, tmp_path, defaults=BUNDLED)
    url = forge.repository_url(NAME)
    file.write_text(file.read_text().replace(url, forge.repository_url(other.name)))
    async with serving(file, forge) as mirror:
        await bundled(mirror)
        assert not before & files(tmp_path) - {"list.json"}
        refs = (await mirror.get(f"/{NAME}/bundles/{offered(mirror)[0].name}")).body
        assert other.oid().encode() in refs


_STALLING_GIT = """#!/bin/sh
case "$*" in
*pack-objects*)
    "{git}" "$@" | head --bytes=2000
    echo stalled > "{fifo}"
    exec cat "{fifo}"
    ;;
*) exec "{git}" "$@" ;;
esac
"""


def serve(file: Path, programs: Path) -> "subprocess.Popen[bytes]":
    """Start the service as a process of its own, with other programs than there are."""
    return subprocess.Popen(
        [sys.executable, "-m", "mirror", "serve", "--config", file],
        env=environment(file.parent) | {"PATH": f"{programs}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


async def test_a_kill_in_the_middle_of_a_bundle_leaves_nothing_but_what_was_offered(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, git_client: GitClient
) -> None:
    upstream.commit(files={"noise": os.urandom(30_000)})
    async with bundling(forge, tmp_path) as mirror:
        before = offered(mirror)
        upstream.commit(files={"noise": os.urandom(30_000)})
        await push(mirror, upstream)
    programs = tmp_path / "programs"
    programs.mkdir()
    fifo = tmp_path / "stalled"
    os.mkfifo(fifo)
    git = (await git_client.output("--exec-path")) + "/git"
    (programs / "git").write_text(_STALLING_GIT.format(git=git, fifo=fifo))
    (programs / "git").chmod(0o755)
    file = configuration(forge, tmp_path, defaults="bundle_interval: 1s\nbundle_bytes_min: 0")
    process = await asyncio.to_thread(serve, file, programs)
    try:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            assert await asyncio.to_thread(fifo.read_text) == "stalled\n"
        assert "draft" in files(tmp_path)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.wait, WAIT_SECONDS_MAX)
        await asyncio.to_thread(fifo.write_text, "")  # lets the git go that is left behind
    file = configuration(forge, tmp_path, defaults=BUNDLED)
    async with serving(file, forge) as mirror:
        assert offered(mirror) == before
        assert files(tmp_path) == {"list.json", before[0].name}
        assert await remake(mirror)
        await unbundled(mirror, tmp_path, git_client)
