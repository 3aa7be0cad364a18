"""All receivers: told what every reader can fetch, and what each of them knew before the restart.

A receiver that is new to a repository begins with what is served at that moment: it is told of
nothing that was there before, for whoever is set up then reads everything anyway. Where it was lost
what receivers know, they are told of what there is as if it were new: better twice than never.
"""

import asyncio
import sqlite3
import ssl
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from functools import partial
from itertools import chain, islice
from typing import Any, Final, ParamSpec, TypeVar
from urllib.parse import urlsplit

import structlog

from mirror.config import RelaySettings
from mirror.errors import LocalError
from mirror.metrics import Metrics
from mirror.places import DataDirectory
from mirror.refresh.mirror import Mirror
from mirror.refresh.relay.files import Ranges
from mirror.refresh.relay.ledger import Acknowledged, Ledger
from mirror.refresh.relay.outbox import Delivery
from mirror.refresh.relay.sender import Sender, origin_of, reason_of_os, verification
from mirror.repository.snapshot import RefSnapshot
from mirror.space import look_at
from mirror.wire.names import ObjectId, RefName
from mirror.wire.ref_table import RefTable

P = ParamSpec("P")
T = TypeVar("T")

PROBE_SECONDS_MAX: Final = 10.0
"""A receiver that takes longer only to accept a connection would be late for each event."""

LEDGER_BYTES_MIN: Final = 1 << 20
"""With less free, an error of the ledger is the disk's."""

TOLD_ANEW_MAX: Final = 100
"""Refs of a repository, where it was lost what a receiver knows: HEAD's branch, then the others."""

logger = structlog.stdlib.get_logger()


