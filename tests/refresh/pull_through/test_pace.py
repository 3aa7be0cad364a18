"""First clones begin at a bounded rate, in all and for each client."""

import pytest

from mirror.refresh.pull_through import pace
from mirror.refresh.pull_through.pace import Pace, client_of


def begun(paced: Pace, now: float, client: str | None, tries: int = 100) -> int:
    """Return how many of so many tries may begin."""
    return sum(paced.take(now, client) == 0.0 for _ in range(tries))


def test_a_minutes_worth_may_come_at_once_and_comes_back_evenly() -> None:
    paced = Pace(per_minute=1000, per_client_per_minute=6)
    assert begun(paced, 100.0, "10.0.0.1") == 6
    assert paced.take(100.0, "10.0.0.1") == pytest.approx(10.0)
    assert begun(paced, 120.0, "10.0.0.1") == 2
    assert begun(paced, 1e6, "10.0.0.1") == 6


def test_one_client_takes_nothing_from_another_but_what_there_is_in_all() -> None:
    paced = Pace(per_minute=8, per_client_per_minute=5)
    assert begun(paced, 0.0, "10.0.0.1") == 5
    assert begun(paced, 0.0, "10.0.0.2") == 3
    assert begun(paced, 0.0, "10.0.0.3") == 0


def test_who_is_refused_loses_nothing() -> None:
    paced = Pace(per_minute=1, per_client_per_minute=2)
    assert begun(paced, 0.0, "10.0.0.1") == 1
    assert begun(paced, 60.0, "10.0.0.1") == 1


def test_the_operator_is_not_bounded() -> None:
    paced = Pace(per_minute=1, per_client_per_minute=1)
    assert begun(paced, 0.0, None) == 100


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:0:0:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("local", "local", True),
    ],
)
def test_an_ipv6_client_has_many_addresses(one: str, other: str, is_same: bool) -> None:
    assert (client_of(one) == client_of(other)) is is_same


def test_the_clients_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "CLIENTS_MAX", 2)
    paced = Pace(per_minute=1000, per_client_per_minute=1)
    for client in ("10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.3"):
        paced.take(0.0, client)
    assert paced.take(0.0, "10.0.0.1") > 0
    assert paced.take(0.0, "10.0.0.2") == 0
