"""Another configuration while readers poll: nothing fails, and nothing old is shown afterwards."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.config import compare, parse, restart_keys, why_not
from mirror.demo.forge import HttpBackend
from tests.git_client import Upstream
from tests.mirror_service import (
    HOLD_SECONDS,
    NAME,
    OTHER,
    MirrorService,
    configuration,
    mirroring,
    serving,
)


@asynccontextmanager
async def polled(mirror: MirrorService, name: str = NAME) -> AsyncIterator[list[int]]:
    """Poll all the while; provides the statuses of the answers."""
    statuses: list[int] = []
    is_over = asyncio.Event()

    async def poll() -> None:
        while not is_over.is_set():
            statuses.append((await mirror.info_refs(name)).status)

    tasks = [asyncio.create_task(poll()) for _ in range(3)]
    try:
        yield statuses
    finally:
        is_over.set()
        await asyncio.gather(*tasks)


async def reloaded(mirror: MirrorService) -> dict[str, Any]:
    return await mirror.service.reload()


@pytest.mark.parametrize("workers", [1, 2])
async def test_repositories_come_and_go_and_no_poll_of_another_fails(
    forge: HttpBackend, other: Upstream, tmp_path: Path, workers: int
) -> None:
    async with mirroring(forge, tmp_path / "m", workers=workers) as mirror, polled(mirror) as seen:
        configuration(forge, tmp_path / "m", names=[NAME, OTHER], workers=workers)
        assert (await reloaded(mirror))["outcome"] == "applied"
        await mirror.mirrored(OTHER)
        assert (await mirror.info_refs(OTHER)).status == 200
        configuration(forge, tmp_path / "m", workers=workers)
        assert (await reloaded(mirror))["done"] == "repositories: 1 removed"
        for _ in range(4):
            assert (await mirror.info_refs(OTHER)).status == 404
        assert (tmp_path / "m" / "data" / "repositories" / f"{OTHER}.git").is_dir()
        configuration(forge, tmp_path / "m", names=[NAME, OTHER], workers=workers)
        await reloaded(mirror)
        assert (await mirror.info_refs(OTHER)).status == 200  # found on disk
    assert seen
    assert set(seen) == {200}


@pytest.mark.parametrize("workers", [1, 2])
async def test_access_that_is_taken_away_ends_with_the_next_request(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, workers: int
) -> None:
    async with mirroring(forge, tmp_path / "m", workers=workers) as mirror:
        for _ in range(6):
            assert (await mirror.info_refs()).status == 200  # known by heart
        configuration(forge, tmp_path / "m", workers=workers, defaults="access: [readers]")
        assert (await reloaded(mirror))["outcome"] == "applied"
        for _ in range(6):
            assert (await mirror.info_refs()).status == 401


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"repositories: [",
        b"\xff\xfe\x00",
        b"repositories: {}\n",
        b"repositories: {a: {upstream: ftp://x/y}}\n",
        b"nonsense: 1\nmore: 2\nrepositories: {a: {upstream: https://x/y}}\n",
        b"repositories: {a: {upstream: https://x/y, hold: never}}\n",
        b"repositories: {a: {upstream: https://x/y}}\nserver: {workers: 0}\n",
    ],
)
async def test_a_bad_file_is_refused_and_the_old_one_goes_on(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, content: bytes
) -> None:
    async with mirroring(forge, tmp_path / "m") as mirror, polled(mirror) as seen:
        file = tmp_path / "m" / "mirror.yaml"
        good = file.read_bytes()
        file.write_bytes(content)
        answer = await reloaded(mirror)
        assert answer["outcome"] == "refused"
        assert all(str(file) in line for line in answer["problems"])
        assert await mirror.metric("git_mirror_config_last_reload_successful") == 0
        assert (await mirror.get("/status.json")).json["configuration"]["problems"]
        file.write_bytes(good)
        assert (await reloaded(mirror))["outcome"] == "unchanged"
        assert await mirror.metric("git_mirror_config_last_reload_successful") == 1
    assert set(seen) == {200}


async def test_a_key_that_needs_a_restart_is_named_and_the_rest_is_applied(
    forge: HttpBackend, other: Upstream, tmp_path: Path
) -> None:
    async with mirroring(forge, tmp_path / "m") as mirror:
        configuration(forge, tmp_path / "m", names=[NAME, OTHER], listen="127.0.0.1:1")
        answer = await reloaded(mirror)
        assert answer["outcome"] == "applied"
        assert answer["restart"] == ["server.listen"]
        await mirror.mirrored(OTHER)


@pytest.mark.parametrize("as_volume", [False, True])
async def test_a_file_that_is_replaced_is_read_again_by_itself(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    as_volume: bool,
) -> None:
    directory = tmp_path / "m"
    file = configuration(forge, directory)
    text = file.read_text()
    if as_volume:  # as kubelet does: a link to a link to a directory, which is swapped
        for name in ("one", "two"):
            (directory / name).mkdir()
        (directory / "one" / "mirror.yaml").write_text(text)
        (directory / "data-link").symlink_to("one")
        file.unlink()
        file.symlink_to("data-link/mirror.yaml")
    new = text.replace(f"hold: {HOLD_SECONDS}s", "hold: 17s")
    async with serving(file, forge) as mirror:
        await mirror.mirrored()
        if as_volume:
            (directory / "two" / "mirror.yaml").write_text(new)
            (directory / "next-link").symlink_to("two")
            (directory / "next-link").rename(directory / "data-link")
        else:
            (directory / "other.yaml").write_text(new)
            (directory / "other.yaml").rename(file)
        await mirror.until(lambda one: one.settings.hold_seconds == 17.0)


def living_objects() -> int:
    """Return how many containers there are: what a leak would keep, whatever the allocator does."""
    gc.collect()
    return len(gc.get_objects())


async def test_many_reloads_leave_nothing_behind(
    forge: HttpBackend, other: Upstream, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    count = request.config.getoption("--reloads")
    async with mirroring(forge, tmp_path / "m", names=[NAME, OTHER]) as mirror:

        async def both() -> None:
            for names in ([NAME], [NAME, OTHER]):
                configuration(forge, tmp_path / "m", names=names)
                assert (await reloaded(mirror))["outcome"] == "applied"
            await mirror.mirrored(OTHER)
            await mirror.settled()

        for _ in range(3):
            await both()
        tasks, files = len(asyncio.all_tasks()), len(list(Path("/proc/self/fd").iterdir()))
        objects = living_objects()
        for _ in range(count):
            await both()
        assert len(asyncio.all_tasks()) <= tasks + 2
        assert len(list(Path("/proc/self/fd").iterdir())) <= files + 6
        assert living_objects() - objects < 100 + count * 20  # of a reload's thousands


def test_every_key_that_needs_a_restart_stays_as_it_is() -> None:
    source = Path("/etc/m.yaml")
    base = b"repositories: {a: {upstream: https://x/y}}\n"
    running = parse(base, source=source)
    new = parse(
        base + b"data_dir: other\nengine: dulwich\nserver: {workers: 3, fast_lane: false,"
        b" unix_socket: s, tls: {certificate_file: c, key_file: k}}\n",
        source=source,
    )
    difference = compare(running, new, running.repositories)
    assert set(difference.restart) <= {".".join(path) for path, _ in restart_keys()}
    assert len(difference.restart) == 6
    assert difference.settings == running
    assert not difference.is_any


def test_what_loopback_opens_is_not_opened_to_others_by_a_reload() -> None:
    source = Path("/etc/m.yaml")
    wide = parse(
        b"server: {listen: '0.0.0.0:80'}\n"
        b"repositories: {a: {upstream: https://x/y, access: [readers]}}\n",
        source=source,
    )
    narrow = parse(b"repositories: {a: {upstream: https://x/y}}\n", source=source)
    assert why_not(wide, narrow) is not None
    assert why_not(narrow, wide) is None