class Relays:
    """Tells every receiver of every change; without receivers it does nothing."""

    def __init__(
        self, relays: Mapping[str, RelaySettings], metrics: Metrics, *, agent: str
    ) -> None:
        self._metrics = metrics
        self._agent = agent
        self._mirrors: dict[str, Mirror] = {}
        self._served: dict[str, RefSnapshot] = {}
        self._ranges = Ranges()
        self._senders = [self._sender(one) for one in relays.values()]
        self._ledger: Ledger | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._broken: asyncio.Future[None] | None = None
        self._places: DataDirectory | None = None
        self._changing = asyncio.Lock()
        self._is_watched = False
        self._watch_figures()

    def _sender(self, relay: RelaySettings) -> Sender:
        return Sender(
            relay,
            self._mirrors,
            self._ranges,
            self._metrics,
            agent=self._agent,
            record=self._record,
        )

    def _watch_figures(self) -> None:
        if self._senders and not self._is_watched:
            self._is_watched = True
            self._metrics.watch_relays(lambda: [one.state() for one in self._senders])
        self._metrics.create_relay_series(one.settings.name for one in self._senders)

    async def open(
        self, stack: AsyncExitStack, mirrors: Iterable[Mirror], places: DataDirectory
    ) -> None:
        """Find out what every receiver knows; to be called before anything is refreshed.

        Args:
            stack: Gets the end of the ledger.
            mirrors: All repositories.
            places: Where the ledger is.

        Raises:
            LocalError: The ledger can't be opened.
        """
        self._places = places
        self._mirrors.update((one.name, one) for one in mirrors)
        stack.push_async_callback(self._close)
        if self._senders:  # else there is no file, nor will there be
            await self._open_ledger()
            await self._in_thread(self._load, self._senders, list(self._mirrors.values()))

    async def _open_ledger(self) -> None:
        """Open the ledger, if it is not open yet.

        Raises:
            LocalError: It can't be opened.
        """
        places = self._places
        if self._ledger is not None or places is None:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="relay-ledger")
        try:
            self._ledger = await self._in_thread(partial(_ledger, places))
        except sqlite3.Error as error:
            raise LocalError(
                f"{places.relays} can't be used: {error}; with that file moved away, every receiver"
                " begins anew"
            ) from error

    def start(self) -> list[asyncio.Task[None]]:
        """Begin to tell, now that all is served; returns tasks, none of which should end.

        `stop` them before what serves ends.
        """
        self._broken = asyncio.get_running_loop().create_future()
        for one in self._senders:
            self._start(one)
        return [asyncio.create_task(self._run(self._broken), name="relays")]

    async def _run(self, broken: "asyncio.Future[None]") -> None:
        if self._ledger is not None:
            await self._in_thread(self._tidy, self._known())
        await broken

    def _start(self, sender: Sender) -> None:
        name = sender.settings.name
        task = self._tasks[name] = asyncio.create_task(sender.run(), name=f"relay {name}")
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and self._broken is not None and not self._broken.done():
            error = task.exception() or RuntimeError(f"{task.get_name()} ended")
            self._broken.set_exception(error)

    async def prepare(self, relays: Mapping[str, RelaySettings]) -> None:
        """Make ready for other receivers.

        Raises:
            LocalError: The ledger can't be opened.
        """
        if relays:
            await self._open_ledger()

    async def change(self, relays: Mapping[str, RelaySettings], mirrors: Iterable[Mirror]) -> None:
        """Tell other receivers from now on; those that are as they were notice nothing.

        One that changed is told what it has not acknowledged yet by its new settings.

        Args:
            relays: All of them, by name.
            mirrors: All repositories.
        """
        async with self._changing:
            mirrors = list(mirrors)
            self._mirrors.update((one.name, one) for one in mirrors)
            kept = [one for one in self._senders if relays.get(one.settings.name) == one.settings]
            known = {one.settings.name for one in kept}
            gone = [one for one in self._senders if one not in kept]
            self._senders = kept
            await self._end([self._tasks.pop(one.settings.name) for one in gone])
            new = [self._sender(one) for name, one in relays.items() if name not in known]
            if new:
                await self._in_thread(self._load, new, mirrors)
                self._senders = [*kept, *new]
                self._watch_figures()
            for sender in new:
                for mirror in mirrors:
                    await self._catch_up(sender, mirror)
                self._start(sender)

    async def _catch_up(self, sender: Sender, mirror: Mirror) -> None:
        """Take note of what came to be served while the ledger was read."""
        if mirror.snapshot is not None and mirror.name in sender.outbox.backlogs:
            untold = sender.publish(mirror.name, mirror.snapshot)
            if untold:
                await self._in_thread(self._note, sender.settings.name, mirror.name, untold)

    async def served(self, mirror: Mirror) -> None:
        """Take note of what every reader can fetch from now on, in every process."""
        snapshot = mirror.snapshot
        if snapshot is None or snapshot is self._served.get(mirror.name):
            return
        self._served[mirror.name] = snapshot
        self._mirrors[mirror.name] = mirror
        for sender in self._senders:
            relay = sender.settings
            if not relay.tells(mirror.name):
                continue
            if mirror.name not in sender.outbox.backlogs:
                # Waited for: with the next change it has to be known that this was the beginning.
                await self._in_thread(self._begin, relay.name, mirror.name, snapshot.by_name)
                sender.begin(mirror.name, snapshot.by_name)
                continue
            untold = sender.publish(mirror.name, snapshot)
            sender.wake()
            if untold:
                await self._in_thread(self._note, relay.name, mirror.name, untold)

    async def forget(self, name: str) -> None:
        """Let go of the refs of a repository that was removed.

        What receivers lack of it they are told all the same, and what it has when it comes again.
        """
        self._served.pop(name, None)

    def describe(self) -> dict[str, Any]:
        """Return the status of the receivers, by name."""
        return {one.settings.name: one.describe() for one in self._senders}

    async def stop(self) -> None:
        """Tell nothing more, until the next `start`."""
        tasks, self._tasks = list(self._tasks.values()), {}
        await self._end(tasks)
        if self._broken is not None and not self._broken.cancel() and not self._broken.cancelled():
            self._broken.exception()  # seen: nobody has to be waiting

    async def _end(self, tasks: "list[asyncio.Task[None]]") -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _close(self) -> None:
        await self._ranges.close()
        if self._thread is not None:
            if self._ledger is not None:
                await self._in_thread(self._ledger.close)
            await asyncio.to_thread(self._thread.shutdown)

    # --- the ledger, in its thread -------------------------------------------------------------

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))

    async def _record(self, relay: str, delivery: Delivery) -> None:
        tips = {change.ref: change.after for change in delivery.changes}
        await self._in_thread(self._note, relay, delivery.repository, tips, delivery.number + 1)

    def _load(self, senders: list[Sender], mirrors: list[Mirror]) -> None:
        """Compare what the ledger says of receivers with what is served."""
        if self._ledger is None:
            return
        told = [
            (sender, mirror)
            for sender in senders
            for mirror in mirrors
            if sender.settings.tells(mirror.name)
        ]
        for sender, mirror in told:
            relay = sender.settings.name
            known = self._ledger.load(relay, mirror.name)
            if known is None:
                if mirror.snapshot is None:
                    continue
                refs = mirror.snapshot.by_name
                if self._ledger.is_anew:
                    refs = _without_latest(mirror.snapshot)
                self._begin(relay, mirror.name, refs)
                known = Acknowledged(refs, 0)
            sender.begin(mirror.name, known.refs, number=known.number)
            if mirror.snapshot is not None:
                self._note(relay, mirror.name, sender.publish(mirror.name, mirror.snapshot))

    def _known(self) -> set[tuple[str, str]]:
        """Return which receivers know of which repositories."""
        return {(one.settings.name, name) for one in self._senders for name in one.outbox.backlogs}

    def _tidy(self, known: Collection[tuple[str, str]]) -> None:
        """Forget in the ledger what is not `known` any more."""
        if self._ledger is None:
            return
        try:
            self._ledger.keep_only(known)
        except sqlite3.Error as error:
            logger.warning("relay_ledger_not_tidied", error=str(error))

    def _begin(self, relay: str, repository: str, refs: RefTable) -> None:
        """Take these refs for what the receiver knows."""
        if self._ledger is None:
            return
        try:
            self._ledger.begin(relay, repository, refs.values())
        except sqlite3.Error as error:
            _log_lost(relay, repository, error)

    def _note(
        self,
        relay: str,
        repository: str,
        tips: Mapping[RefName, ObjectId | None],
        number: int | None = None,
    ) -> None:
        if self._ledger is None or not tips:
            return
        try:
            self._ledger.record(relay, repository, tips, number)
        except sqlite3.Error as error:
            _log_lost(relay, repository, error)


