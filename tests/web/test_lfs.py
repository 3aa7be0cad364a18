"""Git LFS for readers: batches, objects and parts of them, and what is refused."""

import asyncio
import gzip
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from mirror.repository.lfs_store import GRANT_SECONDS
from tests.git_client import Upstream
from tests.lfs_server import LFS_TYPE, lfs_server, noise, oid_of
from tests.mirror_service import NAME, configuration, mirroring, serving
from tests.web.lfs_estate import LFS_HEADERS, Estate, estate

ONE, TWO, LARGE = noise(1000, 1), noise(2000, 2), noise(700_000, 3)
BATCH = f"/{NAME}.git/info/lfs/objects/batch"


@pytest.fixture
async def lfs(forge: HttpBackend, upstream: Upstream, tmp_path: Path) -> AsyncIterator[Estate]:
    async with estate(forge, upstream, tmp_path / "mirror") as running:
        yield running


# --- batches -------------------------------------------------------------------------------------


async def test_a_batch_names_the_urls_that_the_reader_came_by(lfs: Estate) -> None:
    lfs.server.add(NAME, ONE)
    answer = await lfs.batch(ONE, TWO, transfers=["lfs-standalone-file", "basic", "ssh"])
    assert (answer.status, answer.headers["Content-Type"]) == (200, LFS_TYPE)
    assert answer.headers["Cache-Control"].startswith("no-cache")
    offered, missing = answer.json["objects"]
    assert answer.json["transfer"] == "basic"
    assert offered == {
        "oid": oid_of(ONE),
        "size": 1000,
        "actions": {"download": {"href": lfs.mirror.service.url + lfs.path(ONE)}},
    }
    assert missing["error"] == {"code": 404, "message": "Object does not exist"}
    nobodys = {"X-Forwarded-Proto": "https", "Host": "git.example.com"}
    assert await href_of(lfs, nobodys) == "http://git.example.com" + lfs.path(ONE)
    assert (await lfs.batch(ONE, headers={"Host": "a/b"})).status == 400


async def test_a_batch_names_the_urls_that_a_proxy_of_ours_says(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with estate(forge, upstream, tmp_path, server="trusted_proxies: [127.0.0.1]") as lfs:
        lfs.server.add(NAME, ONE)
        proxied = {"X-Forwarded-Proto": "https", "Host": "git.example.com"}
        assert await href_of(lfs, proxied) == "https://git.example.com" + lfs.path(ONE)
        outer = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "outer.example.com:8443"}
        assert await href_of(lfs, outer) == "https://outer.example.com:8443" + lfs.path(ONE)


async def href_of(lfs: Estate, headers: dict[str, str]) -> str:
    answer = await lfs.batch(ONE, headers=headers)
    return str(answer.json["objects"][0]["actions"]["download"]["href"])


async def test_requests_that_can_not_be_answered_are_refused_in_the_way_of_lfs(
    lfs: Estate, forge: HttpBackend
) -> None:
    direct = forge.repository_url(NAME)
    for method, path, body, status, words in (
        ("POST", BATCH, b"{", 422, "it is not JSON"),
        ("POST", BATCH, b'{"operation":"upload","objects":[]}', 403, f"upload to {direct}"),
        ("PUT", lfs.path(ONE), b"x", 403, f"upload to {direct}"),
        ("GET", f"/{NAME}.git/info/lfs/locks", None, 403, f"lock files at {direct}"),
        ("POST", f"/{NAME}/info/lfs/locks", b"{}", 403, f"lock files at {direct}"),
        ("POST", f"/{NAME}/info/lfs/locks/verify", b"{}", 403, f"lock files at {direct}"),
        ("POST", f"/{NAME}/info/lfs/locks/7/unlock", b"{}", 403, f"lock files at {direct}"),
        ("POST", "/acme/nothing.git/info/lfs/objects/batch", b"{}", 404, "no repository"),
        ("GET", lfs.path(ONE), None, 404, "ask objects/batch first"),
        ("POST", BATCH, gzip.compress(bytes(1 << 20)), 413, "over 524288 bytes, sent or decoded"),
    ):
        headers = {**LFS_HEADERS, "Content-Encoding": "gzip" if body and body[0] == 31 else ""}
        answer = await lfs.mirror.ask(method, path, body=body, headers=headers)
        assert answer.status == status, (method, path, answer)
        assert answer.headers["Content-Type"] == LFS_TYPE
        assert words in answer.json["message"]
    assert lfs.server.batches == []


