"""How much work a function does, counted, so that a quadratic one is found without a clock."""

import sys
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


def assert_linear(work: Callable[[int], int], *, size: int) -> None:
    """Check that three times the input is at most about three times the work."""
    small, large = work(size), work(3 * size)
    assert large <= 3.2 * small, f"{small} steps for {size}, {large} for {3 * size}"
