"""From the settings of a repository to the repository, which may have to be mirrored first.

Whoever asks here was let in: what is not here yet is begun to be mirrored, and that it can be is
told. `mirror.web.guard` decides about that, by the settings alone.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from mirror.config import PushPolicy, RepositorySettings
from mirror.errors import NotYetMirrored
from mirror.refresh.mirror import Mirror
from mirror.refresh.registry import Hosted, Registry
from mirror.web.push import read_only

FIRST_WAIT_SECONDS_MAX: Final = 8.0
"""How long a reader whose answer can't begin is held for a first clone. isomorphic-git gives up
after 10 seconds of silence, Argo CD after 15 in all; the clone goes on, and the next try finds it
done, or more of it."""

READING: Final = web.RequestKey("reading", Mirror)
"""The mirror that a request reads, which stays for as long."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A repository that is being mirrored for the first time.

    Attributes:
        name: The repository's.
        outcome: Shared by all who wait: never to be cancelled. It raises `UnknownRepository`,
            `NotYetMirrored` or `Overloaded`.
    """

    name: str
    outcome: "asyncio.Future[Hosted]"


class Finder:
    """Finds the repositories of requests."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def look(
        self, request: web.Request, settings: RepositorySettings, client: str
    ) -> Hosted | Opening:
        """Return a repository, or what there is to wait for.

        Args:
            request: Whose end frees the repository again.
            settings: Of the repository.
            client: The address of the reader, who has a limited number of first clones.
        """
        hosted = self._registry.get(settings.name)
        if hosted is not None and (settings.place is None or hosted.gate.is_open()):
            _begin_reading(request, hosted)
            return hosted
        outcome = self._registry.open(settings, client)
        return Opening(settings.name, outcome)

    async def find(self, request: web.Request, settings: RepositorySettings, client: str) -> Hosted:
        """Return a repository, after a wait if need be; see `look`.

        Raises:
            NotYetMirrored: It takes longer; the first clone goes on.
            ClientError: It can't be mirrored.
        """
        found = self.look(request, settings, client)
        if isinstance(found, Hosted):
            return found
        await asyncio.wait((found.outcome,), timeout=FIRST_WAIT_SECONDS_MAX)
        if not found.outcome.done():
            raise NotYetMirrored(f"{found.name} is being mirrored for the first time; try again")
        hosted = found.outcome.result()
        _begin_reading(request, hosted)
        return hosted

    def find_for_push(self, request: web.Request, settings: RepositorySettings) -> Hosted:
        """Return the repository that a push is about. A push never makes a mirror.

        Raises:
            ReadOnly: Pushes are refused.
            NotYetMirrored: It is not mirrored yet.
        """
        hosted = self._registry.get(settings.name)
        if hosted is not None:
            _begin_reading(request, hosted)
            return hosted
        if settings.push is PushPolicy.REFUSE:
            raise read_only(settings)
        raise NotYetMirrored(f"{settings.name} is not mirrored yet; fetch from it, then push")


def _begin_reading(request: web.Request, hosted: Hosted) -> None:
    request[READING] = hosted.mirror
    hosted.mirror.readers += 1


def end_reading(request: web.Request) -> None:
    """Let go of the mirror that a request has read."""
    mirror = request.get(READING)
    if mirror is not None:
        mirror.readers -= 1
