"""Which bundles are made, of which refs, on top of what."""

from hypothesis import given
from hypothesis import strategies as st

from mirror.refresh.bundle_plan import (
    INCREMENTS_MAX,
    PREREQUISITES_MAX,
    BundlePlan,
    Step,
    plan_bundles,
)
from mirror.wire.bundles import Bundle, bundle_name
from mirror.wire.names import ObjectId, RefName
from tests.wire.bodies import oid

MAIN = RefName(b"refs/heads/main")
DEV = RefName(b"refs/heads/dev")
V1 = RefName(b"refs/tags/v1")
TOKEN = 1000


def bundles(count: int) -> tuple[Bundle, ...]:
    return tuple(Bundle(bundle_name(at, "a" * 64), at, 10) for at in range(1, count + 1))


def plan(
    offered: int,
    tips: dict[RefName, ObjectId],
    refs: dict[RefName, ObjectId],
    *,
    lost: tuple[ObjectId, ...] = (),
) -> BundlePlan:
    return plan_bundles(
        bundles(offered),
        tips,
        refs,
        token=TOKEN,
        is_reachable=lambda _, old: old not in lost,
    )


def test_the_first_bundle_has_everything() -> None:
    refs = {MAIN: oid(1), V1: oid(2)}
    assert plan(0, {}, refs) == BundlePlan((), (Step(refs, (), TOKEN),))


def test_without_refs_nothing_is_made_and_what_there_was_is_not_offered_any_more() -> None:
    assert plan(0, {}, {}) == BundlePlan((), ())
    assert plan(2, {MAIN: oid(1)}, {}) == BundlePlan((), (), is_urgent=True)


def test_nothing_new_leaves_all_as_it_is() -> None:
    assert plan(2, {MAIN: oid(1)}, {MAIN: oid(1)}) == BundlePlan(bundles(2), ())


def test_what_is_new_comes_on_top_of_the_branches_before() -> None:
    tips = {MAIN: oid(1), DEV: oid(2), V1: oid(3)}
    refs = {MAIN: oid(4), DEV: oid(2), V1: oid(3)}
    step = Step({MAIN: oid(4)}, (oid(1), oid(2)), TOKEN)
    assert plan(1, tips, refs) == BundlePlan(bundles(1), (step,))


def test_a_branch_that_was_merged_and_deleted_needs_nothing_new() -> None:
    tips = {MAIN: oid(1), DEV: oid(2)}
    assert plan(1, tips, {MAIN: oid(1)}) == BundlePlan(bundles(1), ())


def test_history_that_was_taken_back_is_offered_no_longer() -> None:
    tips, refs = {MAIN: oid(1), DEV: oid(2)}, {MAIN: oid(1)}
    expected = BundlePlan((), (Step(refs, (), TOKEN),), is_urgent=True)
    assert plan(3, tips, refs, lost=(oid(2),)) == expected
    assert plan(3, {MAIN: oid(5)}, refs, lost=(oid(5),)) == expected


def test_many_increments_become_one_base_that_clients_which_have_them_do_not_take_again() -> None:
    tips, refs = {MAIN: oid(1), DEV: oid(2)}, {MAIN: oid(3)}
    found = plan(INCREMENTS_MAX, tips, refs)
    assert found.keeps == bundles(INCREMENTS_MAX)
    found = plan(INCREMENTS_MAX + 1, tips, refs)
    last = bundles(INCREMENTS_MAX + 1)[-1]
    assert found == BundlePlan(
        (), (Step({MAIN: oid(1)}, (), last.token), Step({MAIN: oid(3)}, (oid(1),), TOKEN))
    )


def test_tags_alone_are_nothing_to_build_on() -> None:
    """Older clients look for what they must have below branches."""
    refs = {V1: oid(1), MAIN: oid(2)}
    assert plan(1, {V1: oid(1)}, refs) == BundlePlan((), (Step(refs, (), TOKEN),))


def test_of_very_many_branches_those_that_changed_are_built_on_first() -> None:
    names = [RefName(b"refs/heads/%06d" % number) for number in range(PREREQUISITES_MAX + 5)]
    tips = {name: oid(at) for at, name in enumerate(names, 1)}
    refs = {**tips, names[-1]: oid(99_999)}
    (step,) = plan(1, tips, refs).steps
    assert len(step.prerequisites) == PREREQUISITES_MAX
    assert step.prerequisites[0] == tips[names[-1]]


_names = st.sampled_from([MAIN, DEV, V1])
_refs = st.dictionaries(_names, st.integers(1, 5).map(oid))


@given(st.integers(0, INCREMENTS_MAX + 2), _refs, _refs, st.sets(st.integers(1, 5).map(oid)))
def test_whatever_happened_a_client_that_takes_all_has_what_the_mirror_has(
    offered: int, tips: dict[RefName, ObjectId], refs: dict[RefName, ObjectId], lost: set[ObjectId]
) -> None:
    if not offered:
        tips = {}
    found = plan(offered, tips, refs, lost=tuple(lost))
    had = dict(tips) if found.keeps else {}
    tokens = [bundle.token for bundle in found.keeps]
    for step in found.steps:
        assert set(step.prerequisites) <= set(had.values())
        had |= step.refs
        tokens.append(step.token)
    assert {name: oid for name, oid in had.items() if name in refs} == refs
    assert tokens == sorted(set(tokens))
    if found.keeps:
        assert not set(tips.values()) & (lost - set(refs.values()))
