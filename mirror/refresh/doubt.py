"""Doubt about what an upstream lists: deletions are left out of the news until they are believed.

The rule is `vanishing`'s; here it meets the mirror, the log and the clocks.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import islice
from typing import Final

import structlog

from mirror.errors import RefsVanished
from mirror.refresh.mirror import Mirror
from mirror.refresh.news import News
from mirror.refresh.patterns import patterns_of
from mirror.refresh.vanishing import Listed, Vanishing, judge
from mirror.repository.snapshot import RefSnapshot
from mirror.wire.client import Listing
from mirror.wire.names import RefName

REFS_LOGGED_MAX: Final = 10

logger = structlog.stdlib.get_logger()


class Doubt:
    """Keeps what vanished upstream."""

    def __init__(self, *, now: Callable[[], float], clock: Callable[[], float]) -> None:
        self._now = now
        self._clock = clock

    def without_doubtful(
        self,
        mirror: Mirror,
        before: RefSnapshot,
        listing: Listing,
        news: News,
        believed: Collection[RefName] | None,
    ) -> News:
        """Return the news without deletions that are not to be believed yet.

        Notes in `mirror.vanishing` which these are.

        Args:
            mirror: The repository.
            before: What is served.
            listing: What the upstream lists.
            news: How they differ.
            believed: Refs whose deletion is confirmed; `None` for all of them.

        Raises:
            RefsVanished: The upstream lists nothing at all.
        """
        was, after_seconds = mirror.vanishing, mirror.settings.refs_vanish_after_seconds
        is_mirrored = patterns_of(mirror.settings.refs).matches
        is_empty = not any(is_mirrored(ref.name) for ref in listing.refs)
        # Those that the configuration does not name any more have not vanished.
        asked_for = [change for change in news.changes if is_mirrored(change.name)]
        kept = None
        if believed is not None:
            kept = judge(
                Listed(asked_for, len(before.refs), is_empty),
                was,
                announced=believed,
                now=self._clock(),
                wall_now=self._now(),
                after_seconds=after_seconds,
            )
        mirror.vanishing = kept
        _tell(mirror, was, news, is_accepted=believed is None)
        if kept is None:
            return news
        if is_empty:
            raise RefsVanished(
                f"the upstream lists none of its {len(kept.since)} refs any more; they are served"
                f" until that has gone on for {after_seconds:.0f} s (refs_vanish_after); if they"
                f" were deleted, run git-mirror sync {mirror.name} --accept-deletions"
            )
        changes = [change for change in news.changes if change.name not in kept.since]
        if listing.head is not None:
            is_head_moved = before.head_target != listing.head_target or (
                listing.head_target is None and before.head != listing.head
            )
            return replace(news, changes=changes, is_any=bool(changes) or is_head_moved)
        # HEAD names nothing there any more: as doubtful as the rest.
        detached = before.head if before.head_target is None else None
        return replace(
            news,
            changes=changes,
            head_target=before.head_target,
            detached=detached,
            is_any=bool(changes),
        )


def _tell(mirror: Mirror, was: Vanishing | None, news: News, *, is_accepted: bool) -> None:
    log, now = logger.bind(repository=mirror.name), mirror.vanishing
    if now is not None and (was is None or now.since.keys() - was.since.keys()):
        log.warning(
            "refs_vanished",
            refs=[_words(name) for name in islice(now.since, REFS_LOGGED_MAX)],
            count=len(now.since),
            believed_after_seconds=mirror.settings.refs_vanish_after_seconds,
        )
    elif was is not None and now is None:
        deleted = {change.name for change in news.changes if change.new is None}
        count = len(deleted.intersection(was.since))
        log.warning("refs_vanished_ended", deleted=count, accepted=is_accepted, looks=was.looks)


def _words(name: RefName) -> str:
    return name.decode("utf-8", "backslashreplace")
