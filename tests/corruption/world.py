"""A mirror with every kind of file, bits to flip in them, and clients that judge what they get."""

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from mirror.config import EngineChoice
from mirror.repository.bare import BareRepository
from mirror.stores import open_engine
from tests.git_client import GitClient, GitFailed, Upstream
from tests.mirror_service import NAME, MirrorService

NO_CACHE: Final = "limits: {pack_cache_bytes_max: 0, pack_cache_memory_bytes_max: 0}"
"""So that every answer is made from what is on the disk now."""


def grow(upstream: Upstream) -> None:
    """Fill an upstream with deltas, directories, a merge, a tag, and what does not compress."""
    noise = random.Random(7).randbytes
    files: dict[str, str | bytes | None] = {
        f"apps/{number}/values.yaml": "".join(f"key{line}: {number}\n" for line in range(60))
        for number in range(12)
    }
    upstream.commit(files={**files, "logo.png": noise(20_000)})
    upstream.history(60)
    upstream.commit("feature", {"feature.txt": "new\n"}, parents=["main"])
    upstream.commit("main", {"apps/3/values.yaml": "key: changed\n"}, parents=["main", "feature"])
    upstream.tag("v1")
    upstream.history(5)


async def furnish(repository: BareRepository) -> None:
    """Give a mirror all the files that git's repack makes, if it lacks one."""
    files = files_of(repository.path)
    if not (files["commit-graph"] and files["multi-pack index"] and files["bitmap"]):
        async with open_engine(EngineChoice.GIT) as engine:
            await engine.repack(repository)


def files_of(path: Path) -> dict[str, list[Path]]:
    """Return what can rot in a repository, by kind."""
    packs = path / "objects" / "pack"
    kinds = {
        "pack": packs.glob("pack-*.pack"),
        "index": packs.glob("pack-*.idx"),
        "reverse index": packs.glob("*.rev"),
        "multi-pack index": packs.glob("multi-pack-index"),
        "bitmap": packs.glob("*.bitmap"),
        "commit-graph": (path / "objects/info").glob("commit-graph"),
        "packed-refs": path.glob("packed-refs"),
        "copy of the refs": path.glob("git-mirror-refs"),
        "HEAD": path.glob("HEAD"),
        "config": path.glob("config"),
    }
    return {kind: sorted(found) for kind, found in kinds.items()}


def flip(file: Path, bit: int) -> None:
    """Flip one bit of a file where it lies, as a disk does: no new file, no new size."""
    file.chmod(0o644)
    with file.open("r+b", buffering=0) as opened:
        opened.seek(bit // 8)
        byte = opened.read(1)[0]
        opened.seek(bit // 8)
        opened.write(bytes([byte ^ (1 << bit % 8)]))


def flips(seed: int, count: int) -> Iterator[tuple[str, random.Random]]:
    """Yield the kinds of files in turn, each with what chooses the file and the bit."""
    kinds = list(files_of(Path("/nonexistent")))
    for number in range(count):
        yield kinds[number % len(kinds)], random.Random(f"{seed} {number}")


class Judge:
    """Asks as real clients do. Every answer is right, or an error; anything else is a failure."""

    def __init__(self, client: GitClient, running: MirrorService, upstream: Upstream) -> None:
        self._client = client
        self._running = running
        self._upstream = upstream
        self._refs = upstream.refs()
        self._old: Path | None = None
        self.right = 0
        self.errors = 0

    async def prepare(self) -> None:
        """Make a clone of long ago, which fetches what is new."""
        old = self._client.workdir / "old"
        await self._client.run("init", "--quiet", "--bare", str(old))
        url, tip = str(self._upstream.path), self._upstream.oid("main~4")
        await self._client.run("fetch", "--quiet", url, f"{tip}:refs/heads/main", cwd=old)
        self._old = old

    async def ask(self, *, must_succeed: bool = False) -> None:
        """Ask for everything in several ways."""
        url = self._running.url(NAME)
        for number, ask in enumerate((self._list, self._clone, self._shallow, self._fetch)):
            try:
                await ask(url)
            except GitFailed as error:
                lines = error.completed.stderr.splitlines()
                said = "\n".join(line for line in lines if "remote" not in line)
                # A client that had to find it out by itself was handed what is damaged.
                for word in ("bad object", "inflate", "corrupt", "mismatch", "did not receive"):
                    assert word not in said, f"{number}: {said}"
                assert not must_succeed, said
                self.errors += 1
            else:
                self.right += 1

    async def _list(self, url: str) -> None:
        found = await self._client.ls_remote(url, "--refs")
        assert found == self._refs
        branch = await self._client.default_branch(url)
        assert branch == "refs/heads/main"

    async def _clone(self, url: str) -> None:
        await self._is_whole(await self._client.clone(url, "--mirror"))

    async def _shallow(self, url: str) -> None:
        await self._is_whole(await self._client.clone(url, "--bare", "--depth=1"), count=1)

    async def _fetch(self, url: str) -> None:
        self._copies = getattr(self, "_copies", 0) + 1
        copy = self._client.workdir / f"copy-{self._copies}"
        await self._client.run("clone", "--quiet", "--bare", "--local", str(self._old), str(copy))
        await self._client.run("fetch", "--quiet", url, "+refs/*:refs/*", cwd=copy)
        await self._is_whole(copy)

    async def _is_whole(self, clone: Path, count: int = 0) -> None:
        """A judge that does not trust the transfer: every object is read and hashed."""
        await self._client.fsck(clone)
        refs = await self._client.refs(clone)
        for name, oid in refs.items():
            assert self._refs[name] == oid
        if count == 0:
            assert refs == self._refs
        for file in sorted(clone.rglob("*"), reverse=True):
            with suppress(OSError):
                file.unlink() if not file.is_dir() else file.rmdir()
