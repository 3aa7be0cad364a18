"""A disk that takes nothing: readers notice nothing, refreshes say so, and go on by themselves."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from mirror.refresh import disk_watch
from mirror.refresh.pull_through import eviction, refusals
from mirror.refresh.refresher import Trigger
from tests.disk.conftest import MIB, SmallDisk
from tests.git_client import GitClient, Upstream, environment
from tests.mirror_service import (
    WAIT_SECONDS_MAX,
    MirrorService,
    configuration,
    mirroring,
    serving,
)
from tests.refresh.bundles import BUNDLED, bundled
from tests.refresh.relay.receiving import receiving, relays

FAULTS = {
    "disk_full": (SmallDisk.fill, SmallDisk.free),
    "disk_read_only": (SmallDisk.become_read_only, SmallDisk.become_writable),
}


def noise(size: int) -> dict[str, str | bytes | None]:
    return {"noise.bin": os.urandom(size)}


async def shown(git_client: GitClient, url: str) -> dict[str, str]:
    """Return the refs that a reader sees."""
    refs = await git_client.ls_remote(url)
    return {name: oid for name, oid in refs.items() if name != "HEAD"}


def is_whole(mirror: MirrorService) -> None:
    """Assert that git finds nothing wrong with the mirror."""
    path = mirror.mirror().path
    checked = subprocess.run(
        ["git", "fsck", "--strict", "--connectivity-only", "--no-dangling"],
        cwd=path,
        env=environment(path),
        capture_output=True,
        check=False,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr


async def nothing_is_left(disk: SmallDisk, mirror: MirrorService) -> None:
    """Assert that all is gone that was begun and not finished; no refresh may be under way."""
    # The packs that are made ahead of their readers are under way, not left; and whoever reads a
    # pack has it before its file is in its place.
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        for kind in ("foresight ", "pack "):
            making = [one for one in asyncio.all_tasks() if one.get_name().startswith(kind)]
            await asyncio.gather(*making, return_exceptions=True)
    path = mirror.mirror().path
    assert not list(path.glob("objects/tmp_*"))
    assert not list(path.glob("objects/pack/tmp_*"))
    assert not [*path.glob("*.tmp"), *path.glob("*.lock")]
    assert not list((disk.path / "staging").iterdir())
    spools = (disk.path / "packs" / "tmp").iterdir()
    assert not [file for file in spools if file.suffix != ".lock"]


@pytest.mark.parametrize("kind", FAULTS)
async def test_readers_are_served_on_and_refreshes_recover_by_themselves(
    disk: SmallDisk,
    upstream: Upstream,
    forge: HttpBackend,
    git_client: GitClient,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    break_it, mend_it = FAULTS[kind]
    upstream.commit(files=noise(3 * MIB))
    old = upstream.refs()
    async with mirroring(forge, tmp_path / "mirror", engine="auto") as mirror:
        url = mirror.url()
        await git_client.clone(url, "--depth=1")
        break_it(disk)

        # What is known is served: a poll, a fetch that was made before, and one that was not, of a
        # pack that does not fit into memory.
        assert await shown(git_client, url) == old
        await git_client.clone(url, "--depth=1")
        whole = await git_client.clone(url)
        await git_client.fsck(whole)

        tip = upstream.commit(files=noise(2 * MIB))
        await mirror.announce(upstream)
        await mirror.until(lambda one: one.last.kind == kind)
        assert await shown(git_client, url) == old
        refreshes = await mirror.metric(
            "git_mirror_refresh_seconds_count", trigger="webhook", outcome=kind
        )
        assert refreshes is not None
        assert refreshes >= 1
        status = (await mirror.get("/status.json")).json
        assert status["repositories"][upstream.name]["last_error_kind"] == kind
        assert status["disk"]["is_read_only"] == (kind == "disk_read_only")
        assert "refresh_failed" in capsys.readouterr().out
        if kind == "disk_full":
            is_whole(mirror)

        mend_it(disk)
        await mirror.caught_up(upstream)
        is_whole(mirror)
        await nothing_is_left(disk, mirror)
        await git_client.fetch(whole)
        assert await git_client.rev_parse(whole, "origin/main") == tip
        await git_client.fsck(whole)


@pytest.mark.parametrize("kind", FAULTS)
async def test_a_service_starts_on_such_a_disk_and_serves_what_is_there(
    disk: SmallDisk,
    upstream: Upstream,
    forge: HttpBackend,
    git_client: GitClient,
    tmp_path: Path,
    kind: str,
) -> None:
    break_it, mend_it = FAULTS[kind]
    async with receiving() as receiver:
        sections = relays(tmp_path / "mirror", argo=f"argocd {receiver.url}/api/webhook")
        async with mirroring(forge, tmp_path / "mirror", sections=sections) as mirror:
            left = mirror.mirror().path / "objects" / "tmp_objdir-incoming-123456"
        left.mkdir()  # by a crash
        old = upstream.refs()
        break_it(disk)
        tip = upstream.commit(files=noise(2 * MIB))
        file = configuration(forge, tmp_path / "mirror", sections=sections)
        async with serving(file, forge) as mirror:
            await mirror.until(lambda one: one.last.kind == kind)
            assert await shown(git_client, mirror.url()) == old
            await git_client.clone(mirror.url())
            mend_it(disk)
            await mirror.caught_up(upstream)
            is_whole(mirror)
            await nothing_is_left(disk, mirror)
            await receiver.came(1)
        assert tip in str(receiver.events)


@pytest.mark.parametrize("kind", FAULTS)
async def test_what_is_damaged_on_such_a_disk_is_served_and_mended_later(
    disk: SmallDisk,
    upstream: Upstream,
    forge: HttpBackend,
    git_client: GitClient,
    tmp_path: Path,
    kind: str,
) -> None:
    break_it, mend_it = FAULTS[kind]
    async with mirroring(forge, tmp_path / "mirror") as mirror:
        path = mirror.mirror().path
    right = {name: (path / name).read_bytes() for name in ("packed-refs", "HEAD", "config")}
    for name, content in right.items():
        (path / name).write_bytes(content.replace(b"r", b"R"))  # of the same size
    break_it(disk)
    async with serving(configuration(forge, tmp_path / "mirror"), forge) as mirror:
        await mirror.until(lambda one: one.last.kind == kind)
        assert await shown(git_client, mirror.url()) == upstream.refs()
        assert mirror.mirror().damage is not None
        mend_it(disk)
        await mirror.hosted().refresher.request(Trigger.MANUAL)
        assert mirror.mirror().damage is None
        assert right == {name: (path / name).read_bytes() for name in right}
        is_whole(mirror)


async def test_mirrors_and_bundles_yield_before_refreshes_have_no_room(
    disk: SmallDisk,
    upstream: Upstream,
    upstream_root: Path,
    forge: HttpBackend,
    git_client: GitClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another program takes ever more of the disk, and gives it back."""
    monkeypatch.setattr(disk_watch, "LOOK_SECONDS", 3600.0)
    monkeypatch.setattr(refusals, "FAILED_SECONDS", -1.0)
    monkeypatch.setattr(eviction, "IDLE_SECONDS_MIN", -1.0)
    other = Upstream(upstream_root, "team/other")
    for one in (upstream, other):
        one.commit(files=noise(3 * MIB))
    place = forge.repository_url("team").removesuffix(".git")
    keys = f"at: /team, from: {place}/, forge: github, bundle_interval: never"
    upstreams = f"upstreams: [{{{keys}}}]\nlimits: {{disk_reserve: 5MiB}}"
    async with mirroring(
        forge, tmp_path / "mirror", sections=upstreams, defaults=BUNDLED
    ) as mirror:
        await bundled(mirror)
        await git_client.clone(mirror.url())
        await git_client.clone(mirror.url("team/other"))

        watch = mirror.service.disk
        assert watch is not None

        async def yielded(kind: str) -> None:
            """Take as much as makes one kind go."""
            for _ in range(3):
                disk.fill(leave=4 * MIB)
                await watch.look()
                if await mirror.metric("git_mirror_disk_yielded_bytes_total", kind=kind):
                    return
            raise AssertionError(kind)

        await yielded("packs")
        assert mirror.mirror().bundles is not None
        await yielded("bundles")
        assert mirror.mirror().bundles is None
        assert mirror.service.registry.get("team/other") is not None
        await yielded("pull_through")
        assert mirror.service.registry.get("team/other") is None
        refused = await mirror.info_refs("team/other")
        assert refused.status == 503
        assert "limits.disk_reserve" in refused.text

        # The reserve is there for this.
        upstream.commit(files=noise(MIB))
        await mirror.announce(upstream)
        await mirror.caught_up(upstream)
        await git_client.clone(mirror.url())
        disk.free()
        await git_client.clone(mirror.url("team/other"))
        is_whole(mirror)
