"""This machine: does its disk keep up, is there room, may a process open enough files?

Writes one file below data_dir, and removes it. Blocking: for a thread.
"""

import os
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mirror.doctor.finding import Finding, Verdict, judged, percentile, times
from mirror.space import Reserve, look_at

HOST: Final = "this machine"

BLOCK_BYTES: Final = 4096
FILE_BLOCKS: Final = 2048
WRITES: Final = 200
WRITES_SECONDS_MAX: Final = 10.0
"""As `fio --rw=randwrite --bs=4k --fdatasync=1` does: the load of etcd's log and of refs."""

SYNC_WARNING_MS: Final = 10.0
"""etcd's own limit for the p99 of its log's fsync."""

SYNC_PROBLEM_MS: Final = 100.0

FREE_RESERVES_WARNING: Final = 5
"""With less free than so many times what is kept free, it is time to look at what grows."""

FILES_FIXED: Final = 512
FILES_PER_REPOSITORY: Final = 100
"""At 24 packs, just before they are merged: four descriptors each."""


def examine_host(
    data_dir: Path, *, reserve: Reserve, repositories: int, pid: int | None
) -> Iterator[Finding]:
    """Look at the machine.

    Args:
        data_dir: Of the service.
        reserve: What is kept free of its disk.
        repositories: How many there are.
        pid: The running service; `None` when there is none.
    """
    yield sync_latency(data_dir)
    yield free_space(data_dir, reserve)
    yield file_limit(repositories=repositories, pid=pid)


def sync_latency(data_dir: Path) -> Finding:
    """Time random writes of 4 KiB, each made durable."""
    check = "disk: 4 KiB write and fdatasync"
    try:
        samples = _timed_writes(_existing(data_dir))
    except OSError as error:
        return Finding(
            HOST,
            check,
            Verdict.PROBLEM,
            f"can't write to {data_dir}: {error.strerror}",
            "make room, or give the directory to git-mirror's user",
        )
    words, data = times(samples)
    verdict = judged(percentile(samples, 0.99), warning=SYNC_WARNING_MS, problem=SYNC_PROBLEM_MS)
    advice = ""
    if verdict is not Verdict.OK:
        advice = (
            "pushes wait for this disk; move data_dir to a local SSD, or away from busy neighbours"
        )
    return Finding(HOST, check, verdict, words, advice, data)


def _timed_writes(directory: Path) -> list[float]:
    """Return the milliseconds of each write."""
    samples: list[float] = []
    with tempfile.TemporaryFile(dir=directory, prefix=".doctor-") as file:
        descriptor = file.fileno()
        os.posix_fallocate(descriptor, 0, BLOCK_BYTES * FILE_BLOCKS)
        os.fsync(descriptor)
        block = os.urandom(BLOCK_BYTES)
        until = time.monotonic() + WRITES_SECONDS_MAX
        while len(samples) < WRITES and (not samples or time.monotonic() < until):
            began_at = time.perf_counter()
            os.pwrite(descriptor, block, BLOCK_BYTES * random.randrange(FILE_BLOCKS))
            os.fdatasync(descriptor)
            samples.append((time.perf_counter() - began_at) * 1000)
    return samples


def free_space(data_dir: Path, reserve: Reserve) -> Finding:
    """Tell what is left of the file system, and whether the reserve is."""
    space = look_at(_existing(data_dir))
    kept_free = reserve.of(space.total_bytes)
    verdict, advice = Verdict.OK, ""
    if space.is_read_only:
        verdict = Verdict.PROBLEM
        advice = "it is mounted read-only: look at the kernel's log, and mount it anew"
    elif space.free_bytes < kept_free or not space.free_bytes:
        verdict = Verdict.PROBLEM
        advice = "make room: less is free than limits.disk_reserve, and first clones wait"
    elif space.free_bytes < FREE_RESERVES_WARNING * kept_free:
        verdict, advice = Verdict.WARNING, "make room: with a full disk nothing new is mirrored"
    return Finding(
        HOST,
        "disk: free space",
        verdict,
        f"{_gib(space.free_bytes)} of {_gib(space.total_bytes)}, {_gib(kept_free)} kept free",
        advice,
        {
            "free_bytes": space.free_bytes,
            "total_bytes": space.total_bytes,
            "reserve_bytes": kept_free,
        },
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def file_limit(*, repositories: int, pid: int | None) -> Finding:
    """Tell whether the service may open as many files as its repositories need."""
    limit, used = _limit_of(pid), _used_by(pid)
    needed = FILES_FIXED + FILES_PER_REPOSITORY * repositories
    is_enough = limit is None or limit >= needed
    in_use = "" if used is None else f", {used} in use"
    return Finding(
        HOST,
        "open files" if pid is not None else "open files (of this shell: no service runs)",
        Verdict.OK if is_enough else Verdict.WARNING,
        f"{'any number' if limit is None else limit}, {needed} may be needed{in_use}",
        "" if is_enough else f"raise LimitNOFILE in the unit to {needed}",
        {"limit": limit, "needed": needed, "used": used},
    )


def _limit_of(pid: int | None) -> int | None:
    soft, _ = resource.prlimit(pid or 0, resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def _used_by(pid: int | None) -> int | None:
    if pid is None:
        return None
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a count, not paths
    except OSError:
        return None


def _existing(path: Path) -> Path:
    """Return `path`, or what is there of the way to it."""
    return next((one for one in (path, *path.parents) if one.is_dir()), Path("/"))
