"""What happens to the service in a run, and what it owes its readers ever after.

A forge with one repository, LFS and all; a receiver of events. `live` plays clones, pushes of every
kind with their webhooks, fetches, an LFS download, bundles; `judge` looks at what is there after a
start, first with the upstream down, then with it up again.
"""

import asyncio
import contextlib
import itertools
import json
import random
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp

from mirror.demo.forge import Faults, HttpBackend
from tests.crash import checks
from tests.crash.control import Control
from tests.crash.machine import STEP_SECONDS_MAX, Ended, Machine, machine
from tests.git_client import GitClient, Upstream
from tests.lfs_server import LfsServer, lfs_server, noise, oid_of
from tests.mirror_service import (
    NAME,
    UPLOAD_PACK_HEADERS,
    ZERO_ID,
    Answered,
    ask,
    configuration,
    github_headers,
    github_push,
)
from tests.refresh.relay.receiving import PUBLIC_URL, Receiver, receiving, relays
from tests.web.lfs_estate import LFS_HEADERS

CROWDED_PACKS: Final = 24
"""One more, and the service merges packs."""

State = dict[str, str]


class World:
    """All but the data directory, and what is known of what readers saw.

    Attributes:
        history: What the upstream's refs were, one state after the other; HEAD's target among them.
        published: The number of the last state that a reader was shown.
        machine: Runs the service.
    """

    def __init__(
        self,
        one: Machine,
        forge: HttpBackend,
        upstream: Upstream,
        lfs: LfsServer,
        receiver: Receiver,
        session: aiohttp.ClientSession,
        place: Path,
        seed: int,
    ) -> None:
        self.machine = one
        self.forge = forge
        self.upstream = upstream
        self.lfs = lfs
        self.receiver = receiver
        self.history: list[State] = []
        self.published = -1
        self.seen: list[tuple[int, int]] = []  # the number of calls, and what was published by then
        self.notes: list[str] = []
        self._session = session
        self.place = place
        self._chance = random.Random(seed)
        self._numbers = itertools.count(1)
        self._client = GitClient(place / "client")
        self._crowded = place / "crowded"
        self._crowded_state: State = {}
        self._note_state()

    @property
    def data(self) -> Path:
        return self.machine.data

    # --- before a run ---------------------------------------------------------------------------

    def wipe(self) -> None:
        """Begin with nothing: whatever was published is forgotten."""
        shutil.rmtree(self.data, ignore_errors=True)
        self.published = -1
        self.history = self.history[-1:]

    def crowd(self) -> None:
        """Begin with a mirror that has so many packs that the next push has them merged."""
        self.wipe()
        shutil.copytree(self._crowded, self.data, symlinks=True)
        self.history, self.published = [self._crowded_state, *self.history], 0

    async def make_crowded(self) -> None:
        """Make what `crowd` takes."""
        self.wipe()
        await self.machine.start()
        await self.machine.serving()
        await self._mirrored()
        while len(list(self.data.glob("repositories/*/*.git/objects/pack/*.pack"))) < CROWDED_PACKS:
            self.upstream.commit()
            await self._announce("main")
            await self._read()
        await self.machine.stop()
        shutil.copytree(self.data, self._crowded, symlinks=True, ignore=_no_sockets)
        self._note_state()
        self._crowded_state = self.history[-1]

    # --- a run ----------------------------------------------------------------------------------

    async def live(self) -> None:
        """Play all of it; returns early, by `Ended`, when the service is gone."""
        is_crowded = len(list(self._mirror().glob("objects/pack/*.pack"))) >= CROWDED_PACKS
        await self.machine.serving()
        await self._mirrored()
        await self._sync()  # what was pushed before a kill, nobody announces again
        await self._read()
        for step in (
            self._clone,
            self._push,
            self._download,
            self._force_push,
            self._tag,
            self._branch,
            self._fetch,
            self._delete_branch,
            self._clone,
        ):
            await step()
        await self._bundled()
        if is_crowded:
            await self.machine.logged(lambda event: event["event"] == "maintained")

    async def play(self) -> None:
        """Play until the service ends or the story does."""
        assert self.machine.ended is not None
        story = asyncio.create_task(self.live())
        await asyncio.wait((story, self.machine.ended), return_when=asyncio.FIRST_COMPLETED)
        if not story.done():
            story.cancel()
            await asyncio.wait((story,))
        if not story.cancelled():
            error = story.exception()
            gone = (Ended, aiohttp.ClientError, ConnectionError)
            if error is not None and not (isinstance(error, gone) and await self._is_over()):
                raise error
        self.lfs.faults.storage_status = None

    async def _is_over(self) -> bool:
        async with asyncio.timeout(STEP_SECONDS_MAX):
            await self.machine.over()
        return True

    # --- after a start --------------------------------------------------------------------------

    async def judge(self, *, lost_is_right: bool = False) -> None:
        """Start the service on what is there, look at everything, and leave it running.

        Args:
            lost_is_right: Whether what was published may be gone.
        """
        known, published = self.history, self.published
        is_crowded = len(list(self._mirror().glob("objects/pack/*.pack"))) > CROWDED_PACKS
        self.forge.faults = Faults(status=503)
        try:
            await self.machine.start()
            await self.machine.serving()
            if self._on_disk():
                await self.machine.logged(lambda event: event["event"] == "refresh_failed")
            answer = await self._info_refs()
            if answer.status == 503 or b"not mirrored yet" in answer.body:
                assert published < 0 or lost_is_right, "what was published is not served"
            else:
                assert answer.status == 200, answer
                shown = _refs(answer.body)
                states = [_without_head(one) for one in known]
                assert shown in states, f"never the upstream's: {shown}"
                newest = len(states) - 1 - states[::-1].index(shown)
                assert newest >= published, f"back in time: {newest} after {published}"
            await self._look(self.machine.started_at, is_crowded=is_crowded)
        finally:
            self.forge.faults = Faults()

    async def catch_up(self) -> None:
        """See the service do all that it should, now that the upstream is there again."""
        await self._sync()
        self.upstream.commit()
        self._note_state()
        await self._announce("main")
        await self._mirrored()
        await self._read()
        assert self.published == len(self.history) - 1
        head = (self._mirror() / "HEAD").read_text().strip()
        assert head == f"ref: {self.history[-1]['HEAD']}"
        clone = await self._client.clone(f"{self.machine.url}/{NAME}", "--bare")
        assert await self._client.refs(clone) == self.upstream.refs()
        shutil.rmtree(clone)
        await self._download()
        wanted = self.upstream.oid("main")
        await self.receiver.until(
            lambda receiver: any(one.json["after"] == wanted for one in receiver.taken)
        )

    async def _look(self, since: float, *, is_crowded: bool) -> None:
        left = checks.unexplained(self.data, since)
        if left and is_crowded:  # of two files that belong together, one was removed already
            await self.machine.logged(lambda event: event["event"] == "maintained")
            left = checks.unexplained(self.data, since)
        assert not left, f"not explained: {left}"
        assert not list((self.data / "set-aside").iterdir()), "something was set aside"
        assert not checks.damaged_objects(self.data)
        for mirror in checks.mirrors(self.data):
            found = checks.fsck(mirror)
            if found and is_crowded:  # git looked while they were being merged
                await self.machine.logged(lambda event: event["event"] == "maintained")
                found = checks.fsck(mirror)
            assert not found, found

    # --- steps ----------------------------------------------------------------------------------

    async def _push(self) -> None:
        content = noise(40_000, next(self._numbers)).hex()
        self.upstream.commit(files={"data/large.txt": content, "app.yaml": content[:20]})
        await self._pushed("main")

    async def _force_push(self) -> None:
        self.upstream.commit(parents=["main~1"], message=f"Again {next(self._numbers)}")
        await self._pushed("main")

    async def _tag(self) -> None:
        name = f"v{next(self._numbers)}"
        self.upstream.tag(name)
        await self._pushed(f"refs/tags/{name}")

    async def _branch(self) -> None:
        name = f"topic-{next(self._numbers)}"
        self.upstream.commit(name, parents=["main"])
        self.upstream.set_head(name if self._chance.random() < 0.5 else "main")
        await self._pushed(name)

    async def _delete_branch(self) -> None:
        names = [ref for ref in self.upstream.refs() if ref.startswith("refs/heads/topic-")]
        if names:
            self.upstream.set_head("main")
            self.upstream.delete_ref(names[0])
            await self._pushed(names[0])

    async def _pushed(self, branch: str) -> None:
        self._note_state()
        await self._announce(branch)
        await self._read()

    async def _clone(self) -> None:
        """Fetch all of it, and a shallow part, as a reader would."""
        tip = self.history[max(self.published, 0)]["refs/heads/main"]
        for more in ("", "deepen 1\n"):
            body = _packet(f"want {tip} side-band-64k ofs-delta thin-pack\n")
            body += (_packet(more) if more else b"") + b"0000" + _packet("done\n")
            answer = await self._ask(
                "POST", f"/{NAME}/git-upload-pack", body=body, headers=UPLOAD_PACK_HEADERS
            )
            assert answer.status == 200, answer
            assert b"PACK" in answer.body, answer.body[:200]

    async def _fetch(self) -> None:
        before = self.upstream.oid("main")
        await self._push()
        tip = self.upstream.oid("main")
        body = _packet(f"want {tip} side-band-64k ofs-delta thin-pack\n") + b"0000"
        body += _packet(f"have {before}\n") + _packet("done\n")
        answer = await self._ask(
            "POST", f"/{NAME}/git-upload-pack", body=body, headers=UPLOAD_PACK_HEADERS
        )
        assert b"PACK" in answer.body, answer.body[:200]

    async def _download(self) -> None:
        """Get an LFS object."""
        content = noise(150_000, next(self._numbers))
        oid = self.lfs.add(NAME, content)
        assert oid == oid_of(content)
        document = {"operation": "download", "objects": [{"oid": oid, "size": len(content)}]}
        answer = await self._ask(
            "POST",
            f"/{NAME}.git/info/lfs/objects/batch",
            body=json.dumps(document).encode(),
            headers=LFS_HEADERS,
        )
        assert answer.status == 200, answer
        answer = await self._ask("GET", f"/{NAME}.git/info/lfs/objects/{oid}")
        assert answer.body == content

    async def _bundled(self) -> None:
        """Wait for a bundle."""
        await self.machine.logged(lambda event: event["event"] == "bundled")

    # --- asking ---------------------------------------------------------------------------------

    async def _mirrored(self) -> None:
        if not self._on_disk():
            await self.machine.logged(
                lambda event: event["event"] == "published" and event["repository"] == NAME
            )

    def _mirror(self) -> Path:
        return self.data / "repositories" / f"{NAME}.git"

    def _on_disk(self) -> bool:
        return (self._mirror() / "packed-refs").exists()

    async def _announce(self, branch: str) -> None:
        ref = branch if branch.startswith("refs/") else f"refs/heads/{branch}"
        url = self.forge.repository_url(NAME)
        body = github_push(url, ref, ZERO_ID, self.upstream.refs().get(ref, ZERO_ID))
        answer = await self._ask(
            "POST", "/webhooks/github", body=body, headers=github_headers(body)
        )
        assert answer.status == 202, answer

    async def _read(self) -> None:
        """Read the refs: what was announced is there."""
        answer = await self._info_refs()
        assert answer.status == 200, answer
        if "Git-Mirror-Stale" in answer.headers:  # right after the upstream was down
            await self._sync()
            answer = await self._info_refs()
        assert _refs(answer.body) == self.upstream.refs()
        self.published = len(self.history) - 1
        self.seen.append((self.machine.control.count, self.published))

    async def _sync(self) -> None:
        """Have it refresh now, whatever it waits for, as `git-mirror sync` does."""
        socket = aiohttp.UnixConnector(str(self.data / "control.sock"))
        async with aiohttp.ClientSession(connector=socket) as session:
            answers = []
            for _ in range(3):  # it may join one that began while the upstream was down
                answers.append(await ask(session, "POST", f"http://mirror/sync/{NAME}"))
                if b'"outcome": "ok"' in answers[-1].body:
                    return
        raise AssertionError(answers)

    async def _info_refs(self) -> Answered:
        return await self._ask("GET", f"/{NAME}/info/refs?service=git-upload-pack")

    async def _ask(self, method: str, path: str, **more: Any) -> Answered:
        answer = await ask(self._session, method, self.machine.url + path, **more)
        if answer.status == 503 and b"process is gone" in answer.body:
            raise Ended("a worker has outlived the main process for a moment")
        return answer

    def _note_state(self) -> None:
        head = self.upstream.git("symbolic-ref", "HEAD")
        self.history.append({**self.upstream.refs(), "HEAD": head})


