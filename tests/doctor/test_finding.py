import pytest

from mirror.doctor.finding import Verdict, judged, percentile, times


def test_a_percentile_is_one_of_the_samples() -> None:
    samples = [float(number) for number in range(100, 0, -1)]
    assert percentile(samples, 0.5) == 50
    assert percentile(samples, 0.99) == 99
    assert percentile([7.0], 0.99) == 7
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 0.5)


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(9.9, Verdict.OK), (10, Verdict.WARNING), (99, Verdict.WARNING), (100, Verdict.PROBLEM)],
)
def test_larger_is_worse(value: float, verdict: Verdict) -> None:
    assert judged(value, warning=10, problem=100) is verdict


def test_few_samples_have_a_longest_and_no_p99() -> None:
    words, data = times([1.0, 2.0, 30.0])
    assert words == "p50 2.00 ms, at most 30 ms of 3"
    assert data == {"p50_ms": 2.0, "p99_ms": 30.0, "count": 3}
    assert "p99 1.00 ms of 50" in times([1.0] * 50)[0]
