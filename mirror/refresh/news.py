"""What is new in an upstream's listing, and which of our tips to tell it of.

Of many refs this is work for a thread. No IO but to look up whether tips are here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from mirror.refresh.changes import ListedChange, find_changes
from mirror.refresh.mirror import Mirror
from mirror.refresh.patterns import patterns_of
from mirror.repository.bare import BareRepository
from mirror.repository.snapshot import RefSnapshot
from mirror.wire.client import Listing
from mirror.wire.names import ObjectId, RefName
from mirror.wire.ref_table import RefTable

HAVES_MAX: Final = 256
"""The tips we tell the upstream of; those of the refs that change come first."""


REFS_LOOKED_AT_MAX: Final = 5_000
"""For tips to tell of: a millisecond on the event loop."""


@dataclass(frozen=True, slots=True)
class News:
    """How what an upstream lists differs from what readers see.

    Attributes:
        changes: The refs that differ.
        head_target: The branch that HEAD names; `None` when it is detached.
        detached: What a detached HEAD is.
        missing: Tips that are not here.
        is_any: Whether anything differs, HEAD included.
    """

    changes: list[ListedChange]
    head_target: RefName | None
    detached: ObjectId | None
    missing: list[ObjectId]
    is_any: bool

    @property
    def changed(self) -> list[RefName]:
        """The names of the refs that differ."""
        return [change.name for change in self.changes]

    def moved_from(self) -> ObjectId | None:
        """Return from where refs move to the one missing tip, when that is one place."""
        places = {
            change.old.oid
            for change in self.changes
            if change.old and change.new and change.new.oid in self.missing
        }
        return places.pop() if len(self.missing) == len(places) == 1 else None


def compare(mirror: Mirror, repository: BareRepository, listing: Listing) -> News:
    """Compare what the upstream lists with what readers see; blocking."""
    before = mirror.snapshot
    known = before.by_name if before is not None else RefTable()
    is_mirrored = patterns_of(mirror.settings.refs).matches
    changes = find_changes(known, listing.refs, is_mirrored)
    if mirror.shown is None:
        # The first look since the patterns were others: what these leave out is no news upstream.
        told = {change.name for change in changes}
        left_out = (ref for ref in known.values() if not is_mirrored(ref.name))
        changes += [ListedChange(one.name, one, None) for one in left_out if one.name not in told]
    detached = listing.head if listing.head_target is None else None
    is_head_moved = before is not None and (
        before.head_target != listing.head_target
        or (listing.head_target is None and before.head != detached)
    )
    tips = {change.new.oid for change in changes if change.new is not None}
    tips.update([detached] if detached else [])
    missing = [tip for tip in sorted(tips) if not repository.source.contains(tip)]
    return News(changes, listing.head_target, detached, missing, bool(changes) or is_head_moved)


def choose_haves(before: RefSnapshot, changed: Iterable[RefName]) -> list[ObjectId]:
    """Choose the tips that say most: those of refs that change now, HEAD, and others by name."""
    names = chain(changed, [before.head_target] if before.head_target else [])
    first = (ref for name in names if (ref := before.by_name.get(name)) is not None)
    chosen: dict[ObjectId, None] = {}
    for ref in chain(first, islice(before.refs, REFS_LOOKED_AT_MAX)):
        chosen[ref.oid] = None
        if len(chosen) == HAVES_MAX:
            break
    return list(chosen)
