"""Small tables of refs, and the changes between them."""

from mirror.refresh.relay.backlog import Backlog, Change
from mirror.wire.names import ObjectId, Ref, RefName
from mirror.wire.ref_table import RefTable

MAIN = RefName(b"refs/heads/main")


def oid(number: int | None) -> ObjectId | None:
    return None if number is None else ObjectId(b"%040x" % number)


def name(ref: str) -> RefName:
    return RefName(f"refs/{'' if ref.startswith('tags/') else 'heads/'}{ref}".encode())


def table(**tips: int) -> RefTable:
    """Return a table; `main=1` is refs/heads/main, `tags_v1=2` refs/tags/v1."""
    refs = ((name(ref.replace("_", "/")), oid(tip)) for ref, tip in tips.items())
    return RefTable.of(Ref(one, tip) for one, tip in refs if tip is not None)


def told(changes: tuple[Change, ...]) -> list[tuple[str, int, int]]:
    """Return changes as short names with the numbers of their ids; 0 for not there."""
    return [
        (
            one.ref.decode().removeprefix("refs/").removeprefix("heads/"),
            int(one.before or b"0", 16),
            int(one.after or b"0", 16),
        )
        for one in changes
    ]


def tell(backlog: Backlog, now: float = 0.0, count: int = 1) -> list[tuple[str, int, int]]:
    """Tell what is next, and have it acknowledged."""
    changes = backlog.begin(now, count)
    if changes:
        backlog.acknowledge(changes)
    return told(changes)
