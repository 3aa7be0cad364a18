"""What refreshes may take of the disk: quotas, and for first clones what is beside the reserve.

Asked while a pack arrives, so that a bound is one: what is under way counts, and what is received
is written once more when it is indexed. What was refused is remembered, so that the same pack is
not fetched again and again to be refused again: until there is more room, something else is
missing, or an hour has passed.

On the event loop, all of it; none of it blocks but for a look at the file system.
"""

import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from mirror.config import RepositorySettings, format_size
from mirror.errors import DiskFull, LocalError, OverQuota
from mirror.space import Room
from mirror.wire.names import ObjectId

LOOK_EVERY_BYTES: Final = 4 << 20
"""So often the file system is looked at while a pack arrives."""

REMEMBERED_SECONDS: Final = 3600.0

_ANY: Final = sys.maxsize


@dataclass(frozen=True, slots=True)
class _Refused:
    """A refresh that did not fit: what it was for, and how much room there was."""

    missing: frozenset[ObjectId]
    is_clone: bool
    room: int
    until: float
    error: LocalError


class Share:
    """What one refresh takes of the disk while it is under way."""

    def __init__(self, bounds: "Bounds", settings: RepositorySettings, *, is_clone: bool) -> None:
        self.settings = settings
        self.is_clone = is_clone
        self.received = 0
        """Bytes of packs that are not among the repository's yet."""
        self._bounds = bounds
        self._look_at = 0

    def check(self, received: int) -> None:
        """Let so many bytes of packs be there, or refuse them.

        Raises:
            OverQuota: They are more than the repository, or all of them, may take.
            DiskFull: A first clone would take of the reserve.
        """
        self.received = received
        self._bounds.check_quota(self)
        if self.is_clone and received >= self._look_at:
            self._look_at = received + LOOK_EVERY_BYTES
            self._bounds.check_room(self)

    def check_all(self) -> None:
        """Let what was received be indexed, which takes as much once more, or refuse it.

        Raises:
            DiskFull: As in `check`.
        """
        if self.is_clone:
            self._bounds.check_room(self)

    def check_indexed(self, size: int) -> None:
        """Let the packs be there that came of it, with their indexes, or refuse them.

        Raises:
            OverQuota: As in `check`.
        """
        self.received = size
        self._bounds.check_quota(self)


class Bounds:
    """The bounds of all repositories, and what each of them takes."""

    def __init__(
        self,
        room: Room | None = None,
        *,
        bytes_max: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with no repositories.

        Args:
            room: The room on the disk; `None` for as much as there is.
            bytes_max: The most that all repositories may take; `None` for any number.
            clock: Monotonic seconds.
        """
        self._room = room
        self._bytes_max = bytes_max
        self._clock = clock
        self._sizes: dict[str, int] = {}
        self._coming: dict[str, int] = {}
        self._under_way: set[Share] = set()
        self._refused: dict[str, _Refused] = {}

    def note(self, name: str, size: int) -> None:
        """Take note of how many bytes a repository takes now, with all that came."""
        self._sizes[name] = size
        self.settle(name)

    def settle(self, name: str) -> None:
        """Take note that nothing is under way to a repository any more."""
        self._coming.pop(name, None)

    def forget(self, name: str) -> None:
        """Take note that a repository is gone."""
        self._sizes.pop(name, None)
        self.settle(name)
        self._refused.pop(name, None)

    def size_of(self, name: str) -> int:
        """Return what a repository takes, with what has come and is being checked, in bytes."""
        return self._sizes.get(name, 0) + self._coming.get(name, 0)

    def total(self) -> int:
        """Return what all repositories take so, in bytes."""
        return sum(self._sizes.values()) + sum(self._coming.values())

    def has_room(self, size: int) -> bool:
        """Tell whether so many bytes may be written for a while; blocking."""
        left = None if self._room is None else self._room.left()
        return left is None or left >= size

    @contextmanager
    def taken(
        self, settings: RepositorySettings, missing: Collection[ObjectId], *, is_clone: bool
    ) -> Iterator[Share]:
        """Let a refresh receive what is missing; meanwhile it checks its share.

        Raises:
            OverQuota: There is no room left for it, or as little as before.
            DiskFull: So it is with a first clone and the disk.
        """
        share = Share(self, settings, is_clone=is_clone)
        wanted = frozenset(missing)
        self._check_known(share, wanted)
        self._under_way.add(share)
        try:
            share.check(0)
            yield share
        except (OverQuota, DiskFull) as error:
            # Not what the disk itself said: that may be of no room for files, or for this user.
            if share.received and error.__cause__ is None:
                until = self._clock() + REMEMBERED_SECONDS
                self._under_way.discard(share)
                room = self._left(share)
                self._refused[settings.name] = _Refused(wanted, is_clone, room, until, error)
            raise
        else:
            self._refused.pop(settings.name, None)
            self._coming[settings.name] = self._coming.get(settings.name, 0) + share.received
        finally:
            self._under_way.discard(share)

    def check_quota(self, share: Share) -> None:
        """See `Share.check`."""
        settings = share.settings
        own = self.size_of(settings.name) + share.received
        if settings.repository_bytes_max is not None and own > settings.repository_bytes_max:
            raise OverQuota(
                f"{settings.name} would take more than repository_bytes_max"
                f" ({format_size(settings.repository_bytes_max)}) with what the upstream has now;"
                " raise that, or make the repository smaller"
            )
        if self._bytes_max is not None and self.total() + self._received() > self._bytes_max:
            raise OverQuota(
                f"with what the upstream of {settings.name} has now, all mirrors would take more"
                f" than limits.repositories_bytes_max ({format_size(self._bytes_max)}); raise"
                " that, or mirror fewer"
            )

    def check_room(self, share: Share) -> None:
        """See `Share.check`: for first clones, which can wait."""
        if self._room is None:
            return
        left = self._room.left()
        # All that is being received is written once more when it is indexed.
        if left is not None and left < self._received():
            raise DiskFull(
                f"the first clone of {share.settings.name} has to wait: it would take of the"
                " room that limits.disk_reserve keeps free for refreshes; make room on the disk"
            )

    def _received(self) -> int:
        return sum(one.received for one in self._under_way)

    def _left(self, share: Share) -> int:
        """Return how much more a refresh may take that has received nothing."""
        quota = share.settings.repository_bytes_max
        bounds = [_ANY if quota is None else quota - self.size_of(share.settings.name)]
        if self._bytes_max is not None:
            bounds.append(self._bytes_max - self.total() - self._received())
        if share.is_clone and self._room is not None:
            left = self._room.left()
            if left is not None:
                bounds.append(left - self._received())
        return max(0, min(bounds))

    def _check_known(self, share: Share, wanted: frozenset[ObjectId]) -> None:
        """Refuse again what was refused.

        Raises:
            LocalError: What it was refused with.
        """
        known = self._refused.get(share.settings.name)
        if known is None:
            return
        is_same = share.is_clone == known.is_clone and (share.is_clone or known.missing == wanted)
        has_no_more = self._left(share) <= known.room + known.room // 16
        if is_same and has_no_more and self._clock() < known.until:
            raise type(known.error)(str(known.error))
        del self._refused[share.settings.name]