def _ledger(places: DataDirectory) -> Ledger:
    """Open the ledger; a copy in memory where the disk takes nothing.

    Raises:
        LocalError: It can't be opened.
        sqlite3.Error: So it is.
    """
    try:
        return Ledger.open(places.relays, set_aside=places.set_aside)
    except (LocalError, sqlite3.Error, OSError) as error:
        space = look_at(places.root)
        if not space.is_read_only and space.free_bytes > LEDGER_BYTES_MIN:
            raise
        logger.error(  # noqa: TRY400 - the reason is the disk, which is watched
            "relay_ledger_in_memory",
            reason=str(error),
            advice="make room; receivers are told again after the next start what they were told",
        )
        return Ledger.open_copy(places.relays)


def _without_latest(snapshot: RefSnapshot) -> RefTable:
    """Return what is served but for the refs that a receiver is to be told of anew."""
    branches = (ref.name for ref in snapshot.refs if ref.name.startswith(b"refs/heads/"))
    others = (ref.name for ref in snapshot.refs if not ref.name.startswith(b"refs/heads/"))
    head = snapshot.head_target
    first = [head] if head is not None and head in snapshot.by_name else []
    names = islice(dict.fromkeys(chain(first, branches, others)), TOLD_ANEW_MAX)
    return snapshot.by_name.replace(dict.fromkeys(names))


def _log_lost(relay: str, repository: str, error: sqlite3.Error) -> None:
    """The service goes on: what is not written down is told once more after a restart."""
    logger.error("relay_not_noted", relay=relay, repository=repository, error=str(error))


async def probe_receivers(relays: Iterable[RelaySettings]) -> dict[str, str | None]:
    """Connect to every receiver, with TLS where it has that, and send nothing.

    Returns:
        What is wrong with each, `None` for nothing.
    """
    relays = list(relays)
    found = await asyncio.gather(*map(_probe, relays))
    return {one.name: problem for one, problem in zip(relays, found, strict=True)}


async def _probe(relay: RelaySettings) -> str | None:
    parts = urlsplit(relay.url)
    where = origin_of(relay.url)
    try:
        verify = verification(relay) if parts.scheme == "https" else None
        port = parts.port or (443 if parts.scheme == "https" else 80)
        async with asyncio.timeout(PROBE_SECONDS_MAX):
            _, writer = await asyncio.open_connection(parts.hostname, port, ssl=verify)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
    except TimeoutError:
        return f"{where} can't be reached within {PROBE_SECONDS_MAX:g} seconds"
    except ssl.SSLCertVerificationError as error:
        return f"{where} shows a certificate that is not trusted: {error.verify_message}"
    except OSError as error:
        return f"{where} can't be reached: {reason_of_os(error)}"
    return None
