"""An LFS object on its way: followed, shared, continued, verified, never taken for the whole."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from mirror.demo.forge import HttpBackend
from tests.git_client import Upstream
from tests.lfs_server import TOKEN, lfs_server, noise, oid_of
from tests.mirror_service import NAME, configuration, mirroring
from tests.test_cli import start_service
from tests.web.lfs_estate import Estate, estate

SMALL, LARGE = noise(3000, 1), noise(1_500_000, 2)
HALF = 700_000
WRONG = len(LARGE) // 2
"""Where `LfsFaults.wrong_byte` is."""


@pytest.fixture
async def lfs(forge: HttpBackend, upstream: Upstream, tmp_path: Path) -> AsyncIterator[Estate]:
    async with estate(forge, upstream, tmp_path / "mirror") as running:
        yield running


async def test_readers_follow_a_download_and_one_that_leaves_ends_it_for_nobody(
    lfs: Estate,
) -> None:
    await lfs.granted(LARGE)
    lfs.server.faults.stall, lfs.server.faults.stall_after_bytes = asyncio.Event(), HALF
    url = lfs.mirror.service.url + lfs.path(LARGE)
    async with lfs.mirror.session.get(url) as leaving:
        assert await leaving.content.readexactly(100_000) == LARGE[:100_000]
        async with lfs.mirror.session.get(url) as staying:
            assert staying.headers["Content-Length"] == str(len(LARGE))
            assert await staying.content.readexactly(HALF) == LARGE[:HALF]
            part = asyncio.create_task(lfs.get(LARGE, headers={"Range": "bytes=5-9"}))
            leaving.close()
            lfs.server.faults.stall.set()
            assert await staying.read() == LARGE[HALF:]
            assert (await part).body == LARGE[5:10]
    assert len(lfs.server.downloads) == 1
    joined = await lfs.mirror.metric("git_mirror_lfs_objects_total", result="joined")
    assert joined is not None
    assert joined >= 1
    assert lfs.arriving() == []


async def test_a_download_goes_on_when_its_only_reader_has_left(lfs: Estate) -> None:
    await lfs.granted(LARGE)
    lfs.server.faults.stall, lfs.server.faults.stall_after_bytes = asyncio.Event(), HALF
    async with lfs.mirror.session.get(lfs.mirror.service.url + lfs.path(LARGE)) as leaving:
        await leaving.content.readexactly(1)
        leaving.close()
    lfs.server.faults.stall.set()
    assert (await lfs.get(LARGE)).body == LARGE
    assert len(lfs.server.downloads) == 1


async def test_wrong_bytes_end_the_connection_before_the_object_is_whole(lfs: Estate) -> None:
    await lfs.granted(LARGE)
    lfs.server.faults.wrong_byte = True
    lfs.server.faults.stall, lfs.server.faults.stall_after_bytes = asyncio.Event(), HALF
    async with lfs.mirror.session.get(lfs.mirror.service.url + lfs.path(LARGE)) as answer:
        received = bytearray(await answer.content.readexactly(1))
        lfs.server.faults.stall.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            async for chunk in answer.content.iter_any():
                received += chunk
    assert len(received) < len(LARGE)
    assert (lfs.kept(), lfs.arriving()) == ([], [])
    # What fits into what is held back is an error from its beginning.
    await lfs.granted(SMALL)
    answer_small = await lfs.get(SMALL)
    assert answer_small.status == 502
    assert "has another SHA-256" in answer_small.json["message"]
    lfs.server.faults.wrong_byte = False
    assert (await lfs.get(LARGE)).body == LARGE


async def test_what_one_upstream_could_not_give_another_one_may(
    forge: HttpBackend, upstream_root: Path, tmp_path: Path
) -> None:
    names = ["acme/a", "acme/b"]
    for name in names:
        Upstream(upstream_root, name).commit()
    async with lfs_server(forge) as server, mirroring(forge, tmp_path, names=names) as mirror:
        lfs = Estate(mirror, server)
        for name in names:
            await lfs.granted(LARGE, name=name)
        faults = server.faults
        faults.wrong_byte, faults.stall, faults.stall_after_bytes = True, asyncio.Event(), WRONG + 1
        first = asyncio.create_task(lfs.get(LARGE, name="acme/a", headers={"Range": "bytes=0-9"}))
        await server.wait_for_downloads(1)
        async with mirror.session.get(mirror.service.url + lfs.path(LARGE, "acme/b")) as following:
            sent = await following.content.readexactly(WRONG + 1)
            assert sent[:WRONG] == LARGE[:WRONG]
            assert sent[WRONG] != LARGE[WRONG]
            waiting = asyncio.create_task(
                lfs.get(LARGE, name="acme/b", headers={"Range": "bytes=5-9"})
            )
            faults.wrong_byte = False
            faults.stall.set()
            assert (await first).status == 502
            assert (await waiting).body == LARGE[5:10]
            # Who was sent what turned out wrong does not get the right end to it.
            with pytest.raises(aiohttp.ClientPayloadError):
                await following.read()
        assert len(server.downloads) == 2


@pytest.mark.parametrize("ignores_ranges", [False, True])
async def test_a_download_that_breaks_off_is_continued_where_it_broke(
    lfs: Estate, ignores_ranges: bool
) -> None:
    await lfs.granted(LARGE)
    faults = lfs.server.faults
    faults.cut_after_bytes, faults.cuts, faults.ignores_ranges = HALF, 1, ignores_ranges
    assert (await lfs.get(LARGE)).body == LARGE
    first, second = lfs.server.downloads
    assert "Range" not in first.headers
    start = int(second.headers["Range"].removeprefix("bytes=").split("-")[0])
    assert 0 < start <= HALF


async def test_a_download_that_always_breaks_off_is_given_up(lfs: Estate) -> None:
    await lfs.granted(SMALL)
    lfs.server.faults.cut_after_bytes = 100
    answer = await lfs.get(SMALL)
    assert answer.status == 502
    assert "broke off" in answer.json["message"]
    assert (lfs.kept(), lfs.arriving()) == ([], [])


async def test_an_offer_that_has_expired_is_asked_for_again(lfs: Estate) -> None:
    lfs.server.faults.token = "stale"
    await lfs.granted(SMALL)
    lfs.server.faults.token = TOKEN
    assert (await lfs.get(SMALL)).body == SMALL
    assert (len(lfs.server.batches), len(lfs.server.downloads)) == (2, 2)


@pytest.mark.parametrize(
    ("status", "words"), [(403, "answered 403"), (429, "answered 429"), (500, "answered 500")]
)
async def test_what_the_storage_refuses_is_said_without_its_tokens(
    lfs: Estate, status: int, words: str
) -> None:
    lfs.server.faults.storage_status = status
    lfs.server.faults.href = f"{lfs.server.storage_url}/{oid_of(SMALL)}?signature={TOKEN}"
    with capture_logs() as logs:
        await lfs.granted(SMALL)
        answer = await lfs.get(SMALL)
    assert answer.status == 502
    assert words in answer.json["message"]
    assert TOKEN not in answer.text
    assert any(one["event"] == "lfs_download_failed" for one in logs)
    assert TOKEN not in str(logs)


async def test_redirects_of_a_download_are_followed_up_to_a_bound(lfs: Estate) -> None:
    await lfs.granted(SMALL)
    lfs.server.faults.redirects = 3
    assert (await lfs.get(SMALL)).body == SMALL
    await lfs.granted(LARGE)
    lfs.server.faults.redirects = 4
    answer = await lfs.get(LARGE)
    assert answer.status == 502
    assert "redirects more than 3 times" in answer.json["message"]


async def test_downloads_beyond_the_limit_wait_for_their_turn(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    limits = "limits: {lfs_downloads_max: 1}"
    async with estate(forge, upstream, tmp_path, sections=limits) as lfs:
        await lfs.granted(LARGE, SMALL)
        lfs.server.faults.stall, lfs.server.faults.stall_after_bytes = asyncio.Event(), HALF
        url = lfs.mirror.service.url + lfs.path(LARGE)
        async with lfs.mirror.session.get(url) as first:
            await first.content.readexactly(1)
            second = asyncio.create_task(lfs.get(SMALL))
            # It waits, for it is not among the downloads when it has been counted.
            while await lfs.mirror.metric("git_mirror_lfs_objects_total", result="miss") != 2:
                pass
            assert len(lfs.server.downloads) == 1
            lfs.server.faults.stall.set()
            assert (await second).body == SMALL
            await first.read()


async def test_a_kill_in_the_middle_of_a_download_leaves_nothing_wrong(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    file = configuration(forge, tmp_path, names=[upstream.name])
    async with lfs_server(forge) as server, aiohttp.ClientSession() as session:
        server.add(NAME, LARGE)
        server.faults.stall, server.faults.stall_after_bytes = asyncio.Event(), HALF
        process, url = await asyncio.to_thread(start_service, file)
        try:
            objects = [{"oid": oid_of(LARGE), "size": len(LARGE)}]
            batch = {"operation": "download", "objects": objects}
            asked = f"{url}/{NAME}.git/info/lfs/objects/"
            async with session.post(asked + "batch", json=batch) as answer:
                assert answer.status == 200
            async with session.get(asked + oid_of(LARGE)) as answer:
                await answer.content.readexactly(HALF)
                process.kill()
        finally:
            process.kill()
            await asyncio.to_thread(process.communicate)
    assert list((tmp_path / "data/lfs/tmp").iterdir()), "half an object"
    async with estate(forge, upstream, tmp_path) as lfs:
        assert (lfs.kept(), lfs.arriving()) == ([], [])
        await lfs.granted(LARGE)
        assert (await lfs.get(LARGE)).body == LARGE
        assert lfs.kept() == [oid_of(LARGE)]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[None]:
    """A file system of 1 MiB for the objects of a service in `tmp_path`."""
    place = tmp_path / "data/lfs"
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", os.fspath(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file systems can be mounted here")
    yield
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts file systems")
@pytest.mark.usefixtures("full_disk")
async def test_a_full_disk_is_an_error_for_one_object_and_makes_room_where_it_can(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with estate(forge, upstream, tmp_path) as lfs:
        first, second = noise(600_000, 3), noise(650_000, 4)
        await lfs.granted(first, second, LARGE)
        assert (await lfs.get(first)).body == first
        assert (await lfs.get(second)).body == second
        assert lfs.kept() == [oid_of(second)], "in the place of the first"
        answer = await lfs.get(LARGE, headers={"Range": "bytes=0-9"})
        assert answer.status == 507
        assert "No space left on device" in answer.json["message"]
        assert lfs.arriving() == []
        assert (await lfs.get(first)).body == first
