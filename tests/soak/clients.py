"""Who reads: a registry of kinds, each with how often it comes; a new kind is a function more.

A kind does its work once and judges what it got. What it raises is judged by `conducting`: a
failure that no trouble explains is a violation, `Wrong` always is.
"""

import asyncio
import hashlib
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from tests.clients import builds
from tests.clients.libraries import Libgit2
from tests.clients.programs import Flux, PlainProgram
from tests.git_client import GitClient
from tests.lfs_server import oid_of
from tests.mirror_service import UPLOAD_PACK_HEADERS
from tests.soak import hastened
from tests.soak.asking import GONE, Asking, Wrong, raw_connection
from tests.soak.estate import Repository
from tests.soak.judges import MAIN, Asked
from tests.soak.ledger import Trouble
from tests.web.asking import fetch_v0
from tests.web.lfs_estate import LFS_HEADERS

Work = Callable[["Reader"], Awaitable[None]]

FETCHES_EACH: Final = 30
"""A clone that is kept is made anew after so many fetches."""

PULLED_SECONDS: Final = 75.0
WRONG_TOKEN: Final = "gmt_" + "A" * 43
HANG_SECONDS_MAX: Final = 30.0
OLD_SECONDS_SLACK: Final = 10.0
_POST: Final = b"POST /acme/app/git-upload-pack HTTP/1.1\r\nHost: x\r\n"
_HOOK: Final = b"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nX-GitHub-Event: push\r\n"
GARBAGE: Final = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 40,
    b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    _POST + b"Content-Length: 4\r\n\r\nzzzz",
    _POST + b"Content-Length: -1\r\n\r\n",
    _POST + b"Transfer-Encoding: chunked\r\n\r\nZ\r\n",
    _POST + b"Content-Encoding: gzip\r\nContent-Length: 8\r\n\r\nnot gzip",
    b"GET /acme/../../etc/passwd/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /acme/app/info/refs?service=git-frobnicate HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PATCH /acme/app/info/refs HTTP/1.1\r\nHost: x\r\n\r\n",
    _HOOK + b"Content-Length: 2\r\n\r\n{}",
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of client.

    Attributes:
        each_minute: How often it comes, at a load of 1.
        excuses: What explains that it fails.
        is_real: Whether it is a program or library of others.
        is_there: Whether it can be had on this machine.
    """

    name: str
    each_minute: float
    work: Work
    excuses: tuple[Trouble, ...]
    is_real: bool
    is_there: Callable[[], bool]


KINDS: Final[dict[str, Kind]] = {}


def kind(
    name: str,
    *,
    each_minute: float,
    excuses: tuple[Trouble, ...] = GONE,
    is_real: bool = False,
    is_there: Callable[[], bool] = lambda: True,
) -> Callable[[Work], Work]:
    """Register a kind of client."""

    def register(work: Work) -> Work:
        KINDS[name] = Kind(name, each_minute, work, excuses, is_real, is_there)
        return work

    return register


class Reader:
    """What one kind has at hand.

    Attributes:
        kept: Clones that it keeps, by repository, and how often it fetched.
        at: The repository that was chosen last.
    """

    def __init__(self, name: str, asking: Asking) -> None:
        self.name = name
        self.asking = asking
        self.estate = asking.estate
        self.chance = asking.estate.chance
        self.kept: dict[str, tuple[Path, int]] = {}
        self.at: Repository | None = None
        self._number = 0

    def any(self, *, pulled: bool | None = False, large: bool = False) -> Repository:
        """Choose a repository.

        Args:
            pulled: Whether it is one below the place; `None` if that does not matter.
            large: Whether it may be the large one.
        """
        found = [
            one
            for one in self.estate.repositories.values()
            if pulled in {None, one.is_pulled} and (large or not one.is_large)
        ]
        if pulled and self.chance.random() < 0.98:
            # Two at a time: the others are evicted once they were not read for a minute.
            first = int(self.estate.ledger.seconds / PULLED_SECONDS)
            found = [found[number % len(found)] for number in (first, first + 1)]
        self.at = self.chance.choice(found)
        return self.at

    def named(self, name: str) -> Repository:
        """Choose this repository."""
        self.at = self.estate.repositories[name]
        return self.at

    def git(self) -> GitClient:
        """Return a git of this kind, in any version of the protocol."""
        return self.estate.git(self.name, self.chance.choice([0, 1, 2, 2]))

    def place(self) -> Path:
        """Return a new directory's name."""
        self._number += 1
        return self.estate.directory / "clients" / self.name / f"new-{self._number}"

    def forget(self) -> None:
        """Give up the clones: one may be half a clone."""
        for path, _ in self.kept.values():
            shutil.rmtree(path, ignore_errors=True)
        self.kept.clear()

    def violate(self, one: Repository, *what: str) -> None:
        self.estate.ledger.violate(f"{one.name}, {self.name}", *what)


