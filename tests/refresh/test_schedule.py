"""When the upstream is looked at next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.refresh.schedule import (
    BACKOFF_SECONDS_MAX,
    BACKOFF_SECONDS_MIN,
    LAG_LOOKS_APART_SECONDS_MIN,
    LAG_LOOKS_SECONDS,
    POLL_JITTER,
    Schedule,
)

chances = st.floats(0.0, 1.0, exclude_max=True)
intervals = st.none() | st.floats(0.1, 7 * 24 * 3600.0)
pauses = st.none() | st.floats(0.0, 3600.0)


@pytest.mark.parametrize(
    ("interval", "chance", "seconds"),
    [(30.0, 0.0, 27.0), (30.0, 0.5, 30.0), (30.0, 0.999999, 33.0), (0.1, 0.5, 0.1)],
)
def test_polls_are_spread_about_the_interval(
    interval: float, chance: float, seconds: float
) -> None:
    assert Schedule(interval).after_success(chance) == pytest.approx(seconds, rel=1e-4)


def test_without_polls_there_is_no_next_time() -> None:
    assert Schedule(None).after_success(0.5) is None


@given(interval=st.floats(0.1, 1e6), chance=chances)
def test_a_poll_is_never_far_from_its_interval(interval: float, chance: float) -> None:
    seconds = Schedule(interval).after_success(chance)
    assert seconds is not None
    assert abs(seconds - interval) <= interval * POLL_JITTER * (1 + 1e-9)


@pytest.mark.parametrize(
    ("failures", "chance", "seconds"),
    [
        (1, 0.0, 1.0),
        (1, 0.5, 0.75),
        (2, 0.0, 2.0),
        (5, 0.0, 16.0),
        (7, 0.0, 60.0),
        (1000, 0.0, 60.0),
        (1000, 0.999999, 30.0),
    ],
)
def test_failures_back_off_to_a_minute(failures: int, chance: float, seconds: float) -> None:
    assert Schedule(30.0).after_failure(failures, chance) == pytest.approx(seconds, rel=1e-4)
    assert Schedule(None).after_failure(failures, chance) == pytest.approx(seconds, rel=1e-4)


def test_an_upstream_polled_seldom_is_tried_no_more_often_when_it_fails_for_long() -> None:
    assert Schedule(600.0).after_failure(100, 0.0) == 600.0


@pytest.mark.parametrize(
    ("retry_after", "seconds"), [(None, 1.0), (0.0, 1.0), (0.5, 1.0), (90.0, 90.0)]
)
def test_retry_after_is_the_least(retry_after: float | None, seconds: float) -> None:
    assert Schedule(30.0).after_failure(1, 0.0, retry_after) == seconds


@given(interval=intervals, failures=st.integers(1, 10_000), chance=chances, pause=pauses)
def test_backing_off_is_bounded_and_honours_the_upstream(
    interval: float | None, failures: int, chance: float, pause: float | None
) -> None:
    seconds = Schedule(interval).after_failure(failures, chance, pause)
    assert seconds >= BACKOFF_SECONDS_MIN / 2
    assert seconds >= (pause or 0.0)
    assert seconds <= max(interval or 0.0, BACKOFF_SECONDS_MAX, pause or 0.0)


@given(interval=intervals, failures=st.integers(1, 10_000), chance=chances)
def test_one_more_failure_never_brings_the_next_try_closer(
    interval: float | None, failures: int, chance: float
) -> None:
    schedule = Schedule(interval)
    assert schedule.after_failure(failures + 1, chance) >= schedule.after_failure(failures, chance)


@pytest.mark.parametrize(
    ("age", "next_age"),
    [
        (-1.0, 0.1),  # announced while the look was under way
        (0.0, 0.1),
        (0.0501, 0.35),  # a timer that was a little early does not look twice
        (0.1, 0.35),
        (0.35, 0.85),
        (0.85, 1.85),
        (1.0, 1.85),
        (1.85, 3.85),
        (3.85, None),
        (1000.0, None),
    ],
)
def test_what_the_forge_does_not_show_yet_is_looked_for_a_few_times(
    age: float, next_age: float | None
) -> None:
    assert Schedule(30.0).next_look(age) == next_age


@given(age=st.floats(-1e6, 1e6))
def test_looks_for_an_announcement_come_to_an_end(age: float) -> None:
    schedule = Schedule(30.0)
    looks = 0
    while (look := schedule.next_look(age)) is not None:
        assert look >= age + LAG_LOOKS_APART_SECONDS_MIN
        age, looks = look, looks + 1
    assert looks <= len(LAG_LOOKS_SECONDS)
