"""The contract of the pack engines: what is asked of them, and nothing of how they do it.

`git_engine`, `dulwich_engine` and `auto_engine` keep it, and pass one suite:
`tests/repository/packing`.
"""

import hashlib
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from mirror.repository.bare import BareRepository
from mirror.repository.quarantine import Quarantine
from mirror.wire.filters import ObjectFilter
from mirror.wire.names import ObjectId, Ref

OBJECT_BYTES_MAX: Final = 512 << 20
"""An object that takes more in memory is refused: git's own limit for what it makes deltas of."""

IndexProgress = Callable[[int, int], None]
"""Called with (objects indexed, objects in the pack), now and then, from any thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRequest:
    """Which objects a pack is to hold, and in which form.

    Attributes:
        wants: Objects to send, with all that they reach.
        haves: Objects the reader has, with all that they reach.
        shallow: Commits whose parents neither side is to follow: the reader's shallow boundary.
        filter: What to leave out; objects named in `wants` are sent all the same.
        thin: Deltas may be against objects that only the reader's haves bring. It must have all of
            these, then; with some filters it has not.
        ofs_delta: Deltas may name their base by its offset.
        tags: Annotated tags to add when what they point to is sent (``include-tag``).
        commits: How many commits the reader lacks, where that is known: a hint at how much work it
            is. It follows from the rest.
    """

    wants: tuple[ObjectId, ...]
    haves: tuple[ObjectId, ...] = ()
    shallow: frozenset[ObjectId] = frozenset()
    filter: ObjectFilter | None = None
    thin: bool = False
    ofs_delta: bool = False
    tags: tuple[Ref, ...] = ()
    commits: int | None = field(default=None, compare=False)
    digest: bytes = field(init=False, repr=False, compare=False)
    """The same for equal requests, in every process."""

    def __post_init__(self) -> None:
        # Once, and where the request is made: a thread. There may be thousands of tags.
        digest = hashlib.blake2b(digest_size=20)
        for oids in (self.wants, self.haves, sorted(self.shallow)):
            digest.update(b" ".join(oids) + b"\n")
        for tag in self.tags:
            digest.update(b"%b %b\n" % (tag.oid, tag.name))
        filtered = self.filter.spec() if self.filter is not None else b""
        digest.update(b"\n%b %d %d" % (filtered, self.thin, self.ofs_delta))
        object.__setattr__(self, "digest", digest.digest())

    def __hash__(self) -> int:
        return hash(self.digest)


class PackEngine(Protocol):
    """Makes and indexes packs."""

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        ...

    @property
    def version(self) -> str:
        """The version of what does the work."""
        ...

    @property
    def copies_packs(self) -> bool:
        """Whether a clone is quicker where one pack has all that refs reach, and nothing else."""
        ...

    async def index_pack(
        self, quarantine: Quarantine, *, progress: IndexProgress | None = None
    ) -> None:
        """Index the quarantine's received pack into its object directory.

        A thin pack is completed from the repository's objects. Everything written is durable.

        Raises:
            PackError: The pack is damaged, or a delta's base is nowhere to be found.
        """
        ...

    async def check_connected(
        self,
        quarantine: Quarantine,
        tips: Sequence[ObjectId],
        *,
        known: Sequence[ObjectId] = (),
        onto: ObjectId | None = None,
    ) -> bool:
        """Check that all that `tips` reach is there: in the quarantine, or reachable before.

        Args:
            quarantine: Where the packs are that came.
            tips: What is to be whole.
            known: Tips that were whole before, the likeliest first; by default those on disk.
            onto: One of these, whose readers the pack may be passed on to.

        Returns:
            Whether the pack, just as it came, brings `tips` to a reader who has all that `onto`
            reaches, and nothing else. `False` may mean that this was not found out.

        Raises:
            PackError: An object is missing.
        """
        ...

    async def build_small(self, repository: BareRepository, request: PackRequest) -> bytes | None:
        """Make the whole pack at once if that is little work; `None` when it is not.

        Raises:
            PackError: It could not be made.
        """
        ...

    def build_pack(
        self, repository: BareRepository, request: PackRequest
    ) -> AsyncGenerator[bytes, None]:
        """Make the pack for `request`, in pieces as they become ready.

        Closing the iterator early ends the work.

        Raises:
            PackError: It could not be made; what was yielded so far is worthless.
        """
        ...

    async def repack(self, repository: BareRepository) -> None:
        """Merge small packs, so that sizes grow geometrically, dropping nothing; then `index`.

        In the background: with the lowest priority, and bounded in memory and time.

        Raises:
            PackError: It could not be done; the repository is as before.
        """
        ...

    async def index(
        self, repository: BareRepository, *, without: Collection[str] = frozenset()
    ) -> None:
        """Write what makes readers quick, as far as this engine has any: over all packs.

        Args:
            repository: The repository.
            without: Names of packs that are to go, and that it must not need.

        Raises:
            PackError: It could not be done; the repository is as before.
        """
        ...

    async def unreachable_bytes(
        self, repository: BareRepository, tips: Sequence[ObjectId], *, live: Sequence[ObjectId]
    ) -> int:
        """Say how many bytes on disk, about, are reached from `tips` and not from `live`.

        Raises:
            PackError: It could not be found out.
        """
        ...

    async def pack_reachable(
        self,
        quarantine: Quarantine,
        tips: Sequence[ObjectId],
        *,
        without: Sequence[ObjectId] = (),
    ) -> None:
        """Write one pack of all that `tips` reach, durably, into the quarantine.

        In the background, as `repack`. There is none where they reach nothing.

        Args:
            quarantine: Where to.
            tips: Where from.
            without: What these reach is left out, as far as that is found out.

        Raises:
            PackError: It could not be made.
        """
        ...

    async def check_alone(
        self,
        repository: BareRepository,
        objects: Path,
        tips: Sequence[ObjectId],
        *,
        known: Sequence[ObjectId],
    ) -> None:
        """Check that an object directory has all that `tips` reach.

        Args:
            repository: Whose objects they are.
            objects: The object directory; nothing is looked for elsewhere.
            tips: What is to be whole.
            known: Tips that are whole in it.

        Raises:
            PackError: An object is missing.
        """
        ...
