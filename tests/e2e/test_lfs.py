"""The real git-lfs client in front of the service, an LFS server beside the forge behind it."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from mirror.access.tokens import create_token
from mirror.demo.forge import HttpBackend
from mirror.places import DataDirectory
from tests.git_client import GitClient, Upstream
from tests.lfs_server import ATTRIBUTES, LfsServer, lfs_server, noise, pointer_file
from tests.mirror_service import MirrorService, mirroring

pytestmark = pytest.mark.skipif(
    shutil.which("git-lfs") is None, reason="git-lfs is not on this machine (Debian: git-lfs)"
)

SMALL, LARGE = noise(20_000, 1), noise(1_500_000, 2)


with_several = pytest.mark.parametrize("workers", [1, 2], ids=["1-worker", "2-workers"])


@pytest.fixture
async def lfs(forge: HttpBackend, upstream: Upstream) -> AsyncIterator[LfsServer]:
    """An LFS server, with the objects of two files of the upstream."""
    async with lfs_server(forge) as server:
        _commit(upstream, server, {"small.bin": SMALL, "dir/large.bin": LARGE})
        yield server


@pytest.fixture
async def mirror(
    forge: HttpBackend, lfs: LfsServer, upstream: Upstream, tmp_path: Path, workers: int
) -> AsyncIterator[MirrorService]:
    del lfs
    place, names = tmp_path / "mirror", [upstream.name]
    async with mirroring(forge, place, names=names, workers=workers) as running:
        yield running


@pytest.fixture
def client(tmp_path: Path) -> GitClient:
    """A git client with the LFS filters, as `git lfs install` sets them up."""
    return _client(tmp_path / "client")


def _client(directory: Path, config: Mapping[str, str] | None = None) -> GitClient:
    return GitClient(
        directory,
        config={
            **(config or {}),
            "filter.lfs.clean": "git-lfs clean -- %f",
            "filter.lfs.smudge": "git-lfs smudge -- %f",
            "filter.lfs.process": "git-lfs filter-process",
            "filter.lfs.required": "true",
            "lfs.transfer.maxretries": "1",
            "lfs.transfer.maxretrydelay": "1",
        },
    )


def _commit(upstream: Upstream, server: LfsServer, files: dict[str, bytes]) -> str:
    """Commit pointers to the upstream and give their objects to its LFS server."""
    for content in files.values():
        server.add(upstream.name, content)
    pointers = {path: pointer_file(content) for path, content in files.items()}
    return upstream.commit(files={".gitattributes": ATTRIBUTES, **pointers})


def _content(clone: Path) -> tuple[bytes, bytes]:
    return (clone / "small.bin").read_bytes(), (clone / "dir/large.bin").read_bytes()


@with_several
async def test_a_clone_has_the_objects_and_a_second_one_takes_nothing_from_the_upstream(
    mirror: MirrorService, lfs: LfsServer, client: GitClient
) -> None:
    first = await client.clone(mirror.url())
    assert _content(first) == (SMALL, LARGE)
    asked = len(lfs.batches), len(lfs.downloads)
    assert asked[1] == 2
    second = await client.clone(mirror.url() + ".git")
    assert _content(second) == (SMALL, LARGE)
    assert (len(lfs.batches), len(lfs.downloads)) == asked
    assert await mirror.metric("git_mirror_lfs_objects_total", result="hit") == 2
    assert await mirror.metric("git_mirror_lfs_received_bytes_total") == len(SMALL) + len(LARGE)


async def test_what_is_here_is_served_while_the_upstream_is_down_and_the_rest_is_explained(
    mirror: MirrorService, lfs: LfsServer, upstream: Upstream, client: GitClient
) -> None:
    await client.clone(mirror.url())
    lfs.faults.batch_status = 503
    assert _content(await client.clone(mirror.url())) == (SMALL, LARGE)
    _commit(upstream, lfs, {"new.bin": noise(5_000, 3)})
    await mirror.announce(upstream)
    clone = client.workdir / "skipped"
    await client.run("clone", mirror.url(), str(clone), env={"GIT_LFS_SKIP_SMUDGE": "1"})
    pulled = await client.run("lfs", "pull", cwd=clone, check=False)
    assert pulled.returncode != 0
    assert "answered 503" in pulled.stderr
    assert _content(clone) == (SMALL, LARGE)


async def test_a_new_commit_is_pulled_with_its_objects_once_its_webhook_came(
    mirror: MirrorService, lfs: LfsServer, upstream: Upstream, client: GitClient
) -> None:
    clone = await client.clone(mirror.url())
    newer = noise(300_000, 4)
    _commit(upstream, lfs, {"small.bin": newer})
    await mirror.announce(upstream)
    await client.run("pull", "--quiet", cwd=clone)
    assert _content(clone) == (newer, LARGE)
    assert len(lfs.downloads) == 3


@with_several
async def test_clients_that_come_at_once_share_one_download(
    mirror: MirrorService, lfs: LfsServer, tmp_path: Path
) -> None:
    lfs.faults.stall, lfs.faults.stall_after_bytes = asyncio.Event(), 10_000
    clients = [_client(tmp_path / f"client-{number}") for number in range(2)]
    cloning = [asyncio.create_task(client.clone(mirror.url())) for client in clients]
    await lfs.wait_for_downloads(2)
    lfs.faults.stall.set()
    for clone in await asyncio.gather(*cloning):
        assert _content(clone) == (SMALL, LARGE)
    assert len(lfs.downloads) == 2


@with_several
async def test_wrong_bytes_reach_no_client_and_are_not_kept(
    mirror: MirrorService, lfs: LfsServer, client: GitClient, tmp_path: Path
) -> None:
    lfs.faults.wrong_byte = True
    clone = client.workdir / "skipped"
    await client.run("clone", mirror.url(), str(clone), env={"GIT_LFS_SKIP_SMUDGE": "1"})
    pulled = await client.run("lfs", "pull", cwd=clone, check=False)
    assert pulled.returncode != 0
    assert "has another SHA-256" in pulled.stderr
    assert [
        file for file in (tmp_path / "mirror/data/lfs/objects").rglob("*") if file.is_file()
    ] == []
    assert list((tmp_path / "mirror/data/lfs/tmp").iterdir()) == []
    lfs.faults.wrong_byte = False
    # git-lfs may have kept what it got before the end broke off: it continues that, finds it wrong
    # as well, and only then begins anew.
    await client.run("lfs", "pull", cwd=clone, check=False)
    await client.run("lfs", "pull", cwd=clone)
    assert _content(clone) == (SMALL, LARGE)


async def test_uploads_and_locks_are_refused_with_the_place_to_go_to(
    mirror: MirrorService, forge: HttpBackend, upstream: Upstream, client: GitClient
) -> None:
    clone = await client.clone(mirror.url())
    (clone / "own.bin").write_bytes(b"own")
    await client.run("add", "own.bin", cwd=clone)
    await client.run("commit", "--quiet", "--message", "Add", cwd=clone)
    direct = forge.repository_url(upstream.name)
    pushed = await client.run("lfs", "push", "origin", "main", cwd=clone, check=False)
    assert pushed.returncode != 0
    assert f"this mirror takes no LFS uploads; upload to {direct}" in pushed.stderr
    locked = await client.run("lfs", "lock", "own.bin", cwd=clone, check=False)
    assert locked.returncode != 0
    assert (
        f"this mirror keeps no LFS locks; lock files at {direct}" in locked.stdout + locked.stderr
    )


@with_several
async def test_where_only_readers_may_read_git_lfs_asks_for_the_token_and_downloads_with_it(
    forge: HttpBackend, lfs: LfsServer, upstream: Upstream, tmp_path: Path, workers: int
) -> None:
    async with mirroring(
        forge,
        tmp_path / "mirror",
        names=[upstream.name],
        workers=workers,
        defaults="access: [readers]",
    ) as mirror:
        store = DataDirectory(mirror.service.settings.data_dir).tokens
        token = create_token(store, "argocd", repositories=("acme/*",), expires_at=None)
        asked = tmp_path / "asked"
        helper = f'!f() {{ echo "$1" >> {asked}; echo username=x; echo password={token}; }}; f'
        client = _client(tmp_path / "client", {"credential.helper": helper})
        # Two steps, so that the second begins with git-lfs alone, which knows no token yet.
        clone = client.workdir / "clone"
        skip = {"GIT_LFS_SKIP_SMUDGE": "1"}
        await client.run("clone", "--quiet", mirror.url(), str(clone), env=skip)
        assert lfs.downloads == []
        asked.unlink()
        await client.run("lfs", "pull", cwd=clone)
        assert _content(clone) == (SMALL, LARGE)
        assert "get" in asked.read_text().splitlines()
        path = f"/{upstream.name}.git/info/lfs/objects/batch"
        answer = await mirror.ask("POST", path, body=b"{}", headers={})
        assert answer.status == 401
        assert "WWW-Authenticate" in answer.headers
