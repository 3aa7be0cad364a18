"""The state of a mirror as messages carry it: taken in the main process, put in a worker.

`derived` is the one place that makes a worker's next snapshot from the one it has.
"""

from typing import Final

from mirror.refresh.freshness import Freshness
from mirror.refresh.mirror import LastRefresh, Mirror
from mirror.repository.snapshot import RefSnapshot
from mirror.upstream.forges import UNKNOWN, RefChange
from mirror.upstream.forges.events import Tip
from mirror.wire.names import ObjectId, Ref, RefName
from mirror.workers.frames import ChannelError
from mirror.workers.messages import (
    ChangeState,
    FreshnessState,
    LastState,
    Refreshed,
    SnapshotNews,
)

CHANGES_MAX: Final = 1000
"""Refs that are told one by one; more are read from disk, in the worker's own time."""

_NO_TIP: Final = ""
_UNKNOWN_TIP: Final = "?"


def refreshed(mirror: Mirror, before: RefSnapshot | None) -> Refreshed:
    """Return what a worker is told that has the snapshot `before`."""
    freshness, last = mirror.freshness, mirror.last
    return Refreshed(
        repository=mirror.name,
        freshness=FreshnessState(
            announced=freshness.announced,
            satisfied=freshness.satisfied,
            failed=freshness.failed,
            confirmed_at=freshness.confirmed_at,
            failures=freshness.failures,
            ask_again_at=freshness.ask_again_at,
            not_before=freshness.not_before,
        ),
        last=LastState(last.succeeded_at, last.failed_at, last.error, last.changed_at),
        snapshot=_news(mirror.snapshot, before),
    )


def _news(snapshot: RefSnapshot | None, before: RefSnapshot | None) -> SnapshotNews | None:
    if snapshot is None or snapshot is before:
        return None
    if before is None:
        return SnapshotNews(snapshot.number)
    changes = snapshot.changes_since(before)
    if len(changes) > CHANGES_MAX:
        return SnapshotNews(snapshot.number)
    return SnapshotNews(
        number=snapshot.number,
        base=before.number,
        changed=tuple(snapshot.by_name[name] for name in changes if name in snapshot.by_name),
        removed=tuple(name for name in changes if name not in snapshot.by_name),
        head_target=snapshot.head_target,
        detached_head=snapshot.head if snapshot.head_target is None else None,
    )


def derived(before: RefSnapshot | None, news: SnapshotNews, *, agent: bytes) -> RefSnapshot:
    """Make the next snapshot, with its answers encoded; blocking.

    Raises:
        ChannelError: The news are not about the snapshot that is here.
    """
    if before is None or before.number != news.base:
        raise ChannelError(f"news of snapshot {news.number} are not about the one that is here")
    changes: dict[RefName, Ref | None] = dict.fromkeys(news.removed)
    changes.update((ref.name, ref) for ref in news.changed)
    return RefSnapshot(
        news.number,
        before.by_name.replace(changes).values(),
        head_target=news.head_target,
        detached_head=news.detached_head,
        agent=agent,
    ).prepare(before)


def put_freshness(state: FreshnessState, freshness: Freshness) -> None:
    """Take over what the main process knows; an announcement told meanwhile stays."""
    freshness.announced = max(freshness.announced, state.announced)
    freshness.satisfied = state.satisfied
    freshness.failed = state.failed
    freshness.confirmed_at = state.confirmed_at
    freshness.failures = state.failures
    freshness.ask_again_at = state.ask_again_at
    freshness.not_before = state.not_before


def put_last(state: LastState, last: LastRefresh) -> None:
    """Take over what came of the latest refresh."""
    last.succeeded_at = state.succeeded_at
    last.failed_at = state.failed_at
    last.error = state.error
    last.changed_at = state.changed_at


def packed_changes(changes: tuple[RefChange, ...]) -> tuple[ChangeState, ...]:
    """Return what a webhook announced, as a message carries it."""
    return tuple(ChangeState(one.ref, _pack(one.before), _pack(one.after)) for one in changes)


def unpacked_changes(changes: tuple[ChangeState, ...]) -> tuple[RefChange, ...]:
    """Return what `packed_changes` was given."""
    return tuple(RefChange(one.ref, _unpack(one.before), _unpack(one.after)) for one in changes)


def _pack(tip: Tip) -> str:
    if tip is None:
        return _NO_TIP
    return _UNKNOWN_TIP if tip is UNKNOWN else tip.decode("ascii")


def _unpack(tip: str) -> Tip:
    if tip == _NO_TIP:
        return None
    return UNKNOWN if tip == _UNKNOWN_TIP else ObjectId(tip.encode("ascii"))
