"""Whatever an upstream does wrong is said, counted, bounded, survived, and then over."""

import asyncio
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mirror.demo.forge import HttpBackend
from mirror.errors import MirrorError
from mirror.refresh.mirror import Mirror
from mirror.refresh.refresher import Refresher, Trigger
from tests.faults.catalogue import BUFFERED_BYTES_MAX, FAULTS, PACK_BYTES_MAX, Fault
from tests.faults.proxy import FaultProxy, fault_proxy
from tests.git_client import GitClient, Upstream
from tests.mirror_service import MirrorService, configuration, refs_of, serving

ATTEMPTS_MAX = 20

CASES = [
    *(pytest.param(name, "git", id=f"{name}-git") for name in FAULTS),
    *(
        pytest.param(name, "dulwich", marks=pytest.mark.repetition, id=f"{name}-dulwich")
        for name, fault in FAULTS.items()
        if fault.is_about_packs
    ),
]


def refresher_of(service: MirrorService) -> Refresher:
    refresher = service.hosted().refresher
    assert isinstance(refresher, Refresher)
    return refresher


def let_time_pass(service: MirrorService, ticks: float) -> None:
    """Let the clock for the pace go on whenever it is looked at."""
    if ticks:
        ticking = itertools.count(0.0, ticks)
        refresher_of(service)._remote._clock = lambda: float(next(ticking))


async def failed(service: MirrorService) -> None:
    """Wait for the failure of a refresh."""
    await service.until(lambda mirror: mirror.freshness.failures > 0)


async def recovered(service: MirrorService, upstream: Upstream) -> None:
    """Let the mirror try again, as it would by itself in a moment, until it has what there is."""
    for _ in range(ATTEMPTS_MAX):
        try:
            await asyncio.shield(refresher_of(service).request(Trigger.MANUAL))
        except MirrorError:
            continue  # the short limits of some tests, on a busy machine
        break
    assert refs_of(service.mirror()) == upstream.refs()


async def is_clean(service: MirrorService, data: Path) -> None:
    """Wait until nothing is left over of what failed: the next try may have begun."""

    def has_nothing_left(mirror: Mirror) -> bool:
        left = [*(data / "staging").iterdir(), *mirror.path.glob("objects/tmp_*")]
        return not [*left, *mirror.path.glob("*.tmp"), *mirror.path.rglob("*.lock")]

    await service.until(has_nothing_left)


def failures_in(logs: Sequence[Any]) -> list[Any]:
    return [entry for entry in logs if entry["event"] == "refresh_failed"]


async def is_told(service: MirrorService, fault: Fault, logs: Sequence[Any]) -> None:
    """Assert that the log says what, and the metrics count it."""
    told = failures_in(logs)
    assert told
    for entry in told:
        assert entry["reason"] == fault.reason, entry
        assert re.search(fault.says, entry["error"]), entry
        assert 0 < entry["next_try_seconds"] <= 3600
    counted = await service.metric("git_mirror_refresh_failures_total", reason=fault.reason.value)
    assert counted
    assert counted >= len(told)


@pytest.mark.parametrize(("name", "engine"), CASES)
async def test_a_fault_is_told_counted_bounded_and_survived(
    upstream: Upstream,
    forge: HttpBackend,
    git_client: GitClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    engine: str,
) -> None:
    """At the first clone: 503. Of a mirror: its last good state, and that it is stale."""
    fault = FAULTS[name]
    monkeypatch.setattr("mirror.upstream.remote.ANSWER_BYTES_MAX", PACK_BYTES_MAX)
    upstream.history(5)
    limits = f"limits:\n  pack_bytes_max: {PACK_BYTES_MAX}\n  {fault.limits}"
    async with fault_proxy(forge) as proxy:
        file = configuration(proxy.as_forge, tmp_path / "mirror", engine=engine, sections=limits)
        data = tmp_path / "mirror" / "data"
        proxy.begin(fault.play, *fault.only)
        with capture_logs() as logs:
            async with serving(file, proxy.as_forge) as service:
                let_time_pass(service, fault.ticks)
                await failed(service)
                await is_clean(service, data)
                await is_told(service, fault, logs)
                answer = await service.info_refs(version=2)
                assert answer.status == 503, "never an empty lie"
                bounded(proxy)

                proxy.end()
                await recovered(service, upstream)
                served = refs_of(service.mirror())
                before = upstream.oid()
                upstream.commit(files={"more.txt": "more\n"})
                logs.clear()

                proxy.begin(fault.play, *fault.only)
                await service.announce(upstream, before=before)
                await failed(service)
                await is_clean(service, data)
                await is_told(service, fault, logs)
                shown = await git_client.ls_remote(service.url())
                assert shown["refs/heads/main"] == before, "what a real client sees"
                answer = await service.info_refs()
                assert answer.status == 200
                assert int(answer.headers["Git-Mirror-Stale"]) >= 0
                assert refs_of(service.mirror()) == served
                bounded(proxy)

                proxy.end()
                await recovered(service, upstream)
                await git_client.fsck(service.mirror().path)


def bounded(proxy: FaultProxy) -> None:
    assert proxy.most_sent < PACK_BYTES_MAX + BUFFERED_BYTES_MAX
