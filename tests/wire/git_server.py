"""git's own server over a small repository, and our mirror of the same objects.

What git says is compared by meaning: the order of refs and of shallow lines is free.
"""

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mirror.repository.bare import BareRepository
from mirror.repository.fetching import FetchPlan
from mirror.repository.snapshot import RefSnapshot
from mirror.wire.names import ObjectId
from mirror.wire.pktline import Packet, Special, decode_all, text
from tests.git_client import GIT_SECONDS_MAX, Upstream, environment
from tests.wire.bodies import AGENT


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a fetch: its lines up to the pack, and whether there is one."""

    lines: list[Packet]
    pack: bool

    @classmethod
    def of(cls, body: bytes) -> Self:
        """Read the lines up to the pack or the end."""
        found: list[Packet] = []
        at = 0
        while at < len(body):
            length = 4 if body.startswith(b"PACK", at) else int(body[at : at + 4], 16)
            payload = body[at + 4 : at + length]
            if body.startswith(b"PACK", at) or payload[:1] in {b"\1", b"\2", b"\3"}:
                return cls(found, pack=True)
            found.append(Special(length) if length < 4 else text(payload))
            at += max(4, length)
        return cls(found, pack=False)

    @classmethod
    def planned(cls, plan: FetchPlan) -> Self:
        """Read what we plan to say."""
        answer = cls.of(plan.head)
        return cls(answer.lines, pack=plan.pack is not None)

    def sections(self) -> dict[bytes, list[bytes]]:
        """Return the lines of a v2 answer by their section."""
        return sections(self.lines)


def sections(lines: Iterable[Packet]) -> dict[bytes, list[bytes]]:
    """Return a v2 answer by its sections, sorted where git's order is free."""
    found: dict[bytes, list[bytes]] = {}
    section: list[bytes] | None = None
    for packet in lines:
        if isinstance(packet, Special):
            section = None
        elif section is None:
            section = found.setdefault(packet, [])
        else:
            section.append(packet)
    free = (b"shallow-info", b"wanted-refs")
    return {name: sorted(rows) if name in free else rows for name, rows in found.items()}


class GitServer:
    """`git upload-pack` over one repository, as git-http-backend runs it."""

    def __init__(self, repository: Path, *, settings: Sequence[str] = ()) -> None:
        """Serve what lies at `repository`; `settings` are as `git -c` takes them."""
        self._repository = repository
        self._settings = [word for setting in settings for word in ("-c", setting)]
        self._environment = environment(repository.parent)

    def first_answer(self, version: int) -> bytes:
        """Return the answer to `info/refs`, without the service line of http-backend."""
        return self._run("--http-backend-info-refs", version=version)

    def command(self, body: bytes) -> bytes:
        """Answer a v2 request."""
        return self._run("--stateless-rpc", version=2, body=body)

    def fetch_v2(self, body: bytes) -> Answer:
        """Answer a v2 fetch."""
        return Answer.of(self.command(body))

    def fetch_v0(self, body: bytes) -> Answer:
        """Answer a v0 fetch."""
        return Answer.of(self._run("--stateless-rpc", version=0, body=body))

    def ask(self, body: bytes, *, version: int) -> tuple[bytes, bytes | None]:
        """Answer a request; returns the answer, and what git says to its log if it refuses."""
        completed = self._completed("--stateless-rpc", version=version, body=body)
        return completed.stdout, completed.stderr if completed.returncode else None

    def refuses(self, body: bytes, *, version: int) -> bool:
        """Tell whether git answers with an error."""
        completed = self._completed("--stateless-rpc", version=version, body=body)
        return completed.returncode != 0

    def refusal(self, body: bytes, *, version: int) -> str:
        """Return the words in which git refuses a request: its ERR, or what it says on stderr."""
        completed = self._completed("--stateless-rpc", version=version, body=body)
        assert completed.returncode != 0, completed.stdout
        said = [line for line in completed.stderr.decode().splitlines() if "fatal: " in line]
        return said[-1].removeprefix("fatal: ")

    def error_packet(self, body: bytes, *, version: int) -> str:
        """Return the text of the ERR pkt-line with which git answers; empty where it sends none."""
        answer = self._completed("--stateless-rpc", version=version, body=body).stdout
        found = [packet for packet in decode_all(answer) if isinstance(packet, bytes)]
        errors = [text(line).decode() for line in found if line.startswith(b"ERR ")]
        return errors[0].removeprefix("ERR ") if errors else ""

    def _run(self, option: str, *, version: int, body: bytes = b"") -> bytes:
        completed = self._completed(option, version=version, body=body)
        assert completed.returncode == 0, completed.stderr.decode()
        return completed.stdout

    def _completed(
        self, option: str, *, version: int, body: bytes
    ) -> subprocess.CompletedProcess[bytes]:
        protocol = {"GIT_PROTOCOL": f"version={version}"} if version else {}
        return subprocess.run(
            ["git", *self._settings, "upload-pack", option, str(self._repository)],
            env=self._environment | protocol,
            input=body,
            capture_output=True,
            check=False,
            timeout=GIT_SECONDS_MAX,
        )


