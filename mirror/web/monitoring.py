"""What operators and machines look at: health, readiness, metrics, status."""

import json
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from aiohttp import web

from mirror import __version__
from mirror.metrics import CONTENT_TYPE, Metrics, RepositoryState
from mirror.refresh.registry import Hosted, Registry
from mirror.repository.packing.engine import PackEngine
from mirror.upstream.credentials import Standing
from mirror.web.front import Traffic
from mirror.web.guard import Guard
from mirror.web.protocol import OPERATION, Operation

DAY_SECONDS: Final = 86_400.0

STATUS_VERSION: Final = 1
"""Of the JSON's shape: raised when a field changes its meaning."""


class Figures(Protocol):
    """What the whole service is doing, however many processes it has."""

    async def exposition(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        ...

    async def status(self) -> bytes:
        """Return the JSON of /status.json."""
        ...


class OwnFigures:
    """The figures of this process, which looks after the repositories itself.

    Attributes:
        configuration: Returns the status of the configuration file, once somebody looks after it;
            times in seconds since the epoch.
    """

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        engine: PackEngine,
        *,
        relays: Callable[[], dict[str, Any]],
        disk: Callable[[], dict[str, Any] | None] = lambda: None,
    ) -> None:
        """Watch over all there is.

        Args:
            registry: The repositories.
            metrics: Of this process.
            engine: The pack engine.
            relays: Returns the status of the receivers, by name; times in seconds since the epoch.
            disk: Returns that of the disk, `None` where nobody watches it.
        """
        self._disk = disk
        self.configuration: Callable[[], dict[str, Any]] | None = None
        self._relays = relays
        self._registry = registry
        self._metrics = metrics
        self._engine = engine
        self._started_at = time.time()
        metrics.watch_repositories(lambda: [repository_state(one) for one in registry])

    async def exposition(self) -> bytes:
        """See `Figures.exposition`."""
        return self._metrics.exposition()

    async def status(self) -> bytes:
        """See `Figures.status`."""
        return json.dumps(
            {
                "version": STATUS_VERSION,
                "software": __version__,
                "engine": {"name": self._engine.name, "version": self._engine.version},
                "started_at": _iso(self._started_at),
                "repositories": {one.mirror.name: describe(one) for one in self._registry},
                "disk": self._disk(),
                "relays": {name: _with_dates(one) for name, one in self._relays().items()},
                "configuration": None
                if self.configuration is None
                else _with_dates(self.configuration()),
            }
        ).encode()


class Monitoring:
    """The handlers that change nothing."""

    def __init__(
        self, registry: Registry, figures: Figures, guard: Guard, traffic: Traffic
    ) -> None:
        self._traffic = traffic
        self._registry = registry
        self._figures = figures
        self._guard = guard

    def keep_to(self, registry: Registry) -> None:
        """Go on with what there was, for requests that came before a change."""
        self._registry = registry

    async def healthz(self, request: web.Request) -> web.Response:
        """GET /healthz: the process is alive and its event loop turns."""
        request[OPERATION] = Operation.MONITORING
        return web.json_response({"status": "ok"})

    async def readyz(self, request: web.Request) -> web.Response:
        """GET /readyz: every repository has been looked after once, and we are not about to end.

        One that can't be cloned is an error of its own, not a reason to take the others away; nor
        is one that somebody has just asked for.
        """
        request[OPERATION] = Operation.MONITORING
        if self._traffic.is_leaving:
            return web.json_response({"status": "leaving", "waiting_for": []}, status=503)
        waiting = [one.mirror.name for one in self._registry if not _was_looked_after(one)]
        status = 503 if waiting else 200
        shown = waiting[:100] if self._guard.sees_all(request) else []
        body = {"status": "waiting" if waiting else "ok", "waiting_for": shown}
        return web.json_response(body, status=status)

    async def metrics(self, request: web.Request) -> web.Response:
        """GET /metrics: Prometheus' text format."""
        request[OPERATION] = Operation.MONITORING
        self._guard.check_monitoring(request)
        body = await self._figures.exposition()
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    async def status(self, request: web.Request) -> web.Response:
        """GET /status.json."""
        request[OPERATION] = Operation.MONITORING
        self._guard.check_monitoring(request)
        body = await self._figures.status()
        return web.Response(body=body, content_type="application/json", charset="utf-8")


def _was_looked_after(hosted: Hosted) -> bool:
    mirror = hosted.mirror
    if mirror.settings.place is not None:
        return True
    return mirror.snapshot is not None or mirror.last.failed_at is not None


