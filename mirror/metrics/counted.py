"""What happens, counted: one `record_...` method per event; label values come from small sets."""

import enum
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mirror.errors import Trouble
from mirror.metrics.looked_up import (
    RelayCollector,
    RelayState,
    RepositoryCollector,
    RepositoryState,
)

WEBHOOK_OUTCOMES: Final = (
    "accepted",
    "ping",
    "repeated",
    "ignored",
    "unknown_repository",
    "unauthenticated",
    "malformed",
)
REFUSALS: Final = ("unnamed", "refused", "too_many", "unseen")
PUSH_OUTCOMES: Final = ("accepted", "rejected", "unclear", "refused", "failed")
REFRESH_OUTCOMES: Final = (
    "changed",
    "unchanged",
    "upstream_unavailable",
    "upstream_refused",
    "other_object_format",
    "local_error",
    "disk_full",
    "disk_read_only",
    "over_quota",
)
PACK_RESULTS: Final = ("hit", "joined", "miss")
IN_PROCESS: Final = "dulwich"
"""The engine that makes small packs, whichever makes the others."""

FORESEEN_OUTCOMES: Final = ("built", "ready", "failed")
BUNDLE_OUTCOMES: Final = ("ok", "abandoned", "local_error", "pack_error")
MAINTENANCE_WORK: Final = ("index", "merge", "rewrite", "prune")
MAINTENANCE_OUTCOMES: Final = ("ok", "abandoned", "local_error", "pack_error")
RELAY_FAILURES: Final = ("unavailable", "refused")
HEALED: Final = ("locally", "fetched")
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_REQUEST_SECONDS: Final = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.009, 0.015, 0.03, 0.06, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60,
)  # fmt: skip
_REFRESH_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 15, 60, 300, 1800)


class EndReason(enum.StrEnum):
    """Why we ended a client's connection: a label.

    NO_PLACE refused it, IDLE made room for another; SLOW_HEAD did not get a request said, STALLED
    did not take what it had asked for, NOT_CLOSED did not take the rest at the end.
    """

    NO_PLACE = "no_place"
    IDLE = "idle"
    SLOW_HEAD = "slow_head"
    STALLED = "stalled"
    NOT_CLOSED = "not_closed"


