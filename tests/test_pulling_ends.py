"""Mirrors below a place upstream go again; restarts and accidents leave none half."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

import aiohttp
import pytest

from mirror.demo.forge import Faults, ForgeRequest, HttpBackend
from mirror.refresh.refresher import Trigger
from tests.git_client import GitClient, Upstream
from tests.lfs_server import lfs_server
from tests.mirror_service import (
    NAME,
    UPLOAD_PACK_HEADERS,
    WAIT_SECONDS_MAX,
    MirrorService,
    git_protocol,
    github_headers,
    github_push,
    refs_of,
    serving,
)
from tests.pull_through import (
    AT,
    OTHER,
    PULLED,
    clones_asked,
    closing_connection,
    later,
    mirrored_names,
    mirrors_on_disk,
    puller,
    pulling,
    pulling_configuration,
    read,
)
from tests.web.asking import fetch_v0
from tests.web.lfs_estate import Estate


@pytest.fixture
async def mirror(forge: HttpBackend, tmp_path: Path) -> AsyncIterator[MirrorService]:
    """A service that mirrors nothing yet."""
    async with pulling(forge, tmp_path / "mirror") as running:
        yield running


# The end of a mirror.


async def test_what_nobody_reads_is_removed_and_comes_again(
    forge: HttpBackend, upstream: Upstream, upstream_root: Path, tmp_path: Path
) -> None:
    Upstream(upstream_root, "acme/other").commit()
    async with (
        pulling(forge, tmp_path / "mirror", place="unused: 1h") as mirror,
        closing_connection(mirror) as connection,
    ):
        await read(mirror, OTHER)
        for version in (0, 2):  # the fast lane knows these by heart
            for _ in range(2):
                answer = await connection.get(INFO_REFS, git_protocol(version))
                assert answer.status == 200
        later(mirror, 3500)
        await puller(mirror).tidier.tidy()
        assert len(mirrored_names(mirror)) == 2
        mirror.mirror(PULLED).read_at += 3000
        later(mirror, 3700)
        await puller(mirror).tidier.tidy()
        assert mirrored_names(mirror) == [PULLED]
        assert mirrors_on_disk(tmp_path / "mirror") == [f"repositories/{PULLED}.git"]
        later(mirror, 9999)
        await puller(mirror).tidier.tidy()
        assert mirrors_on_disk(tmp_path / "mirror") == []
        assert await mirror.metric(REMOVED, reason="unused") == 2
        tip = upstream.commit()
        answer = await connection.get(INFO_REFS, git_protocol(0))
        assert tip.encode() in answer.body
        assert clones_asked(forge) == 2


INFO_REFS = f"/{PULLED}/info/refs?service=git-upload-pack"
REMOVED = "git_mirror_pull_through_removed_total"


@pytest.mark.parametrize("workers", [1, 2])
async def test_bundles_and_the_grants_of_large_files_go_with_the_mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, workers: int
) -> None:
    content = b"a large file"
    place = "max_age: 0s\nbundle_interval: 300d\nbundle_bytes_min: 0"
    async with (
        lfs_server(forge) as server,
        pulling(forge, tmp_path / "mirror", workers=workers, place=place) as mirror,
    ):
        files = Estate(mirror, server)
        await read(mirror)
        server.add(NAME, content)
        assert await files.errors(content, name=PULLED) == [None]
        assert (await files.get(content, name=PULLED)).body == content
        await mirror.until(lambda one: one.bundles is not None, PULLED)
        assert (await mirror.get(f"/{PULLED}/bundles/list")).status == 200
        bundles, grants = (tmp_path / "mirror/data" / one for one in ("bundles", "lfs/grants"))
        assert len(list(bundles.iterdir())) == 1
        assert len(list(grants.rglob("*.git"))) == 1
        later(mirror, 1e7)
        await until_removed(mirror)
        assert list(bundles.iterdir()) == []
        assert list(grants.rglob("*.git")) == []
        assert (await files.get(content, name=PULLED)).status == 404  # it was not asked for
        assert await files.errors(content, name=PULLED) == [None]
        assert (await files.get(content, name=PULLED)).body == content


async def test_what_is_being_read_stays(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    noise = os.urandom(4 << 20)
    upstream.commit(files={"noise": noise})
    async with (
        pulling(forge, tmp_path / "mirror") as mirror,
        closing_connection(mirror) as connection,
    ):
        await read(mirror)
        connection.send(
            "POST",
            f"/{PULLED}/git-upload-pack",
            body=fetch_v0(upstream.oid()),
            headers=UPLOAD_PACK_HEADERS,
        )
        await connection.reader.readuntil(b"PACK")
        later(mirror, 1e7)
        await puller(mirror).tidier.tidy()
        assert mirrored_names(mirror) == [PULLED]
        assert mirror.mirror(PULLED).path.exists()
        last = b""
        while not last.endswith(b"\r\n0\r\n\r\n"):  # which may come in two pieces
            last = last[-6:] + await connection.reader.read(1 << 20)
        tip = upstream.commit()
        await mirror.hosted(PULLED).refresher.request(Trigger.MANUAL)
        assert tip.encode() in (await connection.get(INFO_REFS)).body
        await until_removed(mirror)
        assert mirrors_on_disk(tmp_path / "mirror") == []


async def until_removed(mirror: MirrorService) -> None:
    """Tidy until nothing is left: an answer ends a moment after its last byte."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while mirrored_names(mirror):
            await puller(mirror).tidier.tidy()