# --- polls and fetches in process ----------------------------------------------------------------


@kind("poll v0", each_minute=150)
async def _poll_v0(reader: Reader) -> None:
    await reader.asking.refs(reader.any(large=True), 0)


@kind("poll v2", each_minute=150)
async def _poll_v2(reader: Reader) -> None:
    await reader.asking.refs(reader.any(large=True), 2)


@kind("crowd", each_minute=6)
async def _crowd(reader: Reader) -> None:
    """Polls all at once, as controllers send them after a push."""
    one = reader.any()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(reader.asking.refs(one, 2 * reader.chance.randrange(2)))


@kind("poll and fetch", each_minute=60)
async def _poll_and_fetch(reader: Reader) -> None:
    """What is listed can be had."""
    one = reader.any()
    refs = await reader.asking.refs(one, 2)
    await reader.asking.pack(one, refs[MAIN])


@kind("every ref", each_minute=12)
async def _every_ref(reader: Reader) -> None:
    """All that is listed can be had."""
    one = reader.any()
    refs = await reader.asking.refs(one, 0)
    await reader.asking.pack(one, *set(refs.values()))


@kind("old tip", each_minute=20)
async def _old_tip(reader: Reader) -> None:
    """What a ref was can still be had for a while, whatever became of it."""
    one = reader.any()
    if one.watch.shown:
        oid, at = reader.chance.choice(list(one.watch.shown.items()))
        is_long_ago = time.monotonic() - at > hastened.KEPT_SECONDS - OLD_SECONDS_SLACK
        # Where a repository was fetched anew, what was damaged and is old can't be had.
        may_lack = is_long_ago or at < one.damaged_at
        await reader.asking.pack(one, oid, may_lack=may_lack)


@kind("pulled", each_minute=30, excuses=(*GONE, Trouble.UPSTREAM))
async def _pulled(reader: Reader) -> None:
    """There are more below the place than may be mirrored: they come and go."""
    one = reader.any(pulled=True)
    refs = await reader.asking.refs(one, 2 * reader.chance.randrange(2))
    await reader.asking.pack(one, refs[MAIN], may_lack=True)


@kind("LFS", each_minute=10, excuses=(*GONE, Trouble.UPSTREAM, Trouble.DISK))
async def _lfs(reader: Reader) -> None:
    estate, asking, began = reader.estate, reader.asking, time.monotonic()
    reader.named("acme/lfs")
    content = reader.chance.choice(estate.contents)
    oid = oid_of(content)
    document = {"operation": "download", "objects": [{"oid": oid, "size": len(content)}]}
    url = f"{estate.mirror.url}/acme/lfs.git/info/lfs/objects"
    answer = await asking.ask(
        "POST", f"{url}/batch", body=json.dumps(document).encode(), headers=LFS_HEADERS
    )
    asking.refuse(answer, asking.passing(began))
    (found,) = answer.json["objects"]
    if "error" in found:
        raise OSError(f"no LFS object: {found['error']}")
    answer = await asking.ask("GET", f"{url}/{oid}")
    if answer.status in {502, 503, 504}:
        raise OSError(f"no LFS object: {answer.status}")
    full = {507} if estate.conditions.explain(began, Trouble.DISK) else set()
    asking.refuse(answer, asking.passing(began) | full)
    if hashlib.sha256(answer.body).hexdigest() != oid:
        raise Wrong(f"the LFS object {oid} came with {len(answer.body)} other bytes")
    estate.ledger.judged["LFS objects"] += 1


@kind("monitoring", each_minute=12)
async def _monitoring(reader: Reader) -> None:
    url, asking, began = reader.estate.mirror.url, reader.asking, time.monotonic()
    for path in ("healthz", "metrics", "status.json"):
        answer = await asking.ask("GET", f"{url}/{path}")
        asking.refuse(answer, asking.passing(began))
        if path == "metrics":
            list(text_string_to_metric_families(answer.text))
        elif path == "status.json":
            found = answer.json
            for one in reader.estate.repositories.values():
                if not one.is_pulled and one.name not in found["repositories"]:
                    raise Wrong(f"{one.name} is not in status.json")


