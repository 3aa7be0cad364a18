"""Doubt about what an upstream lists: deletions are left out of the news until they are believed.

The rule is `vanishing`'s; here it meets the mirror, the log, the clocks, and a note on disk.

A new repository of which the upstream lists nothing is doubted as well, for a shorter time: empty
repositories are made every day, and nobody here has seen refs that it lost. Until then it is not
mirrored yet, which readers are told: a forge's hiccup, met by a mirror that was just set up, would
read as an empty repository to all of them.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import islice
from typing import Final

import structlog

from mirror.errors import RefsVanished, Trouble, UpstreamUnavailable
from mirror.refresh.changes import find_changes
from mirror.refresh.mirror import Mirror
from mirror.refresh.news import News
from mirror.refresh.patterns import patterns_of
from mirror.refresh.vanishing import LOOKS_MIN, Listed, Vanishing, judge
from mirror.repository.bare import BareRepository
from mirror.repository.missed_refs import MissedRefs, find_missed, keep_missed
from mirror.repository.snapshot import RefSnapshot
from mirror.wire.client import Listing
from mirror.wire.names import RefName

REFS_LOGGED_MAX: Final = 10

EMPTY_SECONDS: Final = 60.0
"""A new repository is believed to be empty after so long, or `refs_vanish_after` if that is less,
and `LOOKS_MIN` looks."""

EMPTY_MAX: Final = 1000
"""New repositories in doubt at a time; of more, the longest untouched begin anew."""

logger = structlog.stdlib.get_logger()


class Doubt:
    """Keeps what vanished upstream."""

    def __init__(self, *, now: Callable[[], float], clock: Callable[[], float]) -> None:
        self._now = now
        self._clock = clock
        self._empty: OrderedDict[str, tuple[float, int]] = OrderedDict()  # since when, looks

    def of_new(self, mirror: Mirror, listing: Listing, *, is_accepted: bool) -> None:
        """See that a repository that is to be mirrored is not empty, or that this is believed.

        Args:
            mirror: The repository.
            listing: What the upstream lists, for the first time.
            is_accepted: An operator says that it is empty.

        Raises:
            UpstreamUnavailable: It lists nothing, and that is not believed yet.
        """
        is_mirrored = patterns_of(mirror.settings.refs).matches
        after_seconds = min(EMPTY_SECONDS, mirror.settings.refs_vanish_after_seconds)
        since, looks = self._empty.pop(mirror.name, (self._clock(), 0))
        if is_accepted or any(is_mirrored(ref.name) for ref in listing.refs):
            return
        looks, age = looks + 1, self._clock() - since
        if after_seconds == 0 or (looks >= LOOKS_MIN and age >= after_seconds):
            logger.warning("mirrored_empty", repository=mirror.name, looks=looks)
            return
        self._empty[mirror.name] = since, looks
        if len(self._empty) > EMPTY_MAX:
            self._empty.popitem(last=False)
        raise UpstreamUnavailable(
            "the upstream lists none of the refs that are to be mirrored; it is believed to be"
            f" empty after {after_seconds:.0f} s and {LOOKS_MIN} looks; if it is new, push to it,"
            f" or run git-mirror sync {mirror.name} --accept-deletions",
            trouble=Trouble.NO_REFS,
        )

    def recall(self, repository: BareRepository) -> Vanishing | None:
        """Return which refs were missed when the service stopped; blocking."""
        missed = find_missed(repository.path)
        if missed is None:
            return None
        now = self._clock()
        since = {name: now - seconds for name, seconds in missed.seconds.items()}
        return Vanishing(since, missed.noticed_at, missed.looks)

    def keep(self, repository: BareRepository, vanishing: Vanishing | None) -> None:
        """Keep for the next start which refs are missed; blocking."""
        missed = None
        if vanishing is not None:
            now = self._clock()
            seconds = {name: now - since for name, since in vanishing.since.items()}
            missed = MissedRefs(vanishing.looks, vanishing.noticed_at, seconds)
        keep_missed(repository.path, missed)

    def of_whole(
        self,
        mirror: Mirror,
        before: RefSnapshot,
        listing: Listing,
        believed: Collection[RefName] | None,
    ) -> None:
        """See that a repository that is to be cloned anew has not lost its refs; blocking.

        What is served, damaged or not, would be all that there is of them.

        Raises:
            RefsVanished: It has, and that is not believed yet.
        """
        is_mirrored = patterns_of(mirror.settings.refs).matches
        changes = find_changes(before.by_name, listing.refs, is_mirrored)
        kept = None
        if believed is not None:
            kept = judge(
                Listed(
                    [change for change in changes if is_mirrored(change.name)],
                    len(before.refs),
                    is_empty=not any(is_mirrored(ref.name) for ref in listing.refs),
                ),
                mirror.vanishing,
                announced=believed,
                now=self._clock(),
                wall_now=self._now(),
                after_seconds=mirror.settings.refs_vanish_after_seconds,
            )
        mirror.vanishing = kept
        if kept is not None:
            raise RefsVanished(
                f"it is damaged, and the upstream does not list {len(kept.since)} of its refs any"
                " more: it is cloned anew once that is believed (refs_vanish_after); if they were"
                f" deleted, run git-mirror sync {mirror.name} --accept-deletions"
            )

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
