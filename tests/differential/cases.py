"""How many fetches to compare: set by an option of the test run, before the tests are read."""

from typing import Final

FIXED_COUNT: Final = 160
"""In every test run: about half a minute."""


class Cases:
    """The profile: some fixed cases, or any number of others.

    Attributes:
        count: How many fetches.
        are_fixed: Whether they are the same on each run.
    """

    count = FIXED_COUNT
    are_fixed = True

    @classmethod
    def choose(cls, count: int) -> None:
        """Compare so many, made up anew: `--hypothesis-seed` makes up the same again."""
        cls.count, cls.are_fixed = count, False
