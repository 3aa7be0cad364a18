"""Which repositories there are: by the path readers use, and by the URLs forges know them by."""

import asyncio
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from mirror.config import RepositorySettings, would_be
from mirror.errors import UnknownRepository
from mirror.refresh.gate import Gate, RefreshRequests
from mirror.refresh.mirror import Mirror
from mirror.upstream.forges import RepositoryKey, repository_key
from mirror.upstream.webhook_secrets import WebhookSecrets

_SLASHES: Final = re.compile("/{2,}")


@dataclass(frozen=True, slots=True)
class Hosted:
    """One repository with all that acts on it, by one configuration.

    Attributes:
        settings: By which requests are judged that found it: the mirror's may have changed since.
    """

    settings: RepositorySettings
    mirror: Mirror
    refresher: RefreshRequests
    gate: Gate
    webhook_secrets: WebhookSecrets | None

    @classmethod
    def of(cls, mirror: Mirror, refresher: RefreshRequests) -> "Hosted":
        """Put together what acts on `mirror`."""
        file = mirror.settings.webhook_secret_file
        secrets = WebhookSecrets(file) if file else None
        return cls(mirror.settings, mirror, refresher, Gate(mirror, refresher), secrets)


class Opener(Protocol):
    """Mirrors repositories below `upstreams` on their first request."""

    def open(self, settings: RepositorySettings, client: str | None) -> "asyncio.Future[Hosted]":
        """Begin to mirror a repository, or join those who wait for it.

        The future has it once it can be read, and raises `UnknownRepository` (the upstream has no
        such repository), `NotYetMirrored` (it can't be mirrored now) or `Overloaded`. It is shared:
        wait for it with `asyncio.shield` or `asyncio.wait`.

        Args:
            settings: Of the repository.
            client: The address of the reader; `None` for the operator, whom no rate bounds.
        """
        ...


class Registry:
    """All repositories of the service: those configured, and those below `upstreams` that are here.

    Attributes:
        upstreams: See `Settings.upstreams`.
        opener: Mirrors what is below them, once there is one.
    """

    def __init__(
        self, hosted: Iterable[Hosted], upstreams: Sequence[RepositorySettings] = ()
    ) -> None:
        self.upstreams = upstreams
        self.opener: Opener | None = None
        self._by_name: dict[str, Hosted] = {}
        self._by_key: dict[RepositoryKey, list[Hosted]] = {}
        for one in hosted:
            self.add(one)

    def __iter__(self) -> Iterator[Hosted]:
        return iter(tuple(self._by_name.values()))  # which may change before the end

    def __len__(self) -> int:
        return len(self._by_name)

    def copy(self) -> "Registry":
        """Return what does not change with this one, for requests that began before a change."""
        copied = Registry(self, self.upstreams)
        copied.opener = self.opener
        return copied

    def add(self, hosted: Hosted) -> None:
        """Take in a repository whose name is not there yet."""
        self._by_name[hosted.mirror.name] = hosted
        key = repository_key(hosted.settings.upstream)
        if key is not None:
            self._by_key.setdefault(key, []).append(hosted)

    def remove(self, name: str) -> None:
        """Take out a repository."""
        hosted = self._by_name.pop(name)
        key = repository_key(hosted.settings.upstream)
        if key is not None:
            self._by_key[key].remove(hosted)
            if not self._by_key[key]:
                del self._by_key[key]

    def get(self, name: str) -> Hosted | None:
        """Return the repository of a name, if it is here."""
        return self._by_name.get(name)

    def resolve(self, path: str) -> RepositorySettings:
        """Return the settings of the repository at a URL's path, here or not; nothing is begun.

        Raises:
            UnknownRepository: By the configuration there can't be one.
        """
        name = _name_at(path)
        hosted = self._by_name.get(name)
        settings = would_be(name, self.upstreams) if hosted is None else hosted.settings
        if settings is None:
            raise unknown(name)
        return settings

    def open(self, settings: RepositorySettings, client: str | None) -> "asyncio.Future[Hosted]":
        """See `Opener.open`.

        Raises:
            UnknownRepository: Nobody could.
        """
        if self.opener is None:
            raise unknown(settings.name)
        return self.opener.open(settings, client)

    def find_by_urls(self, urls: Iterable[str]) -> list[Hosted]:
        """Return the repositories whose upstream one of `urls` names."""
        keys = {key for url in urls if (key := repository_key(url)) is not None}
        found = (one for key in keys for one in self._by_key.get(key, ()))
        return list({one.mirror.name: one for one in found}.values())


def _name_at(path: str) -> str:
    """Return the name that a path stands for.

    Slashes count once, as for a server of files: clients join a base and a path with one, and bases
    end in one.
    """
    if "//" in path:
        path = _SLASHES.sub("/", path)
    return path.strip("/").removesuffix(".git")


def unknown(name: str) -> UnknownRepository:
    """Return what is said of a repository that is not there, or not to be seen: the same."""
    return UnknownRepository(
        f"no repository {name[:200]!r} here; `repositories` in the configuration lists all"
    )
