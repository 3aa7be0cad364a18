"""Where a repository is made before it takes its place: a half-finished one is never served."""

import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from urllib.parse import quote

from mirror.durable import fsync_directory, make_directories
from mirror.repository.bare import BareRepository
from mirror.repository.leftovers import Leftovers
from mirror.repository.threads import run_to_end


class Staging:
    """The staging directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._leftovers = Leftovers()

    @asynccontextmanager
    async def made(self, name: str, upstream_url: str) -> AsyncIterator[BareRepository]:
        """Make an empty repository; it is removed in the end, where it is still there.

        Raises:
            LocalError: It can't be made.
        """
        place = self._directory / f"{quote(name, safe='')}.{secrets.token_hex(4)}.git"
        try:
            await run_to_end(self._leftovers.try_again)
            with closing(await run_to_end(_create, place, upstream_url)) as staged:
                yield staged
        finally:
            await run_to_end(self._leftovers.remove, place)

    async def put_in_place(self, staged: BareRepository, path: Path) -> None:
        """Move a repository to where it is served from, durably.

        Raises:
            OSError: It can't be moved.
        """
        await run_to_end(_put_in_place, staged, path)


def _create(place: Path, url: str) -> BareRepository:
    return BareRepository.create(place, upstream_url=url)


def _put_in_place(staged: BareRepository, path: Path) -> None:
    staged.make_durable()
    make_directories(path.parent)
    shutil.rmtree(path, ignore_errors=True)  # of a clone that was given up at this very moment
    staged.path.rename(path)
    fsync_directory(path.parent)
