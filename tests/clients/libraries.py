"""The clients that are Python packages: libgit2 by pygit2, and dulwich."""

import asyncio
import io
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final

import dulwich
import pygit2
from dulwich import porcelain
from dulwich.client import HttpGitClient, get_transport_and_path
from dulwich.config import ConfigFile
from dulwich.objects import ObjectID
from dulwich.refs import Ref
from dulwich.repo import Repo
from pygit2.enums import ConfigLevel

MAIN: Final = "refs/remotes/origin/main"


class Libgit2:
    """libgit2, which speaks the oldest protocol only."""

    whole = True

    def __init__(self) -> None:
        for level in (ConfigLevel.SYSTEM, ConfigLevel.XDG, ConfigLevel.GLOBAL):
            pygit2.settings.search_path[level] = ""

    async def version(self) -> str:
        return f"{pygit2.LIBGIT2_VERSION}, pygit2 {version('pygit2')}"

    async def listing(self, url: str) -> Mapping[str, str]:
        return await asyncio.to_thread(_libgit2_listing, url)

    async def clone(self, url: str, path: Path) -> str:
        await asyncio.to_thread(pygit2.clone_repository, url, str(path))
        return MAIN

    async def clone_shallow(self, url: str, path: Path) -> str:
        await asyncio.to_thread(pygit2.clone_repository, url, str(path), depth=1)
        return MAIN

    async def fetch(self, url: str, path: Path) -> str:
        del url
        remote = pygit2.Repository(str(path)).remotes["origin"]
        await asyncio.to_thread(remote.fetch)
        return MAIN

    async def fetch_tag(self, url: str, path: Path, tag: str) -> str:
        del url
        remote = pygit2.Repository(str(path)).remotes["origin"]
        await asyncio.to_thread(remote.fetch, [f"+refs/tags/{tag}:refs/tags/{tag}"])
        return f"refs/tags/{tag}"

    async def fetch_commit(self, url: str, path: Path, oid: str) -> str:
        remote = pygit2.init_repository(str(path)).remotes.create_anonymous(url)
        await asyncio.to_thread(remote.fetch, [oid])
        return oid


def _libgit2_listing(url: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as directory:  # libgit2 has no remotes without a repository
        remote = pygit2.init_repository(directory, bare=True).remotes.create_anonymous(url)
        return {str(head.name): str(head.oid) for head in remote.list_heads()}


class Dulwich:
    """dulwich as a client, with either protocol."""

    whole = True

    def __init__(self, protocol: int) -> None:
        """Args:
        protocol: What it asks for.
        """
        self.protocol = protocol

    async def version(self) -> str:
        return ".".join(map(str, dulwich.__version__))

    async def listing(self, url: str) -> Mapping[str, str]:
        client, path = self._connect(url)
        result = await asyncio.to_thread(client.get_refs, path, protocol_version=self.protocol)
        return {name.decode(): oid.decode() for name, oid in result.refs.items() if oid}

    async def clone(self, url: str, path: Path) -> str:
        return await self._clone(url, path, None)

    async def clone_shallow(self, url: str, path: Path) -> str:
        return await self._clone(url, path, 1)

    async def fetch(self, url: str, path: Path) -> str:
        await asyncio.to_thread(self._fetch, url, path, b"refs/heads/", b"refs/remotes/origin/")
        return MAIN

    async def fetch_tag(self, url: str, path: Path, tag: str) -> str:
        await asyncio.to_thread(self._fetch, url, path, b"refs/tags/", b"refs/tags/")
        return f"refs/tags/{tag}"

    async def fetch_commit(self, url: str, path: Path, oid: str) -> str:
        def wanted(refs: object, depth: int | None = None) -> list[ObjectID]:
            del refs, depth
            return [ObjectID(oid.encode())]

        def fetch() -> None:
            client, where = self._connect(url)
            with Repo.init(str(path), mkdir=True) as repo:
                client.fetch(where, repo, wanted, protocol_version=self.protocol)

        await asyncio.to_thread(fetch)
        return oid

    async def _clone(self, url: str, path: Path, depth: int | None) -> str:
        def clone() -> None:
            porcelain.clone(
                url,
                path,
                checkout=False,
                errstream=io.BytesIO(),
                protocol_version=self.protocol,
                depth=depth,
                config=ConfigFile(),
            ).close()

        await asyncio.to_thread(clone)
        return MAIN

    def _fetch(self, url: str, path: Path, remote: bytes, local: bytes) -> None:
        """Fetch every ref below `remote`, and write them below `local` by force."""
        client, where = self._connect(url)
        with Repo(str(path)) as repo:
            result = client.fetch(where, repo, protocol_version=self.protocol)
            for name, oid in result.refs.items():
                if name.startswith(remote) and not name.endswith(b"^{}") and oid:
                    repo.refs[Ref(local + name.removeprefix(remote))] = oid

    def _connect(self, url: str) -> tuple[HttpGitClient, str]:
        client, path = get_transport_and_path(url, config=ConfigFile())
        assert isinstance(client, HttpGitClient)
        return client, path
