"""The controllers: they look at the mirror all day, one answer after the other.

What they see is only noted here; `rules` judges it when all is known.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import aiohttp

from mirror.wire.pktline import Special, decode_all, text
from tests.clients.operations import ClientFailed
from tests.clients.programs import Flux
from tests.e2e.day.place import Place
from tests.e2e.day.process import STEP_SECONDS_MAX
from tests.e2e.day.rules import Sighting
from tests.git_client import GitFailed
from tests.mirror_service import UPLOAD_PACK_HEADERS, ZERO_ID, git_protocol
from tests.web.asking import command, fetch_v2, read_answer

STALE_HEADER: Final = "Git-Mirror-Stale"
FAILURES_MAX: Final = 10
"""A day with more is given up."""

_TROUBLE: Final = (aiohttp.ClientError, ConnectionError, GitFailed, ClientFailed, TimeoutError)


class Unexpected(ConnectionError):
    """The mirror answered something else than asked for."""


class Asking:
    """Requests as a controller's library sends them, each on a connection of its own."""

    def __init__(self, place: Place, reader: str) -> None:
        self._place = place
        self._headers = {"Authorization": aiohttp.encode_basic_auth("any", place.tokens[reader])}

    async def refs(self, version: int) -> tuple[dict[str, str], bool]:
        """Return what is listed, and whether it is marked as stale.

        Args:
            version: Of the protocol: go-git asks with 0, git with 2.
        """
        if version == 0:
            path, body = "info/refs?service=git-upload-pack", None
        else:
            path, body = "git-upload-pack", command("ls-refs")
        answer, is_stale = await self._ask(path, body)
        return listed(answer), is_stale

    async def pack(self, oid: str) -> None:
        """Fetch one commit; raises `Unexpected` if there is no pack."""
        answer, _ = await self._ask("git-upload-pack", fetch_v2(oid, more=["deepen 1"]))
        if not read_answer(answer).pack.startswith(b"PACK"):
            raise Unexpected(f"no pack for {oid}: {answer[:200]!r}")

    async def _ask(self, path: str, body: bytes | None) -> tuple[bytes, bool]:
        headers = self._headers
        if body is not None:
            headers = headers | UPLOAD_PACK_HEADERS | git_protocol(2)
        async with self._place.session.request(
            "GET" if body is None else "POST",
            f"{self._place.url}/{path}",
            data=body,
            headers=headers,
        ) as response:
            found = await response.read()
            if response.status != 200:
                raise Unexpected(f"{response.status}: {found[:300].decode()}")
            return found, STALE_HEADER in response.headers


class Poller:
    """Argo CD's way to look for changes: list the refs, on a new connection each time."""

    def __init__(self, place: Place) -> None:
        self.seen = asyncio.Condition()
        self.last: Sighting | None = None
        self._place = place
        self._asking = Asking(place, "argocd")
        self._version = 0

    async def run(self) -> None:
        await keep_on(self._place, "argocd's poll", self._look)

    async def until(self, met: Callable[[Sighting], bool]) -> None:
        """Wait for a sighting from now on."""
        async with asyncio.timeout(STEP_SECONDS_MAX), self.seen:
            self.last = None
            await self.seen.wait_for(lambda: self.last is not None and met(self.last))

    async def _look(self) -> None:
        place, floors = self._place, dict(self._place.floors)
        self._version = 2 - self._version
        refs, is_stale = await self._asking.refs(self._version)
        if refs.get("HEAD", ZERO_ID) != refs.get("refs/heads/main", ZERO_ID):
            raise Unexpected(f"HEAD is not what main is: {refs}")
        sighting = Sighting(
            "argocd's poll",
            _all_refs(place, refs),
            floors,
            place.record.history.lengths(),
            is_stale,
        )
        place.record.sightings.append(sighting)
        async with self.seen:
            self.last = sighting
            self.seen.notify_all()