# --- readers who misbehave -----------------------------------------------------------------------


@kind("wrong token", each_minute=6)
async def _wrong_token(reader: Reader) -> None:
    one = reader.named("acme/private")
    url = reader.estate.url(one, signed=False)
    headers = {"Authorization": f"Bearer {WRONG_TOKEN}"} if reader.chance.random() < 0.7 else {}
    answer = await reader.asking.ask(
        "GET", f"{url}/info/refs?service=git-upload-pack", headers=headers
    )
    allowed = {401, 429} | reader.asking.allowed(one, 0)
    if answer.status == 200:
        raise Wrong("somebody without a token was let in")
    reader.asking.refuse(answer, allowed)


@kind("unknown commit", each_minute=6)
async def _unknown_commit(reader: Reader) -> None:
    one = reader.any()
    oid = f"{reader.chance.getrandbits(160):040x}"
    try:
        await reader.asking.pack(one, oid, may_lack=True)
    except Wrong as error:
        if "upstream" not in str(error):
            raise


@kind("garbage", each_minute=20)
async def _garbage(reader: Reader) -> None:
    """It is answered 4xx, or the connection is closed."""
    garbage = reader.chance.choice(GARBAGE)
    async with asyncio.timeout(HANG_SECONDS_MAX), raw_connection(reader.estate) as (back, forth):
        forth.write(garbage)
        forth.write_eof()
        head = (await back.read(4096)).split(b"\r\n")[0]
    if head and not (head.startswith(b"HTTP/1.") and head[9:10] in b"4"):
        raise Wrong(f"{garbage[:60]!r} was answered {head!r}")


@kind("vanishing", each_minute=20)
async def _vanishing(reader: Reader) -> None:
    """It leaves while the pack is being sent."""
    await _part(reader, reader.chance.choice([0, 1, 5000, 500_000]), pause=0)


@kind("slow reader", each_minute=4)
async def _slow(reader: Reader) -> None:
    await _part(reader, 30_000, pause=0.2)