def repository_state(hosted: Hosted) -> RepositoryState:
    """Return a repository's figures for the metrics."""
    mirror, bundles = hosted.mirror, hosted.mirror.bundles
    standing = mirror.credentials
    return RepositoryState(
        name=mirror.name,
        age_seconds=mirror.freshness.age_seconds(time.monotonic()),
        is_stale=mirror.freshness.is_pending,
        refs=len(mirror.snapshot.refs) if mirror.snapshot else 0,
        failures=mirror.freshness.failures,
        packs=len(mirror.repository.source.packs()) if mirror.repository else 0,
        unreachable_bytes=mirror.unreachable_bytes,
        bundle_age_seconds=time.time() - bundles.built_at if bundles is not None else None,
        bundle_bytes=bundles.size if bundles is not None else 0,
        credentials_failing=None if standing is None else standing.failing_since is not None,
        disk_bytes=mirror.disk_bytes,
        credentials_expire_at=None if standing is None else standing.expires_at,
        vanished=0 if mirror.vanishing is None else len(mirror.vanishing.since),
        is_damaged=mirror.damage is not None,
        scrub_age_seconds=None
        if mirror.scrubbed_at is None
        else max(0.0, time.time() - mirror.scrubbed_at),
        retry_after_seconds=max(0.0, mirror.freshness.not_before - time.monotonic()),
    )


def describe(hosted: Hosted) -> dict[str, Any]:
    """Return a repository's part of the status."""
    mirror = hosted.mirror
    snapshot, progress, last = mirror.snapshot, mirror.progress, mirror.last
    state = repository_state(hosted)
    return {
        "upstream": mirror.settings.upstream,
        "pull_through": None if mirror.settings.place is None else f"/{mirror.settings.place.at}",
        "moved_to": mirror.moved_to,
        "state": state_of(hosted),
        "age_seconds": None if state.age_seconds is None else round(state.age_seconds, 3),
        "refs": state.refs,
        "bytes": state.disk_bytes,
        "snapshot": snapshot.number if snapshot else None,
        "head": _text(snapshot.head_target) if snapshot else None,
        "head_commit": _text(snapshot.head) if snapshot else None,
        "failures": state.failures,
        "retry_after_seconds": round(state.retry_after_seconds),
        "last_success_at": _iso(last.succeeded_at),
        "last_change_at": _iso(last.changed_at),
        "last_failure_at": _iso(last.failed_at),
        "last_webhook_at": _iso(last.announced_at),
        "last_error": last.error,
        "vanished": None
        if (vanishing := mirror.vanishing) is None
        else {
            "refs": len(vanishing.since),
            "noticed_at": _iso(vanishing.noticed_at),
            "looks": vanishing.looks,
        },
        "last_error_kind": last.kind,
        "damage": mirror.damage,
        "damaged_since": _iso(mirror.damaged_since),
        "scrubbed_at": _iso(mirror.scrubbed_at),
        "credentials": _describe_credentials(mirror.credentials),
        "bundles": None
        if (bundles := mirror.bundles) is None
        else {
            "count": len(bundles.bundles),
            "bytes": bundles.size,
            "built_at": _iso(bundles.built_at),
        },
        "progress": None
        if progress is None
        else {
            "phase": progress.phase,
            "done": progress.done,
            "total": progress.total,
            "message": progress.message,
        },
    }


def _with_dates(part: dict[str, Any]) -> dict[str, Any]:
    return {key: _iso(value) if key.endswith("_at") else value for key, value in part.items()}


def _describe_credentials(standing: Standing | None) -> dict[str, Any] | None:
    if standing is None:
        return None
    expires_at, days_left = standing.expires_at, None
    if expires_at is not None:
        days_left = round((expires_at - time.time()) / DAY_SECONDS, 1)
    return {
        "kind": standing.kind.value,
        "name": standing.words,
        "accepted_at": _iso(standing.accepted_at),
        "failing_since": _iso(standing.failing_since),
        "renewed_at": _iso(standing.renewed_at),
        "expires_at": _iso(expires_at),
        "days_left": days_left,
    }


def state_of(hosted: Hosted) -> str:
    """Return the state of a repository as /status.json has it."""
    mirror = hosted.mirror
    if mirror.snapshot is None:
        return "failing" if mirror.freshness.failures else "cloning"
    if mirror.freshness.failures:
        return "failing"
    return "stale" if mirror.freshness.is_pending else "fresh"


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _iso(at: float | None) -> str | None:
    if at is None:
        return None
    whole, fraction = divmod(at, 1)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int(fraction * 1000):03d}Z"
