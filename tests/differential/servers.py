"""git's server and ours, in front of the same repository.

Ours is all of it that a reader meets, put together as a worker process does: HTTP, parsing,
negotiation, plans, pack cache, engine. What keeps a mirror fresh is left out: the repository is put
in its place by hand, so that a case costs milliseconds.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import aiohttp

from mirror.config import EngineChoice, ListenAddress, RepositorySettings, Settings
from mirror.errors import ProtocolError
from mirror.refresh.announcements import Announcement
from mirror.refresh.foresight import Foresight
from mirror.refresh.freshness import Freshness
from mirror.refresh.mirror import Mirror
from mirror.refresh.refresher import Trigger
from mirror.refresh.registry import Hosted, Registry
from mirror.repository.bare import BareRepository
from mirror.repository.snapshot import RefSnapshot
from mirror.serving import AGENT, build_metrics, open_app
from mirror.stores import Share, open_engine, open_packs
from mirror.web.fetch import Fetches
from mirror.web.listening import listen
from mirror.wire.advertise import SERVICE_LINE
from mirror.wire.client import Listing, parse_info_refs, parse_ls_refs
from mirror.wire.lfs import Pointer, Refusal
from mirror.wire.names import ObjectId
from mirror.wire.pktline import Packet, PacketDecoder, Special, decode_all, text
from tests.mirror_service import UPLOAD_PACK_HEADERS, WAIT_SECONDS_MAX, ask, git_protocol
from tests.wire.bodies import command
from tests.wire.git_server import GitServer

NAME: Final = "acme/any"
LS_REFS: Final = command(b"ls-refs", b"peel", b"symrefs", b"unborn")
_NUMBERS: Final = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to a fetch.

    Attributes:
        lines: What came before the pack, in its order.
        pack: The pack, taken out of its frames; `None` where there is none.
        error: Why it was refused, by an ``ERR`` or on side-band 3; `None` when it was not.
    """

    lines: list[Packet]
    pack: bytes | None = None
    error: bytes | None = None

    @classmethod
    def read(cls, body: bytes) -> "Reply":
        """Take an answer apart, with side-bands or without."""
        lines: list[Packet] = []
        bands = {1: b"", 2: b"", 3: b""}
        rest = body
        while rest and not rest.startswith(b"PACK"):
            packet, rest = _first_packet(rest)
            if isinstance(packet, Special):
                if not bands[1]:
                    lines.append(packet)
            elif packet[:1] in {b"\1", b"\2", b"\3"}:
                bands[packet[0]] += packet[1:]
            elif packet.startswith(b"ERR "):
                return cls(lines, error=packet)
            else:
                lines.append(text(packet))
        if bands[3]:
            return cls(lines, error=bands[3])
        return cls(lines, rest or bands[1] or None)


def _first_packet(data: bytes) -> tuple[Packet, bytes]:
    length = int(data[:4], 16)
    decoder = PacketDecoder()
    decoder.feed(data[: max(length, 4)])
    packet = decoder.next_packet()
    if packet is None:
        raise ProtocolError("the answer ends within a packet")
    return packet, data[max(length, 4) :]


SERVED_ALL: Final = (
    "uploadpack.allowAnySHA1InWant=true",
    "uploadpack.allowFilter=true",
    "uploadpack.allowRefInWant=true",
)
"""What git's server must be allowed to do to be comparable: we serve all that there is."""


class Git:
    """`git upload-pack`."""

    name = "git upload-pack"

    def __init__(self, repository: Path) -> None:
        self._server = GitServer(repository, settings=SERVED_ALL)

    def ask(self, version: int, body: bytes) -> Reply:
        """Answer a fetch."""
        answer, refusal = self._server.ask(body, version=version)
        reply = Reply.read(answer)
        return reply if refusal is None else replace(reply, pack=None, error=refusal)

    def listings(self) -> list[Listing]:
        """Return what it says of its refs, in each protocol."""
        return read_listings(self._server.first_answer(0), self._server.command(LS_REFS))


