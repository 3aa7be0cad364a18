"""Several workers answer as one service would."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from mirror.config import load
from mirror.demo.forge import Faults, ForgeRequest, HttpBackend
from mirror.errors import LocalError
from mirror.refresh.refresher import Trigger
from mirror.service import Service
from mirror.workers import state
from tests.git_client import GitClient, Upstream
from tests.mirror_service import (
    NAME,
    UPLOAD_PACK_HEADERS,
    WAIT_SECONDS_MAX,
    MirrorService,
    configuration,
    mirroring,
    serving,
)
from tests.web.asking import fetch_v0
from tests.workers.connections import Connection, deliver, delivery, one_to_each

INFO_REFS = f"/{NAME}/info/refs?service=git-upload-pack"
STALE = "Git-Mirror-Stale"

Workers = dict[int, Connection]


async def test_every_worker_shows_the_same_refs(workers: Workers, upstream: Upstream) -> None:
    bodies = {(await one.get(INFO_REFS)).body for one in workers.values()}
    assert len(bodies) == 1
    assert upstream.oid().encode() in bodies.pop()


async def test_the_main_process_serves_nobody(mirror: MirrorService, workers: Workers) -> None:
    assert os.getpid() not in workers
    for one in workers.values():
        assert one.accepted_by([os.getpid()]) is None
    assert await mirror.metric("git_mirror_workers") == len(workers)


async def test_refs_from_before_a_webhook_are_fresh_nowhere_once_one_worker_accepted_it(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with mirroring(forge, tmp_path, workers=2, defaults="hold: 0s") as mirror:
        assert mirror.service.supervisor is not None
        pids = mirror.service.supervisor.pids
        async with one_to_each(mirror.service.url, pids) as workers:
            old = upstream.oid()
            for accepting in workers.values():
                for one in workers.values():
                    assert STALE not in (await one.get(INFO_REFS)).headers
                upstream.commit()
                forge.faults = Faults(stall=asyncio.Event())
                assert await deliver(accepting, *delivery(mirror, upstream)) == "accepted"
                for one in workers.values():
                    answer = await one.get(INFO_REFS)
                    assert STALE in answer.headers
                    assert old.encode() in answer.body
                assert forge.faults.stall is not None
                forge.faults.stall.set()
                await mirror.caught_up(upstream)
                old = upstream.oid()


async def test_no_worker_shows_what_a_poll_found_while_another_may_show_what_was_before(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with mirroring(forge, tmp_path, workers=2, defaults="hold: 0s") as mirror:
        assert mirror.service.supervisor is not None
        pids = mirror.service.supervisor.pids
        async with one_to_each(mirror.service.url, pids) as workers:
            (late, _), (_, early) = workers.items()
            old, new = upstream.oid(), upstream.commit()
            os.kill(late, signal.SIGSTOP)
            try:
                polled = mirror.hosted().refresher.request(Trigger.POLL)
                answer = await early.get(INFO_REFS)
                while STALE not in answer.headers:
                    assert old.encode() in answer.body
                    answer = await early.get(INFO_REFS)
                assert old.encode() in answer.body
            finally:
                os.kill(late, signal.SIGCONT)
            await polled
            for one in workers.values():
                answer = await one.get(INFO_REFS)
                assert (new.encode() in answer.body, STALE in answer.headers) == (True, False)


async def test_a_reader_held_by_one_worker_gets_what_another_announced(
    mirror: MirrorService, workers: Workers, upstream: Upstream, forge: HttpBackend
) -> None:
    accepting, holding = workers.values()
    tip = upstream.commit()
    stall = asyncio.Event()
    asked = asyncio.Event()

    def note(_: ForgeRequest) -> bool:
        asked.set()
        return True

    forge.faults = Faults(stall=stall, only=note)
    assert await deliver(accepting, *delivery(mirror, upstream)) == "accepted"
    holding.send("GET", INFO_REFS)
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        await asked.wait()
    stall.set()
    answer = await holding.answer()
    assert tip.encode() in answer.body
    assert STALE not in answer.headers


async def test_what_a_refresh_brought_is_served_by_all_before_it_ends(
    mirror: MirrorService, workers: Workers, upstream: Upstream
) -> None:
    for _ in range(5):
        tip = upstream.commit()
        await mirror.hosted().refresher.request(Trigger.MANUAL)
        for one in workers.values():
            assert tip.encode() in (await one.get(INFO_REFS)).body


async def test_a_publish_of_very_many_refs_reaches_every_worker(
    mirror: MirrorService, workers: Workers, upstream: Upstream
) -> None:
    count = state.CHANGES_MAX + 1
    upstream.branches(dict.fromkeys((f"many/{number}" for number in range(count)), upstream.oid()))
    await mirror.hosted().refresher.request(Trigger.MANUAL)
    upstream.delete_ref("many/7")
    tip = upstream.commit()
    await mirror.hosted().refresher.request(Trigger.MANUAL)
    for one in workers.values():
        body = (await one.get(INFO_REFS)).body
        assert body.count(b" refs/heads/many/") == count - 1
        assert b"%b refs/heads/main\n" % tip.encode() in body


async def test_a_delivery_that_one_worker_took_is_a_repetition_for_the_others(
    mirror: MirrorService, workers: Workers, upstream: Upstream
) -> None:
    first, second = workers.values()
    upstream.commit()
    assert await deliver(first, *delivery(mirror, upstream, "one")) == "accepted"
    assert await deliver(second, *delivery(mirror, upstream, "one")) == "repeated"
    assert await deliver(second, *delivery(mirror, upstream, "two")) == "accepted"


async def test_a_commit_that_a_worker_lacks_is_looked_for_upstream(
    workers: Workers, upstream: Upstream
) -> None:
    path = f"/{NAME}/git-upload-pack"
    for one in workers.values():
        body = fetch_v0(upstream.commit())
        one.send("POST", path, body=body, headers=UPLOAD_PACK_HEADERS)
        assert b"PACK" in (await one.answer()).body


async def test_an_answer_no_older_than_max_age_is_asked_for_by_any_worker(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    async with mirroring(forge, tmp_path, workers=2, defaults="max_age: 0s") as mirror:
        assert mirror.service.supervisor is not None
        pids = mirror.service.supervisor.pids
        async with one_to_each(mirror.service.url, pids) as workers:
            for one in workers.values():
                tip = upstream.commit()
                assert tip.encode() in (await one.get(INFO_REFS)).body


async def test_metrics_are_those_of_all_processes_whoever_is_asked(
    mirror: MirrorService, workers: Workers, upstream: Upstream
) -> None:
    async def requests() -> float | None:
        return await mirror.metric(
            "git_mirror_request_seconds_count", operation="advertise", outcome="ok"
        )

    before = await requests() or 0.0
    for times, one in enumerate(workers.values(), 1):
        for _ in range(times):
            await one.get(INFO_REFS)
    for one in workers.values():
        text = (await one.get("/metrics")).text
        labels = 'operation="advertise",outcome="ok"'
        assert f"git_mirror_request_seconds_count{{{labels}}} {before + 3}" in text
        assert f'git_mirror_repository_refs{{repository="{NAME}"}} 1.0' in text
        assert 'git_mirror_refresh_seconds_count{outcome="changed",trigger="start"} 1.0' in text
        assert "git_mirror_workers 2.0" in text
        assert "git_mirror_worker_restarts_total 0.0" in text
        assert text.count("git_mirror_build_info{") == 1
    await deliver(next(iter(workers.values())), *delivery(mirror, upstream))
    labels_of = {"forge": "github", "outcome": "accepted"}
    assert await mirror.metric("git_mirror_webhooks_total", **labels_of) == 1


async def test_status_health_and_readiness_are_true_from_every_worker(
    mirror: MirrorService, workers: Workers, upstream: Upstream
) -> None:
    tip = upstream.commit()
    await mirror.hosted().refresher.request(Trigger.MANUAL)
    for one in workers.values():
        status = (await one.get("/status.json")).json["repositories"][NAME]
        assert (status["state"], status["head_commit"], status["refs"]) == ("fresh", tip, 1)
        assert (await one.get("/readyz")).json == {"status": "ok", "waiting_for": []}
        assert (await one.get("/healthz")).status == 200


async def test_a_repository_that_can_not_be_cloned_says_why_from_every_worker(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    forge.faults = Faults(status=401)
    file = configuration(forge, tmp_path, names=[upstream.name], workers=2)
    async with serving(file, forge) as mirror:
        await mirror.until(lambda one: one.last.error is not None)
        assert mirror.service.supervisor is not None
        pids = mirror.service.supervisor.pids
        async with one_to_each(mirror.service.url, pids) as workers:
            for one in workers.values():
                answer = await one.get(INFO_REFS)
                assert answer.status == 503
                assert "credentials" in answer.text
                assert (await one.get("/readyz")).status == 200
            forge.faults = Faults()
            await mirror.hosted().refresher.request(Trigger.MANUAL)
            for one in workers.values():
                assert (await one.get(INFO_REFS)).status == 200


async def test_the_workers_share_the_port_with_nobody_else(
    mirror: MirrorService, forge: HttpBackend, tmp_path: Path
) -> None:
    port = mirror.service.url.rpartition(":")[2]
    for workers in (1, 2):
        file = configuration(forge, tmp_path / f"other-{workers}", workers=workers)
        file.write_text(file.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        with pytest.raises(LocalError, match="another service"):
            await Service(load(file)).__aenter__()


async def test_auto_is_one_worker_for_each_processor(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = configuration(forge, tmp_path, names=[upstream.name], workers="auto")
    for processors in ({0}, {0, 1}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, found=processors: found)
        async with serving(file, forge) as mirror:
            supervisor = mirror.service.supervisor
            assert len(supervisor.pids if supervisor else [os.getpid()]) == len(processors)
            assert await mirror.metric("git_mirror_workers") == len(processors)


async def test_git_fetches_from_whoever_answers(
    mirror: MirrorService, upstream: Upstream, git_client: GitClient
) -> None:
    clones = [await git_client.clone(mirror.url()) for _ in range(3)]
    tip = upstream.commit(files={"new": "file\n"})
    await mirror.announce(upstream)
    for clone in clones:
        await git_client.fetch(clone)
        assert await git_client.rev_parse(clone, "origin/main") == tip
        await git_client.fsck(clone)
