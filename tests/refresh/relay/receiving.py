"""A receiver of events that checks each signature, and does wrong what a test asks for.

Nothing here sleeps: tests wait for what arrives.
"""

import asyncio
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from multidict import CIMultiDictProxy

from tests.mirror_service import WAIT_SECONDS_MAX

SECRET: Final = "the secret of the receiver"
PUBLIC_URL: Final = "https://git.example.com"


@dataclass(frozen=True, slots=True)
class Event:
    """A request that came with a signature that is right.

    Attributes:
        status: What it was answered with.
    """

    path: str
    headers: "CIMultiDictProxy[str]"
    json: Any
    status: int

    @property
    def step(self) -> tuple[str, str, str]:
        """The ref of a push event, what it was and what it is."""
        return (self.json["ref"], self.json["before"], self.json["after"])


Answer = Callable[[Any], Awaitable[web.StreamResponse]]


class Receiver:
    """Listens on the loopback interface.

    Attributes:
        url: Where.
        events: What arrived and was signed as it should be, the oldest first.
        requests: All that arrived, as they came.
        answer: Called with the JSON that came; by default everything is answered with 200.
    """

    def __init__(self) -> None:
        self.url = ""
        self.events: list[Event] = []
        self.requests: list[web.Request] = []
        self.answer: Answer = accept
        self._arrival = asyncio.Condition()

    @property
    def taken(self) -> list[Event]:
        """The events that were acknowledged."""
        return [event for event in self.events if event.status == 200]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append(request)
        if not is_signed(request.headers, body):
            return web.Response(status=401, text="HMAC verification failed")
        value = json.loads(body)
        response = await self.answer(value)
        async with self._arrival:
            self.events.append(Event(request.path, request.headers, value, response.status))
            self._arrival.notify_all()
        return response

    async def until(self, met: Callable[["Receiver"], object]) -> None:
        """Wait until what has arrived is as `met` wants it."""
        async with asyncio.timeout(WAIT_SECONDS_MAX), self._arrival:
            await self._arrival.wait_for(lambda: met(self))

    async def came(self, count: int) -> list[Event]:
        """Wait until so many events were acknowledged, and return these."""
        await self.until(lambda _: len(self.taken) >= count)
        return self.taken


async def accept(_: Any) -> web.StreamResponse:
    return web.Response()


def refuse(*statuses: int, headers: dict[str, str] | None = None) -> Answer:
    """Answer with these, one after the other, and then with 200."""
    left = list(statuses)

    async def answer(_: Any) -> web.StreamResponse:
        if left:
            return web.Response(status=left.pop(0), headers=headers, text="no")
        return web.Response()

    return answer


def is_signed(headers: "CIMultiDictProxy[str]", body: bytes) -> bool:
    """Check a signature as GitHub's receivers, Flux's and those of Standard Webhooks do."""
    digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    if "webhook-signature" in headers:
        return True  # checked by their own library, in tests/clients
    old = hmac.new(SECRET.encode(), body, hashlib.sha1).hexdigest()
    signatures = {
        "X-Hub-Signature-256": f"sha256={digest}",
        "X-Hub-Signature": f"sha1={old}",
        "X-Signature": f"sha256={digest}",
    }
    found = [name for name in signatures if name in headers]
    return bool(found) and all(headers[name] == signatures[name] for name in found)


@asynccontextmanager
async def receiving(*, port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """Run a receiver."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls).start()
        scheme = "http" if tls is None else "https"
        receiver.url = f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
        yield receiver
    finally:
        await runner.cleanup()


def relays(directory: Path, **urls: str) -> str:
    """Return the section `relays:`, and write the file of its secret.

    Args:
        directory: Of the configuration.
        urls: By the relay's name: `TYPE URL`, and perhaps more keys in flow style.
    """
    directory.mkdir(parents=True, exist_ok=True)
    secret = directory / "relay-secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    lines = ["relays:"]
    for name, text in urls.items():
        kind, url, *more = text.split(" ", 2)
        if "public_urls" not in text and kind != "flux":
            more.append(f'public_urls: ["{PUBLIC_URL}"]')
        keys = ", ".join([f"type: {kind}", f'url: "{url}"', *more])
        lines.append(f"  {name}: {{secret_file: relay-secret, {keys}}}")
    return "\n".join(lines)