async def test_the_quota_takes_what_was_read_least_recently(
    forge: HttpBackend, upstream: Upstream, upstream_root: Path, tmp_path: Path
) -> None:
    names = [f"acme/large-{number}" for number in range(3)]
    for name in names:
        Upstream(upstream_root, name).commit(files={"noise": os.urandom(450_000)})
    limits = "pull_through_bytes_max: 1MiB"
    async with pulling(forge, tmp_path / "mirror", limits=limits) as mirror:
        for name in names:
            await read(mirror, f"{AT}/{name}")
        assert len(mirrored_names(mirror)) == 3  # each was read just now
        mirror.mirror(f"{AT}/{names[0]}").read_at += 10
        later(mirror, 65)
        await puller(mirror).tidier.tidy()
        assert mirrored_names(mirror) == [f"{AT}/{names[0]}", f"{AT}/{names[2]}"]
        large = Upstream(upstream_root, "acme/too-large")
        large.commit(files={"noise": os.urandom(1 << 20)})
        assert (await mirror.info_refs(f"{AT}/acme/too-large")).status == 503


async def test_a_new_one_takes_the_place_of_one_that_is_not_in_use(
    forge: HttpBackend, upstream: Upstream, upstream_root: Path, tmp_path: Path
) -> None:
    Upstream(upstream_root, "acme/other").commit()
    limits = "pull_through_repositories_max: 1"
    async with pulling(forge, tmp_path / "mirror", limits=limits) as mirror:
        await read(mirror)
        assert (await mirror.info_refs(OTHER)).status == 503
        later(mirror, 65)
        await read(mirror, OTHER)
        assert mirrored_names(mirror) == [OTHER]


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_is_deleted_upstream_is_removed_once_that_is_certain(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, workers: int
) -> None:
    place = "max_age: 0s\ngone_after: 10m"
    async with pulling(forge, tmp_path / "mirror", workers=workers, place=place) as mirror:
        await read(mirror)
        forge.faults = Faults(status=404)
        answer = await mirror.info_refs(PULLED)
        assert answer.status == 200
        assert "Git-Mirror-Stale" in answer.headers
        await puller(mirror).tidier.tidy()
        assert mirrored_names(mirror) == [PULLED]
        gone = mirror.mirror(PULLED)
        assert gone.denied is not None
        gone.denied = (gone.denied[0] - 601, gone.denied[1])
        await puller(mirror).tidier.tidy()
        assert mirrored_names(mirror) == []
        assert (await mirror.info_refs(PULLED)).status == 404
        assert mirrors_on_disk(tmp_path / "mirror") == []


