"""Health, readiness, metrics and status, as machines read them."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from mirror import __version__
from mirror.demo.forge import Faults, HttpBackend
from mirror.metrics import BUNDLE_OUTCOMES, WEBHOOK_OUTCOMES
from mirror.refresh.refresher import Trigger
from mirror.upstream.forges import RECEIVERS
from mirror.web.protocol import Operation
from tests.git_client import Upstream
from tests.mirror_service import MirrorService, configuration, mirroring, serving


async def test_it_is_healthy_at_once_and_ready_after_the_first_clone(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    forge.faults.stall = asyncio.Event()
    async with serving(configuration(forge, tmp_path, names=[upstream.name]), forge) as mirror:
        assert (await mirror.get("/healthz")).json == {"status": "ok"}
        waiting = await mirror.get("/readyz")
        assert waiting.status == 503
        assert waiting.json == {"status": "waiting", "waiting_for": [upstream.name]}
        status = (await mirror.get("/status.json")).json["repositories"][upstream.name]
        assert (status["state"], status["head"], status["age_seconds"]) == ("cloning", None, None)
        forge.faults.stall.set()
        await mirror.mirrored()
        assert (await mirror.get("/readyz")).status == 200


async def test_a_repository_that_can_not_be_cloned_does_not_keep_the_others_from_serving(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    names = [upstream.name, "acme/nothing"]
    async with serving(configuration(forge, tmp_path, names=names), forge) as mirror:
        await mirror.mirrored()
        await mirror.until(lambda one: one.last.error is not None, "acme/nothing")
        assert (await mirror.get("/readyz")).status == 200
        status = (await mirror.get("/status.json")).json["repositories"]["acme/nothing"]
        assert status["state"] == "failing"
        assert status["failures"] >= 1  # it may have been tried again a second later
        assert "answered 404" in status["last_error"]


async def test_the_status_says_how_each_repository_is(
    mirror: MirrorService, upstream: Upstream
) -> None:
    answer = await mirror.get("/status.json")
    assert answer.headers["Content-Type"].startswith("application/json")
    status = answer.json
    assert status["version"] == 1
    assert status["software"] == __version__
    assert status["engine"]["name"] == "git"
    repository = status["repositories"][upstream.name]
    began, ended = (
        datetime.fromisoformat(text)
        for text in (status["started_at"], repository.pop("last_success_at"))
    )
    assert timedelta(0) <= ended - began < timedelta(minutes=1)
    assert datetime.now(UTC) - ended < timedelta(minutes=1)
    assert repository.pop("last_change_at")
    assert repository.pop("age_seconds") >= 0
    assert repository.pop("bytes") > 0
    assert repository == {
        "upstream": mirror.forge.repository_url(upstream.name),
        "pull_through": None,
        "moved_to": None,
        "state": "fresh",
        "refs": 1,
        "snapshot": 1,
        "head": "refs/heads/main",
        "head_commit": upstream.oid(),
        "failures": 0,
        "retry_after_seconds": 0,
        "last_failure_at": None,
        "last_webhook_at": None,
        "last_error": None,
        "vanished": None,
        "last_error_kind": None,
        "damage": None,
        "damaged_since": None,
        "scrubbed_at": None,
        "credentials": None,
        "bundles": None,
        "progress": None,
    }


async def test_the_status_follows_failures_and_renames(
    mirror: MirrorService, upstream: Upstream
) -> None:
    mirror.forge.faults = Faults(status=403)
    await mirror.announce(upstream)
    await mirror.until(lambda one: one.freshness.failures > 0)
    status = (await mirror.get("/status.json")).json["repositories"][upstream.name]
    assert status["state"] == "failing"
    assert "403" in status["last_error"]
    upstream.path.rename(upstream.path.with_name("renamed.git"))
    mirror.forge.faults = Faults(redirect=(upstream.name, "acme/renamed"))
    await mirror.announce(upstream_at(mirror, upstream))
    await mirror.until(lambda one: one.freshness.failures == 0)
    status = (await mirror.get("/status.json")).json["repositories"][upstream.name]
    assert status["moved_to"] == mirror.forge.repository_url("acme/renamed")
    assert (status["state"], status["last_error"]) == ("fresh", None)


async def test_a_pause_that_the_upstream_asked_for_shows(
    mirror: MirrorService, upstream: Upstream
) -> None:
    mirror.forge.faults = Faults(status=502, retry_after="1800")
    await mirror.announce(upstream)
    await mirror.until(lambda one: one.freshness.failures > 0)
    status = (await mirror.get("/status.json")).json["repositories"][upstream.name]
    assert 1700 < status["retry_after_seconds"] <= 1800
    pause = await mirror.metric(
        "git_mirror_repository_retry_after_seconds", repository=upstream.name
    )
    assert pause is not None
    assert 1700 < pause <= 1800


def upstream_at(mirror: MirrorService, upstream: Upstream) -> Upstream:
    """Return the upstream where it was moved to, under the name it is configured by."""
    upstream.path = upstream.path.with_name("renamed.git")
    return upstream


async def test_metrics_are_what_prometheus_reads(mirror: MirrorService, upstream: Upstream) -> None:
    answer = await mirror.get("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {one.name: one for one in text_string_to_metric_families(answer.text)}
    for name in families:
        assert name.startswith("git_mirror_")
    assert families["git_mirror_build_info"].samples[0].labels == {"version": __version__}
    age = families["git_mirror_repository_age_seconds"].samples
    assert [sample.labels for sample in age] == [{"repository": upstream.name}]


async def test_series_exist_before_anything_happened(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    forge.faults.stall = asyncio.Event()
    async with serving(configuration(forge, tmp_path, names=[upstream.name]), forge) as mirror:
        operations = {operation.value for operation in Operation} - {"monitoring"}
        expected = [
            *(
                ("git_mirror_request_seconds_count", {"operation": operation, "outcome": "ok"})
                for operation in sorted(operations)
            ),
            *(
                ("git_mirror_refresh_seconds_count", {"trigger": trigger.value, "outcome": outcome})
                for trigger in Trigger
                for outcome in ("changed", "unchanged", "upstream_unavailable")
            ),
            *(
                ("git_mirror_webhooks_total", {"forge": name, "outcome": outcome})
                for name in RECEIVERS
                for outcome in WEBHOOK_OUTCOMES
            ),
            *(
                ("git_mirror_bundle_build_seconds_count", {"outcome": outcome})
                for outcome in BUNDLE_OUTCOMES
            ),
            ("git_mirror_bundle_bytes_total", {}),
            ("git_mirror_webhook_to_fetchable_seconds_count", {}),
            ("git_mirror_held_seconds_count", {}),
            ("git_mirror_stale_answers_total", {}),
            ("git_mirror_pack_builds_running", {}),
            ("git_mirror_repository_refs", {"repository": upstream.name}),
            ("git_mirror_repository_refresh_failures", {"repository": upstream.name}),
        ]
        samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families((await mirror.get("/metrics")).text)
            for sample in family.samples
        }
        for name, labels in expected:
            assert samples[name, frozenset(labels.items())] == 0, (name, labels)
        forge.faults.stall.set()
        await mirror.mirrored()


async def test_requests_are_measured_by_what_they_asked_for(
    mirror: MirrorService, upstream: Upstream
) -> None:
    async def count(operation: str, outcome: str = "ok") -> float | None:
        name = "git_mirror_request_seconds_count"
        return await mirror.metric(name, operation=operation, outcome=outcome)

    await mirror.info_refs()
    await mirror.info_refs(version=2)
    await mirror.upload_pack(b"0000")
    await mirror.upload_pack(b"nonsense")
    await mirror.info_refs("acme/nothing")
    await mirror.get("/nothing")
    await mirror.get("/acme/gitops-repo/info/refs?service=git-receive-pack")
    assert await count("advertise") == 1
    assert await count("capabilities") == 1
    assert await count("probe") == 1
    assert await count("other", "protocol_error") == 1
    assert await count("other", "unknown_repository") == 1
    assert await count("other", "client_error") == 1
    assert await count("receive_pack", "read_only") == 1


async def test_the_age_of_a_repository_is_told_again_after_a_restart(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    name = "git_mirror_repository_age_seconds"
    async with mirroring(forge, tmp_path, names=[upstream.name]) as mirror:
        assert await mirror.metric(name, repository=upstream.name) is not None
    forge.faults.stall = asyncio.Event()
    async with serving(configuration(forge, tmp_path, names=[upstream.name]), forge) as mirror:
        assert await mirror.metric(name, repository=upstream.name) is None
        assert (await mirror.get("/readyz")).status == 200
        forge.faults.stall.set()
        await mirror.until(lambda one: not one.freshness.is_pending)
        assert await mirror.metric(name, repository=upstream.name) is not None
