"""Whether refs that an upstream no longer lists are believed to be deleted. Pure.

An upstream whose disk is not mounted, whose database was emptied or restored, or that has another
repository behind the same name, lists nothing, or little. To a GitOps controller that reads as "all
of it was deleted". So where all refs vanish at once, or many, they are kept until it is confirmed:

* it has gone on for a while, over several looks, without any of them coming back; or
* a webhook announced the deletion of these very refs; or
* an operator says so.

What else the listing says is followed meanwhile. A ref whose tip is listed under a new name was
renamed, which no trouble looks like; and one that can't be beside a listed one (`a` and `a/b`) is
gone for sure.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mirror.refresh.changes import ListedChange
from mirror.wire.names import RefName

VANISHED_MIN: Final = 10
"""Fewer at once are nothing unusual, unless none are left."""

LOOKS_MIN: Final = 3
"""A clock that jumps must not be enough."""


@dataclass(frozen=True, slots=True)
class Vanishing:
    """Refs that are kept although the upstream does not list them.

    Attributes:
        since: For each, when it was first missed; of a monotonic clock.
        noticed_at: When the first was; seconds since the epoch, for people.
        looks: How many times in a row some were missed.
    """

    since: Mapping[RefName, float]
    noticed_at: float
    looks: int = 1


@dataclass(frozen=True, slots=True)
class Listed:
    """What a listing says, compared with what is served.

    Attributes:
        changes: The refs that differ.
        known: How many refs are served.
        is_empty: Whether the listing has none of those that are mirrored.
    """

    changes: Sequence[ListedChange]
    known: int
    is_empty: bool

    def vanished(self, announced: Collection[RefName]) -> list[ListedChange]:
        """Return the deletions that nothing explains."""
        gone = [change for change in self.changes if change.new is None]
        if not gone:
            return []
        new = [change for change in self.changes if change.old is None and change.new is not None]
        moved_to = {change.new.oid for change in new if change.new is not None}
        above = {above for change in new for above in _above(change.name)}
        below = {change.name for change in new}
        return [
            change
            for change in gone
            if change.name not in announced
            and (change.old is None or change.old.oid not in moved_to)
            and change.name not in above
            and not any(name in below for name in _above(change.name))
        ]


def judge(
    listed: Listed,
    before: Vanishing | None,
    *,
    announced: Collection[RefName],
    now: float,
    wall_now: float,
    after_seconds: float,
) -> Vanishing | None:
    """Say which refs are to be kept; `None` for none: all deletions are believed.

    Args:
        listed: What the upstream lists.
        before: What this returned for the listing before.
        announced: Refs whose deletion webhooks announced.
        now: The time, of a monotonic clock.
        wall_now: The same in seconds since the epoch.
        after_seconds: How long a ref must have been missed to be believed deleted.
    """
    vanished = [change.name for change in listed.vanished(announced)]
    is_many = len(vanished) >= VANISHED_MIN and 2 * len(vanished) > listed.known
    if not vanished or not (listed.is_empty or is_many or before is not None):
        return None
    missed = before.since if before is not None else {}
    looks = before.looks + 1 if before is not None else 1
    since = {name: missed.get(name, now) for name in vanished}
    if looks >= LOOKS_MIN:
        since = {name: at for name, at in since.items() if now - at < after_seconds}
    if not since or after_seconds == 0:
        return None
    return Vanishing(since, wall_now if before is None else before.noticed_at, looks)


def _above(name: RefName) -> list[RefName]:
    """Return the names that a ref of this name leaves no room for above it."""
    parts = name.split(b"/")
    return [RefName(b"/".join(parts[:end])) for end in range(2, len(parts))]
