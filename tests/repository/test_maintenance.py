"""What a repository needs, from facts alone."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.repository.maintenance import (
    PACK_GROWTH,
    PACKS_MAX,
    PRUNE_AGAIN_SECONDS,
    PRUNE_SECONDS_MIN,
    UNREACHABLE_SECONDS_MAX,
    Facts,
    Record,
    Unreachable,
    Work,
    count_to_merge,
    plan,
)

GIB = 1 << 30
KNOWN = Record(is_looked_at=True)


def facts(
    packs: int = 3,
    size: int = GIB,
    *,
    is_indexed: bool = True,
    lost: int = 0,
    beside: int = 0,
) -> Facts:
    """Return the facts of a repository, with so many unreachable bytes since time 0."""
    unreachable = Unreachable(lost, 0.0) if lost else None
    return Facts(packs, size, is_indexed, unreachable, size - beside, beside)


@pytest.mark.parametrize(
    ("found", "record", "wall_now", "work"),
    [
        (facts(), KNOWN, 1e9, None),
        (facts(PACKS_MAX), KNOWN, 0.0, None),
        (facts(PACKS_MAX + 1), KNOWN, 0.0, Work.MERGE),
        (facts(40), Record(merge_at=41), 0.0, None),
        (facts(1, is_indexed=False), Record(), 0.0, Work.INDEX),
        (facts(1, is_indexed=False), KNOWN, 0.0, None),
        (facts(2, is_indexed=False), Record(), 0.0, None),
        (facts(1, size=1 << 20, is_indexed=False), Record(), 0.0, None),
        (facts(lost=GIB // 11), KNOWN, UNREACHABLE_SECONDS_MAX - 1, None),
        (facts(lost=1), KNOWN, UNREACHABLE_SECONDS_MAX, Work.PRUNE),
        (facts(lost=GIB // 9), KNOWN, 0.0, Work.PRUNE),
        (facts(99, lost=GIB // 9), KNOWN, 0.0, Work.PRUNE),
        (facts(99, lost=GIB // 9), Record(prune_at=101.0), 0.0, Work.MERGE),
        (facts(size=1 << 20, lost=1), KNOWN, 0.0, Work.PRUNE),
        (facts(0, 0, lost=1), KNOWN, 0.0, None),
        (facts(99, beside=GIB // 4), KNOWN, 0.0, Work.REWRITE),
        (facts(99, beside=GIB // 6), KNOWN, 0.0, Work.MERGE),
        (facts(9, beside=GIB // 4), KNOWN, 0.0, None),
        (facts(99, beside=GIB // 4), Record(beside=GIB // 16), 0.0, Work.MERGE),
        (facts(99, beside=GIB // 3), Record(beside=GIB // 16), 0.0, Work.REWRITE),
        (facts(99, beside=GIB // 4), Record(rewrite_at=101.0), 0.0, Work.MERGE),
        (facts(99, size=1 << 18, beside=1 << 17), KNOWN, 0.0, Work.MERGE),
        (facts(99, lost=GIB // 9, beside=GIB // 4), KNOWN, 0.0, Work.PRUNE),
    ],
)
def test_what_is_done(found: Facts, record: Record, wall_now: float, work: Work | None) -> None:
    assert plan(found, record, now=100.0, wall_now=wall_now) is work


def test_what_was_done_is_not_done_again_soon() -> None:
    merged = Record().after(Work.MERGE, 30, is_done=False, now=5.0)
    assert merged == Record(merge_at=60, is_looked_at=True)
    assert merged.after(None, 9, is_done=True, now=5.0) == merged
    pruned = Record().after(Work.PRUNE, 1, is_done=True, now=5.0)
    assert pruned == Record(PACKS_MAX + 1, 5.0 + PRUNE_SECONDS_MIN, is_looked_at=True)
    rewritten = merged.after(Work.REWRITE, 2, is_done=True, now=5.0, beside=77)
    assert rewritten == Record(
        PACKS_MAX + 1, 5.0 + PRUNE_SECONDS_MIN, is_looked_at=True, beside=77
    ), "how much it has to grow before the next says enough"
    failed = rewritten.after(Work.REWRITE, 30, is_done=False, now=9.0)
    again_at = 9.0 + PRUNE_AGAIN_SECONDS
    assert failed == Record(60, again_at, is_looked_at=True, rewrite_at=again_at, beside=77)
    failed = Record().after(Work.PRUNE, 1, is_done=False, now=5.0)
    assert failed.prune_at == 5.0 + PRUNE_AGAIN_SECONDS


@given(st.lists(st.integers(1, 1000)).map(sorted))
def test_after_a_merge_each_pack_is_twice_as_large_as_all_before_it(objects: list[int]) -> None:
    count = count_to_merge(objects, objects_max=10**9)
    left = ([sum(objects[:count])] if count else []) + objects[count:]
    assert count != 1
    assert all(a * PACK_GROWTH <= b for a, b in pairwise(left))


@given(st.lists(st.integers(1, 1000)).map(sorted), st.integers(1, 3000))
def test_never_more_is_merged_than_allowed(objects: list[int], objects_max: int) -> None:
    count = count_to_merge(objects, objects_max=objects_max)
    assert sum(objects[:count]) <= objects_max
    whole = count_to_merge(objects, objects_max=10**9)
    fitting = sum(total <= objects_max for total in accumulate(objects[:whole]))
    assert count == (fitting if fitting >= 2 else 0)


def test_packs_of_a_thousand_pushes_are_few() -> None:
    """As they come: one small pack each, merged when there are more than `PACKS_MAX`."""
    packs, written = [5000], 0
    for _ in range(10_000):
        packs = sorted([*packs, 3])
        if len(packs) > PACKS_MAX:
            count = count_to_merge(packs, objects_max=10**9)
            written += sum(packs[:count])
            packs = sorted([sum(packs[:count]), *packs[count:]])
    assert len(packs) <= PACKS_MAX
    assert written < 10 * sum(packs)
