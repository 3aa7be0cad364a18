"""How soon the kernel lets the event loop run once something came for it.

A loop sleeps most of the time, wakes a thousand times a second, and has a tenth of a millisecond to
do each time. Beside tasks that keep all processors busy it would wait until one of them has used up
its slice, some milliseconds, unless its own slice is the shorter one: then it runs at once (Linux
6.12 or later, sched_setattr(2), `sched_runtime`). It gets no more time than before, only sooner.
"""

import ctypes
import os
import platform
import struct
from typing import Final

SLICE_SECONDS: Final = 0.0001
"""The shortest that the kernel takes. A poll needs about as much."""

_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
"""The system call's number; glibc has had a name for it since 2.41."""

_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQ")
"""struct sched_attr: its size, policy, flags, nice, priority, runtime, deadline, period."""

_RESET_ON_FORK: Final = 0x01
"""What this thread starts, threads and children, has slices of the usual length."""

_NS_PER_SECOND: Final = 1_000_000_000


def take_short_slices() -> bool:
    """Ask for short slices for the calling thread; tell whether they were granted.

    An older Linux grants them and does nothing; a sandbox may forbid it. Who was given another
    policy than the usual one keeps it as it is.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    policy = os.sched_getscheduler(0)
    if number is None or policy != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    runtime = round(SLICE_SECONDS * _NS_PER_SECOND)
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, policy, _RESET_ON_FORK, nice, 0, runtime, 0, 0)
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    return int(syscall(ctypes.c_long(number), 0, attributes, 0)) == 0
