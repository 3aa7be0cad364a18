"""Which repositories there are: by the path readers use, and by the URLs forges know them by."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from mirror.errors import UnknownRepository
from mirror.refresh.gate import Gate, RefreshRequests
from mirror.refresh.mirror import Mirror
from mirror.upstream.forges import RepositoryKey, repository_key
from mirror.upstream.webhook_secrets import WebhookSecrets

_SLASHES: Final = re.compile("/{2,}")


@dataclass(frozen=True, slots=True)
class Hosted:
    """One repository with all that acts on it."""

    mirror: Mirror
    refresher: RefreshRequests
    gate: Gate
    webhook_secrets: WebhookSecrets | None

    @classmethod
    def of(cls, mirror: Mirror, refresher: RefreshRequests) -> "Hosted":
        """Put together what acts on `mirror`."""
        file = mirror.settings.webhook_secret_file
        secrets = WebhookSecrets(file) if file else None
        return cls(mirror, refresher, Gate(mirror, refresher), secrets)


class Registry:
    """All repositories of the service."""

    def __init__(self, hosted: Iterable[Hosted]) -> None:
        self._by_name = {one.mirror.name: one for one in hosted}
        self._by_key: dict[RepositoryKey, list[Hosted]] = {}
        for one in self._by_name.values():
            key = repository_key(one.mirror.settings.upstream)
            if key is not None:
                self._by_key.setdefault(key, []).append(one)

    def __iter__(self) -> Iterator[Hosted]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def find(self, path: str) -> Hosted:
        """Return the repository at a URL's path, with or without `.git`.

        Slashes count once, as for a server of files: clients join a base and a path with one, and
        bases end in one.

        Raises:
            UnknownRepository: There is none.
        """
        if "//" in path:
            path = _SLASHES.sub("/", path)
        name = path.strip("/").removesuffix(".git")
        hosted = self._by_name.get(name)
        if hosted is None:
            raise UnknownRepository(
                f"no repository {name[:200]!r} here; `repositories` in the configuration lists all"
            )
        return hosted

    def find_by_urls(self, urls: Iterable[str]) -> list[Hosted]:
        """Return the repositories whose upstream one of `urls` names."""
        keys = {key for url in urls if (key := repository_key(url)) is not None}
        found = (one for key in keys for one in self._by_key.get(key, ()))
        return list({one.mirror.name: one for one in found}.values())
