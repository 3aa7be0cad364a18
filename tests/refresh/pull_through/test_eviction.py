"""Which mirrors have to go."""

from collections.abc import Iterable

import pytest

from mirror.refresh.pull_through.eviction import Kept, Reason, choose

NOW = 100_000.0
MUCH = 1 << 60


def kept(name: str, read_seconds_ago: float, *, size: int = 10, **more: bool) -> Kept:
    return Kept(name, NOW - read_seconds_ago, size, 50_000.0, **more)


def chosen(
    mirrors: Iterable[Kept], *, count_max: int = 100, bytes_max: int = MUCH
) -> dict[str, Reason]:
    return choose(mirrors, NOW, count_max=count_max, bytes_max=bytes_max)


def test_what_nobody_has_read_for_long_goes() -> None:
    mirrors = [kept("a", 49_999), kept("b", 50_001)]
    assert chosen(mirrors) == {"b": Reason.UNUSED}
    assert chosen([Kept("c", 0.0, 10, None)]) == {}


def test_what_is_gone_upstream_goes_however_much_it_is_read() -> None:
    assert chosen([kept("a", 0, is_gone=True)]) == {"a": Reason.GONE}


def test_the_limits_take_what_was_read_least_recently() -> None:
    mirrors = [kept("a", 300), kept("b", 500), kept("c", 400), kept("d", 100)]
    assert list(chosen(mirrors, bytes_max=25)) == ["b", "c"]
    assert chosen(mirrors, count_max=3) == {"b": Reason.COUNT}
    assert chosen(mirrors, count_max=3, bytes_max=25) == {"b": Reason.COUNT, "c": Reason.SIZE}
    assert chosen(mirrors, bytes_max=40) == {}


def test_what_goes_anyway_counts_no_more() -> None:
    mirrors = [kept("old", 60_000), kept("a", 300), kept("b", 200)]
    assert chosen(mirrors, bytes_max=20) == {"old": Reason.UNUSED}


@pytest.mark.parametrize("limits", [{"bytes_max": 0}, {"count_max": 0}])
def test_the_limits_take_nothing_that_was_read_within_a_minute(limits: dict[str, int]) -> None:
    assert list(chosen([kept("a", 61), kept("b", 59)], **limits)) == ["a"]


def test_nothing_takes_what_is_in_use() -> None:
    mirrors = [kept("a", 99_999, is_busy=True), kept("b", 1, is_busy=True, is_gone=True)]
    assert chosen(mirrors, count_max=0, bytes_max=0) == {}
