"""What Prometheus is told of the disk, by the one process that watches it."""

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

KINDS: Final = ("packs", "lfs", "bundles", "pull_through")
"""What yields, the first to go first."""


class DiskFigures:
    """The metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._free = Gauge(
            "git_mirror_disk_free_bytes", "Bytes free on the disk of data_dir.", registry=registry
        )
        self._reserve = Gauge(
            "git_mirror_disk_reserve_bytes",
            "Bytes of it that are kept free for refreshes (limits.disk_reserve).",
            registry=registry,
        )
        self._short = Gauge(
            "git_mirror_disk_short",
            "1 while less than the reserve is free, and nothing is left that could yield.",
            registry=registry,
        )
        self._read_only = Gauge(
            "git_mirror_disk_read_only",
            "1 while the disk of data_dir is mounted read-only.",
            registry=registry,
        )
        self._used = Gauge(
            "git_mirror_disk_used_bytes",
            "Bytes below data_dir by what they are; looked at each minute.",
            ["kind"],
            registry=registry,
        )
        self._yielded = Counter(
            "git_mirror_disk_yielded_bytes",
            "Bytes removed before the disk ran into its reserve, by what they were.",
            ["kind"],
            registry=registry,
        )
        for kind in KINDS:
            self._yielded.labels(kind)

    def set_space(
        self, *, free_bytes: int, reserve_bytes: int, is_short: bool, is_read_only: bool
    ) -> None:
        """The disk is so."""
        self._free.set(free_bytes)
        self._reserve.set(reserve_bytes)
        self._short.set(is_short)
        self._read_only.set(is_read_only)

    def set_used(self, used: Mapping[str, int]) -> None:
        """So much is used, by kind."""
        for kind, size in used.items():
            self._used.labels(kind).set(size)

    def record_yielded(self, kind: str, size: int) -> None:
        """Something made room: so many bytes of a kind."""
        self._yielded.labels(kind).inc(size)
