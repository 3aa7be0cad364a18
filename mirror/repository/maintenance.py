"""What a repository needs to stay small and quick. Pure: facts and time are passed in.

* Pushes leave a pack each, and each look-up asks all of them: with many packs, some are merged, so
  that their sizes grow geometrically. Nothing is dropped by that.
* A big first clone gets an index of its commits and bitmaps at once.
* Before so much has come that the largest pack would be merged, the whole repository is written
  anew: what refs reach in one pack, which whoever clones is sent as it is; what kept tips alone
  reach in another.
* What no ref and no kept tip reaches is counted when a kept tip's time is over, and removed when it
  is worth it: the whole repository is written anew for that.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

PACKS_MAX: Final = 24
"""With more packs in a repository each look-up gets dearer: time to merge some. Where that did not
help, it is tried again only with twice as many."""

PACK_GROWTH: Final = 2
"""After a merge each pack is so many times as large as all smaller ones: docs/decisions/0008."""

INDEXED_BYTES_MIN: Final = 4 << 20
"""A pack of that size has so many commits that an index of them pays at once, not at the first
merge only; the engine makes it, after the first clone was published."""

REWRITTEN_SHARE: Final = 0.2
"""With so much of a repository outside its largest pack, it is written anew, in place of the merge
that would take in that pack at a third: the cost for each new object is bounded by that."""

REWRITTEN_BYTES_MIN: Final = 1 << 20
"""A clone of less takes a few milliseconds either way."""

PRUNED_SHARE: Final = 0.1
"""So much of a repository has to be unreachable for it to be written anew soon."""

PRUNED_AT_ONCE_BYTES_MAX: Final = 64 << 20
"""A repository up to here is written anew in a second or two: whenever anything is unreachable."""

UNREACHABLE_SECONDS_MAX: Final = 7 * 86_400.0
"""However little it is, it goes after that long: it may have been taken back for a reason."""

PRUNE_SECONDS_MIN: Final = 3600.0
"""From one time that a repository is written anew to the next."""

PRUNE_AGAIN_SECONDS: Final = 6 * 3600.0
"""The same after a failure: it may be that it can't be done here at all."""


class Work(enum.StrEnum):
    """What is done to a repository, the least first."""

    INDEX = "index"
    MERGE = "merge"
    REWRITE = "rewrite"
    PRUNE = "prune"


@dataclass(frozen=True, slots=True)
class Unreachable:
    """What was found to be reached by nothing any longer.

    Attributes:
        size: Bytes on disk, as far as they were counted.
        since: When the first of it was found; seconds since the epoch.
    """

    size: int
    since: float


@dataclass(frozen=True, slots=True)
class Facts:
    """A repository as it is.

    Attributes:
        packs: How many.
        size: Their bytes, and those of their indexes.
        is_indexed: Whether there is an index of its commits.
        unreachable: `None` where everything is reached.
        largest: The bytes of the largest pack, without its index.
        beside: Those of all other packs; 0 where it makes no difference to readers.
    """

    packs: int
    size: int
    is_indexed: bool
    unreachable: Unreachable | None = None
    largest: int = 0
    beside: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """What was done to a repository before, in this process.

    Attributes:
        merge_at: It is merged when it has so many packs.
        prune_at: It is not written anew before that; of a monotonic clock.
        is_looked_at: Whether it has been looked at once: only a first look makes an index.
        rewrite_at: It is not written anew for speed before that; of a monotonic clock.
        beside: What was outside its largest pack just after it was written anew: what kept tips
            alone reach.
    """

    merge_at: int = PACKS_MAX + 1
    prune_at: float = float("-inf")
    is_looked_at: bool = False
    rewrite_at: float = float("-inf")
    beside: int = 0

    def after(
        self, work: Work | None, packs: int, *, is_done: bool, now: float, beside: int = 0
    ) -> Self:
        """Return the record after a look.

        Args:
            work: What was tried; `None` for nothing.
            packs: How many there are now.
            beside: What is outside the largest of them now.
            is_done: Whether it went well.
            now: Of the monotonic clock.
        """
        record = replace(self, is_looked_at=True)
        if work is None:
            return record
        record = replace(record, merge_at=max(PACKS_MAX + 1, 2 * packs))
        if work not in (Work.REWRITE, Work.PRUNE):
            return record
        if is_done:
            return replace(record, prune_at=now + PRUNE_SECONDS_MIN, beside=beside)
        again_at = now + PRUNE_AGAIN_SECONDS
        return replace(record, prune_at=again_at, rewrite_at=again_at)


def plan(facts: Facts, record: Record, *, now: float, wall_now: float) -> Work | None:
    """Say what a repository needs most; each work does those before it as well.

    Args:
        facts: How it is.
        record: What was done before.
        now: Of the monotonic clock.
        wall_now: Seconds since the epoch.
    """
    if now >= record.prune_at and _is_worth_pruning(facts, wall_now):
        return Work.PRUNE
    if facts.packs >= record.merge_at:
        is_worth_more = now >= record.rewrite_at and _is_worth_rewriting(facts, record)
        return Work.REWRITE if is_worth_more else Work.MERGE
    is_new = not record.is_looked_at and facts.packs == 1 and not facts.is_indexed
    return Work.INDEX if is_new and facts.size >= INDEXED_BYTES_MIN else None


def _is_worth_pruning(facts: Facts, wall_now: float) -> bool:
    unreachable = facts.unreachable
    if unreachable is None or facts.packs == 0:
        return False
    return (
        facts.size <= PRUNED_AT_ONCE_BYTES_MAX
        or unreachable.size >= facts.size * PRUNED_SHARE
        or wall_now - unreachable.since >= UNREACHABLE_SECONDS_MAX
    )


def _is_worth_rewriting(facts: Facts, record: Record) -> bool:
    packed = facts.largest + facts.beside
    new = facts.beside - record.beside
    return packed >= REWRITTEN_BYTES_MIN and new >= packed * REWRITTEN_SHARE


def count_to_merge(objects: Sequence[int], *, objects_max: int) -> int:
    """Say how many of the smallest packs are to become one, as git's geometric repack does.

    Args:
        objects: How many each pack has, the smallest first.
        objects_max: No more are written; so that the smallest are merged all the same.

    Returns:
        The number of packs, at least 2; or 0 where nothing is to be done.
    """
    count = 0
    for position in range(len(objects) - 1, 0, -1):
        if objects[position] < PACK_GROWTH * objects[position - 1]:
            count = position + 1
            break
    while count and count < len(objects) and objects[count] < PACK_GROWTH * sum(objects[:count]):
        count += 1
    while count and sum(objects[:count]) > objects_max:
        count -= 1
    return count if count >= 2 else 0
