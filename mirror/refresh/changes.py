"""What an upstream's listing changes, and what to tell the upstream that we have. Pure."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from mirror.repository.snapshot import RefSnapshot
from mirror.wire.names import ObjectId, Ref, RefName
from mirror.wire.ref_table import RefTable

REFS_LOOKED_AT_MAX: Final = 4096
"""For haves, of a repository whose refs nearly all name the same few commits."""


@dataclass(frozen=True, slots=True)
class ListedChange:
    """A ref of ours that the upstream lists otherwise; `None` for not there."""

    name: RefName
    old: Ref | None
    new: Ref | None


def find_changes(
    known: RefTable, listed: Collection[Ref], is_mirrored: Callable[[RefName], bool]
) -> list[ListedChange]:
    """Compare a listing with the refs that we mirror.

    Quick when `listed` is the view of a table that shares chunks with `known`: all that we mirror
    already is passed over.

    Args:
        known: What we have.
        listed: What the upstream has; names that we do not mirror among them.
        is_mirrored: Tells them apart.

    Returns:
        The refs that are to change. What a tag was peeled to is no change: we peel ourselves.
    """
    changes = []
    for name, (old, found) in RefTable.of(listed).difference(known).items():
        new = found if found is not None and is_mirrored(name) else None
        if (old and old.oid) != (new and new.oid):
            changes.append(ListedChange(name, old, new))
    return changes


def choose_haves(
    before: RefSnapshot, changes: Sequence[ListedChange], haves_max: int
) -> list[ObjectId]:
    """Choose the tips that say most: those of refs that change now, HEAD, branches, the rest."""

    def rank(ref: Ref) -> tuple[bool, bool]:
        return ref.name != before.head_target, not ref.name.startswith(b"refs/heads/")

    moved = sorted((change.old for change in changes if change.old is not None), key=rank)
    others = islice(before.refs, REFS_LOOKED_AT_MAX)  # refs/heads/ is nearly the first there is
    head = (before.head,) if before.head is not None else ()
    tips = chain((ref.oid for ref in moved), head, (ref.oid for ref in others))
    return list(islice(dict.fromkeys(tips), haves_max))
