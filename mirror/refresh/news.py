"""What is new in an upstream's listing, and which of our tips to tell it of.

Of many refs this is work for a thread. No IO but to look up whether tips are here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from mirror.refresh.mirror import Mirror
from mirror.refresh.patterns import patterns_of
from mirror.repository.bare import BareRepository
from mirror.repository.snapshot import RefSnapshot
from mirror.wire.client import Listing
from mirror.wire.names import ObjectId, RefName

HAVES_MAX: Final = 256
"""The tips we tell the upstream of; those of the refs that change come first."""


REFS_LOOKED_AT_MAX: Final = 5_000
"""For tips to tell of: a millisecond on the event loop."""


@dataclass(frozen=True, slots=True)
class News:
    """What an upstream lists, and how that differs from what readers see.

    Attributes:
        listed: The mirrored refs.
        head_target: The branch that HEAD names; `None` when it is detached.
        detached: What a detached HEAD is.
        moves: The refs that differ, and what each was; `None` for a new one.
        missing: Tips that are not here.
        is_any: Whether anything differs, HEAD included.
    """

    listed: dict[RefName, ObjectId]
    head_target: RefName | None
    detached: ObjectId | None
    moves: dict[RefName, ObjectId | None]
    missing: list[ObjectId]
    is_any: bool

    def moved_from(self) -> ObjectId | None:
        """Return from where refs move to the one missing tip, when that is one place."""
        places = {
            old for name, old in self.moves.items() if old and self.listed.get(name) in self.missing
        }
        return places.pop() if len(self.missing) == len(places) == 1 else None


def compare(mirror: Mirror, repository: BareRepository, listing: Listing) -> News:
    """Compare what the upstream lists with what readers see; blocking."""
    patterns = patterns_of(mirror.settings.refs)
    listed = {ref.name: ref.oid for ref in listing.refs if patterns.matches(ref.name)}
    detached = listing.head if listing.head_target is None else None
    before = mirror.snapshot
    old = before.by_name if before is not None else {}
    moves: dict[RefName, ObjectId | None] = {
        name: ref.oid for name, ref in old.items() if listed.get(name) != ref.oid
    }
    moves.update((name, None) for name in listed if name not in old)
    is_head_moved = before is not None and (
        before.head_target != listing.head_target
        or (listing.head_target is None and before.head != detached)
    )
    tips = {
        *(oid for name in moves if (oid := listed.get(name))),
        *([detached] if detached else []),
    }
    missing = [tip for tip in sorted(tips) if not repository.source.contains(tip)]
    return News(listed, listing.head_target, detached, moves, missing, bool(moves) or is_head_moved)


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