class ArgoCd:
    """Argo CD's repo-server: git itself, into one clone for ever.

    Attributes:
        clone: That one.
        told: The latest commit that a receiver was told of, and git was not asked for.
    """

    def __init__(self, place: Place) -> None:
        self.told: str | None = None
        self._place = place
        self._git = place.client("argocd")
        self.clone = self._git.workdir / "clone"

    async def prepare(self) -> None:
        await self._git.run("init", "--quiet", str(self.clone))
        await self._git.run("remote", "add", "origin", self._place.url, cwd=self.clone)

    def hear(self, oid: str) -> None:
        """Take note of what a receiver was told of."""
        if oid != ZERO_ID:
            self.told = oid

    async def run(self) -> None:
        await keep_on(self._place, "argocd's fetch", self.fetch)

    async def fetch(self) -> None:
        """Fetch all, and the commit of the latest event by its id."""
        told, self.told = self.told, None
        if told is not None:
            await self._git.fetch(self.clone, "--quiet", "origin", told)
        await self._git.fetch(self.clone, "--quiet", "origin", "--tags", "--force", "--prune")
        self._place.record.sightings.append(
            Sighting(
                "argocd's clone",
                _all_refs(self._place, await self.refs()),
                {},
                self._place.record.history.lengths(),
            )
        )

    async def refs(self) -> dict[str, str]:
        """Return the refs of the clone, by the upstream's names."""
        found = await self._git.refs(self.clone)
        return {
            name.replace("refs/remotes/origin/", "refs/heads/"): oid
            for name, oid in found.items()
            if name.startswith(("refs/remotes/origin/", "refs/tags/"))
        }


class FluxSource:
    """Flux's source-controller: poll upon poll, and a clone of one commit at each change."""

    def __init__(self, place: Place, program: Path) -> None:
        secret = place.directory / "flux-secret"
        secret.mkdir()
        (secret / "username").write_text("git")
        (secret / "password").write_text(place.tokens["flux"])
        self._place = place
        env = {"FLUX_SECRET": str(secret)}
        self._flux = Flux(program, place.directory / "flux", env=env)
        self.artifact = place.directory / "flux" / "artifact"
        self.revision = ZERO_ID

    async def run(self) -> None:
        await keep_on(self._place, "flux", self.reconcile)

    async def reconcile(self) -> None:
        """Look whether main has changed, and take it over."""
        url, revision = self._place.url, self.revision
        if revision == ZERO_ID or await self._flux.poll(url, revision) == "changed":
            revision = await self._flux.reconcile(url, self.artifact, "branch", "main")
        self.revision = revision
        refs = {"refs/heads/main": revision}
        self._place.record.sightings.append(Sighting("flux", refs, {}, {}))


async def keep_on(place: Place, who: str, step: Callable[[], Awaitable[None]]) -> None:
    """Do it until the day is over, and once more; only a mirror that is killed may break it off."""
    is_last = False
    while not is_last:
        await place.mirror.up.wait()
        is_last = place.is_over
        kills = place.mirror.kills
        try:
            await step()
        except _TROUBLE as error:
            if place.mirror.kills == kills:
                place.record.failures.append(f"{who} failed: {type(error).__name__}: {error}")
                assert len(place.record.failures) < FAILURES_MAX, place.record.failures


def listed(answer: bytes) -> dict[str, str]:
    """Return the refs of an advertisement, or of an answer to ls-refs."""
    refs = {}
    for packet in decode_all(answer):
        if isinstance(packet, Special):
            continue
        line = text(packet).partition(b"\0")[0].decode()
        if not line.startswith("#"):
            oid, name = line.split(" ")[:2]
            refs[name] = oid
    return refs


def _all_refs(place: Place, found: dict[str, str]) -> dict[str, str]:
    """Add those that are not shown, and leave out what is none."""
    refs = dict.fromkeys(place.record.history.refs, ZERO_ID)
    refs |= {
        name: oid
        for name, oid in found.items()
        if name.startswith(("refs/heads/", "refs/tags/")) and not name.endswith("^{}")
    }
    return refs
