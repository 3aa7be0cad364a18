"""Histories as hypothesis makes them up."""

from collections.abc import Sequence
from typing import Final

from hypothesis import strategies as st

from tests.git_client import FIRST_COMMIT_AT
from tests.repository.histories import Change, File, executable, gitlink, lines, symlink

COMMITS_MAX: Final = 12

# Few paths and few contents: so that trees and files come back, elsewhere and later.
PATHS: Final = ["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "f/e/a", "f/e", "g/h/i/j/k/l/m"]
CONTENTS: Final[list[File | None]] = [
    None,
    File(b""),
    File(lines(12)),
    File(lines(12, change=3)),
    File(lines(12, change=4)),
    executable(lines(12)),
    symlink(b"a"),
    gitlink(),
]

CHAIN_COMMITS: Final = 100


@st.composite
def changes(draw: st.DrawFn, parents_max: int = 3) -> list[Change]:
    """Merges, criss-crosses, second roots; and clocks that go wrong, or stand still."""
    made: list[Change] = []
    for number in range(draw(st.integers(1, COMMITS_MAX))):
        places = st.integers(max(0, number - parents_max - 1), max(0, number - 1))
        parents = draw(st.lists(places, max_size=parents_max if number else 0, unique=True))
        # A directory may have become a file and back; what is deleted first is in nobody's way.
        paths = draw(st.lists(st.sampled_from(PATHS), max_size=3, unique=True))
        files = {path: draw(st.sampled_from(CONTENTS)) for path in sorted(paths)}
        made.append(Change(files, parents, _date(draw, number)))
    return made


def _date(draw: st.DrawFn, number: int) -> int:
    """A time that goes with the commit's place, or is far from it, or the same for many."""
    hours = draw(st.integers(-9, 9))
    minutes = draw(st.sampled_from([10, 10, 0]))
    return FIRST_COMMIT_AT + hours * 3600 + number * minutes * 60


@st.composite
def histories(draw: st.DrawFn) -> list[Change]:
    """The same with right clocks mostly, and now and then an octopus or a long chain."""
    made = draw(changes(parents_max=draw(st.sampled_from([2, 3, 6, COMMITS_MAX]))))
    if draw(st.sampled_from([True, True, False])):
        made = with_right_clocks(made, draw(st.sampled_from([0, 1, 60, 3600])))
    if draw(st.integers(0, 11)) == 0:
        made = chained(made)
    return made


def with_right_clocks(made: Sequence[Change], step_seconds: int) -> list[Change]:
    """Date each commit that long after the one before."""
    return [
        Change(change.files, change.parents, FIRST_COMMIT_AT + number * step_seconds)
        for number, change in enumerate(made)
    ]


def chained(made: Sequence[Change]) -> list[Change]:
    """Put a hundred commits, each the next one's parent, on top."""
    last = made[-1].at or FIRST_COMMIT_AT
    return [
        *made,
        *(
            Change(
                {"a": lines(12, change=number % 12)} if number % 3 else {},
                [len(made) + number - 1],
                last + number,
            )
            for number in range(CHAIN_COMMITS)
        ),
    ]
