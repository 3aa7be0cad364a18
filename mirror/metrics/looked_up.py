"""Figures that are looked up at a scrape, instead of being kept up to date.

Repository names are labels only here, where there is one series per repository; never per reader.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class RepositoryState:
    """One repository's figures at the time of a scrape.

    Attributes:
        packs: How many packs its objects are in.
        unreachable_bytes: Of objects that nothing reaches, and that are not removed yet.
        bundle_age_seconds: Since its bundles last had all that the mirror had; `None` for none.
        bundle_bytes: Of the bundles that it offers.
        credentials_failing: Whether those for the upstream are; `None` where there are none.
        credentials_expire_at: Seconds since the epoch; `None` where the forge does not tell.
        vanished: Refs that the upstream does not list any more, but that are served on.
        disk_bytes: Of its packs.
        is_damaged: Whether something of it on disk is not what was written.
        scrub_age_seconds: Since all of its files were found right; `None` for never.
        retry_after_seconds: Until the upstream is asked again: its Retry-After; 0 for no pause.
    """

    name: str
    age_seconds: float | None
    is_stale: bool
    refs: int
    failures: int
    packs: int = 0
    unreachable_bytes: int = 0
    bundle_age_seconds: float | None = None
    bundle_bytes: int = 0
    credentials_failing: bool | None = None
    credentials_expire_at: float | None = None
    vanished: int = 0
    disk_bytes: int = 0
    is_damaged: bool = False
    scrub_age_seconds: float | None = None
    retry_after_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RelayState:
    """One receiver's figures at the time of a scrape."""

    name: str
    pending: int
    oldest_seconds: float


class RepositoryCollector(Collector):
    """Figures that are looked up at a scrape instead of being kept up to date."""

    def __init__(self, states: Callable[[], Iterable[RepositoryState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """Look now; prometheus_client calls this."""
        age = GaugeMetricFamily(
            "git_mirror_repository_age_seconds",
            "Seconds since the upstream last confirmed a repository's refs.",
            labels=["repository"],
        )
        stale = GaugeMetricFamily(
            "git_mirror_repository_stale",
            "1 while a repository's refs may be out of date.",
            labels=["repository"],
        )
        refs = GaugeMetricFamily(
            "git_mirror_repository_refs", "Refs served.", labels=["repository"]
        )
        failures = GaugeMetricFamily(
            "git_mirror_repository_refresh_failures",
            "Refreshes that failed in a row.",
            labels=["repository"],
        )
        packs = GaugeMetricFamily(
            "git_mirror_repository_packs",
            "Packs that a repository's objects are in.",
            labels=["repository"],
        )
        unreachable = GaugeMetricFamily(
            "git_mirror_repository_unreachable_bytes",
            "Bytes of objects that nothing reaches any longer, and that are not removed yet.",
            labels=["repository"],
        )
        bundle_age = GaugeMetricFamily(
            "git_mirror_repository_bundle_age_seconds",
            "Seconds since a repository's bundles last had all that the mirror had.",
            labels=["repository"],
        )
        bundle_bytes = GaugeMetricFamily(
            "git_mirror_repository_bundle_bytes",
            "Bytes of the bundles that a repository offers.",
            labels=["repository"],
        )
        failing = GaugeMetricFamily(
            "git_mirror_repository_credentials_failing",
            "1 while the upstream refuses a repository's credentials, or they can't be had.",
            labels=["repository"],
        )
        expiry = GaugeMetricFamily(
            "git_mirror_repository_credentials_expiry_timestamp_seconds",
            "When a repository's credentials end, where the forge tells.",
            labels=["repository"],
        )
        vanished = GaugeMetricFamily(
            "git_mirror_repository_vanished_refs",
            "Refs that the upstream no longer lists, served until their deletion is confirmed.",
            labels=["repository"],
        )
        disk_bytes = GaugeMetricFamily(
            "git_mirror_repository_bytes",
            "Bytes of a repository's packs on disk.",
            labels=["repository"],
        )
        damaged = GaugeMetricFamily(
            "git_mirror_repository_damaged",
            "1 while files of a repository are damaged and not mended yet.",
            labels=["repository"],
        )
        scrubbed = GaugeMetricFamily(
            "git_mirror_repository_scrub_age_seconds",
            "Seconds since all files of a repository were last read and found right.",
            labels=["repository"],
        )
        retry_after = GaugeMetricFamily(
            "git_mirror_repository_retry_after_seconds",
            "Seconds until the upstream is asked again, as its Retry-After wants it.",
            labels=["repository"],
        )
        for state in self._states():
            retry_after.add_metric([state.name], state.retry_after_seconds)
            vanished.add_metric([state.name], state.vanished)
            disk_bytes.add_metric([state.name], state.disk_bytes)
            damaged.add_metric([state.name], float(state.is_damaged))
            if state.scrub_age_seconds is not None:
                scrubbed.add_metric([state.name], state.scrub_age_seconds)
            if state.bundle_age_seconds is not None:
                bundle_age.add_metric([state.name], state.bundle_age_seconds)
                bundle_bytes.add_metric([state.name], state.bundle_bytes)
            if state.age_seconds is not None:
                age.add_metric([state.name], state.age_seconds)
            stale.add_metric([state.name], float(state.is_stale))
            refs.add_metric([state.name], state.refs)
            failures.add_metric([state.name], state.failures)
            packs.add_metric([state.name], state.packs)
            unreachable.add_metric([state.name], state.unreachable_bytes)
            if state.credentials_failing is not None:
                failing.add_metric([state.name], float(state.credentials_failing))
            if state.credentials_expire_at is not None:
                expiry.add_metric([state.name], state.credentials_expire_at)
        yield from (age, stale, refs, vanished, failures, disk_bytes, packs, unreachable)
        yield from (bundle_age, bundle_bytes, failing, expiry)
        yield from (damaged, scrubbed, retry_after)


class RelayCollector(Collector):
    """As `RepositoryCollector`, of receivers."""

    def __init__(self, states: Callable[[], Iterable[RelayState]]) -> None:
        self._states = states

    def collect(self) -> Iterator[Metric]:
        """Look now; prometheus_client calls this."""
        pending = GaugeMetricFamily(
            "git_mirror_relay_pending",
            "Refs whose changes a receiver is still to be told.",
            labels=["relay"],
        )
        oldest = GaugeMetricFamily(
            "git_mirror_relay_oldest_seconds",
            "How long the change that waits longest has been served; 0 when none waits.",
            labels=["relay"],
        )
        for state in self._states():
            pending.add_metric([state.name], state.pending)
            oldest.add_metric([state.name], state.oldest_seconds)
        yield from (pending, oldest)
