"""When an upstream is asked for LFS objects: once for all who want the same at the same time.

`LargeFiles` belongs to the process that talks to the upstreams; the others ask it. It asks what a
repository may hand out and notes that as grants, and brings objects to the store. A download goes
on when the readers that wanted it have left: it, or another of its kind, will be asked for again.
One that breaks off is continued where it broke. What arrives is seen by readers in the file that it
grows in (`LfsStore.open_part`), whichever process they are served by.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import structlog

from mirror.config import LimitSettings, Settings
from mirror.errors import MirrorError, Overloaded, Trouble, UpstreamUnavailable
from mirror.metrics import Metrics
from mirror.repository.integrity import Damage, OnRead
from mirror.repository.lfs_store import LfsStore, Part, StoreFull
from mirror.repository.threads import run_to_end
from mirror.upstream.failures import BrokenOff
from mirror.upstream.lfs import ActionRefused, LfsRemote
from mirror.wire.lfs import Action, Pointer, Refusal

BATCHES_MAX: Final = 16
"""Asked of upstreams at once."""

QUEUED_MAX: Final = 1000
"""Batches or downloads that wait; beyond that readers get an error 503."""

ACTIONS_MAX: Final = 4096
"""Remembered, so that a download needs no batch of its own."""

ACTION_SECONDS_MAX: Final = 600.0
ACTION_SECONDS_SPARE: Final = 30.0
"""An action that expires sooner is not begun with."""

RESUMES_MAX: Final = 5
"""How often a download is continued that broke off after some bytes."""

_LASTING: Final = frozenset({403, 404, 410, 422})
"""What an upstream says of an object that it does not offer any more."""

logger = structlog.stdlib.get_logger()


class LfsSource(Protocol):
    """Where LFS objects come from, as those who serve readers see it."""

    async def ask(self, name: str, pointers: Sequence[Pointer]) -> dict[str, Refusal | None]:
        """Ask the upstream of a repository for objects.

        Returns:
            By the object's id: `None` where it is granted now, or why it is not.

        Raises:
            MirrorError: There is no answer.
        """
        ...

    async def fetch(self, name: str, pointer: Pointer) -> None:
        """Bring an object to the store, for a repository that has it granted.

        Raises:
            MirrorError: It does not come.
        """
        ...


class LfsRepository(NamedTuple):
    """One repository's upstream, and where its grants are kept."""

    remote: LfsRemote
    scope: Path


class LfsRepositories(Protocol):
    """The repositories of one configuration, by name."""

    def __getitem__(self, name: str) -> LfsRepository:
        """Return one; `KeyError` where there is none."""
        ...

    def pop(self, name: str, default: None, /) -> LfsRepository | None:
        """Forget one."""
        ...

    def change(self, settings: Settings) -> None:
        """Have those of another configuration from now on."""
        ...


class _Download(NamedTuple):
    """An object on its way, and the repository that it is downloaded for."""

    name: str
    task: "asyncio.Task[None]"


