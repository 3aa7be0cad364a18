"""How slowly an upstream may send."""

import pytest

from mirror.errors import Trouble, UpstreamUnavailable
from mirror.upstream.pace import Pace


def pace(least: int = 100) -> Pace:
    return Pace(bytes_per_second_min=least, window_seconds=10.0)


def test_a_byte_a_second_is_given_up_after_a_window() -> None:
    slow = pace()
    for _ in range(9):
        slow.took(1.0, 1)
    with pytest.raises(UpstreamUnavailable, match="10 bytes in 10 seconds") as caught:
        slow.took(1.0, 1)
    assert caught.value.trouble is Trouble.SLOW


def test_what_came_before_is_no_credit_for_the_next_window() -> None:
    good = pace()
    for _ in range(1000):
        good.took(1.0, 100)
    with pytest.raises(UpstreamUnavailable):
        for _ in range(20):
            good.took(1.0, 99)


def test_time_that_is_not_spent_waiting_is_not_looked_at() -> None:
    quick = pace()
    for _ in range(1000):
        quick.took(0.0, 1)


def test_nothing_counts_before_it_is_said_to() -> None:
    waiting = Pace(bytes_per_second_min=100, window_seconds=10.0, counts=False)
    waiting.took(3600.0, 5)
    waiting.counts = True
    with pytest.raises(UpstreamUnavailable):
        waiting.took(10.0, 999)


def test_the_least_may_be_nothing() -> None:
    any_pace = pace(0)
    any_pace.took(3600.0, 1)