class _NoUpstream:
    """Nothing new is ever there."""

    def request(self, trigger: Trigger) -> "asyncio.Future[None]":
        """See `RefreshRequests.request`."""
        del trigger
        looked = asyncio.get_running_loop().create_future()
        looked.set_result(None)
        return looked

    async def announce(self, announcement: Announcement) -> bool:
        """See `Announcer.announce`."""
        raise NotImplementedError

    async def exposition(self) -> bytes:
        """See `Figures.exposition`."""
        raise NotImplementedError

    async def status(self) -> bytes:
        """See `Figures.status`."""
        raise NotImplementedError

    async def ask(self, name: str, pointers: Sequence[Pointer]) -> dict[str, Refusal | None]:
        """See `LfsSource.ask`."""
        raise NotImplementedError

    async def fetch(self, name: str, pointer: Pointer) -> None:
        """See `LfsSource.fetch`."""
        raise NotImplementedError


class Ours:
    """Our server with one engine, in front of one repository at a time."""

    def __init__(self, name: str, mirror: Mirror, url: str, session: aiohttp.ClientSession) -> None:
        self.name = name
        self._mirror = mirror
        self._url = url
        self._session = session

    def show(self, path: Path) -> None:
        """Put another repository in the place of the one before."""
        self.close()
        repository = self._mirror.repository = BareRepository.open(path)
        stored = repository.read_refs()
        self._mirror.snapshot = RefSnapshot(
            next(_NUMBERS),
            stored.refs.values(),
            head_target=stored.head_target,
            detached_head=stored.head,
            agent=AGENT,
        )

    def close(self) -> None:
        """Let go of the repository's packs."""
        if self._mirror.repository is not None:
            self._mirror.repository.close()

    async def ask(self, version: int, body: bytes) -> Reply:
        """Answer a fetch."""
        return Reply.read(await self._post(version, body))

    async def listings(self) -> list[Listing]:
        """Return what it says of its refs, in each protocol."""
        url = f"{self._url}/{NAME}/info/refs?service=git-upload-pack"
        advertised = await ask(self._session, "GET", url)
        return read_listings(advertised.body, await self._post(2, LS_REFS))

    async def _post(self, version: int, body: bytes) -> bytes:
        headers = {**UPLOAD_PACK_HEADERS, **git_protocol(version)}
        url = f"{self._url}/{NAME}/git-upload-pack"
        answer = await ask(self._session, "POST", url, body=body, headers=headers)
        assert answer.status == 200, answer
        return answer.body


@asynccontextmanager
async def our_server(choice: EngineChoice, directory: Path) -> AsyncIterator[Ours]:
    """Run our server with one engine; its cache is empty and lies in `directory`."""
    listening = ListenAddress("127.0.0.1", 0)
    repository = RepositorySettings(name=NAME, upstream="https://forge.example/acme/any.git")
    settings = Settings(
        source=directory / "mirror.yaml",
        data_dir=directory,
        repositories={NAME: repository},
        engine=choice,
    )
    mirror = Mirror(repository, directory / "never")
    mirror.freshness = Freshness(satisfied=1)  # as after a refresh: the refs are fresh
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WAIT_SECONDS_MAX))
        )
        engine = await stack.enter_async_context(open_engine(choice))
        metrics = build_metrics(engine)
        packs = await open_packs(stack, settings, engine, metrics, Share())
        foresight = Foresight(packs, metrics)
        stack.push_async_callback(foresight.close)
        nothing = _NoUpstream()
        serving = await open_app(
            stack,
            settings,
            Registry([Hosted.of(mirror, nothing)]),
            metrics,
            fetches=Fetches(packs, foresight, metrics),
            announcer=nothing,
            figures=nothing,
            lfs=nothing,
        )
        address = await listen(serving.runner, listening)
        ours = Ours(choice.value, mirror, f"http://{address}", session)
        stack.callback(ours.close)
        yield ours


def read_listings(advertised: bytes, listed: bytes) -> list[Listing]:
    """Parse an answer to info/refs and one to ls-refs."""
    features = parse_info_refs(decode_all(advertised.removeprefix(SERVICE_LINE)))
    assert features.listing is not None
    return [features.listing, parse_ls_refs(decode_all(listed))]


def acknowledged(reply: Reply) -> list[ObjectId]:
    """Return the haves that a round found common, as the reader learns of them."""
    rows = [line.split() for line in reply.lines if isinstance(line, bytes)]
    return [ObjectId(row[1]) for row in rows if row[0] == b"ACK"]


def says_ready(reply: Reply) -> bool:
    """Tell whether the reader need not tell of more."""
    return any(isinstance(line, bytes) and line.endswith(b"ready") for line in reply.lines)
