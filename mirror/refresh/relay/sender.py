"""Sends one receiver what its outbox says: the requests, their answers, and what these mean.

One connection pool, one time-out and one pause per receiver: a dead one costs the others nothing.
Redirects are not followed, TLS is verified. No message holds the receiver's path (Flux's is as good
as a password), a signature or the secret.
"""

import asyncio
import os
import random
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import structlog

from mirror.config import RelaySettings
from mirror.metrics import Metrics, RelayState
from mirror.refresh.mirror import Mirror
from mirror.refresh.relay.backlog import Backlog
from mirror.refresh.relay.events import (
    News,
    Request,
    Told,
    batch_max,
    is_told,
    requests,
    signing_key,
    wants_files,
)
from mirror.refresh.relay.files import Ranges
from mirror.refresh.relay.outbox import SIDE_BY_SIDE_MAX, Delivery, Outbox, Trouble
from mirror.repository.snapshot import RefSnapshot
from mirror.upstream.credentials import SecretFile, Stamp, stamp_of
from mirror.upstream.failures import retry_after_seconds
from mirror.wire.names import ObjectId, RefName
from mirror.wire.ref_table import RefTable

CONNECT_SECONDS_MAX: Final = 5.0
"""A host that drops packets is found out sooner than one that is slow to answer."""

KEEPALIVE_SECONDS: Final = 30.0
STOP_SECONDS_MAX: Final = 2.0
"""What is under way at the end may be acknowledged; else it is sent again after the next start."""

ANSWER_BYTES_MAX: Final = 300
"""Of an error page, for the log."""

LOGGED_AGAIN_SECONDS: Final = 60.0
"""The same trouble with a receiver is not logged more often."""

_HINTS: Final = {
    400: "it refuses the event: most often its secret is not the one in `secret_file`",
    401: "the signature does not fit: its secret is not the one in `secret_file`",
    403: "it does not let us in: look at its secret, and at proxies and network policies before it",
    404: "nothing listens at that path: look at `url`",
    405: "nothing takes events at that path: look at `url`",
    410: "it is gone: look at `url`, or take the relay out of the configuration",
}
_OF_THE_RECEIVER: Final = (401, 403, 404, 405, 407, 410)
"""What each event would be answered with."""

logger = structlog.stdlib.get_logger()

Record = Callable[[str, Delivery], Awaitable[None]]
"""Called with the relay's name and what it acknowledged."""


