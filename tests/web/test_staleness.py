"""What readers get between a webhook and the refresh that it announced, and when that fails."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mirror.demo.forge import Faults, HttpBackend
from tests.git_client import Upstream
from tests.mirror_service import Answered, MirrorService, mirroring
from tests.web.asking import command, fetch_v0

STALE = "Git-Mirror-Stale"


async def polls(mirror: MirrorService) -> list[Answered]:
    """Return the answers to every kind of request that asks where refs are."""
    want_ref = command("fetch", "want-ref refs/heads/main", "done")
    return [
        await mirror.info_refs(),
        await mirror.info_refs(version=1),
        await mirror.upload_pack(command("ls-refs"), version=2),
        await mirror.upload_pack(want_ref, version=2),
    ]


@asynccontextmanager
async def announced_in_vain(
    mirror: MirrorService, upstream: Upstream
) -> AsyncIterator[tuple[str, str]]:
    """Announce a commit while the forge is silent; gives the old tip and the new one."""
    before = upstream.oid()
    release = asyncio.Event()
    mirror.forge.faults = Faults(stall=release)
    after = upstream.commit()
    await mirror.announce(upstream, before=before)
    yield before, after
    release.set()


async def test_refs_are_fresh_before_anything_is_announced(mirror: MirrorService) -> None:
    for answer in await polls(mirror):
        assert answer.status == 200
        assert STALE not in answer.headers


async def test_a_reader_is_held_until_the_announced_commit_is_here(
    mirror: MirrorService, upstream: Upstream
) -> None:
    async with announced_in_vain(mirror, upstream) as (before, after):
        readers = asyncio.create_task(polls(mirror))
        assert (await mirror.get("/healthz")).status == 200  # others are not held
        assert not readers.done()
    for answer in await readers:
        assert answer.status == 200
        assert STALE not in answer.headers
        assert after.encode() in answer.body
        assert before.encode() not in answer.body or answer.body.endswith(b"0000")
    assert await mirror.metric("git_mirror_held_seconds_count")
    assert await mirror.metric("git_mirror_webhook_to_fetchable_seconds_count") == 1


async def test_a_reader_that_was_held_long_enough_gets_the_last_good_refs_marked_as_stale(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with (
        mirroring(forge, tmp_path, names=[upstream.name], defaults="hold: 10ms") as mirror,
        announced_in_vain(mirror, upstream) as (before, after),
    ):
        answers = await polls(mirror)
        for answer in answers:
            assert answer.status == 200
            assert int(answer.headers[STALE]) >= 0
            assert before.encode() in answer.body
            assert after.encode() not in answer.body
        assert await mirror.metric("git_mirror_stale_answers_total") == len(answers)
        assert await mirror.metric("git_mirror_repository_stale", repository=upstream.name) == 1
        assert (await mirror.get("/status.json")).json["repositories"][upstream.name][
            "state"
        ] == "stale"


async def test_capabilities_and_objects_that_are_here_are_served_without_a_wait(
    mirror: MirrorService, upstream: Upstream
) -> None:
    async with announced_in_vain(mirror, upstream) as (before, _):
        assert (await mirror.info_refs(version=2)).status == 200
        answer = await mirror.upload_pack(fetch_v0(before))
        assert b"PACK" in answer.body
        sizes = await mirror.upload_pack(command("object-info", f"oid {before}"), version=2)
        assert sizes.status == 200


async def test_a_failed_refresh_lets_readers_go_with_stale_refs(
    mirror: MirrorService, upstream: Upstream
) -> None:
    before = upstream.oid()
    mirror.forge.faults = Faults(status=500)
    upstream.commit()
    await mirror.announce(upstream, before=before)
    for answer in await polls(mirror):
        assert answer.status == 200
        assert STALE in answer.headers
        assert before.encode() in answer.body


async def test_that_a_ref_is_not_there_is_marked_as_stale_too(
    mirror: MirrorService, upstream: Upstream
) -> None:
    """The push that is not here yet may have brought it."""
    mirror.forge.faults = Faults(status=500)
    upstream.commit()
    await mirror.announce(upstream)
    await mirror.settled()
    want_ref = command("fetch", "want-ref refs/heads/new", "done")
    answer = await mirror.upload_pack(want_ref, version=2)
    assert b"unknown ref refs/heads/new" in answer.body
    assert STALE in answer.headers


@pytest.mark.parametrize("status", [None, 500])
async def test_where_stale_answers_are_refused_it_is_503_with_the_reason(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, status: int | None
) -> None:
    policy = "hold: 10ms\non_stale: refuse"
    async with mirroring(forge, tmp_path, names=[upstream.name], defaults=policy) as mirror:
        assert {answer.status for answer in await polls(mirror)} == {200}
        release = None if status else asyncio.Event()
        mirror.forge.faults = Faults(status=status, stall=release)
        before = upstream.oid()
        upstream.commit()
        await mirror.announce(upstream, before=before)
        for answer in await polls(mirror):
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert "on_stale: refuse" in answer.text
        refused = "git_mirror_request_seconds_count"
        assert await mirror.metric(refused, operation="advertise", outcome="stale_refused") == 2
        assert (await mirror.upload_pack(fetch_v0(before))).status == 200
        if release:
            release.set()


async def test_where_no_age_is_allowed_the_upstream_is_asked_before_every_answer(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with mirroring(forge, tmp_path, names=[upstream.name], defaults="max_age: 0s") as mirror:
        asked = len(forge.requests)
        commit = upstream.commit()
        answer = await mirror.info_refs()
        assert commit.encode() in answer.body
        assert forge.operations[asked:] == ["ls-refs", "fetch"]
        await mirror.info_refs()
        assert forge.operations[asked:] == ["ls-refs", "fetch", "ls-refs"]


async def test_a_client_that_leaves_while_it_is_held_disturbs_nobody(
    mirror: MirrorService, upstream: Upstream
) -> None:
    async with announced_in_vain(mirror, upstream) as (_, after):
        leaver = asyncio.create_task(mirror.info_refs())
        stayer = asyncio.create_task(mirror.info_refs())
        await mirror.get("/healthz")
        leaver.cancel()
        await asyncio.wait((leaver,))
    assert after.encode() in (await stayer).body


async def test_after_a_restart_refs_are_stale_until_the_upstream_was_asked(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    names = [upstream.name]
    async with mirroring(forge, tmp_path, names=names):
        pass
    before = upstream.oid()
    after = upstream.commit()
    forge.faults.stall = asyncio.Event()
    async with mirroring(forge, tmp_path, names=names, defaults="hold: 10ms") as mirror:
        for answer in await polls(mirror):
            assert answer.status == 200
            assert int(answer.headers[STALE]) >= 0  # since they were confirmed, before the restart
            assert before.encode() in answer.body
        forge.faults.stall.set()
        await mirror.caught_up(upstream)
        for answer in await polls(mirror):
            assert STALE not in answer.headers
            assert after.encode() in answer.body