async def test_an_outage_is_no_deletion(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with pulling(forge, tmp_path / "mirror", place="gone_after: 0s") as mirror:
        await read(mirror)
        for status in (500, 403, 429):
            forge.faults = Faults(status=status)
            await asyncio.wait((mirror.hosted(PULLED).refresher.request(Trigger.MANUAL),))
            await puller(mirror).tidier.tidy()
        assert await read(mirror) == upstream.refs()
        forge.faults = Faults(status=404)
        await asyncio.wait((mirror.hosted(PULLED).refresher.request(Trigger.MANUAL),))
        await puller(mirror).tidier.tidy()
        assert mirrored_names(mirror) == []


async def test_what_was_made_anew_upstream_is_followed(
    mirror: MirrorService, forge: HttpBackend, upstream: Upstream, git_client: GitClient
) -> None:
    await read(mirror)
    shutil.rmtree(upstream.path)
    anew = Upstream(upstream.path.parent.parent)
    anew.commit(files={"other": "history"}, message="Begin anew")
    await mirror.hosted(PULLED).refresher.request(Trigger.MANUAL)
    assert await read(mirror) == anew.refs()
    clone = await git_client.clone(mirror.url(PULLED))
    assert await git_client.rev_parse(clone, "HEAD") == anew.oid()
    await git_client.fsck(clone)


# Restarts and accidents.


async def test_after_a_restart_what_was_there_is_served_at_once_and_asked_for_when_it_is_read(
    forge: HttpBackend, upstream: Upstream, upstream_root: Path, tmp_path: Path
) -> None:
    Upstream(upstream_root, "acme/other").commit()
    file = pulling_configuration(forge, tmp_path / "mirror")
    async with serving(file, forge) as mirror:
        await read(mirror)
        await read(mirror, OTHER)
        later(mirror, 0)
        await puller(mirror).tidier.tidy()
    os.utime(tmp_path / f"mirror/data/repositories/{OTHER}.git/git-mirror-read", (1, 1))
    forge.requests.clear()
    tip = upstream.commit()
    async with serving(file, forge) as mirror:
        assert sorted(mirrored_names(mirror)) == sorted([OTHER, PULLED])
        assert forge.requests == []
        assert (await read(mirror))["refs/heads/main"] == tip
        assert all(one.path.startswith(f"/{NAME}.git") for one in forge.requests)
        await puller(mirror).tidier.tidy()
        assert mirrored_names(mirror) == [PULLED]  # the other was not read since 1970


async def test_after_a_restart_what_is_not_below_a_place_any_more_is_removed(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with pulling(forge, tmp_path / "mirror") as mirror:
        await read(mirror)
    async with pulling(forge, tmp_path / "mirror", source=f"{forge.url}/elsewhere") as mirror:
        assert mirrors_on_disk(tmp_path / "mirror") == []


async def test_a_mirror_that_came_by_a_place_stays_once_it_is_configured(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    place = tmp_path / "mirror"
    async with pulling(forge, place) as mirror:
        await read(mirror)
    file = pulling_configuration(forge, place)
    text = file.read_text()
    start = text.index("upstreams:")
    chosen = f"repositories: {{{PULLED}: {{upstream: '{forge.repository_url(NAME)}'}}}}\n"
    file.write_text(text[:start] + chosen)
    forge.requests.clear()
    async with serving(file, forge) as mirror:
        assert refs_of(mirror.mirror(PULLED)) == upstream.refs()
    assert clones_asked(forge) == 0
    file.write_text(text[:start] + chosen.replace(PULLED, "another/name"))
    async with serving(file, forge):
        assert f"repositories/{PULLED}.git" in mirrors_on_disk(place)


async def test_a_kill_during_a_first_clone_leaves_nothing_half(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    place = tmp_path / "mirror"
    file = pulling_configuration(forge, place, workers=1)
    forge.faults = Faults(stall=asyncio.Event(), stall_after_bytes=100, only=ForgeRequest.is_fetch)
    process = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-m", "mirror", "serve", "--config", str(file)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        url = await asyncio.to_thread(_served_url, process.stderr)
        async with aiohttp.ClientSession() as session:
            asking = asyncio.create_task(session.get(f"{url}/{INFO_REFS}"))
            await forge.wait_for_requests(1, "fetch")
            process.send_signal(signal.SIGKILL)
            with pytest.raises(aiohttp.ClientError):
                await asking
    finally:
        process.kill()
        process.communicate()
    assert not list((place / "data/repositories").rglob("*.git"))
    forge.faults = Faults()
    async with serving(file, forge) as mirror:
        assert mirrors_on_disk(place) == []
        assert await read(mirror) == upstream.refs()


def _served_url(log: IO[str]) -> str:
    for line in log:
        if (found := re.search(r"http://127[.0-9]+:[0-9]+", line)) and "serving" in line:
            return found[0]
    raise AssertionError("it does not serve")


# Webhooks, and the operator.


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_webhook_refreshes_what_is_mirrored_and_is_ignored_for_what_is_not(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, workers: int
) -> None:
    place = "max_age: never"
    async with pulling(forge, tmp_path / "mirror", workers=workers, place=place) as mirror:
        answer = await mirror.announce(upstream)
        assert answer.json == {"outcome": "unknown_repository", "repositories": []}
        assert forge.requests == []
        await read(mirror)
        upstream.commit()
        answer = await mirror.announce(upstream)
        assert answer.json == {"outcome": "accepted", "repositories": [PULLED]}
        assert await read(mirror) == upstream.refs()
        body = github_push(forge.repository_url(NAME), "refs/heads/main", "0" * 40, "1" * 40)
        refused = await mirror.deliver(body, github_headers(body, secret="wrong"))
        assert refused.status == 401


async def test_the_operator_may_mirror_one_beforehand_with_the_service_and_without(
    forge: HttpBackend, upstream: Upstream, upstream_root: Path, tmp_path: Path
) -> None:
    Upstream(upstream_root, "acme/other").commit()
    file = pulling_configuration(forge, tmp_path / "mirror")
    assert "up to date, 1 ref" in await sync(file, PULLED)
    async with serving(file, forge) as mirror:
        assert mirrored_names(mirror) == [PULLED]
        assert "up to date, 1 ref" in await sync(file, OTHER)
        assert mirrored_names(mirror) == [PULLED, OTHER]
        status = (await mirror.get("/status.json")).json["repositories"]
        assert status[OTHER]["pull_through"] == f"/{AT}"


async def sync(file: Path, name: str) -> str:
    """Run `git-mirror sync`, and return what it says."""
    completed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "mirror", "sync", "--config", str(file), name],
        capture_output=True,
        text=True,
        check=False,
    )
    return completed.stdout + completed.stderr
