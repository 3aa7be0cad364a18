"""What yields when the disk is short, in which order, and what there is of each.

Packs first, for they are made again in no time; then what the upstreams have and can be asked for:
LFS objects; bundles, which cost a while; and last mirrors below `upstreams`. What is configured
stays.
"""

from collections.abc import Mapping

from mirror.metrics import Metrics
from mirror.metrics.disk import DiskFigures
from mirror.mirroring import Mirroring
from mirror.pulling import PullThrough
from mirror.refresh.bundling import Bundler
from mirror.refresh.disk_watch import DiskWatch, Yielding
from mirror.refresh.lfs import LargeFiles
from mirror.repository.packing.pack_cache import PackCache
from mirror.space import Room


def disk_watch(
    room: Room,
    metrics: Metrics,
    *,
    mirroring: Mirroring,
    packs: PackCache,
    lfs: LargeFiles,
    bundler: Bundler,
    pulling: PullThrough | None,
) -> DiskWatch:
    """Return the watch over the disk of a service; `pulling` where there are `upstreams`."""
    yielding = [
        Yielding("packs", packs.give),
        Yielding("lfs", lfs.give),
        Yielding("bundles", bundler.give),
    ]
    if pulling is not None:
        yielding.append(Yielding("pull_through", pulling.tidier.give))

    async def used() -> Mapping[str, int]:
        return {
            "repositories": mirroring.bounds.total(),
            "packs": await packs.bytes_on_disk(),
            "lfs": lfs.stored_bytes,
            "bundles": await bundler.bytes_on_disk(),
        }

    return DiskWatch(
        room,
        DiskFigures(metrics.registry),
        yielding=yielding,
        refreshers=lambda: tuple(mirroring.refreshers.values()),
        used=used,
    )