def _no_sockets(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(directory, name).is_socket()]


def _without_head(state: State) -> State:
    return {name: oid for name, oid in state.items() if name != "HEAD"}


def _packet(text: str) -> bytes:
    return b"%04x%b" % (len(text) + 4, text.encode())


def _refs(advertisement: bytes) -> State:
    """Return the refs of an advertisement of protocol v0."""
    refs, at = {}, 0
    while at < len(advertisement):
        size = int(advertisement[at : at + 4], 16)
        line = advertisement[at + 4 : at + size]
        at += max(size, 4)
        oid, _, name = line.split(b"\0")[0].rstrip(b"\n").partition(b" ")
        if name.startswith(b"refs/") and not name.endswith(b"^{}"):
            refs[name.decode()] = oid.decode()
    return refs


@asynccontextmanager
async def world(
    place: Path, library: Path, *, engine: str = "git", workers: int = 1, seed: int = 0
) -> AsyncIterator[World]:
    """Provide all parts below the directory `place`."""
    root = place / "forge"
    root.mkdir(parents=True)
    upstream = Upstream(root)
    upstream.commit(files={"base/app.yaml": "image: web:1.0.0\n", "README.md": "# GitOps\n"})
    upstream.history(5)
    async with AsyncExitStack() as stack:
        forge = await stack.enter_async_context(HttpBackend(root))
        lfs = await stack.enter_async_context(lfs_server(forge))
        receiver = await stack.enter_async_context(receiving())
        file = configuration(
            forge,
            place / "mirror",
            engine=engine,
            workers=workers,
            sections=relays(
                place / "mirror", argocd=f'argocd {receiver.url}/a public_urls: ["{PUBLIC_URL}"]'
            ),
            repository="bundle_interval: 1s\nbundle_bytes_min: 0",
        )
        control = stack.enter_context(contextlib.closing(Control(place / "control", library)))
        one = await stack.enter_async_context(machine(control, file, place / "mirror" / "data"))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                auto_decompress=False,
                skip_auto_headers=["Accept-Encoding"],
                timeout=aiohttp.ClientTimeout(total=STEP_SECONDS_MAX),
            )
        )
        yield World(one, forge, upstream, lfs, receiver, session, place, seed)
