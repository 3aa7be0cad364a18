"""The bounds on work and sizes, as users write them."""

from typing import Annotated

from pydantic import Field

from mirror.config.notation import (
    count,
    duration,
    duration_or_never,
    size,
    size_or_none,
    size_or_share,
)
from mirror.config.section import DefaultWords, NeedsRestart, Section


class LimitSettings(Section):
    """Bounds on work and sizes. The defaults suit a small virtual machine."""

    connections_max: Annotated[int, count(16, 1_000_000), NeedsRestart()] = 8192
    """How many connections of clients may be open, all processes together; never more than half of
    the open files a process may have (`LimitNOFILE`). For a new one that one is closed which has
    been idle for longest, or takes nothing of its answer; where there is none, it gets an error
    503."""

    refreshes_max: Annotated[int, count(1, 1000)] = 8
    """How many repositories are refreshed at once; further ones wait. First clones get at most half
    of the places, and the repositories of one upstream host three quarters."""

    pack_builds_max: Annotated[int, count(1, 256)] = 4
    """How many packs are built at once; each keeps about one processor busy."""

    pack_builds_queued_max: Annotated[int, count(1, 1_000_000)] = 1000
    """How many pack builds may wait; beyond that readers get an error 503."""

    pack_cache_bytes_max: Annotated[int, size("0", "1024TiB")] = 4 * 1024**3
    """The disk space for packs that were made for readers and may be asked for again. Those used
    least recently go first; one of more than half of it is not kept. `0` keeps none."""

    pack_cache_memory_bytes_max: Annotated[int, size("0", "1TiB")] = 64 * 1024**2
    """How much of the smaller ones (up to 256 KiB) is kept in memory too."""

    bundle_bytes_max: Annotated[int, size("0", "1024TiB")] = 20 * 1024**3
    """The disk space for bundles, of which one repository gets at most half. A new base is made
    beside the old one, which stays for three hours more: reckon with twice a repository's packs."""

    disk_reserve: Annotated[
        int | float | None,
        size_or_share("1024TiB", 90),
        DefaultWords("`1GiB`, and on a disk below 20 GiB a twentieth of it"),
        NeedsRestart(),
    ] = None
    """How much of the disk of `data_dir` is kept free for refreshes: a size, or a share of the disk
    like `5%`. Before less is free, kept packs go, then LFS objects, bundles, and mirrors below
    `upstreams`, and first clones have to wait."""

    repositories_bytes_max: Annotated[
        int | None,
        size_or_none("1MiB", "1024TiB"),
        DefaultWords("none: the disk"),
        NeedsRestart(),
    ] = None
    """The disk space for all mirrors together. A refresh that would take more is refused, and what
    was there before is served on. See `repository_bytes_max`, too."""

    request_bytes_max: Annotated[int, size("1KiB", "4GiB")] = 64 * 1024**2
    """The longest body of a request, after decompression."""

    pack_bytes_max: Annotated[int, size("1KiB", "1TiB")] = 20 * 1024**3
    """The longest pack that is taken from an upstream."""

    pushes_max: Annotated[int, count(1, 1000)] = 16
    """How many pushes are passed on at once (`push: proxy`); as many again may wait, and beyond
    that clients get an error 503."""

    push_bytes_max: Annotated[int, size("1KiB", "1TiB")] = 4 * 1024**3
    """The longest push that is passed on. Forges have limits of their own."""

    lfs_cache_bytes_max: Annotated[int, size("0", "1024TiB")] = 10 * 1024**3
    """The disk space for Git LFS objects, those on their way included. Those used least recently go
    first. An object that is longer than this can't be served."""

    lfs_object_bytes_max: Annotated[int, size("1KiB", "1024TiB")] = 5 * 1024**3
    """The longest Git LFS object that is taken from an upstream. GitHub takes none that is
    longer."""

    lfs_downloads_max: Annotated[int, count(1, 256)] = 8
    """How many Git LFS objects are downloaded from upstreams at once; up to 1000 further ones
    wait."""

    scrub_interval_seconds: Annotated[
        float | None, duration_or_never("1s", "365d"), NeedsRestart()
    ] = Field(default=7 * 24 * 3600.0, alias="scrub_interval")
    """Within this time all that is kept on disk is read and compared with its checksums; what is
    damaged is mended or fetched again. `never` leaves it to those who read it."""

    scrub_bytes_per_second: Annotated[int, size("4KiB", "100GiB"), NeedsRestart()] = 32 * 1024**2
    """How much of the disk's speed that may take."""

    upstream_timeout_seconds: Annotated[float, duration("100ms", "1h")] = Field(
        default=60.0, alias="upstream_timeout"
    )
    """An upstream that sends nothing for so long is given up, and tried again later."""

    upstream_bytes_per_second_min: Annotated[int, size("0", "1GiB")] = 1024
    """The least that the body of an upstream's answer must bring per second, over
    `upstream_timeout`; a slower one is given up, so that it does not keep a place for refreshes
    until `refresh_timeout`. Of a fetch, this begins with the first byte of the pack. `0` takes
    any."""

    refresh_timeout_seconds: Annotated[float, duration("1s", "7d")] = Field(
        default=3600.0, alias="refresh_timeout"
    )
    """The longest a refresh may take in all, the first clone included; and the download of a Git
    LFS object."""

    pull_through_repositories_max: Annotated[int, count(1, 100_000)] = 1000
    """How many repositories below `upstreams` are mirrored at most. For a new one the one that was
    read least recently goes."""

    pull_through_bytes_max: Annotated[int, size("1MiB", "1024TiB")] = 20 * 1024**3
    """The disk space for them; those read least recently go first, and none within a minute of
    being read. It is looked at after each first clone and every half minute. A first clone that is
    larger by itself is refused."""

    pull_through_per_minute: Annotated[int, count(1, 100_000)] = 60
    """How many first clones may begin in a minute. Names that turn out not to be there count."""

    pull_through_per_client_per_minute: Annotated[int, count(1, 100_000)] = 20
    """The same for one client: an IPv4 address, or the /64 of an IPv6 address."""
