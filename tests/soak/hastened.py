"""The service, in whose background hours go by in seconds: `python -m tests.soak.hastened serve`.

What is done after hours and days (old tips are given up, what nothing reaches is removed) is not
configurable, and a soak is to see it. Nothing else differs from `python -m mirror`.
"""

import sys
from typing import Final

from mirror.cli import main
from mirror.refresh import healing, maintenance, update
from mirror.repository import maintenance as plans
from mirror.repository import pruning

KEPT_SECONDS: Final = 90
"""How long an old tip can be had: a day."""

PRUNE_MARGIN_SECONDS: Final = 45
"""Until it is given up: two hours; readers whose pack is under way get it."""

LOOK_SECONDS: Final = 20.0
"""From one look at all repositories to the next: ten minutes."""

PRUNE_SECONDS_MIN: Final = 30.0
"""From one prune to the next: an hour."""


_HASTENED: Final = (
    (update, "KEPT_SECONDS", KEPT_SECONDS),
    (healing, "KEPT_SECONDS", KEPT_SECONDS),
    (pruning, "PRUNE_MARGIN_SECONDS", PRUNE_MARGIN_SECONDS),
    (maintenance, "FIRST_LOOK_SECONDS", LOOK_SECONDS),
    (maintenance, "LOOK_SECONDS", LOOK_SECONDS),
    (plans, "PRUNE_SECONDS_MIN", PRUNE_SECONDS_MIN),
    (plans, "PRUNE_AGAIN_SECONDS", PRUNE_SECONDS_MIN),
)


def hasten() -> None:
    """Let time go by."""
    for module, name, seconds in _HASTENED:
        assert hasattr(module, name), name
        setattr(module, name, seconds)


if __name__ == "__main__":
    hasten()
    sys.exit(main())
