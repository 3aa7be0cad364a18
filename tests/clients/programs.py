"""The clients that are programs of their own, which do one operation a run; `builds` makes them."""

import asyncio
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.clients.operations import ClientFailed
from tests.git_client import environment

PROGRAM_SECONDS_MAX: Final = 90.0


class Program:
    """A program that does one operation a run, and prints what it found."""

    def __init__(
        self, program: Path, workdir: Path, *, env: Mapping[str, str] | None = None
    ) -> None:
        """Args:
        program: What is run.
        workdir: Its home, and the place for its temporary files.
        env: More of its environment: how it signs in.
        """
        self.program = program
        self.workdir = workdir
        self._env = environment(workdir) | {"TMPDIR": str(workdir)} | dict(env or {})
        workdir.mkdir(parents=True, exist_ok=True)

    async def run(self, *args: str) -> str:
        """Return what one run prints; it raises `ClientFailed` with all that it said."""
        completed = await asyncio.to_thread(
            subprocess.run,
            [str(self.program), *args],
            cwd=self.workdir,
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            timeout=PROGRAM_SECONDS_MAX,
        )
        if completed.returncode != 0:
            said = f"{completed.stdout}{completed.stderr}"
            raise ClientFailed(f"{self.program.parent.name} {' '.join(args)}\n{said}")
        return completed.stdout.strip()


class PlainProgram(Program):
    """A program around a library, which takes an operation as its first word."""

    whole = True

    def __init__(
        self,
        program: Path,
        workdir: Path,
        *,
        one_commit: str = "refs/remotes/origin/main",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Args:
        program: What is run.
        workdir: Its home.
        one_commit: Where a clone of one commit keeps it.
        env: More of its environment.
        """
        super().__init__(program, workdir, env=env)
        self.one_commit = one_commit

    async def version(self) -> str:
        return await self.run("version")

    async def listing(self, url: str) -> Mapping[str, str]:
        lines = (await self.run("list", url)).splitlines()
        return {name: oid for oid, name in (line.split("\t") for line in lines)}

    async def clone(self, url: str, path: Path) -> str:
        await self.run("clone", url, str(path))
        return "refs/remotes/origin/main"

    async def clone_shallow(self, url: str, path: Path) -> str:
        await self.run("shallow", url, str(path))
        return self.one_commit

    async def fetch(self, url: str, path: Path) -> str:
        await self.run("fetch", url, str(path))
        return "refs/remotes/origin/main"

    async def fetch_tag(self, url: str, path: Path, tag: str) -> str:
        await self.run("tags", url, str(path))
        return f"refs/tags/{tag}"

    async def fetch_commit(self, url: str, path: Path, oid: str) -> str:
        await self.run("commit", url, str(path), oid)
        return oid


class Flux(Program):
    """Flux's source-controller, which always clones anew."""

    whole = False

    async def version(self) -> str:
        return await self.run("version")

    async def listing(self, url: str) -> Mapping[str, str]:
        """It lists only to compare one ref; see `poll`."""
        raise NotImplementedError(url)

    async def poll(self, url: str, commit: str) -> str:
        """Return whether main is still at `commit`, as Flux asks at each interval."""
        return await self.run("poll", url, f"main@sha1:{commit}")

    async def reconcile(
        self, url: str, path: Path, kind: str, value: str, depth: str = "shallow"
    ) -> str:
        """Clone what a GitRepository's `ref` names, and return the commit."""
        shutil.rmtree(path, ignore_errors=True)
        return await self.run("clone", url, str(path), kind, value, depth)

    async def clone(self, url: str, path: Path) -> str:
        await self.reconcile(url, path, "branch", "main", "full")
        return "HEAD"

    async def clone_shallow(self, url: str, path: Path) -> str:
        await self.reconcile(url, path, "branch", "main")
        return "HEAD"

    async def fetch(self, url: str, path: Path) -> str:
        await self.reconcile(url, path, "branch", "main")
        return "HEAD"

    async def fetch_tag(self, url: str, path: Path, tag: str) -> str:
        await self.reconcile(url, path, "tag", tag)
        return f"refs/tags/{tag}"

    async def fetch_commit(self, url: str, path: Path, oid: str) -> str:
        await self.reconcile(url, path, "commit", oid, "full")
        return "HEAD"
