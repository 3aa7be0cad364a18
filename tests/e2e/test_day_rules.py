"""The rules of the deployment day find each kind of mistake."""

from collections.abc import Callable

import pytest

from tests.e2e.day.rules import Record, Sighting, Told
from tests.mirror_service import ZERO_ID

MAIN, TAG = "refs/heads/main", "refs/tags/v1"
RECEIVERS = ("argocd",)


def good_day() -> Record:
    """Main goes from `a` over `b` to `c`, with a tag at the end; a kill after `b` was told."""
    record = Record()
    for oid in ("a", "b", "c"):
        record.history.record(MAIN, oid)
    record.history.record(TAG, "t")
    record.baseline = {MAIN: 1}
    for refs, floors, is_stale in (
        ({MAIN: "a", TAG: ZERO_ID}, {}, False),
        ({MAIN: "a", TAG: ZERO_ID}, {MAIN: 2}, True),
        ({MAIN: "b", TAG: ZERO_ID}, {MAIN: 2}, False),
        ({MAIN: "c", TAG: "t"}, {MAIN: 2}, False),
    ):
        lengths = record.history.lengths()
        record.sightings.append(Sighting("poll", refs, floors, lengths, is_stale))
    record.told += [
        Told("argocd", MAIN, "a", "b", listed="b"),
        Told("argocd", MAIN, "a", "c", after_kills=1, listed="c"),
        Told("argocd", TAG, ZERO_ID, "t", after_kills=1, is_taken=False, listed="t"),
        Told("argocd", TAG, ZERO_ID, "t", after_kills=1, listed="t"),
    ]
    return record


def see(refs: dict[str, str], **floors: int) -> Callable[[Record], None]:
    """Add an answer at the end."""

    def change(record: Record) -> None:
        lengths = record.history.lengths()
        record.sightings.append(Sighting("poll", refs, {MAIN: floors.get("main", 0)}, lengths))

    return change


def hear(told: Told) -> Callable[[Record], None]:
    return lambda record: record.told.append(told)


def test_a_good_day_has_no_mistakes() -> None:
    assert good_day().mistakes(RECEIVERS) == []
    assert good_day().is_told(RECEIVERS)


def push_more(record: Record) -> None:
    record.history.record(MAIN, "d")


def forget_an_event(record: Record) -> None:
    del record.told[1]


def lose_a_kill(record: Record) -> None:
    record.told[1].after_kills = 0


def skip_a_step(record: Record) -> None:
    record.told[1].before = "b"
    del record.told[0]


def delete_the_tag_early(record: Record) -> None:
    lengths = record.history.lengths()
    record.history.record(TAG, ZERO_ID)
    record.sightings.append(Sighting("poll", {TAG: ZERO_ID}, {}, lengths))
    record.told.append(Told("argocd", TAG, "t", ZERO_ID, listed=ZERO_ID))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (see({MAIN: "b"}), "went back to number 2 from 3"),
        (see({MAIN: "x"}), "went back to x (unknown)"),
        (see({TAG: ZERO_ID}), "went back to number 0 from 1"),
        (delete_the_tag_early, "refs/tags/v1 went back to number 0"),
        (
            lambda record: record.sightings.pop(2) and see({MAIN: "c"}, main=4)(record),
            "not marked as stale",
        ),
        (hear(Told("argocd", MAIN, "c", "c", listed="c")), "does not follow"),
        (hear(Told("argocd", MAIN, "a", "c", after_kills=1, listed="c")), "does not follow"),
        (lose_a_kill, "does not follow"),
        (skip_a_step, "does not follow"),
        (forget_an_event, "was never told of refs/heads/main after 2: it is 3"),
        (push_more, "was never told of refs/heads/main after 3: it is 4"),
        (hear(Told("other", MAIN, "a", "c", listed="b")), "the mirror listed number 2"),
        (hear(Told("other", MAIN, "a", "c", listed=None)), "the mirror listed"),
        (hear(Told("other", MAIN, "a", "c", trouble="not our ref")), "not our ref"),
        (lambda record: record.failures.append("flux failed"), "flux failed"),
    ],
)
def test_each_kind_of_mistake_is_found(change: Callable[[Record], object], words: str) -> None:
    record = good_day()
    change(record)
    found = record.mistakes(RECEIVERS)
    assert len(found) == 1
    assert words in found[0]
