from itertools import pairwise

import pytest

from mirror.refresh.relay.backlog import Backlog
from mirror.refresh.relay.outbox import (
    LASTING_SECONDS,
    PASSING_SECONDS,
    SIDE_BY_SIDE_MAX,
    Delivery,
    Outbox,
    Trouble,
)
from mirror.wire.ref_table import RefTable
from tests.refresh.relay.tables import table, told

DOWN = Trouble("down")
WRONG = Trouble("wrong secret", is_lasting=True)
REFUSED = Trouble("refused", is_lasting=True, is_about_event=True)


def outbox(**repositories: dict[str, int]) -> Outbox:
    """Return what a receiver is to be told that knows of none of these refs."""
    box = Outbox()
    for repository, tips in repositories.items():
        box.backlogs[repository] = Backlog(RefTable(), lambda *_: True)
        publish(box, repository, **tips)
    return box


def publish(box: Outbox, repository: str, **tips: int) -> None:
    box.backlogs[repository].publish(table(**tips), None, 0.0)
    box.changed(repository)


def begin(box: Outbox, now: float = 0.0) -> Delivery:
    delivery = box.next(now)
    assert delivery is not None
    return delivery


def test_nothing_to_tell_is_nothing_to_wait_for() -> None:
    box = outbox(a={})
    assert (box.next(0.0), box.due_at(), len(box), box.oldest) == (None, None, 0, None)


def test_a_repository_has_one_delivery_at_a_time_and_several_go_side_by_side() -> None:
    box = outbox(a={"x": 1, "y": 2}, b={"x": 3})
    first, second = begin(box), begin(box)
    assert (first.repository, second.repository) == ("a", "b")
    assert (box.next(0.0), box.due_at()) == (None, None)
    box.acknowledge(first)
    assert told(begin(box).changes) == [("y", 0, 2)]


def test_no_more_than_a_few_go_side_by_side() -> None:
    box = outbox(**{f"r{number}": {"x": 1} for number in range(SIDE_BY_SIDE_MAX + 1)})
    deliveries = [begin(box) for _ in range(SIDE_BY_SIDE_MAX)]
    assert (box.next(0.0), box.due_at()) == (None, None)
    box.acknowledge(deliveries[0])
    assert begin(box).repository == f"r{SIDE_BY_SIDE_MAX}"


def test_repositories_take_turns() -> None:
    box = outbox(a={"x": 1, "y": 1, "z": 1}, b={"x": 1, "y": 1})
    order = []
    while delivery := box.next(0.0):
        order.append(delivery.repository)
        box.acknowledge(delivery)
    assert order == ["a", "b", "a", "b", "a"]


def test_the_number_of_a_delivery_counts_those_of_the_repository_that_were_acknowledged() -> None:
    box = outbox(a={"x": 1, "y": 1})
    first = begin(box)
    box.fail(first, DOWN, 0.0, 0.0)
    again = begin(box, 100.0)
    box.acknowledge(again)
    assert (first.number, again.number, begin(box, 100.0).number) == (0, 0, 1)


@pytest.mark.parametrize(("trouble", "bounds"), [(DOWN, PASSING_SECONDS), (WRONG, LASTING_SECONDS)])
def test_a_receiver_that_is_not_well_gets_longer_pauses_up_to_a_limit(
    trouble: Trouble, bounds: tuple[float, float]
) -> None:
    box = outbox(a={"x": 1})
    pauses, now = [], 0.0
    for _ in range(12):
        again = box.fail(begin(box, now), trouble, now, 0.0)
        assert box.due_at() == again
        assert box.next(again - 0.001) is None
        pauses.append(again - now)
        now = again
    assert (pauses[0], pauses[-1]) == bounds
    assert all(one <= other <= 2 * one for one, other in pairwise(pauses))


def test_chance_shortens_a_pause_by_up_to_half() -> None:
    box = outbox(a={"x": 1})
    assert box.fail(begin(box), DOWN, 0.0, 0.999) == pytest.approx(0.5, abs=0.01)


def test_a_pause_is_at_least_what_retry_after_says() -> None:
    box = outbox(a={"x": 1})
    asked = Trouble("slow down", retry_after_seconds=17.0)
    assert box.fail(begin(box), asked, 100.0, 0.9) == 117.0
    assert box.next(116.9) is None


def test_a_receiver_that_is_not_well_is_tried_with_one_delivery_at_a_time() -> None:
    box = outbox(a={"x": 1}, b={"x": 1}, c={"x": 1})
    box.fail(begin(box), DOWN, 0.0, 0.0)
    assert begin(box, 1.0).repository == "b"
    assert (box.next(1.0), box.due_at()) == (None, None)


def test_what_a_receiver_chokes_on_holds_up_nothing_else() -> None:
    box = outbox(a={"poison": 1, "x": 2})
    box.fail(begin(box), DOWN, 0.0, 0.0)
    healthy = begin(box, 1.0)
    assert told(healthy.changes) == [("x", 0, 2)]
    box.acknowledge(healthy)
    assert told(begin(box, 1.0).changes) == [("poison", 0, 1)]


def test_an_event_that_is_refused_is_put_off_and_the_others_go_on_at_once() -> None:
    box = outbox(a={"poison": 1, "x": 2})
    again = box.fail(begin(box), REFUSED, 0.0, 0.0)
    assert (again, box.failures) == (0.0, 0)
    box.acknowledge(begin(box))
    assert (box.next(0.0), box.due_at()) == (None, LASTING_SECONDS[0])
    publish(box, "a", poison=1, x=3)
    assert told(begin(box).changes) == [("x", 2, 3)]


def test_an_acknowledgement_ends_the_pauses() -> None:
    box = outbox(a={"x": 1, "y": 1})
    for _ in range(5):
        box.fail(begin(box, box.not_before), DOWN, box.not_before, 0.0)
    box.acknowledge(begin(box, box.not_before))
    assert (box.failures, box.not_before) == (0, 0.0)


def test_what_nobody_knows_the_end_of_is_told_once_more() -> None:
    """As when the service stops to tell in the middle of it, and then goes on."""
    box = outbox(a={"x": 1})
    delivery = begin(box)
    assert box.next(0.0) is None
    box.give_up(delivery, 1.0)
    assert told(begin(box, 1.0).changes) == [("x", 0, 1)]
