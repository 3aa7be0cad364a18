"""How much work a function does, counted, so that a quadratic one is found without a clock."""

import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType


def calls_made(function: Callable[[], object]) -> int:
    """Count the calls, of Python and of C functions, that `function` makes."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        del frame, argument
        nonlocal count
        count += event in {"call", "c_call"}

    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(previous)
    return count


def bytes_made(function: Callable[[], object]) -> int:
    """Count the bytes of all objects that `function` makes, those it drops at once too.

    Who copies the rest of its input for each part of it is found by that. Between two calls only
    the most that was there at once is seen.
    """
    made = last = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        del frame, event, argument
        nonlocal made, last
        now, peak = tracemalloc.get_traced_memory()
        made += max(0, peak - last)
        last = now
        tracemalloc.reset_peak()

    tracemalloc.start()
    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(previous)
        tracemalloc.stop()
    return made


def assert_linear(work: Callable[[int], int], *, size: int) -> None:
    """Check that three times the input is at most about three times the work."""
    small, large = work(size), work(3 * size)
    assert large <= 3.2 * small, f"{small} steps for {size}, {large} for {3 * size}"
