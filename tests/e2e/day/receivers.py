"""Who is told of each change: it is fetched at once, and what became of that is noted.

Argo CD's and Flux's own libraries check and read the events where Go is there; else the stand-ins
of the relay's tests do. Beside them there is always a receiver that is not well at times.
"""

import asyncio
import functools
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web

from tests.clients.receiver_program import RealReceivers, real_receivers
from tests.e2e.day.controllers import Asking, Unexpected
from tests.e2e.day.place import Place
from tests.e2e.day.process import STEP_SECONDS_MAX
from tests.e2e.day.rules import Told
from tests.mirror_service import NAME, ZERO_ID
from tests.refresh.relay.receiving import SECRET, Receiver, receiving, relays

ARGO_CD, FLUX, MOODY = RECEIVERS = ("argocd", "flux", "moody")
_RECEIVER: Final = ("mirror", "flux-system")
PUBLIC_URL: Final = "https://git.example.com"
HOOK: Final = f"/hook/{hashlib.sha256((SECRET + ''.join(_RECEIVER)).encode()).hexdigest()}"
PATHS: Final = {"/api/webhook": ARGO_CD, HOOK: FLUX}
"""Of the real ones."""

MOODS: Final = (200, 200, 200, 500)
"""What the moody one answers."""


class Receivers:
    """All of them.

    Attributes:
        urls: Where each listens, by its name.
        on_told: Called with each commit that they are told of.
    """

    def __init__(self, stand_ins: Mapping[str, Receiver], real: RealReceivers | None) -> None:
        self.urls = {name: f"{one.url}/{name}" for name, one in stand_ins.items()}
        if real is not None:
            self.urls |= {name: f"{real.url}{path}" for path, name in PATHS.items()}
        self.on_told: Callable[[str], None] = lambda _: None
        self._stand_ins = stand_ins
        self._real = real
        self._moods = random.Random(0)
        self._heard = asyncio.Condition()
        self._place: Place | None = None
        self._asking: Asking | None = None

    def section(self, directory: Path) -> str:
        """Return the section `relays:` of the configuration in `directory`."""
        kinds = {ARGO_CD: "argocd", FLUX: "flux", MOODY: "argocd"}
        more = f'public_urls: ["{PUBLIC_URL}"]'
        urls = {name: f"{kinds[name]} {url} {more}" for name, url in self.urls.items()}
        return relays(directory, **urls)

    async def run(self, place: Place) -> None:
        """Take what comes until cancelled."""
        self._place, self._asking = place, Asking(place, "receiver")
        self._moods = random.Random(place.chance.random())
        for name, one in self._stand_ins.items():
            one.answer = functools.partial(self._answer, name)
        if self._real is None:
            await asyncio.Event().wait()
        else:
            await self._read(self._real)

    async def until_all_told(self) -> None:
        """Wait until each knows the upstream's tips."""
        assert self._place is not None
        record = self._place.record
        async with asyncio.timeout(STEP_SECONDS_MAX), self._heard:
            await self._heard.wait_for(lambda: record.is_told(RECEIVERS))

    # --- the real ones -------------------------------------------------------------------------

    async def _read(self, real: RealReceivers) -> None:
        """Take what the program says; its answer is on its way to the mirror already."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                found = await real.read(STEP_SECONDS_MAX)
                for one in self._of_record(found):
                    tasks.create_task(self._take(one))

    def _of_record(self, found: dict[str, Any]) -> list[Told]:
        name = PATHS.get(found["path"], found["path"])
        if found["status"] != 200:
            self._fail(f"{name} refused an event: {found}")
            return []
        if name != FLUX:
            assert found["refreshed"], f"Argo CD matched nothing: {found}"
            return [self._told(name, found)]
        return [self._told(name, one) for one in found["event"]["refs"]]

    # --- the stand-ins -------------------------------------------------------------------------

    async def _answer(self, name: str, value: Any) -> web.StreamResponse:
        status = self._moods.choice(MOODS) if name == MOODY else 200
        told = [self._told(name, one) for one in (value["refs"] if name == FLUX else [value])]
        for one in told:
            one.is_taken = status == 200
        await asyncio.gather(*(self._take(one) for one in told))
        return web.Response(status=status)

    # --- both ----------------------------------------------------------------------------------

    def _told(self, name: str, one: dict[str, str]) -> Told:
        place = self._there()
        return Told(
            name,
            one["ref"],
            one["before"] or ZERO_ID,
            one["after"] or ZERO_ID,
            after_kills=place.mirror.kills,
        )

    async def _take(self, one: Told) -> None:
        """Note an event, and fetch what it tells of, at once."""
        place = self._there()
        place.record.told.append(one)
        try:
            await self._fetch(one)
        except (aiohttp.ClientError, ConnectionError) as error:
            one.trouble = f"{type(error).__name__}: {error}"
        self.on_told(one.after)
        async with self._heard:
            self._heard.notify_all()

    async def _fetch(self, one: Told) -> None:
        """List the ref and fetch the commit; from a mirror that is killed, once it is there again.

        Raises:
            OSError: It can't be had.
        """
        place, asking = self._there(), self._asking
        assert asking is not None
        while True:
            await place.mirror.up.wait()
            kills = place.mirror.kills
            try:
                if one.after != ZERO_ID:
                    await asking.pack(one.after)
                refs, _ = await asking.refs(2)
                one.listed = refs.get(one.ref, ZERO_ID)
            except Unexpected:
                raise
            except (aiohttp.ClientError, ConnectionError):
                if place.mirror.kills == kills:
                    raise
            else:
                return

    def _there(self) -> Place:
        assert self._place is not None, "an event came before the first push"
        return self._place

    def _fail(self, trouble: str) -> None:
        self._there().record.failures.append(trouble)


@asynccontextmanager
async def receivers(*, are_real: bool) -> AsyncIterator[Receivers]:
    """Run the receivers; the test is skipped where the real ones can't be had."""
    applications = [
        {"name": name, "repo_url": f"{PUBLIC_URL}/{NAME}.git", "revision": name}
        for name in ("main", "release", "feature", "v1.0", "v1.1")
    ]
    setup = {"secret": SECRET, "receiver": _RECEIVER, "applications": applications}
    async with AsyncExitStack() as stack:
        real = await stack.enter_async_context(real_receivers(setup)) if are_real else None
        names = [MOODY] if are_real else RECEIVERS
        stand_ins = {name: await stack.enter_async_context(receiving()) for name in names}
        yield Receivers(stand_ins, real)