async def test_a_repository_without_lfs_says_so_and_asks_no_upstream(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with estate(forge, upstream, tmp_path, repository="lfs: false") as lfs:
        lfs.server.add(NAME, ONE)
        for answer in (await lfs.batch(ONE), await lfs.get(ONE)):
            assert answer.status == 404
            assert "Git LFS is off for acme/gitops-repo" in answer.json["message"]
        assert lfs.server.batches == []


async def test_a_repository_that_is_not_mirrored_yet_has_no_objects_either(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    forge.faults.stall = asyncio.Event()
    async with (
        lfs_server(forge) as server,
        serving(configuration(forge, tmp_path, names=[upstream.name]), forge) as mirror,
    ):
        answer = await Estate(mirror, server).batch(ONE)
        assert (answer.status, "Retry-After" in answer.headers) == (503, True)
        assert "message" in answer.json
        forge.faults.stall.set()
        await mirror.mirrored()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "the upstream has no LFS for this repository"),
        (401, "it wants credentials; set `credentials`"),
        (429, "it asks us to slow down"),
        (500, "answered 500"),
    ],
)
async def test_what_the_upstream_does_not_answer_is_an_error_of_each_object(
    lfs: Estate, status: int, words: str
) -> None:
    lfs.server.faults.batch_status = status
    (error,) = await lfs.errors(ONE)
    assert error is not None
    assert error[0] == 503
    assert words in error[1]


# --- objects -------------------------------------------------------------------------------------


async def test_an_object_is_sent_whole_or_in_parts(lfs: Estate) -> None:
    await lfs.granted(LARGE)
    whole = await lfs.get(LARGE)
    assert (whole.status, whole.body) == (200, LARGE)
    assert whole.headers["Content-Type"] == "application/octet-stream"
    assert whole.headers["ETag"] == f'"{oid_of(LARGE)}"'
    assert whole.headers["Accept-Ranges"] == "bytes"
    head = await lfs.mirror.ask("HEAD", lfs.path(LARGE), headers={"Range": "bytes=0-0"})
    assert (head.status, head.headers["Content-Length"], head.body) == (200, "700000", b"")
    for known in (whole.headers["ETag"], f'W/{whole.headers["ETag"]}, "x"', "*"):
        same = await lfs.get(LARGE, headers={"If-None-Match": known})
        assert (same.status, same.body) == (304, b"")
    for said, first, stop in (
        ("bytes=0-0", 0, 1),
        ("bytes=1000-1999", 1000, 2000),
        ("bytes=699990-", 699_990, 700_000),
        ("bytes=-10", 699_990, 700_000),
        ("bytes=0-999999999", 0, 700_000),
        ("bytes=-999999999", 0, 700_000),
    ):
        part = await lfs.get(LARGE, headers={"Range": said})
        assert (part.status, part.body) == (206, LARGE[first:stop]), said
        assert part.headers["Content-Range"] == f"bytes {first}-{stop - 1}/700000"
    for said in ("bytes=0-1,5-6", "bytes=9-1", "lines=1-2", "bytes=x-", "bytes=-"):
        assert (await lfs.get(LARGE, headers={"Range": said})).status == 200, said
    for said in ("bytes=700000-", "bytes=-0"):
        none = await lfs.get(LARGE, headers={"Range": said})
        assert (none.status, "message" in none.json) == (416, True), said
        assert none.headers["Content-Range"] == "bytes */700000"
    fresh = {"Range": "bytes=0-9", "If-Range": whole.headers["ETag"]}
    assert (await lfs.get(LARGE, headers=fresh)).status == 206
    assert (await lfs.get(LARGE, headers={**fresh, "If-Range": '"other"'})).status == 200
    assert len(lfs.server.downloads) == 1


async def test_the_empty_object_is_an_object(lfs: Estate) -> None:
    await lfs.granted(b"")
    for _ in range(2):
        answer = await lfs.get(b"")
        assert (answer.status, answer.body) == (200, b"")


async def test_a_question_about_an_object_downloads_nothing(lfs: Estate) -> None:
    await lfs.granted(ONE)
    head = await lfs.mirror.ask("HEAD", lfs.path(ONE))
    assert (head.status, head.headers["Content-Length"]) == (200, "1000")
    assert lfs.server.downloads == []


async def test_objects_that_were_asked_for_in_a_batch_take_no_further_question(
    lfs: Estate,
) -> None:
    await lfs.granted(ONE, TWO)
    assert [(await lfs.get(one)).body for one in (ONE, TWO)] == [ONE, TWO]
    assert len(lfs.server.batches) == 1


# --- who may have what ---------------------------------------------------------------------------


async def test_what_one_repository_has_is_not_handed_out_by_another(
    forge: HttpBackend, upstream_root: Path, tmp_path: Path
) -> None:
    for name in ("acme/open", "acme/private"):
        Upstream(upstream_root, name).commit()
    names = ["acme/open", "acme/private"]
    async with (
        lfs_server(forge) as server,
        mirroring(forge, tmp_path, names=names) as mirror,
    ):
        lfs = Estate(mirror, server)
        await lfs.granted(ONE, name="acme/private")
        assert (await lfs.get(ONE, name="acme/private")).body == ONE
        assert (await lfs.get(ONE, name="acme/open")).status == 404
        assert await lfs.errors(ONE, name="acme/open") == [(404, "Object does not exist")]
        assert (await lfs.get(ONE, name="acme/open")).status == 404
        # Once its own upstream has offered the object, one file serves both.
        await lfs.granted(ONE, name="acme/open")
        assert (await lfs.get(ONE, name="acme/open")).body == ONE
        assert len(server.downloads) == 1


