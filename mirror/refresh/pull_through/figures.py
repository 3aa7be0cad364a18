"""What Prometheus is told of the repositories below `upstreams`."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from mirror.refresh.pull_through.eviction import Reason

OUTCOMES: Final = ("ok", "not_there", "failed", "too_many")


class PullFigures:
    """The metrics, in the registry of the process that keeps the mirrors."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._first_clones = Counter(
            "git_mirror_pull_through_first_clones",
            "Repositories below `upstreams` that were asked for and were not mirrored yet.",
            ["outcome"],
            registry=registry,
        )
        self._removed = Counter(
            "git_mirror_pull_through_removed",
            "Mirrors of repositories below `upstreams` that were removed.",
            ["reason"],
            registry=registry,
        )
        self._count = Gauge(
            "git_mirror_pull_through_repositories",
            "Repositories below `upstreams` that are mirrored.",
            registry=registry,
        )
        self._bytes = Gauge(
            "git_mirror_pull_through_bytes", "Their size on disk.", registry=registry
        )
        for outcome in OUTCOMES:
            self._first_clones.labels(outcome)
        for reason in Reason:
            self._removed.labels(reason)

    def record_first_clone(self, outcome: str) -> None:
        """A first clone ended, or was not begun: one of `OUTCOMES`."""
        self._first_clones.labels(outcome).inc()

    def record_removed(self, reason: Reason) -> None:
        """A mirror was removed."""
        self._removed.labels(reason).inc()

    def set_kept(self, count: int, size: int) -> None:
        """So many are kept, with so many bytes."""
        self._count.set(count)
        self._bytes.set(size)