class Failed(Exception):
    """A delivery failed."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.text)
        self.trouble = trouble


class Sender:
    """One receiver, and the task that tells it.

    Attributes:
        outbox: What it is still to be told.
    """

    def __init__(
        self,
        settings: RelaySettings,
        mirrors: dict[str, Mirror],
        ranges: Ranges,
        metrics: Metrics,
        *,
        agent: str,
        record: Record,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings
        self.outbox = Outbox(batch_max(settings.kind))
        self._mirrors = mirrors
        self._ranges = ranges
        self._metrics = metrics
        self._record = record
        self._clock = clock
        self._chance = chance
        self._secret = SecretFile(settings.secret_file)
        self._verify: tuple[Stamp | None, ssl.SSLContext] | None = None
        self._agent = agent
        self._where = origin_of(settings.url)
        self._wake = asyncio.Event()
        self._deliveries: set[asyncio.Task[None]] = set()
        self._last_delivery_at: float | None = None
        self._last_failure_at: float | None = None
        self._last_error: str | None = None
        self._logged: tuple[str, float] | None = None
        self._log = logger.bind(relay=settings.name)

    def begin(self, repository: str, known: RefTable, *, number: int = 0) -> None:
        """Take it that the receiver knows these refs of a repository.

        Args:
            repository: Its name.
            known: Its refs.
            number: How many deliveries of it were acknowledged.
        """
        told = is_told(self.settings.kind)
        self.outbox.backlogs[repository] = Backlog(known, told, number=number)

    def publish(self, repository: str, served: RefSnapshot) -> dict[RefName, ObjectId | None]:
        """Take note of what every reader can fetch; see `Backlog.publish`."""
        backlog = self.outbox.backlogs[repository]
        untold = backlog.publish(served.by_name, served.head_target, self._clock())
        self.outbox.changed(repository)
        return untold

    def wake(self) -> None:
        """Look into the outbox again."""
        self._wake.set()

    async def run(self) -> None:
        """Tell the receiver whatever it does not know, until cancelled."""
        with suppress(OSError):  # which is reported with the first event
            await asyncio.to_thread(self._verification)  # 20 ms
        async with self._open_session() as session:
            try:
                while True:
                    self._wake.clear()
                    while (delivery := self.outbox.next(self._clock())) is not None:
                        task = asyncio.create_task(self._deliver(session, delivery))
                        self._deliveries.add(task)
                        task.add_done_callback(self._deliveries.discard)
                    due = self.outbox.due_at()
                    delay = None if due is None else max(0.0, due - self._clock())
                    try:
                        async with asyncio.timeout(delay):
                            await self._wake.wait()
                    except TimeoutError:
                        continue
            finally:
                await self._end()

    async def _end(self) -> None:
        """Give what is under way a moment."""
        under_way = list(self._deliveries)
        if under_way:
            await asyncio.wait(under_way, timeout=STOP_SECONDS_MAX)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    def _open_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=SIDE_BY_SIDE_MAX, keepalive_timeout=KEEPALIVE_SECONDS
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            headers={"User-Agent": self._agent},
            timeout=aiohttp.ClientTimeout(
                total=self.settings.timeout_seconds, sock_connect=CONNECT_SECONDS_MAX
            ),
        )

    # --- one delivery --------------------------------------------------------------------------

    async def _deliver(self, session: aiohttp.ClientSession, delivery: Delivery) -> None:
        try:
            told = await self._tell(session, delivery)
            await self._record(self.settings.name, delivery)
        except Failed as error:
            self._failed(delivery, error.trouble)
        except asyncio.CancelledError:
            self.outbox.give_up(delivery, self._clock())
            raise
        except Exception as error:  # noqa: BLE001 - a bug with one event must not stop the others
            self._log.exception("relay_broke", repository=delivery.repository)
            text = f"unexpected {type(error).__name__}"
            self._failed(delivery, Trouble(text, is_lasting=True, is_about_event=True))
        else:
            self._acknowledged(delivery, told)
        self.wake()

    async def _tell(self, session: aiohttp.ClientSession, delivery: Delivery) -> tuple[Told, ...]:
        """Send a delivery, and return what was told.

        Raises:
            Failed: The receiver did not take all of it.
        """
        mirror = self._mirrors[delivery.repository]
        repository, snapshot = mirror.repository, mirror.snapshot
        told = []
        for change in delivery.changes:
            if repository is None or not wants_files(self.settings.kind):
                told.append(Told(change))
            else:
                told.append(await self._ranges.told(mirror.name, repository, change))
        news = News(
            repository=mirror.name,
            told=tuple(told),
            default_branch=snapshot.head_target if snapshot is not None else None,
            number=delivery.number,
            now=time.time(),
        )
        try:
            key = signing_key(self.settings.kind, self._secret.read().reveal())
            verify = self._verification()
        except OSError as error:
            text = f"{error.filename or self.settings.ca_file} can't be used: {error.strerror}"
            raise Failed(Trouble(text, is_lasting=True)) from error
        except ValueError as error:
            raise Failed(Trouble(f"secret_file: {error}", is_lasting=True)) from error
        for request in requests(self.settings, news, key):
            await self._post(session, request, verify=verify)
        return tuple(told)

    def _verification(self) -> ssl.SSLContext | bool:
        """Return what certificates are checked with: made once, or anew when `ca_file` changed."""
        if not self.settings.url.startswith("https:"):
            return True
        stamp = None
        if self.settings.ca_file is not None:
            stamp = stamp_of(self.settings.ca_file.stat())
        if self._verify is None or stamp != self._verify[0]:
            self._verify = (stamp, verification(self.settings))
        return self._verify[1]

    async def _post(
        self, session: aiohttp.ClientSession, request: Request, *, verify: ssl.SSLContext | bool
    ) -> None:
        try:
            async with session.post(
                self.settings.url,
                data=request.body,
                headers=request.headers,
                ssl=verify,
                allow_redirects=False,
            ) as response:
                if 200 <= response.status < 300:
                    return
                raise Failed(await self._trouble(response))
        except TimeoutError as error:
            seconds = self.settings.timeout_seconds
            text = f"{self._where} did not answer within {seconds:g} seconds"
            raise Failed(Trouble(text)) from error
        except aiohttp.ClientConnectorCertificateError as error:
            text = f"{self._where} shows a certificate that is not trusted; see `ca_file`"
            raise Failed(Trouble(text, is_lasting=True)) from error
        except aiohttp.ClientConnectorError as error:
            text = f"{self._where} can't be reached: {reason_of_os(error.os_error)}"
            raise Failed(Trouble(text)) from error
        except aiohttp.ClientError as error:
            text = f"{self._where}: {type(error).__name__}"
            raise Failed(Trouble(text)) from error

    async def _trouble(self, response: aiohttp.ClientResponse) -> Trouble:
        status = response.status
        text = f"{self._where} answered {status}"
        if hint := _HINTS.get(status):
            text += f": {hint}"
        elif 300 <= status < 400:
            text += ": redirects are not followed; put where it leads to into `url`"
        if page := await _beginning(response):
            text += f" ({page})"
        asked = retry_after_seconds(response)
        if status >= 500 or status in (408, 425, 429):
            return Trouble(text, retry_after_seconds=asked)
        is_about_event = status >= 400 and status not in _OF_THE_RECEIVER
        return Trouble(
            text, is_lasting=True, is_about_event=is_about_event, retry_after_seconds=asked
        )

    # --- what came of it -----------------------------------------------------------------------

    def _acknowledged(self, delivery: Delivery, told: tuple[Told, ...]) -> None:
        self.outbox.acknowledge(delivery)
        now = self._clock()
        for one in told:
            self._metrics.record_relayed(self.settings.name, now - one.change.since)
        self._last_delivery_at = time.time()
        if self._last_error is not None and not self.outbox.has_failed:
            self._log.info("relay_recovered", pending=len(self.outbox))
            self._last_error = self._logged = None
        first = told[0]
        self._log.info(
            "relayed",
            repository=delivery.repository,
            ref=first.change.ref.decode("utf-8", "replace"),
            before=_text(first.change.before),
            after=_text(first.change.after),
            refs=len(told),
            files=None if first.files is None else len(first.files),
            milliseconds=round((now - first.change.since) * 1000, 1),
        )

    def _failed(self, delivery: Delivery, trouble: Trouble) -> None:
        now = self._clock()
        again_at = self.outbox.fail(delivery, trouble, now, self._chance())
        outcome = "refused" if trouble.is_lasting else "unavailable"
        self._metrics.record_relay_failure(self.settings.name, outcome)
        self._last_failure_at = time.time()
        self._last_error = trouble.text
        if self._logged is not None:
            text, at = self._logged
            if text == trouble.text and now - at < LOGGED_AGAIN_SECONDS:
                return
        self._logged = (trouble.text, now)
        self._log.warning(
            "relay_failed",
            repository=delivery.repository,
            error=trouble.text,
            kind=outcome,
            failures=self.outbox.failures,
            pending=len(self.outbox),
            next_try_seconds=round(max(0.0, again_at - now), 1),
        )

    # --- figures -------------------------------------------------------------------------------

    def state(self) -> RelayState:
        """Return the receiver's figures for the metrics."""
        oldest = self.outbox.oldest
        return RelayState(
            name=self.settings.name,
            pending=len(self.outbox),
            oldest_seconds=0.0 if oldest is None else max(0.0, self._clock() - oldest),
        )

    def describe(self) -> dict[str, Any]:
        """Return the receiver's part of the status; times in seconds since the epoch."""
        state = self.state()
        return {
            "type": self.settings.kind.value,
            "receiver": self._where,
            "pending": state.pending,
            "oldest_pending_seconds": round(state.oldest_seconds, 3),
            "last_delivery_at": self._last_delivery_at,
            "last_failure_at": self._last_failure_at,
            "last_error": self._last_error,
        }


def verification(relay: RelaySettings) -> ssl.SSLContext:
    """Return what the receiver's certificate is checked with.

    Raises:
        OSError: The file of `ca_file` can't be used.
    """
    return ssl.create_default_context(cafile=str(relay.ca_file) if relay.ca_file else None)


def origin_of(url: str) -> str:
    """Return what messages may say of a receiver's URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def reason_of_os(error: OSError) -> str:
    """Return the system's own words; what asyncio and uvloop make of them differs."""
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason})"
    if isinstance(error, socket.gaierror) or error.errno is None:
        return str(error.strerror or "no connection")
    return os.strerror(error.errno)


async def _beginning(response: aiohttp.ClientResponse) -> str:
    try:
        raw = await response.content.read(ANSWER_BYTES_MAX)
    except (TimeoutError, aiohttp.ClientError):
        return ""
    return " ".join(raw.decode("utf-8", "replace").split())


def _text(oid: bytes | None) -> str | None:
    return None if oid is None else oid.decode("ascii")
