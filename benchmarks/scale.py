"""How much is measured: a look in minutes, or what goes into the documentation."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """The knobs of all rows.

    Attributes:
        wrk_seconds: Of one run of wrk; both sides take turns for `wrk_rounds`.
        times: Of one kind of single request, with both sides in turn.
        processes: Of each whole git command.
        pushes: Of the rows that deliver webhooks.
        stampedes: Pushes of the stampede, each with 750 requests.
        big_megabytes: The repository that is cloned under the polls.
        refs: How many refs the growth row serves.
        hosted: How many repositories the growth row serves.
        many_pushes: What one mirror takes before it is compared with a new one.
        many_refs: Of the repository whose idle memory is stated, and of which one ref changes.
    """

    name: str
    wrk_seconds: int
    wrk_rounds: int
    times: int
    processes: int
    pushes: int
    stampedes: int
    big_megabytes: int
    refs: tuple[int, ...]
    hosted: tuple[int, ...]
    many_refs: int
    many_pushes: int


SMALL = Scale(
    name="small",
    wrk_seconds=1,
    wrk_rounds=3,
    times=30,
    processes=7,
    pushes=8,
    stampedes=1,
    big_megabytes=60,
    refs=(1_000, 18_000),
    hosted=(10, 1_000),
    many_refs=18_000,
    many_pushes=300,
)
FULL = Scale(
    name="full",
    wrk_seconds=2,
    wrk_rounds=7,
    times=200,
    processes=40,
    pushes=40,
    stampedes=5,
    big_megabytes=300,
    refs=(1_000, 18_000, 100_000),
    hosted=(10, 1_000, 5_000),
    many_refs=100_000,
    many_pushes=10_000,
)
