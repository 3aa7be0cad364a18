"""The event loop's thread has short slices of the processor, and what it starts has not."""

import os
import threading
from pathlib import Path

import pytest

from mirror.cli.scheduling import SLICE_SECONDS, take_short_slices


def own_slice_seconds() -> float | None:
    """Return the calling thread's slice; `None` where the kernel does not tell."""
    try:
        told = Path(f"/proc/self/task/{threading.get_native_id()}/sched").read_text()
    except OSError:
        return None
    lines = (line.partition(":") for line in told.splitlines())
    found = {name.strip(): value.strip() for name, _, value in lines}
    return int(found["se.slice"]) / 1e9 if "se.slice" in found else None


def in_a_thread(note: list[float | None], *, with_child: bool) -> None:
    def run() -> None:
        if with_child:
            take_short_slices()
        note.append(own_slice_seconds())
        if with_child:
            in_a_thread(note, with_child=False)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def test_the_loops_thread_gets_short_slices_and_those_it_starts_usual_ones() -> None:
    usual = own_slice_seconds()
    if usual is None or tuple(map(int, os.uname().release.split(".")[:2])) < (6, 12):
        pytest.skip("slices are set, and told in /proc, by Linux 6.12 or later")
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        pytest.skip("these tests run with a policy of their own")
    noted = list[float | None]()
    in_a_thread(noted, with_child=True)
    assert noted == [SLICE_SECONDS, usual]
    assert own_slice_seconds() == usual


def test_another_policy_is_kept() -> None:
    kept = list[tuple[bool, int]]()

    def run() -> None:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        kept.append((take_short_slices(), os.sched_getscheduler(0)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert kept == [(False, os.SCHED_BATCH)]
