"""Bundles over HTTP: whole, in part, and not again."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from mirror.demo.forge import HttpBackend
from mirror.wire.bundles import Bundle
from tests.git_client import Upstream
from tests.mirror_service import NAME, WAIT_SECONDS_MAX, MirrorService, mirroring
from tests.web.asking import connected

LIST = f"/{NAME}/bundles/list"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mirror(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MirrorService]:
    """The service, with a bundle that no socket's buffers hold whole. Not to be changed."""
    directory = tmp_path_factory.mktemp("bundles")
    (directory / "forge").mkdir()
    upstream = Upstream(directory / "forge")
    upstream.commit(files={"noise": os.urandom(12_000_000)})
    defaults = "bundle_interval: 300d\nbundle_bytes_min: 0"
    async with (
        HttpBackend(directory / "forge") as forge,
        mirroring(forge, directory / "mirror", defaults=defaults) as running,
    ):
        await running.until(lambda one: one.bundles is not None)
        yield running


@pytest.fixture
def bundle(mirror: MirrorService) -> Bundle:
    listed = mirror.mirror().bundles
    assert listed is not None
    return listed.bundles[0]


@pytest.fixture
def path(bundle: Bundle) -> str:
    return f"/{NAME}/bundles/{bundle.name}"


async def test_a_bundle_comes_whole_and_may_be_kept_for_ever(
    mirror: MirrorService, bundle: Bundle, path: str
) -> None:
    for url in (path, path.replace(NAME, f"{NAME}.git")):
        answer = await mirror.get(url)
        assert answer.status == 200
        assert len(answer.body) == bundle.size
        assert hashlib.sha256(answer.body).hexdigest() == bundle.digest
        assert answer.headers["ETag"] == f'"{bundle.digest}"'
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert answer.headers["Content-Length"] == str(bundle.size)
        assert "immutable" in answer.headers["Cache-Control"]


async def test_head_tells_the_length_and_nothing_more(
    mirror: MirrorService, bundle: Bundle, path: str
) -> None:
    answer = await mirror.ask("HEAD", path, headers={"Range": "bytes=0-9"})
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Length"] == str(bundle.size)
    assert (await mirror.ask("HEAD", LIST)).status == 200


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-1099", 100, 1100),
        ("BYTES=11000000-", 11_000_000, None),
        ("bytes=-1000", -1000, None),
        ("bytes=-99999999", 0, None),
        ("bytes=5-99999999", 5, None),
    ],
)
async def test_a_part_of_a_bundle_is_what_was_asked_for(
    mirror: MirrorService, bundle: Bundle, path: str, asked: str, start: int, stop: int | None
) -> None:
    whole = (await mirror.get(path)).body
    answer = await mirror.get(path, headers={"Range": asked})
    part = range(bundle.size)[start:stop]
    if len(part) == bundle.size:
        assert answer.status == 200
        assert "Content-Range" not in answer.headers
    else:
        assert answer.status == 206
        assert answer.headers["Content-Range"] == (
            f"bytes {part.start}-{part.stop - 1}/{bundle.size}"
        )
    assert answer.headers["ETag"] == f'"{bundle.digest}"'
    assert answer.body == whole[start:stop]


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=99999999-999999999", "bytes=-0"])
async def test_a_part_that_is_not_there_is_refused(
    mirror: MirrorService, bundle: Bundle, path: str, asked: str
) -> None:
    answer = await mirror.get(path, headers={"Range": asked})
    assert (answer.status, answer.body) == (416, b"")
    assert answer.headers["Content-Range"] == f"bytes */{bundle.size}"


@pytest.mark.parametrize(
    "asked", ["bytes=9-5", "bytes=0-1,4-5", "lines=1-2", "bytes=-", "bytes=a-b", "bytes=1"]
)
async def test_what_is_not_one_part_is_the_whole(
    mirror: MirrorService, bundle: Bundle, path: str, asked: str
) -> None:
    answer = await mirror.get(path, headers={"Range": asked})
    assert (answer.status, len(answer.body)) == (200, bundle.size)


async def test_a_download_goes_on_only_with_the_same_bundle(
    mirror: MirrorService, bundle: Bundle, path: str
) -> None:
    for condition, status in (
        (f'"{bundle.digest}"', 206),
        (f'W/"{bundle.digest}"', 200),
        ('"another"', 200),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 200),
    ):
        headers = {"Range": "bytes=100-", "If-Range": condition}
        assert (await mirror.get(path, headers=headers)).status == status, condition


async def test_what_a_client_has_is_not_sent_again(
    mirror: MirrorService, bundle: Bundle, path: str
) -> None:
    for condition, status in (
        (f'"{bundle.digest}"', 304),
        (f'"another", W/"{bundle.digest}"', 304),
        ("*", 304),
        ('"another"', 200),
    ):
        answer = await mirror.get(path, headers={"If-None-Match": condition})
        assert answer.status == status, condition
        assert answer.headers["ETag"] == f'"{bundle.digest}"'
        assert (answer.body == b"") == (status == 304)


@pytest.mark.parametrize(
    "name", ["0-" + "0" * 64 + ".bundle", "list.json", "draft", "%2e%2e", "..%2Flist.json", "x"]
)
async def test_nothing_else_of_the_directory_is_served(mirror: MirrorService, name: str) -> None:
    answer = await mirror.get(f"/{NAME}/bundles/{name}")
    assert answer.status == 404
    assert (await mirror.get(f"/acme/nothing/bundles/{name}")).status == 404


async def test_a_client_that_goes_away_is_noticed(mirror: MirrorService, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    async with connected(mirror, request) as (reader, _):
        await reader.readexactly(1000)

    labels = {"operation": "bundle", "outcome": "client_gone"}
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while await mirror.metric("git_mirror_request_seconds_count", **labels) is None:
            pass