async def _part(reader: Reader, size: int, *, pause: float) -> None:
    one = reader.named("acme/large")
    history = one.watch.history.refs[MAIN]
    body = fetch_v0(history[one.watch.ask().seen.get(MAIN, 1)])
    lines = [f"{name}: {value}\r\n" for name, value in UPLOAD_PACK_HEADERS.items()]
    head = (
        f"POST /acme/large/git-upload-pack HTTP/1.1\r\nHost: x\r\n{''.join(lines)}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    got = b""
    async with raw_connection(reader.estate, receive_bytes=4096) as (back, forth):
        forth.write(head.encode() + body)
        while len(got) < size:
            data = await back.read(min(size - len(got), 4096))
            if not data:
                raise ConnectionResetError(f"closed after {len(got)} bytes")
            got += data
            if pause:
                await asyncio.sleep(pause)
    if len(got) > 12 and not got.startswith(b"HTTP/1.1 200"):
        raise Wrong(f"answered {got[:200]!r}")


# --- real clients --------------------------------------------------------------------------------


@kind("git ls-remote", each_minute=10, is_real=True)
async def _ls_remote(reader: Reader) -> None:
    one = reader.any(large=True)
    asked = one.watch.ask()
    found = await reader.git().ls_remote(reader.estate.url(one))
    _judge(reader, one, found, asked)


@kind("git fetch", each_minute=20, is_real=True)
async def _fetch(reader: Reader) -> None:
    """As Argo CD does: into one clone, again and again."""
    one = reader.any()
    git = reader.git()
    path, count = reader.kept.get(one.name, (reader.place(), 0))
    if count == 0:
        await git.run("init", "--quiet", str(path))
        await git.run("remote", "add", "origin", reader.estate.url(one), cwd=path)
    asked = one.watch.ask()
    await git.fetch(path, "--quiet", "--tags", "--force", "--prune", "--prune-tags", "origin")
    reader.kept[one.name] = (path, count + 1)
    found = {
        name.replace("refs/remotes/origin/", "refs/heads/"): oid
        for name, oid in (await git.refs(path)).items()
    }
    _judge(reader, one, found, asked)
    if count >= FETCHES_EACH:
        del reader.kept[one.name]
        await git.fsck(path)
        reader.estate.ledger.judged["git fsck"] += 1
        shutil.rmtree(path)


@kind("git clone", each_minute=10, is_real=True)
async def _clone(reader: Reader) -> None:
    one = reader.any(large=reader.chance.random() < 0.1)
    options = reader.chance.choice(
        [
            ("--mirror",),
            ("--mirror",),
            ("--depth=1", "--no-single-branch"),
            ("--depth=3",),
            ("--filter=blob:none",),
            ("--bare", "--filter=tree:0"),
            ("--single-branch",),
        ]
    )
    await _cloned(reader, one, *options)


@kind("git clone with bundles", each_minute=3, is_real=True)
async def _clone_with_bundles(reader: Reader) -> None:
    one = reader.named("acme/app")
    await _cloned(reader, one, "--mirror", config=("-c", "transfer.bundleURI=true"))


@kind("git clone of a pulled one", each_minute=3, is_real=True, excuses=(*GONE, Trouble.UPSTREAM))
async def _clone_pulled(reader: Reader) -> None:
    await _cloned(reader, reader.any(pulled=True), "--mirror")


@kind("git fetch of an id", each_minute=6, is_real=True)
async def _fetch_id(reader: Reader) -> None:
    """As Argo CD does for a revision: one commit by its id."""
    one = reader.any()
    refs = await reader.asking.refs(one, 2)
    git, path = reader.git(), reader.place()
    await git.run("init", "--quiet", str(path))
    try:
        await git.run("fetch", "--depth=1", reader.estate.url(one), refs[MAIN], cwd=path)
        await git.fsck(path)
        reader.estate.ledger.judged["git fsck"] += 1
    finally:
        shutil.rmtree(path)


async def _cloned(
    reader: Reader, one: Repository, *options: str, config: tuple[str, ...] = ()
) -> None:
    git, path = reader.git(), reader.place()
    asked = one.watch.ask()
    try:
        await git.run(*config, "clone", "--quiet", *options, reader.estate.url(one), str(path))
        if "--mirror" in options:
            _judge(reader, one, await git.refs(path), asked)
        # What a partial clone lacks, its fsck does not miss.
        await git.fsck(path)
        reader.estate.ledger.judged["git fsck"] += 1
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _is_built(name: str) -> Callable[[], bool]:
    return lambda: builds.built(name) is not None


@kind("libgit2", each_minute=4, is_real=True)
async def _libgit2(reader: Reader) -> None:
    one = reader.any()
    asked = one.watch.ask()
    found = await Libgit2().listing(reader.estate.url(one))
    _judge(reader, one, found, asked)
    path = reader.place()
    try:
        await Libgit2().clone(reader.estate.url(one), path)
        await reader.git().fsck(path)
        reader.estate.ledger.judged["git fsck"] += 1
    finally:
        shutil.rmtree(path, ignore_errors=True)


@kind("go-git", each_minute=4, is_real=True, is_there=_is_built("gogit5"))
async def _go_git(reader: Reader) -> None:
    one = reader.named("acme/app")
    program, path = PlainProgram(builds.program("gogit5"), reader.place()), reader.place()
    asked = one.watch.ask()
    try:
        _judge(reader, one, await program.listing(reader.estate.url(one)), asked)
        await program.clone(reader.estate.url(one), path)
        await reader.git().fsck(path)
        reader.estate.ledger.judged["git fsck"] += 1
    finally:
        shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(program.workdir)


@kind("Flux", each_minute=4, is_real=True, is_there=_is_built("flux"))
async def _flux(reader: Reader) -> None:
    one = reader.named("acme/app")
    flux, path = Flux(builds.program("flux"), reader.place()), reader.place()
    asked = one.watch.ask()
    try:
        found = await flux.reconcile(reader.estate.url(one), path, "branch", "main")
        at = one.watch.history.position(MAIN, found, asked.seen.get(MAIN, 0))
        if at is None:
            raise Wrong(f"main went back to {found}")
        await reader.git().fsck(path)
        reader.estate.ledger.judged["git fsck"] += 1
    finally:
        shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(flux.workdir)


def _judge(reader: Reader, one: Repository, found: Mapping[str, str], asked: Asked) -> None:
    """Judge refs that a real client shows, which does not tell whether they are marked as stale."""
    mistakes = one.watch.judge(asked, found, is_stale=False, knows_stale=False)
    reader.violate(one, *mistakes)
    reader.estate.ledger.judged["refs of real clients"] += 1