class Metrics:
    """All metrics of one service, in a registry of their own."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        build = Gauge(
            "git_mirror_build_info", "The running version.", ["version"], registry=self.registry
        )
        build.labels(version).set(1)
        self._requests = Histogram(
            "git_mirror_request_seconds",
            "Time to answer a request, to its last byte.",
            ["operation", "outcome"],
            buckets=_REQUEST_SECONDS,
            registry=self.registry,
        )
        self._refreshes = Histogram(
            "git_mirror_refresh_seconds",
            "Time to refresh a repository from its upstream.",
            ["trigger", "outcome"],
            buckets=_REFRESH_SECONDS,
            registry=self.registry,
        )
        self._refresh_failures = Counter(
            "git_mirror_refresh_failures",
            "Refreshes that failed, by why; docs/operations.md says what to do about each.",
            ["reason"],
            registry=self.registry,
        )
        self._webhook_to_fetchable = Histogram(
            "git_mirror_webhook_to_fetchable_seconds",
            "From the acceptance of a webhook until what it announced can be fetched here.",
            buckets=_REFRESH_SECONDS,
            registry=self.registry,
        )
        self._webhooks = Counter(
            "git_mirror_webhooks",
            "Webhook deliveries received.",
            ["forge", "outcome"],
            registry=self.registry,
        )
        self._pushes = Counter(
            "git_mirror_pushes",
            "Pushes passed on to their upstream.",
            ["outcome"],
            registry=self.registry,
        )
        self._stale_answers = Counter(
            "git_mirror_stale_answers",
            "Answers given although newer refs had been announced.",
            registry=self.registry,
        )
        self._held = Histogram(
            "git_mirror_held_seconds",
            "Time readers were held for a refresh under way.",
            buckets=_REFRESH_SECONDS,
            registry=self.registry,
        )
        self._pack_builds = Histogram(
            "git_mirror_pack_build_seconds",
            "Time to build a pack.",
            ["engine", "outcome"],
            buckets=_REQUEST_SECONDS,
            registry=self.registry,
        )
        self._pack_bytes = Counter(
            "git_mirror_pack_bytes", "Bytes of packs built.", ["engine"], registry=self.registry
        )
        self._pack_builds_running = Gauge(
            "git_mirror_pack_builds_running", "Packs being built now.", registry=self.registry
        )

        self._packs = Counter(
            "git_mirror_packs",
            "Packs asked for: found ready, found being built, or missed.",
            ["result"],
            registry=self.registry,
        )
        self._small_builds = Histogram(
            "git_mirror_small_pack_build_seconds",
            "Time to make a pack that is little work, in process and without a queue.",
            buckets=_REQUEST_SECONDS,
            registry=self.registry,
        )
        self._first_fetches = Counter(
            "git_mirror_first_fetches",
            "The first fetches of each kind after a push, by what they found.",
            ["result"],
            registry=self.registry,
        )
        self._foreseen = Counter(
            "git_mirror_foreseen_packs",
            "Packs made before anybody asked for them.",
            ["outcome"],
            registry=self.registry,
        )
        self._certificate_end = Gauge(
            "git_mirror_certificate_expires_timestamp_seconds",
            "When the first of the served certificates ends; 0 without TLS.",
            registry=self.registry,
        )
        self._refused_readers = Counter(
            "git_mirror_refused_readers",
            "Requests for repositories whose sender was not let in, by why not.",
            ["reason"],
            registry=self.registry,
        )
        self._bundles = Histogram(
            "git_mirror_bundle_build_seconds",
            "Time to make a bundle.",
            ["outcome"],
            buckets=_REFRESH_SECONDS,
            registry=self.registry,
        )
        self._maintenance = Histogram(
            "git_mirror_maintenance_seconds",
            "Time to merge a repository's packs, to index its commits, to write it anew.",
            ["work", "outcome"],
            buckets=_REFRESH_SECONDS,
            registry=self.registry,
        )
        self._lfs_objects = Counter(
            "git_mirror_lfs_objects",
            "LFS objects sent for: found here, on their way already, or missed.",
            ["result"],
            registry=self.registry,
        )
        self._lfs_downloads = Histogram(
            "git_mirror_lfs_download_seconds",
            "Time to download an LFS object from its upstream.",
            ["outcome"],
            buckets=_REFRESH_SECONDS,
            registry=self.registry,
        )
        self._bundle_bytes = Counter(
            "git_mirror_bundle_bytes", "Bytes of bundles made.", registry=self.registry
        )
        self._lfs_received = Counter(
            "git_mirror_lfs_received_bytes",
            "Bytes of LFS objects from upstreams.",
            registry=self.registry,
        )
        self._lfs_sent = Counter(
            "git_mirror_lfs_sent_bytes",
            "Bytes of LFS objects to readers, in whole answers.",
            registry=self.registry,
        )
        self._lfs_evictions = Counter(
            "git_mirror_lfs_evictions",
            "LFS objects removed to make room for others.",
            registry=self.registry,
        )
        self._lfs_stored = Gauge(
            "git_mirror_lfs_stored_bytes", "Bytes of LFS objects here.", registry=self.registry
        )
        self._relay_lag = Histogram(
            "git_mirror_relay_lag_seconds",
            "From when a change can be fetched here until a receiver has acknowledged it.",
            ["relay"],
            buckets=_REFRESH_SECONDS,
            registry=self.registry,
        )
        self._relay_failures = Counter(
            "git_mirror_relay_failures",
            "Events that a receiver did not take; each is sent again.",
            ["relay", "kind"],
            registry=self.registry,
        )
        self._scrubbed = Counter(
            "git_mirror_scrubbed_bytes",
            "Bytes read from disk to see whether they are what was written.",
            registry=self.registry,
        )
        self._damage = Counter(
            "git_mirror_damage_found",
            "Files found damaged on disk, by their kind.",
            ["kind"],
            registry=self.registry,
        )
        self._healed = Counter(
            "git_mirror_healed",
            "Repositories mended after damage: from what is here, or by a new clone.",
            ["how"],
            registry=self.registry,
        )
        self._workers = Gauge(
            "git_mirror_workers", "Processes that serve readers.", registry=self.registry
        )
        self._worker_restarts = Counter(
            "git_mirror_worker_restarts",
            "Worker processes started anew because one had ended.",
            registry=self.registry,
        )

        self._connections = Gauge(
            "git_mirror_connections", "Open connections of clients.", registry=self.registry
        )
        self._connections_ended = Counter(
            "git_mirror_connections_ended",
            "Connections ended because of what the client did, or for want of places.",
            ["reason"],
            registry=self.registry,
        )

    def create_series(
        self,
        *,
        operations: Iterable[str],
        triggers: Iterable[str],
        forges: Iterable[str],
        engines: Sequence[str],
        damage: Iterable[str],
    ) -> None:
        """Make the series that matter exist at 0, so that a rate over them is never "no data"."""
        at_zero: list[tuple[Counter | Histogram, Iterable[Sequence[str]]]] = [
            (self._requests, product(operations, ("ok",))),
            (self._refused_readers, product(REFUSALS)),
            (self._refreshes, product(triggers, REFRESH_OUTCOMES)),
            (self._refresh_failures, product(Trouble)),
            (self._webhooks, product(forges, WEBHOOK_OUTCOMES)),
            (self._pack_builds, product(engines, ("ok", "abandoned", "pack_error"))),
            (self._pack_bytes, product({*engines, IN_PROCESS})),
            (self._packs, product(PACK_RESULTS)),
            (self._first_fetches, product(PACK_RESULTS)),
            (self._foreseen, product(FORESEEN_OUTCOMES)),
            (self._pushes, product(PUSH_OUTCOMES)),
            (self._connections_ended, product(EndReason)),
            (self._bundles, product(BUNDLE_OUTCOMES)),
            (self._healed, product(HEALED)),
            (self._damage, product(damage)),
            (self._maintenance, product(MAINTENANCE_WORK, MAINTENANCE_OUTCOMES)),
            (self._lfs_objects, product(PACK_RESULTS)),
            (self._lfs_downloads, product(("ok", "upstream_unavailable", "upstream_refused"))),
        ]
        for metric, series in at_zero:
            for labels in series:
                metric.labels(*labels)

    def watch_repositories(self, states: Callable[[], Iterable[RepositoryState]]) -> None:
        """Show the age of every repository, asked for at each scrape."""
        self.registry.register(RepositoryCollector(states))

    def watch_relays(self, states: Callable[[], Iterable[RelayState]]) -> None:
        """Show the queue of every receiver, asked for at each scrape."""
        self.registry.register(RelayCollector(states))

    def create_relay_series(self, names: Iterable[str]) -> None:
        """Show receivers from now on, with what was counted of them before, or nothing."""
        for name in names:
            self._relay_lag.labels(name)
            for kind in RELAY_FAILURES:
                self._relay_failures.labels(name, kind)

    def watch_connections(self, count: Callable[[], int]) -> None:
        """Show how many connections there are, asked for at each scrape."""
        self._connections.set_function(count)

    def record_connection_ended(self, reason: EndReason) -> None:
        """We ended a client's connection."""
        self._connections_ended.labels(reason).inc()

    def record_request(self, operation: str, outcome: str, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(operation, outcome).observe(seconds)

    def request_recorder(self, operation: str, outcome: str) -> Callable[[float], None]:
        """Return `record_request` for one operation and outcome, looked up beforehand."""
        return self._requests.labels(operation, outcome).observe

    def record_refresh(self, trigger: str, outcome: str, seconds: float) -> None:
        """A refresh ended."""
        self._refreshes.labels(trigger, outcome).observe(seconds)

    def record_refresh_failure(self, trouble: Trouble) -> None:
        """A refresh failed; it is recorded as a refresh that ended, too."""
        self._refresh_failures.labels(trouble.value).inc()

    def record_webhook_to_fetchable(self, seconds: float) -> None:
        """What a webhook announced can be fetched here now."""
        self._webhook_to_fetchable.observe(seconds)

    def record_webhook(self, forge: str, outcome: str) -> None:
        """A delivery was received and dealt with."""
        self._webhooks.labels(forge, outcome).inc()

    def record_push(self, outcome: str) -> None:
        """A push was passed on.

        The upstream accepted all of it, rejected some of it, or did not say so in words that are
        understood here; or it refused the request; or the push failed on the way.
        """
        self._pushes.labels(outcome).inc()

    def record_stale_answer(self) -> None:
        """A reader was given refs that may be out of date."""
        self._stale_answers.inc()

    def record_held(self, seconds: float) -> None:
        """A reader was held."""
        self._held.observe(seconds)

    def record_build_began(self) -> None:
        """A pack build began."""
        self._pack_builds_running.inc()

    def record_build_ended(self, engine: str, outcome: str, seconds: float, size: int) -> None:
        """A pack build ended, after `size` bytes."""
        self._pack_builds_running.dec()
        self._pack_builds.labels(engine, outcome).observe(seconds)
        self._pack_bytes.labels(engine).inc(size)

    def record_pack(self, result: str) -> None:
        """A pack was asked for: `hit`, `joined` or `miss`."""
        self._packs.labels(result).inc()

    def record_small_build(self, seconds: float, size: int) -> None:
        """A small pack of `size` bytes was made in process."""
        self._small_builds.observe(seconds)
        self._pack_bytes.labels(IN_PROCESS).inc(size)

    def record_first_fetch(self, result: str) -> None:
        """The first fetch of its kind after a push came: `hit`, `joined` or `miss`."""
        self._first_fetches.labels(result).inc()

    def record_foreseen(self, outcome: str) -> None:
        """A foreseen pack was `built`, found `ready`, or `failed`."""
        self._foreseen.labels(outcome).inc()

    def set_certificate_end(self, at: float) -> None:
        """The served certificate is good until then (seconds since the epoch)."""
        self._certificate_end.set(at)

    def record_refused_reader(self, reason: str) -> None:
        """Somebody was not let in.

        They showed nothing (`unnamed`) or nothing good (`refused`), did so too often (`too_many`),
        or may not see what they asked for (`unseen`).
        """
        self._refused_readers.labels(reason).inc()

    def record_lfs_object(self, result: str) -> None:
        """An LFS object was sent for: `hit`, `joined` or `miss`."""
        self._lfs_objects.labels(result).inc()

    def record_lfs_download(self, outcome: str, seconds: float) -> None:
        """The download of an LFS object ended."""
        self._lfs_downloads.labels(outcome).observe(seconds)

    def record_lfs_received(self, size: int) -> None:
        """Bytes of an LFS object came from an upstream."""
        self._lfs_received.inc(size)

    def record_lfs_sent(self, size: int) -> None:
        """An LFS object, or a part of one, was sent."""
        self._lfs_sent.inc(size)

    def record_lfs_evictions(self, count: int) -> None:
        """So many LFS objects were removed."""
        self._lfs_evictions.inc(count)

    def set_lfs_stored_bytes(self, size: int) -> None:
        """The LFS objects take so much."""
        self._lfs_stored.set(size)

    def record_bundle(self, outcome: str, seconds: float, size: int) -> None:
        """A bundle of `size` bytes was made, or was not."""
        self._bundles.labels(outcome).observe(seconds)
        self._bundle_bytes.inc(size)

    def record_maintenance(self, work: str, outcome: str, seconds: float) -> None:
        """A repository was maintained, or was not: `index`, `merge`, `rewrite` or `prune`."""
        self._maintenance.labels(work, outcome).observe(seconds)

    def record_relayed(self, relay: str, seconds: float) -> None:
        """A receiver has acknowledged a change that was served so long ago."""
        self._relay_lag.labels(relay).observe(seconds)

    def record_relay_failure(self, relay: str, kind: str) -> None:
        """A receiver did not take an event: it was `unavailable`, or has `refused` it."""
        self._relay_failures.labels(relay, kind).inc()

    def record_scrubbed(self, size: int) -> None:
        """So many bytes were read and compared with their checksums."""
        self._scrubbed.inc(size)

    def record_damage(self, kind: str) -> None:
        """A file was found damaged."""
        self._damage.labels(kind).inc()

    def record_healed(self, how: str) -> None:
        """A repository was mended `locally`, or `fetched` anew."""
        self._healed.labels(how).inc()

    def set_workers(self, count: int) -> None:
        """So many processes serve."""
        self._workers.set(count)

    def record_worker_restart(self) -> None:
        """A worker process ended and is started anew."""
        self._worker_restarts.inc()

    def exposition(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self.registry)
