"""The operations of the matrix: each changes the upstream, lets a client follow, and compares.

What a client has afterwards is judged with git, against what the upstream itself says it has.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol

from tests.clients.operations import Client, Operation
from tests.git_client import GitClient, Upstream


class Source(Protocol):
    """Where a client reads: through the mirror, or from the upstream itself."""

    @property
    def url(self) -> str:
        """What the client is given."""

    async def announce(self, ref: str, before: str) -> None:
        """Let it be known that the upstream's `ref` was pushed."""


class Check:
    """One cell: a client, an upstream, and the place that the client reads from."""

    def __init__(self, client: Client, upstream: Upstream, source: Source, workdir: Path) -> None:
        """Args:
        client: Who is looked at.
        upstream: What it is to see; every operation leaves it a bit longer.
        source: Where it reads.
        workdir: For clones; nothing is there yet.
        """
        self.client = client
        self.upstream = upstream
        self.source = source
        self.path = workdir / "clone"
        self.judge = GitClient(workdir / "judge")

    async def list_refs(self) -> None:
        """It sees every ref, HEAD, and what tags peel to, if it looks."""
        expected = self._shown()
        listed = await self.client.listing(self.source.url)
        if not any(name.endswith("^{}") for name in listed):
            expected = {name: oid for name, oid in expected.items() if not name.endswith("^{}")}
        assert listed == expected

    async def clone(self) -> None:
        """It has every commit, and every branch and tag if it wants them."""
        main = await self.client.clone(self.source.url, self.path)
        await self._is_at(main, self.upstream.oid())
        if self.client.whole:
            await self._has_all_refs()
        assert not self._boundary()
        await self._is_sound(main)

    async def clone_shallow(self) -> None:
        """It has one commit with all its files, and knows that it has no more."""
        main = await self.client.clone_shallow(self.source.url, self.path)
        await self._is_at(main, self.upstream.oid())
        await self._is_one_commit(main)

    async def fetch_news(self) -> None:
        """A commit that was just announced comes."""
        await self.client.clone(self.source.url, self.path)
        await self._follow(self.upstream.commit)

    async def fetch_forced(self) -> None:
        """Main goes where a force-push put it."""
        await self.client.clone(self.source.url, self.path)
        await self._follow(lambda: self.upstream.commit(parents=["main~2"], message="Instead"))

    async def fetch_tag(self) -> None:
        """An annotated tag comes as the object that it is, with what it points to."""
        await self.client.clone(self.source.url, self.path)
        before = self.upstream.oid()
        self.upstream.commit(message="To be released")
        tag = self._new_tag()
        await self.source.announce("refs/heads/main", before)
        await self.source.announce(f"refs/tags/{tag}", "0" * 40)
        revision = await self.client.fetch_tag(self.source.url, self.path, tag)
        await self._is_at(revision, self.upstream.oid(f"refs/tags/{tag}"))
        await self._is_at(f"{revision}^{{commit}}", self.upstream.oid())
        await self._is_sound(revision)

    async def fetch_commit(self) -> None:
        """A commit that no ref points to comes by its id."""
        before = self.upstream.oid()
        commit, _ = self.upstream.history(2)
        await self.source.announce("refs/heads/main", before)
        revision = await self.client.fetch_commit(self.source.url, self.path, commit)
        await self._is_at(revision, commit)
        await self._is_sound(revision)

    # --- judging -------------------------------------------------------------------------------

    async def _follow(self, change: Callable[[], str]) -> None:
        """Let the client follow a change of main."""
        before = self.upstream.oid()
        after = change()
        await self.source.announce("refs/heads/main", before)
        main = await self.client.fetch(self.source.url, self.path)
        await self._is_at(main, after)
        await self._is_sound(main)

    async def _is_at(self, revision: str, oid: str) -> None:
        assert await self.judge.rev_parse(self.path, revision) == oid

    async def _has_all_refs(self) -> None:
        theirs = self.upstream.refs()
        expected = {
            name.replace("refs/heads/", "refs/remotes/origin/", 1): oid
            for name, oid in theirs.items()
        }
        refs = await self.judge.refs(self.path)
        refs.pop("refs/remotes/origin/HEAD", None)
        assert {name: oid for name, oid in refs.items() if not _is_own(name)} == expected

    async def _is_sound(self, revision: str) -> None:
        """Nothing is broken, and nothing is missing as far back as a boundary, if any."""
        await self.judge.fsck(self.path)
        have = await self.judge.output("rev-list", "--objects", revision, cwd=self.path)
        if not self._boundary():
            oid = await self.judge.rev_parse(self.path, revision)
            assert sorted(have.splitlines()) == sorted(self._upstream_objects(oid))

    async def _is_one_commit(self, revision: str) -> None:
        await self.judge.fsck(self.path)
        commits = await self.judge.output("rev-list", revision, cwd=self.path)
        assert commits == self.upstream.oid()
        assert self.upstream.oid() in self._boundary()
        assert self._boundary() <= set(self._shown().values())
        files = await self.judge.output("ls-tree", "-r", revision, cwd=self.path)
        assert files == self.upstream.git("ls-tree", "-r", "main")

    def _shown(self) -> dict[str, str]:
        lines = self.upstream.git("show-ref", "--head", "--dereference").splitlines()
        return {name: oid for oid, name in (line.split(" ") for line in lines)}

    def _upstream_objects(self, oid: str) -> list[str]:
        return self.upstream.git("rev-list", "--objects", oid).splitlines()

    def _boundary(self) -> set[str]:
        file = self.path / ".git" / "shallow"
        return set(file.read_text().split()) if file.exists() else set()

    def _new_tag(self) -> str:
        number = sum(name.startswith("refs/tags/") for name in self.upstream.refs())
        tag = f"v2.{number}.0"
        self.upstream.tag(tag)
        return tag


def _is_own(name: str) -> bool:
    return name.startswith("refs/heads/")  # the branch that was checked out


CHECKS: Final[dict[Operation, Callable[[Check], Awaitable[None]]]] = {
    Operation.LIST: Check.list_refs,
    Operation.CLONE: Check.clone,
    Operation.SHALLOW: Check.clone_shallow,
    Operation.NEWS: Check.fetch_news,
    Operation.FORCED: Check.fetch_forced,
    Operation.TAG: Check.fetch_tag,
    Operation.COMMIT: Check.fetch_commit,
}
