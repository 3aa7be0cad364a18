"""Percentiles, ratios and verdicts."""

import math

import pytest

from benchmarks.figures import Kind, Measurement, Side, Target, percentile


def measured(
    target: Target | None, ours: Side, theirs: Side | None = None, judged: str = "p50"
) -> Measurement:
    return Measurement(
        1, "a poll", ours, "nginx", theirs or Side(), judged=judged, unit="MB", target=target
    )


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 50), (99, 99), (100, 100), (0, 1), (0.5, 1), (99.5, 100)]
)
def test_a_percentile_is_a_value_that_was_measured(percent: float, expected: int) -> None:
    assert percentile(reversed(range(1, 101)), percent) == expected


def test_the_99th_of_a_few_values_is_the_largest() -> None:
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0
    assert percentile([7.0], 50) == 7.0


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_one_noisy_round_does_not_count() -> None:
    rounds = [Side(p50=1.0, p99=2.0, rate=900), Side(p50=9.0, p99=90.0, rate=100)]
    rounds.append(Side(p50=1.2, p99=2.5, rate=880))
    assert Side.of_rounds(rounds) == Side(p50=1.2, p99=2.5, rate=880)


def test_times_are_compared_as_ours_through_theirs() -> None:
    short = measured(Target(Kind.TIME_AT_MOST, 1.2), Side(p50=3.6), Side(p50=1.0))
    assert short.ratio == pytest.approx(3.6)
    assert short.verdict is not None
    assert not short.verdict.is_met
    assert short.verdict.short_by == pytest.approx(3.0)


def test_a_time_exactly_at_its_limit_is_met() -> None:
    met = measured(Target(Kind.TIME_AT_MOST, 1.5), Side(p50=3.0), Side(p50=2.0)).verdict
    assert met is not None
    assert met.is_met


def test_milliseconds_on_top_of_a_factor_are_allowed() -> None:
    target = Target(Kind.TIME_AT_MOST, 1.0, plus_ms=3.0)
    inside = measured(target, Side(p50=7.9), Side(p50=5.0)).verdict
    outside = measured(target, Side(p50=16.0), Side(p50=5.0)).verdict
    assert inside is not None
    assert inside.is_met
    assert outside is not None
    assert outside.short_by == pytest.approx(2.0)


def test_times_faster_are_theirs_through_ours() -> None:
    target = Target(Kind.FASTER_AT_LEAST, 40)
    faster = measured(target, Side(p50=0.1), Side(p50=5.0))
    slower = measured(target, Side(p50=0.5), Side(p50=5.0))
    assert faster.ratio == pytest.approx(50)
    assert faster.verdict is not None
    assert faster.verdict.is_met
    assert slower.verdict is not None
    assert slower.verdict.short_by == pytest.approx(4.0)


def test_of_rates_more_is_better() -> None:
    target = Target(Kind.RATE_AT_LEAST, 1.0)
    good = measured(target, Side(rate=110), Side(rate=100), "rate")
    bad = measured(target, Side(rate=25), Side(rate=100), "rate")
    assert good.verdict is not None
    assert good.verdict.is_met
    assert bad.ratio == pytest.approx(0.25)
    assert bad.verdict is not None
    assert bad.verdict.short_by == pytest.approx(4.0)


def test_an_amount_is_compared_with_its_limit_alone() -> None:
    target = Target(Kind.AMOUNT_AT_MOST, 64)
    inside = measured(target, Side(amount=0.0), judged="amount")
    outside = measured(target, Side(amount=128.0), judged="amount")
    assert inside.ratio is None
    assert inside.verdict is not None
    assert inside.verdict.is_met
    assert outside.verdict is not None
    assert outside.verdict.short_by == pytest.approx(2.0)


def test_the_99th_percentile_may_have_a_limit_in_milliseconds_beside_a_peer() -> None:
    found = measured(
        Target(Kind.AMOUNT_AT_MOST, 9), Side(p50=1, p99=18), Side(p50=80, p99=180), "p99"
    )
    assert found.ratio == pytest.approx(0.1)
    assert found.verdict is not None
    assert found.verdict.short_by == pytest.approx(2.0)


def test_no_rate_at_all_is_infinitely_short() -> None:
    found = measured(Target(Kind.RATE_AT_LEAST, 1.0), Side(rate=0.0), Side(rate=5.0), "rate")
    assert found.verdict is not None
    assert found.verdict.short_by == math.inf


def test_a_target_for_what_was_not_measured_is_a_mistake() -> None:
    found = measured(Target(Kind.TIME_AT_MOST, 1.0), Side(p50=1.0))
    with pytest.raises(ValueError, match="no p50 of nginx"):
        _ = found.verdict


def test_a_figure_for_the_record_has_no_verdict() -> None:
    assert measured(None, Side(p50=1.0), Side(p50=2.0)).verdict is None
