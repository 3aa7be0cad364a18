"""The pack engine for `engine: auto` where git is there: the quicker of the two for each work.

What a push brings is mostly a few objects: these are taken in within this process, in less time
than it takes to start git. All else, and all that is doubtful, is git's. Only from a mirror that is
damaged dulwich makes the packs, however large: it checks each object, so that whatever does not
need what is damaged is still served.
"""

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from pathlib import Path

import structlog

from mirror.errors import Damaged, PackError
from mirror.repository.bare import BareRepository
from mirror.repository.packing.dulwich_engine import DulwichEngine
from mirror.repository.packing.engine import IndexProgress, PackRequest
from mirror.repository.packing.git_engine import GitEngine
from mirror.repository.quarantine import Quarantine
from mirror.wire.names import ObjectId

logger = structlog.stdlib.get_logger()


class AutoEngine:
    """Makes and indexes packs with git, small ones in this process."""

    name = GitEngine.name
    """Who makes the packs: what metrics and logs show."""
    copies_packs = GitEngine.copies_packs

    def __init__(self, git: GitEngine, dulwich: DulwichEngine) -> None:
        self._git = git
        self._dulwich = dulwich
        self.version = git.version

    async def index_pack(
        self, quarantine: Quarantine, *, progress: IndexProgress | None = None
    ) -> None:
        """See `PackEngine.index_pack`."""
        if not await self._dulwich.index_small_pack(quarantine):
            await self._git.index_pack(quarantine, progress=progress)

    async def check_connected(
        self,
        quarantine: Quarantine,
        tips: Sequence[ObjectId],
        *,
        known: Sequence[ObjectId] = (),
        onto: ObjectId | None = None,
    ) -> bool:
        """See `PackEngine.check_connected`."""
        found = await self._dulwich.check_small_packs(quarantine, tips, known=known, onto=onto)
        if found is None:
            return await self._git.check_connected(quarantine, tips)
        return found

    async def build_small(self, repository: BareRepository, request: PackRequest) -> bytes | None:
        """See `PackEngine.build_small`. What dulwich stumbles over is for git to judge."""
        try:
            return await self._dulwich.build_small(repository, request)
        except Damaged:
            raise
        except PackError as error:
            logger.info("small_build_failed", path=str(repository.path), error=str(error))
            return None

    async def build_pack(
        self, repository: BareRepository, request: PackRequest
    ) -> AsyncGenerator[bytes, None]:
        """See `PackEngine.build_pack`."""
        has_begun = False
        if not repository.soundness.damage:
            try:
                async with aclosing(self._git.build_pack(repository, request)) as pack:
                    async for chunk in pack:
                        has_begun = True
                        yield chunk
            except Damaged as error:
                if has_begun:
                    raise
                logger.warning("mirror_damaged", path=str(repository.path), error=str(error))
            else:
                return
        async with aclosing(self._dulwich.build_pack(repository, request)) as pack:
            async for chunk in pack:
                yield chunk

    async def repack(self, repository: BareRepository) -> None:
        """See `PackEngine.repack`."""
        await self._git.repack(repository)

    async def index(
        self, repository: BareRepository, *, without: Collection[str] = frozenset()
    ) -> None:
        """See `PackEngine.index`."""
        await self._git.index(repository, without=without)

    async def unreachable_bytes(
        self, repository: BareRepository, tips: Sequence[ObjectId], *, live: Sequence[ObjectId]
    ) -> int:
        """See `PackEngine.unreachable_bytes`."""
        return await self._git.unreachable_bytes(repository, tips, live=live)

    async def pack_reachable(
        self,
        quarantine: Quarantine,
        tips: Sequence[ObjectId],
        *,
        without: Sequence[ObjectId] = (),
    ) -> None:
        """See `PackEngine.pack_reachable`."""
        await self._git.pack_reachable(quarantine, tips, without=without)

    async def check_alone(
        self,
        repository: BareRepository,
        objects: Path,
        tips: Sequence[ObjectId],
        *,
        known: Sequence[ObjectId],
    ) -> None:
        """See `PackEngine.check_alone`."""
        await self._git.check_alone(repository, objects, tips, known=known)
