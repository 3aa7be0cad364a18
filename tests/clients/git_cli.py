"""git itself, of any version, and the programs that run it: Argo CD's repo-server and kustomize."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.clients.builds import CACHE
from tests.clients.operations import Client, Unavailable
from tests.git_client import GitClient

NEWEST_GIT: Final = "GIT_MIRROR_TEST_NEWEST_GIT"
"""The environment variable that names the newest git, where it is not in its usual place."""

MAIN: Final = "refs/remotes/origin/main"


def machine_git() -> str:
    """Return this machine's git."""
    return "git"


def newest_git() -> str:
    """Return the git that `install-newest-git` unpacked."""
    place = os.environ.get(NEWEST_GIT) or str(CACHE / "newest-git" / "bin" / "git")
    if shutil.which(place) is None:
        raise Unavailable("no newest git here: run tests/clients/install-newest-git")
    return place


class Git:
    """The git command line with one protocol version."""

    whole = True

    def __init__(self, program: str, workdir: Path, protocol: int) -> None:
        """Args:
        program: Which git.
        workdir: Its home.
        protocol: protocol.version.
        """
        self.git = GitClient(workdir, protocol, program=program)

    async def version(self) -> str:
        return (await self.git.output("version")).removeprefix("git version ")

    async def listing(self, url: str) -> Mapping[str, str]:
        return await self.git.ls_remote(url)

    async def clone(self, url: str, path: Path) -> str:
        await self.git.run("clone", "--quiet", url, str(path))
        return MAIN

    async def clone_shallow(self, url: str, path: Path) -> str:
        await self.git.run("clone", "--quiet", "--depth=1", url, str(path))
        return MAIN

    async def fetch(self, url: str, path: Path) -> str:
        del url  # the clone knows it
        await self.git.run("fetch", "origin", cwd=path)
        return MAIN

    async def fetch_tag(self, url: str, path: Path, tag: str) -> str:
        del url
        await self.git.run("fetch", "--no-tags", "origin", "tag", tag, cwd=path)
        return f"refs/tags/{tag}"

    async def fetch_commit(self, url: str, path: Path, oid: str) -> str:
        await self.git.run("init", "--quiet", str(path))
        await self.git.run("fetch", url, oid, cwd=path)
        return "FETCH_HEAD"


class ArgoCd:
    """Argo CD: its repo-server lists with go-git v5 and fetches with git."""

    whole = True

    def __init__(self, lister: Client, program: str, workdir: Path) -> None:
        """Args:
        lister: go-git v5.
        program: Which git.
        workdir: Its home.
        """
        self.lister = lister
        self.git = GitClient(workdir, program=program)

    async def version(self) -> str:
        git = (await self.git.output("version")).removeprefix("git version ")
        return f"go-git {await self.lister.version()}, git {git}"

    async def listing(self, url: str) -> Mapping[str, str]:
        return await self.lister.listing(url)

    async def clone(self, url: str, path: Path) -> str:
        await self._init(url, path)
        return await self.fetch(url, path)

    async def clone_shallow(self, url: str, path: Path) -> str:
        commit = (await self.listing(url))["refs/heads/main"]
        await self._init(url, path)
        await self.git.run("fetch", "origin", commit, "--depth", "1", "--force", cwd=path)
        await self.git.run("checkout", "--quiet", "--force", commit, cwd=path)
        return "HEAD"

    async def fetch(self, url: str, path: Path) -> str:
        """Fetch, and check out the commit that the list named, which must have come."""
        commit = (await self.listing(url))["refs/heads/main"]
        await self.git.run("fetch", "origin", "--tags", "--force", "--prune", cwd=path)
        await self.git.run("checkout", "--quiet", "--force", commit, cwd=path)
        return MAIN

    async def fetch_tag(self, url: str, path: Path, tag: str) -> str:
        await self.fetch(url, path)
        return f"refs/tags/{tag}"

    async def fetch_commit(self, url: str, path: Path, oid: str) -> str:
        await self._init(url, path)
        await self.git.run("fetch", "origin", oid, cwd=path)
        await self.git.run("checkout", "--quiet", "--force", oid, cwd=path)
        return "HEAD"

    async def _init(self, url: str, path: Path) -> None:
        await self.git.run("init", "--quiet", str(path))
        await self.git.run("remote", "add", "origin", url, cwd=path)


class Kustomize:
    """How kustomize gets a remote base: one commit, anew for every build, always shallow."""

    whole = False

    def __init__(self, program: str, workdir: Path) -> None:
        """Args:
        program: Which git.
        workdir: Its home.
        """
        self.git = GitClient(workdir, program=program)

    async def version(self) -> str:
        return "git " + (await self.git.output("version")).removeprefix("git version ")

    async def listing(self, url: str) -> Mapping[str, str]:
        """It never lists."""
        raise NotImplementedError(url)

    async def clone(self, url: str, path: Path) -> str:
        """What it has before a change: one commit, since it never asks for history."""
        return await self._base(url, path, "main")

    async def clone_shallow(self, url: str, path: Path) -> str:
        return await self._base(url, path, "main")

    async def fetch(self, url: str, path: Path) -> str:
        return await self._base(url, path, "main")

    async def fetch_tag(self, url: str, path: Path, tag: str) -> str:
        await self._base(url, path, tag)
        return "FETCH_HEAD"

    async def fetch_commit(self, url: str, path: Path, oid: str) -> str:
        return await self._base(url, path, oid)

    async def _base(self, url: str, path: Path, ref: str) -> str:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        await self.git.run("init", cwd=path)
        await self.git.run("remote", "add", "origin", url, cwd=path)
        await self.git.run("fetch", "--depth=1", url, ref, cwd=path)
        await self.git.run("checkout", "FETCH_HEAD", cwd=path)
        await self.git.run("submodule", "update", "--init", "--recursive", cwd=path)
        return "HEAD"
