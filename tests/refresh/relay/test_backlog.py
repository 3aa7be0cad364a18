from hypothesis import given
from hypothesis import strategies as st

from mirror.refresh.relay.backlog import Backlog, Change
from mirror.wire.names import ObjectId, Ref, RefName
from mirror.wire.ref_table import RefTable
from tests.refresh.relay.tables import MAIN, name, oid, table, tell, told


def tells_all(_ref: RefName, _after: ObjectId | None) -> bool:
    return True


def backlog(**tips: int) -> Backlog:
    return Backlog(table(**tips), tells_all)


def test_a_receiver_that_knows_what_is_served_is_told_nothing() -> None:
    one = backlog(main=1)
    one.publish(table(main=1), MAIN, 0.0)
    assert (len(one), one.begin(0.0, 1), one.due_at(), one.oldest) == (0, (), None, None)


def test_pushes_that_were_not_told_yet_are_one_change_from_the_last_that_was() -> None:
    one = backlog(main=1)
    one.publish(table(main=2), MAIN, 10.0)
    one.publish(table(main=3), MAIN, 20.0)
    assert one.oldest == 10.0
    assert tell(one) == [("main", 1, 3)]
    assert len(one) == 0


def test_what_is_pushed_while_the_receiver_is_being_told_is_told_next() -> None:
    one = backlog(main=1)
    one.publish(table(main=2), MAIN, 10.0)
    first = one.begin(10.0, 1)
    one.publish(table(main=3), MAIN, 20.0)
    one.acknowledge(first)
    assert one.oldest == 20.0
    assert (told(first), tell(one)) == ([("main", 1, 2)], [("main", 2, 3)])


def test_a_ref_that_is_back_before_it_was_told_is_not_told_at_all() -> None:
    one = backlog(main=1)
    one.publish(table(main=2), MAIN, 0.0)
    one.publish(table(main=1), MAIN, 0.0)
    assert tell(one) == []


def test_a_ref_that_went_back_while_it_was_being_told_is_told_again() -> None:
    one = backlog(main=1)
    one.publish(table(main=2), MAIN, 0.0)
    first = one.begin(0.0, 1)
    one.publish(table(main=1), MAIN, 0.0)
    one.acknowledge(first)
    assert tell(one) == [("main", 2, 1)]
    assert len(one) == 0


def test_it_is_told_again_even_when_it_is_not_known_whether_the_receiver_heard() -> None:
    one = backlog(main=1)
    one.publish(table(main=2), MAIN, 0.0)
    first = one.begin(0.0, 1)
    one.publish(table(main=1), MAIN, 0.0)
    one.put_off(first, lambda _: 0.0)
    assert tell(one) == [("main", 2, 1)]


def test_refs_that_come_and_go_are_told() -> None:
    one = backlog(main=1, old=2)
    one.publish(table(main=1, new=3), MAIN, 0.0)
    assert tell(one) + tell(one) == [("new", 0, 3), ("old", 2, 0)]


def test_the_default_branch_comes_first_then_branches_then_the_rest() -> None:
    one = backlog()
    one.publish(table(tags_v1=1, a=2, main=3, z=4), MAIN, 0.0)
    assert [tell(one)[0][0] for _ in range(4)] == ["main", "a", "z", "tags/v1"]


def test_several_refs_can_be_told_at_once() -> None:
    one = backlog()
    one.publish(table(a=1, b=2, c=3), None, 0.0)
    assert tell(one, count=2) == [("a", 0, 1), ("b", 0, 2)]
    assert tell(one, count=2) == [("c", 0, 3)]
    assert one.number == 2


def test_what_failed_goes_behind_what_did_not_and_waits_for_its_time() -> None:
    one = backlog(a=1, tags_v1=1)
    one.publish(table(a=2, tags_v1=2), None, 0.0)
    failed = one.begin(0.0, 1)
    one.put_off(failed, lambda count: 5.0 * count)
    assert tell(one, now=9.0) == [("tags/v1", 1, 2)]
    assert (tell(one, now=4.0), one.due_at()) == ([], 5.0)
    one.put_off(one.begin(5.0, 1), lambda count: 5.0 * count)
    assert one.due_at() == 10.0
    assert tell(one, now=10.0) == [("a", 1, 2)]


def test_a_new_change_of_what_failed_is_tried_at_once() -> None:
    one = backlog(a=1)
    one.publish(table(a=2), None, 0.0)
    one.put_off(one.begin(0.0, 1), lambda _: 100.0)
    one.publish(table(a=3), None, 0.0)
    assert tell(one) == [("a", 1, 3)]


def test_what_a_receiver_is_not_told_of_counts_as_acknowledged() -> None:
    one = Backlog(
        table(a=1, b=1), lambda ref, after: ref.startswith(b"refs/heads/") and after is not None
    )
    untold = one.publish(table(a=2, tags_v1=3), None, 0.0)
    assert untold == {name("b"): None, name("tags/v1"): oid(3)}
    assert tell(one) == [("a", 1, 2)]
    one.publish(table(a=2, b=4), None, 0.0)
    assert tell(one) == [("b", 0, 4)]


def test_a_ref_of_no_interest_any_more_is_forgotten_even_while_it_is_being_told() -> None:
    one = Backlog(table(a=1), lambda _, after: after is not None)
    one.publish(table(a=2), None, 0.0)
    begun = one.begin(0.0, 1)
    assert one.publish(table(), None, 0.0) == {name("a"): None}
    one.acknowledge(begun)
    one.put_off(begun, lambda _: 0.0)
    assert len(one) == 0


TIPS = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 3))
STEPS = st.lists(st.one_of(TIPS, st.sampled_from(["begin", "heard", "lost", "unheard"])))


@given(STEPS)
def test_in_the_end_the_receiver_knows_what_is_served_whatever_happened(
    steps: list[dict[str, int] | str],
) -> None:
    """Each ref's changes arrive in order, each from where the last one that was heard ended."""
    one = Backlog(RefTable(), tells_all)
    served = RefTable()
    knows: dict[RefName, set[ObjectId | None]] = {}
    under_way: tuple[Change, ...] = ()

    def hear(changes: tuple[Change, ...]) -> None:
        for change in changes:
            assert change.before in knows.get(change.ref, {None})
            assert change.before != change.after
            knows[change.ref] = {change.after}

    for step in steps:
        if isinstance(step, dict):
            served = table(**step)
            one.publish(served, None, 0.0)
        elif step == "begin" and not under_way:
            under_way = one.begin(0.0, 2)
        elif step == "heard" and under_way:
            hear(under_way)
            one.acknowledge(under_way)
            under_way = ()
        elif under_way and step in ("lost", "unheard"):
            for change in under_way:
                # The answer got lost, or the event itself: the mirror can't tell which.
                knows[change.ref] = knows.get(change.ref, {None}) | {change.after}
            one.put_off(under_way, lambda _: 0.0)
            under_way = ()
    if under_way:
        hear(under_way)
        one.acknowledge(under_way)
    while changes := one.begin(0.0, 2):
        hear(changes)
        one.acknowledge(changes)
    refs: dict[RefName, Ref] = dict(served)
    for ref, known in knows.items():
        tip = refs[ref].oid if ref in refs else None
        assert tip in known
    assert {ref for ref in refs if ref not in knows} == set()