class LargeFiles:
    """The source that talks to the upstreams."""

    def __init__(
        self,
        store: LfsStore,
        repositories: LfsRepositories,
        limits: LimitSettings,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._pauses: dict[str, float] = {}  # until when an upstream wants no request
        self._store = store
        self._repositories = repositories
        self._limits = limits
        self._metrics = metrics
        self._batch_places = asyncio.Semaphore(BATCHES_MAX)
        self._places = asyncio.Semaphore(limits.lfs_downloads_max)
        self._asking: dict[
            tuple[str, tuple[Pointer, ...]], asyncio.Task[dict[str, Refusal | None]]
        ] = {}
        self._downloads: dict[Pointer, _Download] = {}
        self._actions: OrderedDict[tuple[str, str], tuple[Action, float]] = OrderedDict()
        self._room = asyncio.Condition()
        self._reserved_bytes = 0

    def change(self, settings: Settings) -> None:
        """Go on by another configuration; what is under way keeps its place."""
        was, self._limits = self._limits, settings.limits
        self._repositories.change(settings)
        self._store.bytes_max = settings.limits.lfs_cache_bytes_max
        if was.lfs_downloads_max != settings.limits.lfs_downloads_max:
            self._places = asyncio.Semaphore(settings.limits.lfs_downloads_max)

    async def forget(self, name: str) -> None:
        """Forget what a repository that was removed may hand out."""
        self._repositories.pop(name, None)
        self._pauses.pop(name, None)
        for key in [key for key in self._actions if key[0] == name]:
            del self._actions[key]
        await run_to_end(self._store.forget, name)

    async def give(self, size: int) -> int:
        """Remove objects of that many bytes, if there are so many; returns of how many."""
        given = await run_to_end(self._store.give, size)
        self._metrics.set_lfs_stored_bytes(self._store.stored_bytes)
        return given

    async def count_again(self) -> None:
        """Count what another process stored that is gone now."""
        await run_to_end(self._store.count_again)
        self._metrics.set_lfs_stored_bytes(self._store.stored_bytes)

    @property
    def stored_bytes(self) -> int:
        """What the objects take."""
        return self._store.stored_bytes

    def scrub(self, on_read: OnRead) -> Iterator[Damage]:
        """Read all objects; yield those that are damaged, which are removed. Blocking."""
        return self._store.scrub(on_read)

    async def close(self) -> None:
        """End what is under way."""
        tasks = [*self._asking.values(), *(one.task for one in self._downloads.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- what is granted -----------------------------------------------------------------------

    async def ask(self, name: str, pointers: Sequence[Pointer]) -> dict[str, Refusal | None]:
        """See `LfsSource.ask`."""
        key = name, tuple(pointers)
        task = self._asking.get(key)
        if task is None:
            if len(self._asking) >= QUEUED_MAX:
                raise Overloaded("too many LFS batches are waiting; try again in a moment")
            task = self._asking[key] = asyncio.create_task(self._ask(name, key[1]))
            task.add_done_callback(lambda task: self._asked(key, task))
        return await asyncio.shield(task)

    def _asked(
        self,
        key: tuple[str, tuple[Pointer, ...]],
        task: "asyncio.Task[dict[str, Refusal | None]]",
    ) -> None:
        del self._asking[key]
        _see(task)

    async def _ask(self, name: str, pointers: tuple[Pointer, ...]) -> dict[str, Refusal | None]:
        remote, scope = self._repositories[name]
        with self._not_paused(name):
            async with self._batch_places:
                answers = await remote.batch(pointers)
        for oid, answer in answers.items():
            if isinstance(answer, Action):
                self._remember(name, oid, answer)
        return await run_to_end(
            lambda: {one.oid: self._noted(scope, one, answers[one.oid]) for one in pointers}
        )

    @contextmanager
    def _not_paused(self, name: str) -> Iterator[None]:
        """Ask an upstream, unless its Retry-After wants no request yet.

        Raises:
            UpstreamUnavailable: It does not.
        """
        if (left := self._pauses.get(name, 0.0) - self._clock()) > 0:
            raise UpstreamUnavailable(
                f"the upstream's LFS wants no request for {math.ceil(left)} seconds more"
                " (its Retry-After)",
                trouble=Trouble.RATE_LIMITED,
                retry_after_seconds=left,
            )
        try:
            yield
        except UpstreamUnavailable as error:
            if error.retry_after_seconds is not None:
                now = self._clock()
                self._pauses = {one: until for one, until in self._pauses.items() if until > now}
                until = now + error.retry_after_seconds
                self._pauses[name] = max(until, self._pauses.get(name, until))
            raise
        self._pauses.pop(name, None)

    def _noted(self, scope: Path, pointer: Pointer, answer: Action | Refusal) -> Refusal | None:
        """Keep what an upstream grants, and forget what it does not any more; blocking."""
        grant = self._store.granted(scope, pointer.oid)
        known = None if grant is None else Pointer(pointer.oid, grant.size)
        if isinstance(answer, Refusal):
            if known == pointer and answer.code in _LASTING:
                self._store.revoke(scope, pointer.oid)
            return answer
        if known is not None and known != pointer and self._store.is_stored(known):
            # An upstream may repeat whatever size it is asked for; what is here was verified.
            return Refusal(422, f"the object has {known.size} bytes, not {pointer.size}")
        self._store.grant(scope, pointer)
        return None

    def _remember(self, name: str, oid: str, action: Action) -> None:
        until = time.time() + ACTION_SECONDS_MAX
        if action.expires_at is not None:
            until = min(until, action.expires_at - ACTION_SECONDS_SPARE)
        self._actions[name, oid] = action, until
        self._actions.move_to_end((name, oid))
        while len(self._actions) > ACTIONS_MAX:
            self._actions.popitem(last=False)

    # --- the bytes -----------------------------------------------------------------------------

    async def fetch(self, name: str, pointer: Pointer) -> None:
        """See `LfsSource.fetch`."""
        is_first = True
        while True:
            download = self._downloads.get(pointer)
            if is_first:
                self._metrics.record_lfs_object("miss" if download is None else "joined")
                is_first = False
            if download is None:
                download = self._begin(name, pointer)
            try:
                await asyncio.shield(download.task)
            except MirrorError:
                if download.name == name:
                    raise
                # What another repository's upstream could not give, this one's may.
            else:
                return

    def _begin(self, name: str, pointer: Pointer) -> _Download:
        if len(self._downloads) >= QUEUED_MAX + self._limits.lfs_downloads_max:
            raise Overloaded("too many LFS downloads are waiting; try again in a moment")
        task = asyncio.create_task(self._run(name, pointer), name=f"lfs {pointer.oid}")
        download = self._downloads[pointer] = _Download(name, task)
        task.add_done_callback(partial(self._ended, pointer))
        return download

    def _ended(self, pointer: Pointer, task: "asyncio.Task[None]") -> None:
        del self._downloads[pointer]
        _see(task)

    async def _run(self, name: str, pointer: Pointer) -> None:
        began_at = time.monotonic()
        outcome = "abandoned"
        try:
            async with (
                self._places,
                asyncio.timeout(self._limits.refresh_timeout_seconds),
                self._reserved(pointer.size),
            ):
                await self._download(name, pointer)
            outcome = "ok"
        except TimeoutError as error:
            outcome = UpstreamUnavailable.label
            raise UpstreamUnavailable(
                f"the LFS object {pointer.oid} took longer than limits.refresh_timeout"
            ) from error
        except MirrorError as error:
            outcome = error.label
            logger.warning(
                "lfs_download_failed", repository=name, oid=pointer.oid, error=str(error)
            )
            raise
        finally:
            self._metrics.record_lfs_download(outcome, time.monotonic() - began_at)
            self._metrics.set_lfs_stored_bytes(self._store.stored_bytes)
        logger.info("lfs_downloaded", repository=name, oid=pointer.oid, bytes=pointer.size)

    @asynccontextmanager
    async def _reserved(self, size: int) -> AsyncIterator[None]:
        """Make room for an object, after those that need the room now.

        Raises:
            StoreFull: There will never be so much.
        """
        bytes_max = self._limits.lfs_cache_bytes_max
        if size > bytes_max:
            raise StoreFull(
                f"an LFS object of {size} bytes is over limits.lfs_cache_bytes_max ({bytes_max})"
            )
        async with self._room:
            while self._reserved_bytes and self._reserved_bytes + size > bytes_max:
                await self._room.wait()
            self._reserved_bytes += size
        try:
            removed = await run_to_end(self._store.make_room, self._reserved_bytes)
            self._metrics.record_lfs_evictions(removed)
            yield
        finally:
            async with self._room:
                self._reserved_bytes -= size
                self._room.notify_all()

    async def _download(self, name: str, pointer: Pointer) -> None:
        part = await run_to_end(self._store.new_part, pointer)
        try:
            await self._receive(name, pointer, part)
            await run_to_end(part.publish)
        finally:
            await run_to_end(part.abandon)

    async def _receive(self, name: str, pointer: Pointer, part: Part) -> None:
        """Write what the upstream sends, to the last byte."""
        action = self._remembered(name, pointer)
        is_remembered = action is not None
        resumes = 0
        while True:
            if action is None:
                action = await self._offered(name, pointer)
            before = part.size
            try:
                await self._receive_from(name, action, pointer, part)
            except ActionRefused:
                if not is_remembered:
                    raise
                is_remembered, action = False, None  # it may have expired; a newer one may do
            except BrokenOff as error:
                resumes += 1
                if part.size == before or resumes > RESUMES_MAX:
                    raise
                logger.info(
                    "lfs_download_resumed", oid=pointer.oid, received=part.size, error=str(error)
                )
            else:
                return

    async def _receive_from(self, name: str, action: Action, pointer: Pointer, part: Part) -> None:
        remote = self._repositories[name].remote
        with self._not_paused(name):
            async with aclosing(remote.download(action, pointer, offset=part.size)) as chunks:
                async for chunk in chunks:
                    await run_to_end(part.write, chunk)
                    self._metrics.record_lfs_received(len(chunk))

    def _remembered(self, name: str, pointer: Pointer) -> Action | None:
        action, until = self._actions.pop((name, pointer.oid), (None, 0.0))
        return action if time.time() < until else None

    async def _offered(self, name: str, pointer: Pointer) -> Action:
        """Ask how to download an object.

        Raises:
            UpstreamError: It is not offered.
        """
        refusal = (await self.ask(name, [pointer]))[pointer.oid]
        action = self._remembered(name, pointer)
        if refusal is not None or action is None:
            why = refusal.message if refusal else "what it offers has expired"
            raise ActionRefused(f"the upstream does not offer the LFS object {pointer.oid}: {why}")
        return action


def _see(task: "asyncio.Task[dict[str, Refusal | None]] | asyncio.Task[None]") -> None:
    """Nobody has to be waiting for the end of a task."""
    if not task.cancelled():
        task.exception()
