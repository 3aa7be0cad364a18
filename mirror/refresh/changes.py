"""What an upstream's listing changes. Pure."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from mirror.wire.names import Ref, RefName
from mirror.wire.ref_table import RefTable


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