async def test_what_another_upstream_of_the_same_name_granted_counts_no_more(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with estate(forge, upstream, tmp_path) as lfs:
        await lfs.granted(ONE)
        assert (await lfs.get(ONE)).body == ONE
    Upstream(upstream.path.parent.parent, "acme/other").commit()
    file = configuration(forge, tmp_path)
    file.write_text(file.read_text().replace(f"{NAME}.git", "acme/other.git"))
    async with lfs_server(forge) as server, serving(file, forge) as mirror:
        await mirror.mirrored()
        lfs = Estate(mirror, server)
        assert (await lfs.get(ONE)).status == 404
        assert await lfs.errors(ONE) == [(404, "Object does not exist")]


async def test_what_the_upstream_withdraws_is_withdrawn_within_a_day(lfs: Estate) -> None:
    await lfs.granted(ONE, TWO)
    for one in (ONE, TWO):
        assert (await lfs.get(one)).status == 200
        (grant,) = (
            path for path in lfs.store.rglob("*") if path.is_symlink() and path.name == oid_of(one)
        )
        before = time.time() - GRANT_SECONDS - 1
        os.utime(grant, (before, before), follow_symlinks=False)
    lfs.server.faults.batch_status = 503
    assert await lfs.errors(ONE) == [None]
    lfs.server.faults.batch_status = None
    del lfs.server.objects[NAME, oid_of(ONE)]
    assert await lfs.errors(ONE, TWO) == [(404, "Object does not exist"), None]
    assert [(await lfs.get(one)).status for one in (ONE, TWO)] == [404, 200]
    asked = len(lfs.server.batches)
    assert await lfs.errors(TWO) == [None]
    assert len(lfs.server.batches) == asked


async def test_a_wrong_size_is_refused_and_spoils_nothing(lfs: Estate) -> None:
    await lfs.granted(ONE)
    assert (await lfs.get(ONE)).status == 200
    lfs.server.faults.echoes_size = True
    wrong = json.dumps(
        {"operation": "download", "objects": [{"oid": oid_of(ONE), "size": 999}]}
    ).encode()
    for echoes, words in ((True, "the object has 1000 bytes"), (False, "has 1000 bytes, not 999")):
        lfs.server.faults.echoes_size = echoes
        answer = await lfs.mirror.ask("POST", BATCH, body=wrong, headers=LFS_HEADERS)
        error = answer.json["objects"][0]["error"]
        assert error["code"] == 422
        assert words in error["message"]
    assert (await lfs.get(ONE)).body == ONE


# --- what is kept --------------------------------------------------------------------------------


async def test_after_a_restart_objects_are_served_with_no_upstream_at_all(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with estate(forge, upstream, tmp_path) as lfs:
        await lfs.granted(ONE, TWO)
        assert (await lfs.get(ONE)).body == ONE
    async with estate(forge, upstream, tmp_path) as lfs:
        lfs.server.faults.batch_status = 503
        errors = await lfs.errors(ONE, TWO)
        assert errors[0] is None
        assert errors[1] is not None
        assert errors[1][0] == 503
        assert (await lfs.get(ONE)).body == ONE
        assert lfs.server.downloads == []
        # Granted, not here, and the upstream can't say where it is.
        assert (await lfs.get(TWO)).status == 502


async def test_what_was_used_least_recently_makes_room(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    limits = "limits: {lfs_cache_bytes_max: 100KiB, lfs_object_bytes_max: 90KiB}"
    async with estate(forge, upstream, tmp_path, sections=limits) as lfs:
        first, second, third = (noise(40_000, seed) for seed in (11, 12, 13))
        await lfs.granted(first, second, third)
        assert [(await lfs.get(one)).body for one in (first, second)] == [first, second]
        long_ago = time.time() - 1000
        for path in (lfs.store / "objects").glob("*/*/*"):
            os.utime(path, (long_ago, long_ago))
        assert (await lfs.get(first)).body == first  # a use
        assert (await lfs.get(third)).body == third
        assert lfs.kept() == sorted([oid_of(first), oid_of(third)])
        assert await lfs.mirror.metric("git_mirror_lfs_evictions_total") == 1
        assert await lfs.mirror.metric("git_mirror_lfs_stored_bytes") == 80_000
        assert (await lfs.get(second)).body == second
        over = noise(95_000, 14)
        lfs.server.add(NAME, over)
        (error,) = await lfs.errors(over)
        assert error is not None
        assert error[0] == 413
        assert "limits.lfs_object_bytes_max" in error[1]