@dataclass(frozen=True, slots=True)
class Both:
    """The same repository behind git's server and behind ours.

    Attributes:
        git: git's own server.
        mirror: Our mirror of it.
        snapshot: The refs of the mirror.
        parents: All commits, the oldest first, with their parents.
        times: When each of them was made, in seconds since the epoch.
        tags: Annotated tags and the commit that each finally points to.
    """

    git: GitServer
    mirror: BareRepository
    snapshot: RefSnapshot
    parents: dict[ObjectId, tuple[ObjectId, ...]]
    times: dict[ObjectId, int]
    tags: dict[ObjectId, ObjectId]

    @property
    def tips(self) -> list[ObjectId]:
        """The ends of history: commits that are nobody's parents."""
        has_children = {parent for parents in self.parents.values() for parent in parents}
        return [commit for commit in self.parents if commit not in has_children]

    def reachable(self, starts: set[ObjectId]) -> set[ObjectId]:
        """Return the commits that history leads to from `starts`, these among them."""
        found: set[ObjectId] = set()
        todo = list(starts)
        while todo:
            commit = todo.pop()
            if commit not in found:
                found.add(commit)
                todo += self.parents[commit]
        return found

    def close(self) -> None:
        """Let go of the packs."""
        self.mirror.close()


def populate(upstream: Upstream) -> None:
    """Give it branches, a merge, a second root, and tags of every kind."""
    upstream.history(4)
    upstream.branches({"side": "main", "release/1.0": "main~2"})
    upstream.history(3)
    upstream.history(2, "side")
    upstream.commit("main", parents=["main", "side"], message="Merge side")
    upstream.history(3)
    upstream.history(2, "release/1.0")
    upstream.commit("pages", {"index.html": "<p>\n"}, parents=[])
    upstream.history(2, "pages")
    upstream.tag("v1", "main~5")
    upstream.tag("v1-again", "v1")
    upstream.tag("v1-thrice", "v1-again")
    upstream.tag("light", "main~1", annotated=False)
    upstream.tag("a-blob", "main:counter.txt")
    upstream.force("refs/pull/1/head", "side~1")
    for key in (
        "uploadpack.allowRefInWant",
        "uploadpack.allowSidebandAll",
        "transfer.advertiseObjectInfo",
    ):
        upstream.config(key, "true")


def mirror_of(upstream: Upstream, path: Path) -> Both:
    """Mirror the repository into `path` and put it behind both servers."""
    upstream.git("clone", "--quiet", "--mirror", str(upstream.path), str(path))
    upstream.git("-C", str(path), "pack-refs", "--all")
    upstream.git("-C", str(path), "repack", "-adq")
    mirror = BareRepository.open(path)
    stored = mirror.read_refs()
    snapshot = RefSnapshot(
        1,
        stored.refs.values(),
        head_target=stored.head_target,
        detached_head=stored.head,
        agent=AGENT,
    )
    order = ("--topo-order", "--reverse")
    walk = upstream.git("rev-list", *order, "--timestamp", "--parents", "--all")
    parents, times = {}, {}
    for line in walk.encode().splitlines():
        time, commit, *its_parents = map(ObjectId, line.split())
        parents[commit] = tuple(its_parents)
        times[commit] = int(time)
    tags = {
        ref.oid: ref.peeled
        for ref in snapshot.tags()
        if ref.peeled is not None and ref.peeled in parents
    }
    return Both(GitServer(upstream.path), mirror, snapshot, parents, times, tags)
