"""A worker's snapshot is the main process's, whichever way it came about."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.config import RepositorySettings
from mirror.refresh.freshness import Freshness
from mirror.refresh.mirror import LastRefresh, Mirror
from mirror.repository.snapshot import RefSnapshot
from mirror.upstream.forges import UNKNOWN, RefChange
from mirror.wire.names import ObjectId, Ref, RefName
from mirror.wire.requests import LsRefsRequest
from mirror.workers import state
from mirror.workers.frames import ChannelError
from mirror.workers.state import (
    derived,
    packed_changes,
    put_freshness,
    put_last,
    refreshed,
    unpacked_changes,
)

AGENT = b"git-mirror/test"
EVERYTHING = LsRefsRequest(peel=True, symrefs=True, unborn=True)

IDS = st.sampled_from([ObjectId(digit.encode() * 40) for digit in "0123456789abcdef"])
NAMES = st.sampled_from([RefName(b"refs/heads/%d" % number) for number in range(8)])
HEADS = st.one_of(NAMES.map(lambda name: (name, None)), IDS.map(lambda oid: (None, oid)))
REFS = st.dictionaries(NAMES, st.tuples(IDS, st.none() | IDS))


def snapshot(
    number: int,
    refs: dict[RefName, tuple[ObjectId, ObjectId | None]],
    head: tuple[RefName | None, ObjectId | None],
) -> RefSnapshot:
    return RefSnapshot(
        number,
        [Ref(name, *oids) for name, oids in refs.items()],
        head_target=head[0],
        detached_head=head[1],
        agent=AGENT,
    )


def mirror_with(shown: RefSnapshot | None) -> Mirror:
    settings = RepositorySettings(name="acme/app", upstream="https://example.org/app.git")
    mirror = Mirror(settings, Path("/nowhere"))
    mirror.snapshot = shown
    return mirror


@given(REFS, HEADS, REFS, HEADS)
def test_news_of_a_snapshot_make_the_same_snapshot(
    old: dict[RefName, tuple[ObjectId, ObjectId | None]],
    old_head: tuple[RefName | None, ObjectId | None],
    new: dict[RefName, tuple[ObjectId, ObjectId | None]],
    new_head: tuple[RefName | None, ObjectId | None],
) -> None:
    # What a tag peels to is told by its id: the two never differ alone.
    new = {name: old[name] if old.get(name, ("",))[0] == oids[0] else oids
           for name, oids in new.items()}  # fmt: skip
    before, after = snapshot(1, old, old_head), snapshot(2, new, new_head)
    news = refreshed(mirror_with(after), before).snapshot
    assert news is not None
    made = derived(before, news, agent=AGENT)
    assert (made.number, made.refs, made.head_target, made.head) == (
        after.number,
        after.refs,
        after.head_target,
        after.head,
    )
    assert made.advertisement(0) == after.advertisement(0)
    assert made.ls_refs(EVERYTHING) == after.ls_refs(EVERYTHING)


def test_the_same_snapshot_is_not_told_again() -> None:
    shown = snapshot(1, {}, (None, None))
    assert refreshed(mirror_with(shown), shown).snapshot is None
    assert refreshed(mirror_with(None), None).snapshot is None


def test_very_many_changes_are_read_from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "CHANGES_MAX", 1)
    oid = ObjectId(b"1" * 40)
    names = [RefName(b"refs/heads/a"), RefName(b"refs/heads/b")]
    before = snapshot(1, {}, (names[0], None))
    one = snapshot(2, {names[0]: (oid, None)}, (names[0], None))
    both = snapshot(2, dict.fromkeys(names, (oid, None)), (names[0], None))
    told = refreshed(mirror_with(one), before).snapshot
    assert told is not None
    assert told.base == 1
    told = refreshed(mirror_with(both), before).snapshot
    assert told is not None
    assert told.base is None
    assert told.changed == ()


def test_news_of_another_snapshot_are_refused() -> None:
    first, second = (snapshot(number, {}, (None, None)) for number in (1, 2))
    news = refreshed(mirror_with(snapshot(3, {}, (None, None))), second).snapshot
    assert news is not None
    for there in (first, None):
        with pytest.raises(ChannelError, match="not about"):
            derived(there, news, agent=AGENT)


def test_freshness_is_taken_over_but_for_what_was_announced_since() -> None:
    mirror = mirror_with(None)
    mirror.freshness.announce(1.0)
    mirror.freshness.fail(5.0, covers=1, retry_after_seconds=7.0)
    mirror.last.error = "no route"
    mirror.last.failed_at = 1000.0
    told = refreshed(mirror, None)
    freshness, last = Freshness(announced=9), LastRefresh()
    put_freshness(told.freshness, freshness)
    put_last(told.last, last)
    assert freshness.announced == 9
    freshness.announced = mirror.freshness.announced
    freshness._uncovered = mirror.freshness._uncovered
    assert freshness == mirror.freshness
    assert last == mirror.last


def test_what_a_webhook_announced_comes_through_as_it_was() -> None:
    name, oid = RefName(b"refs/heads/\xff"), ObjectId(b"1" * 40)
    changes = tuple(
        RefChange(name, before, after)
        for before in (oid, None, UNKNOWN)
        for after in (oid, None, UNKNOWN)
    )
    assert unpacked_changes(packed_changes(changes)) == changes
