"""Readers in process: requests as Git clients send them, and each answer judged at once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Final

import aiohttp

from tests.e2e.day.controllers import STALE_HEADER, listed
from tests.mirror_service import UPLOAD_PACK_HEADERS, Answered, git_protocol
from tests.soak.estate import Estate, Repository
from tests.soak.judges import pack_mistakes, refusal_mistake
from tests.soak.ledger import Trouble
from tests.web.asking import command, fetch_v2, read_answer

ASK_SECONDS_MAX: Final = 40.0
"""A reader that waits for so long has met a hang."""

GONE: Final = (Trouble.SERVICE, Trouble.WORKER, Trouble.MACHINE)
SIDE_BAND_ERROR: Final = "a pack could not be made"


class Wrong(Exception):
    """An answer that nothing explains."""


class Refused(Exception):
    """An answer other than 200 that may be."""


class Asking:
    """Asks the mirror.

    Attributes:
        estate: The parts.
    """

    def __init__(self, estate: Estate, session: aiohttp.ClientSession) -> None:
        self.estate = estate
        self._session = session

    async def ask(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answered:
        """Send a request and read the answer to its end."""
        async with self._session.request(
            method, url, data=body, headers=headers, allow_redirects=False
        ) as response:
            return Answered(response.status, response.headers, await response.read())

    async def refs(self, one: Repository, version: int) -> dict[str, str]:
        """List the refs, have them judged, and return them.

        Raises:
            Refused: An error that may be.
            Wrong: One that may not be.
        """
        refs, _ = await self.look(one, version)
        return refs

    async def look(self, one: Repository, version: int) -> tuple[dict[str, str], bool]:
        """List the refs as `refs` does, and tell whether they are marked as stale."""
        estate, asked, began = self.estate, one.watch.ask(), time.monotonic()
        if version == 2:
            arguments = ["peel", "symrefs", "ref-prefix HEAD", "ref-prefix refs/"]
            answer = await self._post(one, command("ls-refs", *arguments), began)
        else:
            answer = await self.ask("GET", f"{estate.url(one)}/info/refs?service=git-upload-pack")
        took = time.monotonic() - began
        self._check(one, answer, began)
        is_stale = STALE_HEADER in answer.headers
        found = listed(answer.body)
        mistakes = one.watch.judge(asked, found, is_stale=is_stale)
        estate.ledger.violate(f"{one.name}, poll v{version}", *mistakes)
        estate.ledger.judged["polls"] += 1
        estate.ledger.stale += is_stale
        estate.ledger.took("poll of a pulled one" if one.is_pulled else "poll", took)
        return found, is_stale

    async def pack(self, one: Repository, *wants: str, may_lack: bool = False) -> None:
        """Fetch commits at depth 1, and have the pack judged.

        Args:
            one: Where from.
            wants: Their ids, or those of tags.
            may_lack: Whether the mirror may have forgotten them.
        """
        began = time.monotonic()
        answer = await self._post(one, fetch_v2(*wants, more=["deepen 1"]), began)
        took = time.monotonic() - began
        self._check(one, answer, began)
        ledger = self.estate.ledger
        parts = read_answer(answer.body)
        if parts.error or not parts.pack:
            if self.estate.conditions.explain(began, Trouble.DAMAGE, of=one.name):
                raise Refused("no pack of what is damaged")
            if may_lack and "not our ref" in f"{parts.lines} {parts.error}":
                raise Refused("not our ref")
            raise Wrong(f"no pack of {wants}: {parts.lines[:5]} {parts.error}")
        ledger.violate(f"{one.name}, fetch", *pack_mistakes(parts.pack, wants))
        ledger.judged["packs"] += 1
        ledger.took("fetch", took)

    def refuse(self, answer: Answered, allowed: Collection[int]) -> None:
        """Raise for an answer that is not 200.

        Raises:
            Refused: It may be.
            Wrong: It may not be.
        """
        if answer.status == 200:
            return
        mistake = refusal_mistake(answer.status, answer.headers, allowed)
        if mistake is not None:
            raise Wrong(f"{mistake}: {answer.body[:500]!r}")
        raise Refused(str(answer.status))

    def allowed(self, one: Repository, began: float) -> set[int]:
        """Return which errors a reader may be given, who asked at `began`."""
        explain = self.estate.conditions.explain
        found = self.passing(began)
        if one.may_refuse or one.is_pulled:
            found.add(503)
        if explain(began, Trouble.DAMAGE, of=one.name):
            found.add(503)
        if one.is_pulled and explain(began, Trouble.UPSTREAM):
            found |= {404, 502, 504}
        return found

    def passing(self, began: float) -> set[int]:
        """Return which errors there may be of what no repository answers."""
        return {503} if self.estate.conditions.explain(began, *GONE) else set()

    def _check(self, one: Repository, answer: Answered, began: float) -> None:
        self.refuse(answer, self.allowed(one, began))
        if b"ERR " in answer.body[:200] and one.is_pulled:
            if self.estate.conditions.explain(began, Trouble.UPSTREAM):
                raise Refused("ERR")
            raise Wrong(f"{answer.body[:300]!r}")

    async def _post(self, one: Repository, body: bytes, began: float) -> Answered:
        del began
        return await self.ask(
            "POST",
            f"{self.estate.url(one)}/git-upload-pack",
            body=body,
            headers={**UPLOAD_PACK_HEADERS, **git_protocol(2)},
        )


@asynccontextmanager
async def asking(estate: Estate) -> AsyncIterator[Asking]:
    """Open the sessions; half of the requests come on connections of their own."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=32, keepalive_timeout=5.0),
        timeout=aiohttp.ClientTimeout(total=ASK_SECONDS_MAX),
    ) as session:
        yield Asking(estate, session)


@asynccontextmanager
async def raw_connection(
    estate: Estate, *, receive_bytes: int = 64 * 1024
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection that is broken off at the end."""
    host, _, port = estate.mirror.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=receive_bytes)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
