"""The rule of freshness, by examples and by whatever sequence of events hypothesis thinks of."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mirror.refresh.freshness import (
    ANNOUNCEMENTS_TIMED_MAX,
    ASK_AGAIN_SECONDS,
    Freshness,
    Policy,
    Verdict,
)

HOLD = 5.0
POLICY = Policy(hold_seconds=HOLD, refuse_stale=False, max_age_seconds=None)
MAX_AGE = Policy(hold_seconds=HOLD, refuse_stale=False, max_age_seconds=30.0)
ALWAYS_ASK = Policy(hold_seconds=HOLD, refuse_stale=False, max_age_seconds=0.0)


def confirmed(at: float = 100.0) -> Freshness:
    """As it is after a first refresh that began at `at`."""
    freshness = Freshness()
    freshness.confirm(began_at=at, covers=freshness.announced)
    return freshness


# --- announcements -----------------------------------------------------------------------------


def test_a_start_counts_as_an_announcement() -> None:
    freshness = Freshness()
    assert freshness.is_pending
    assert freshness.judge(0.0, 0.0, POLICY) is Verdict.WAIT
    assert freshness.age_seconds(50.0) is None
    assert freshness.confirm(began_at=1.0, covers=1) == [], "no webhook came"
    assert freshness.judge(2.0, 2.0, POLICY) is Verdict.FRESH
    assert freshness.age_seconds(51.0) == 50.0


@given(
    confirmed_at=st.none() | st.floats(0, 1000),
    announced=st.integers(0, 3),
    covered=st.integers(0, 4),
    failed=st.booleans(),
    now=st.floats(1000, 2000),
    policy=st.sampled_from([POLICY, MAX_AGE, ALWAYS_ASK]),
)
def test_a_reader_is_served_at_once_exactly_when_the_verdict_is_fresh(
    *,
    confirmed_at: float | None,
    announced: int,
    covered: int,
    failed: bool,
    now: float,
    policy: Policy,
) -> None:
    freshness = Freshness()
    for _ in range(announced):
        freshness.announce(900.0)
    if confirmed_at is not None:
        freshness.confirm(began_at=confirmed_at, covers=min(covered, freshness.announced))
    if failed:
        freshness.fail(950.0, covers=freshness.announced, retry_after_seconds=None)
    is_fresh = freshness.is_fresh(now, policy.max_age_seconds)
    assert is_fresh == (freshness.judge(now, now, policy) is Verdict.FRESH)
    assert not (is_fresh and freshness.is_overdue(now, now, policy))


def test_a_clock_that_stands_still_gives_no_negative_age() -> None:
    assert confirmed(at=100.0).age_seconds(99.0) == 0.0


@pytest.mark.parametrize(
    ("now", "verdict"),
    [(200.0, Verdict.WAIT), (204.999, Verdict.WAIT), (205.0, Verdict.STALE), (300, Verdict.STALE)],
)
def test_a_reader_is_held_no_longer_than_the_hold(now: float, verdict: Verdict) -> None:
    freshness = confirmed()
    freshness.announce(200.0)
    assert freshness.judge(now, 200.0, POLICY) is verdict


def test_without_a_hold_nobody_is_held() -> None:
    freshness = confirmed()
    freshness.announce(200.0)
    at_once = Policy(hold_seconds=0.0, refuse_stale=False, max_age_seconds=None)
    assert freshness.judge(200.0, 200.0, at_once) is Verdict.STALE


def test_a_refresh_that_began_before_the_announcement_does_not_satisfy_it() -> None:
    freshness = confirmed()
    covers = freshness.announced
    freshness.announce(200.0)
    assert freshness.confirm(began_at=199.0, covers=covers) == []
    assert freshness.judge(201.0, 201.0, POLICY) is Verdict.WAIT
    assert freshness.confirm(began_at=201.0, covers=freshness.announced) == [200.0]
    assert freshness.judge(202.0, 202.0, POLICY) is Verdict.FRESH


def test_each_announcement_is_timed_on_its_own() -> None:
    freshness = confirmed()
    first = freshness.announce(200.0)
    freshness.announce(201.0)
    freshness.announce(202.0)
    assert freshness.confirm(began_at=200.5, covers=first) == [200.0]
    assert freshness.is_pending
    assert freshness.confirm(began_at=203.0, covers=freshness.announced) == [201.0, 202.0]


def test_an_upstream_down_for_days_does_not_fill_the_memory() -> None:
    freshness = confirmed()
    for number in range(ANNOUNCEMENTS_TIMED_MAX + 50):
        freshness.announce(float(number))
    came_at = freshness.confirm(began_at=1e6, covers=freshness.announced)
    assert came_at == [float(number) for number in range(ANNOUNCEMENTS_TIMED_MAX)]
    assert not freshness.is_pending


# --- failures ----------------------------------------------------------------------------------


def test_after_a_failure_nobody_waits_for_the_same_announcement_again() -> None:
    freshness = confirmed()
    freshness.announce(200.0)
    freshness.fail(201.0, covers=freshness.announced, retry_after_seconds=None)
    assert freshness.judge(201.0, 200.5, POLICY) is Verdict.STALE
    assert freshness.judge(250.0, 250.0, POLICY) is Verdict.STALE
    freshness.announce(251.0)
    assert freshness.judge(251.0, 251.0, POLICY) is Verdict.WAIT, "a new one is worth a wait"


def test_an_announcement_that_came_while_the_refresh_failed_is_still_waited_for() -> None:
    freshness = confirmed()
    covers = freshness.announce(200.0)
    freshness.announce(200.5)
    freshness.fail(201.0, covers=covers, retry_after_seconds=None)
    assert freshness.judge(201.0, 201.0, POLICY) is Verdict.WAIT


def test_a_failed_poll_with_nothing_announced_leaves_the_refs_fresh() -> None:
    freshness = confirmed()
    freshness.fail(200.0, covers=freshness.announced, retry_after_seconds=None)
    assert freshness.judge(201.0, 201.0, POLICY) is Verdict.FRESH
    assert freshness.failures == 1


def test_nobody_waits_for_an_upstream_that_wants_to_be_left_alone_for_longer() -> None:
    freshness = confirmed()
    freshness.fail(200.0, covers=freshness.announced, retry_after_seconds=60.0)
    freshness.announce(210.0)
    assert freshness.not_before == 260.0
    assert freshness.judge(210.0, 210.0, POLICY) is Verdict.STALE
    assert freshness.judge(255.0, 255.0, POLICY) is Verdict.STALE
    assert freshness.judge(255.001, 255.001, POLICY) is Verdict.WAIT, "it is asked within the hold"


def test_a_later_failure_does_not_shorten_what_was_asked_for() -> None:
    freshness = confirmed()
    freshness.fail(200.0, covers=1, retry_after_seconds=60.0)
    freshness.fail(210.0, covers=1, retry_after_seconds=None)
    freshness.fail(211.0, covers=1, retry_after_seconds=2.0)
    assert (freshness.not_before, freshness.ask_again_at, freshness.failures) == (260.0, 260.0, 3)


def test_a_success_ends_every_pause() -> None:
    freshness = confirmed()
    freshness.fail(200.0, covers=1, retry_after_seconds=60.0)
    freshness.confirm(began_at=201.0, covers=1)
    assert freshness.failures == 0
    assert freshness.is_overdue(202.0, 202.0, ALWAYS_ASK)


# --- max_age -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "asked_at", "verdict", "is_overdue"),
    [
        (POLICY, 1e9, Verdict.FRESH, False),
        (MAX_AGE, 100.0, Verdict.FRESH, False),
        (MAX_AGE, 130.0, Verdict.FRESH, False),
        (MAX_AGE, 130.001, Verdict.WAIT, True),
        (ALWAYS_ASK, 100.0, Verdict.FRESH, False),  # the refresh began no earlier than it asked
        (ALWAYS_ASK, 100.001, Verdict.WAIT, True),
    ],
)
def test_an_answer_too_old_is_asked_for(
    policy: Policy, asked_at: float, verdict: Verdict, is_overdue: bool
) -> None:
    freshness = confirmed(at=100.0)
    assert freshness.judge(asked_at, asked_at, policy) is verdict
    assert freshness.is_overdue(asked_at, asked_at, policy) is is_overdue


def test_refs_that_were_never_confirmed_are_too_old_for_any_age() -> None:
    """Not to be seen in practice: the start itself is pending until the first confirmation."""
    freshness = Freshness(satisfied=1)
    assert freshness.judge(0.0, 0.0, MAX_AGE) is Verdict.WAIT
    assert freshness.judge(0.0, 0.0, POLICY) is Verdict.FRESH


def test_max_age_holds_no_longer_than_the_hold_either() -> None:
    assert confirmed(100.0).judge(206.0, 201.0, ALWAYS_ASK) is Verdict.STALE


def test_without_a_hold_a_reader_asks_for_the_next_one() -> None:
    """Nobody waits, but somebody has to start the refresh."""
    at_once = Policy(hold_seconds=0.0, refuse_stale=False, max_age_seconds=30.0)
    freshness = confirmed(at=100.0)
    assert freshness.judge(200.0, 200.0, at_once) is Verdict.STALE
    assert freshness.is_overdue(200.0, 200.0, at_once)


def test_while_the_upstream_is_down_max_age_readers_neither_ask_nor_wait() -> None:
    freshness = confirmed(at=100.0)
    freshness.fail(200.0, covers=freshness.announced, retry_after_seconds=None)
    soon = 200.0 + ASK_AGAIN_SECONDS / 2
    assert freshness.judge(soon, soon, ALWAYS_ASK) is Verdict.STALE
    assert not freshness.is_overdue(soon, soon, ALWAYS_ASK)
    later = 200.0 + ASK_AGAIN_SECONDS
    assert freshness.judge(later, later, ALWAYS_ASK) is Verdict.WAIT
    assert freshness.is_overdue(later, later, ALWAYS_ASK)


def test_what_is_announced_is_not_asked_for_as_well() -> None:
    freshness = confirmed(at=100.0)
    freshness.announce(200.0)
    assert not freshness.is_overdue(200.0, 200.0, ALWAYS_ASK)


# --- whatever happens --------------------------------------------------------------------------

seconds = st.floats(0.0, 100.0, allow_nan=False).map(lambda value: round(value, 3))
policies = st.builds(
    Policy,
    hold_seconds=st.sampled_from([0.0, 0.5, 5.0, 60.0]),
    refuse_stale=st.booleans(),
    max_age_seconds=st.sampled_from([None, 0.0, 1.0, 30.0]),
)


@given(hold=seconds, waited=seconds, policy=policies)
def test_no_reader_waits_beyond_its_hold(hold: float, waited: float, policy: Policy) -> None:
    own = Policy(hold, policy.refuse_stale, policy.max_age_seconds)
    for freshness in (Freshness(), confirmed(0.0)):
        freshness.announce(10.0)
        assert freshness.judge(200.0 + hold + waited, 200.0, own) is not Verdict.WAIT


class Story(RuleBasedStateMachine):
    """A repository's life; `began` are the refreshes under way: when, and what each covers."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.freshness = Freshness()
        self.began: deque[tuple[float, int]] = deque()
        self.announced: list[float] = []
        self.timed: list[float] = []
        self.successes: list[float] = []
        self.failed_since_announced = False

    @rule(step=seconds)
    def time_passes(self, step: float) -> None:
        self.now += step

    @rule()
    def a_webhook_comes(self) -> None:
        self.freshness.announce(self.now)
        self.announced.append(self.now)
        self.failed_since_announced = False

    @rule()
    def a_refresh_begins(self) -> None:
        if not self.began:  # one at a time
            self.began.append((self.now, self.freshness.announced))

    @rule(lag=st.integers(0, 3))
    def it_succeeds(self, lag: int) -> None:
        if self.began:
            at, covers = self.began.popleft()
            self.timed += self.freshness.confirm(began_at=at, covers=max(0, covers - lag))
            self.successes.append(at)

    @rule(retry_after=st.none() | seconds)
    def it_fails(self, retry_after: float | None) -> None:
        if self.began:
            _, covers = self.began.popleft()
            self.freshness.fail(self.now, covers=covers, retry_after_seconds=retry_after)
            self.failed_since_announced = covers == self.freshness.announced

    @invariant()
    def each_announcement_is_timed_once_and_in_order(self) -> None:
        assert self.timed == self.announced[: len(self.timed)]
        assert self.freshness.is_pending or self.timed == self.announced

    @rule(ago=seconds, policy=policies)
    def a_reader_asks(self, ago: float, policy: Policy) -> None:
        asked_at = self.now - ago
        verdict = self.freshness.judge(self.now, asked_at, policy)
        is_overdue = self.freshness.is_overdue(self.now, asked_at, policy)
        pending = self.freshness.is_pending
        if verdict is Verdict.FRESH:
            assert not pending
            assert self.successes or policy.max_age_seconds is None
            if policy.max_age_seconds is not None:
                assert asked_at - self.successes[-1] <= policy.max_age_seconds
        if verdict is Verdict.WAIT:
            assert self.now < asked_at + policy.hold_seconds
            assert pending or is_overdue, "who waits waits for something"
            assert not (pending and self.failed_since_announced)
            assert not pending or self.freshness.not_before < asked_at + policy.hold_seconds
        if is_overdue:
            assert not pending
            assert verdict is not Verdict.FRESH


TestStory = Story.TestCase


def test_a_reader_waits_for_what_was_announced_before_it_came_not_for_later_pushes() -> None:
    """Under steady pushes it would otherwise never be served fresh."""
    freshness = Freshness()
    freshness.confirm(began_at=1.0, covers=1)
    needs = freshness.announce(2.0)
    freshness.announce(3.0)
    assert freshness.judge(3.0, 2.5, POLICY, needs=needs) is Verdict.WAIT
    freshness.confirm(began_at=2.9, covers=needs)
    assert freshness.judge(3.1, 2.5, POLICY, needs=needs) is Verdict.FRESH
    assert freshness.judge(3.1, 3.05, POLICY) is Verdict.WAIT
