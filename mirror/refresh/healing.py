"""What becomes of a repository that is found damaged: mended here, or fetched again.

What can be made anew from what is sound is: HEAD, the configuration and the refs, from memory; the
index of a sound pack; a commit-graph, bitmap or multi-pack index, which git does without until the
next repack. The rest is cloned anew beside it, and the two directories change places in one step.
Until then, and while the upstream is down, what is sound is served on: each object is checked as it
is read, so that a reader gets the right bytes or an error. Old tips that the upstream no longer
lists are carried over as far as their objects are sound.

Only the repository's own refresher calls this; no lock is held.
"""

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import quote

import structlog

from mirror.durable import fsync_directory
from mirror.errors import Damaged, LocalError
from mirror.metrics import Metrics
from mirror.refresh.mirror import Mirror
from mirror.refresh.update import KEPT_SECONDS, Updated, Updater
from mirror.repository.bare import BareRepository
from mirror.repository.integrity import CHECKED_SECONDS, Damage, Kind, checksum
from mirror.repository.packing.engine import PackEngine, PackRequest
from mirror.repository.refs import StoredRefs
from mirror.repository.snapshot import RefSnapshot
from mirror.repository.swap import exchange
from mirror.repository.threads import run_to_end
from mirror.space import disk_trouble
from mirror.upstream.remote import Remote
from mirror.wire.names import ObjectId, RefName

KEPT_CARRIED_MAX: Final = 200
"""Old tips carried over to a new clone, the latest; each takes a walk of what it reaches."""

HAVES_MAX: Final = 256
"""Tips of the new clone that an old tip is packed against."""

LOOKED_SECONDS: Final = 5.0
"""What an answer met is looked for in all files, but those that were read so lately."""

COMPLETE_SECONDS: Final = 3600.0
"""What readers miss although all files are right is looked for so often at most: it takes a walk of
all that there is."""

MENDED_HERE: Final = frozenset({Kind.AUXILIARY, Kind.HEAD, Kind.CONFIG, Kind.REFS})
"""What takes nothing from the upstream to make anew."""

logger = structlog.stdlib.get_logger()


class Healer:
    """Mends one repository."""

    def __init__(
        self,
        mirror: Mirror,
        remote: Remote,
        updater: Updater,
        engine: PackEngine,
        metrics: Metrics,
        *,
        set_aside: Path,
        alone: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Be ready.

        Args:
            mirror: The repository.
            remote: Its upstream.
            updater: Clones it anew.
            engine: Indexes and makes packs.
            metrics: Told of what is found and mended.
            set_aside: Takes the damaged files, for a look.
            alone: Keeps everybody else from changing the repository's files meanwhile.
            clock: Monotonic seconds.
        """
        self._mirror = mirror
        self._remote = remote
        self._updater = updater
        self._engine = engine
        self._metrics = metrics
        self._set_aside = set_aside
        self._alone = alone
        self._clock = clock
        self._known: set[Path] = set()
        self._walked_at = float("-inf")
        self._was_complete = True
        self._log = logger.bind(repository=mirror.name)

    async def heal(
        self, *, is_damage_met: bool, believed: Collection[RefName] | None = frozenset()
    ) -> Updated | None:
        """Look for damage and mend it.

        Args:
            is_damage_met: Whether an answer has just met some: then nothing that was found right
                before counts.
            believed: Refs whose deletion upstream is confirmed; `None` for all that it lists no
                more.

        Returns:
            What is there after the repository was cloned anew; `None` where that was not needed.

        Raises:
            UpstreamError: It has to be cloned anew, and the upstream did not answer as it should.
            LocalError: Something on this machine failed.
        """
        try:
            async with self._alone():
                return await self._heal(is_damage_met=is_damage_met, believed=believed)
        except LocalError as error:
            if (trouble := disk_trouble(error)) is not None and trouble is not error:
                raise trouble from error
            raise

    async def _heal(
        self, *, is_damage_met: bool, believed: Collection[RefName] | None
    ) -> Updated | None:
        mirror, repository = self._mirror, self._mirror.repository
        if repository is None or mirror.snapshot is None:
            return None
        since = LOOKED_SECONDS if is_damage_met else CHECKED_SECONDS
        found = await asyncio.to_thread(repository.check, since=since)
        is_damage_met = not found and (is_damage_met or mirror.damage is not None)
        self._note(found)
        if found:
            tried = [await self._mend(repository, one, found) for one in found]
            await asyncio.to_thread(repository.source.rescan)
            found = await asyncio.to_thread(repository.check)
            failures = [error for error in tried if error is not None]
            if found and failures and all(one.kind in MENDED_HERE for one in found):
                self._damaged(str(failures[0]))  # a disk that takes nothing takes no clone either
                raise failures[0]
        if not found and (not is_damage_met or await self._is_complete(repository)):
            if self._known or mirror.damage is not None:
                self._healed("locally")
            return None
        self._damaged(str(found[0]) if found else mirror.damage or "objects are missing")
        updated = await self._clone_anew(repository, mirror.snapshot, found, believed)
        self._healed("fetched")
        return updated

    def _note(self, found: Iterable[Damage]) -> None:
        for one in found:
            if one.path not in self._known:
                self._known.add(one.path)
                self._metrics.record_damage(one.kind.value)
                self._log.error(
                    "damage_found", kind=one.kind.value, path=str(one.path), reason=one.reason
                )

    def _damaged(self, reason: str) -> None:
        if self._mirror.damage is None or self._mirror.damaged_since is None:
            self._mirror.damaged_since = time.time()
        self._mirror.damage = reason

    def _healed(self, how: str) -> None:
        self._known.clear()
        self._walked_at = float("-inf")
        self._mirror.damage = self._mirror.damaged_since = None
        self._metrics.record_healed(how)
        self._log.info("healed", how=how)

    # --- here ----------------------------------------------------------------------------------

    async def _mend(
        self, repository: BareRepository, damage: Damage, found: Iterable[Damage]
    ) -> LocalError | None:
        """Make anew what is damaged, if that can be done here; if not, it is found again.

        Returns why it can't be done now, where it could be at another time.
        """
        try:
            match damage.kind:
                case Kind.AUXILIARY:
                    await run_to_end(repository.drop, damage.path)
                case Kind.HEAD | Kind.CONFIG:
                    await run_to_end(repository.mend)
                case Kind.REFS:
                    await run_to_end(repository.write_known_refs)
                case Kind.INDEX:
                    pack = damage.path.with_suffix(".pack")
                    if pack.exists() and all(one.path != pack for one in found):
                        await self._index_again(repository, pack)
                case _:
                    pass
        except Damaged:
            return None  # nothing here to make it anew of
        except LocalError as error:
            self._log.warning("not_mended", path=str(damage.path), error=str(error))
            return error
        return None

    async def _index_again(self, repository: BareRepository, pack: Path) -> None:
        """Make a new index of a sound pack."""
        with repository.quarantine() as quarantine:
            os.link(pack, quarantine.received)
            await self._engine.index_pack(quarantine)
            await run_to_end(_put_index, quarantine.objects / "pack", pack)

    async def _is_complete(self, repository: BareRepository) -> bool:
        """Tell whether all that the refs reach is there; read it all, and throw it away."""
        if self._clock() - self._walked_at < COMPLETE_SECONDS:
            return self._was_complete
        self._walked_at, self._was_complete = self._clock(), True
        snapshot = self._mirror.snapshot
        tips = tuple({ref.oid for ref in snapshot.refs}) if snapshot is not None else ()
        if not tips:
            return True
        try:
            async with aclosing(
                self._engine.build_pack(repository, PackRequest(wants=tips, ofs_delta=True))
            ) as pack:
                async for _ in pack:
                    pass
        except LocalError as error:
            self._log.warning("objects_missing", error=str(error))
            self._was_complete = False  # until it was cloned anew, however often that is tried
            return False
        return True

    # --- from the upstream -----------------------------------------------------------------------

    async def _clone_anew(
        self,
        repository: BareRepository,
        before: RefSnapshot,
        found: list[Damage],
        believed: Collection[RefName] | None,
    ) -> Updated:
        mirror = self._mirror
        beside = self._updater.cloned_beside(mirror, self._remote, believed=believed)
        try:
            async with beside as (staged, digest):
                stored = await asyncio.to_thread(staged.read_refs)
                snapshot = self._updater.snapshot_after(before, stored)
                changes = snapshot.changes_since(before)
                kept = await asyncio.to_thread(_kept_by, repository)
                until = int(time.time()) + KEPT_SECONDS
                kept |= {was: until for was, _ in changes.values() if was and was not in kept}
                if carried := await self._carry_over(repository, staged, stored, kept):
                    await run_to_end(staged.write_refs, replace(stored, kept=carried))
                snapshot = await asyncio.to_thread(snapshot.prepare, before)
                await run_to_end(_put_in_place, staged, mirror.path)
                await run_to_end(_set_aside, found, mirror.path, staged.path, self._aside())
            opened = await asyncio.to_thread(BareRepository.open, mirror.path)
        except OSError as error:
            raise LocalError(str(error)) from error
        finally:
            mirror.report(None)
        mirror.shown = (digest, snapshot)
        size = await asyncio.to_thread(opened.bytes_on_disk)
        return Updated(opened, snapshot, size, len(changes))

    def _aside(self) -> Path:
        return self._set_aside / quote(self._mirror.name, safe="")

    async def _carry_over(
        self,
        repository: BareRepository,
        staged: BareRepository,
        stored: StoredRefs,
        kept: dict[ObjectId, int],
    ) -> dict[ObjectId, int]:
        """Bring what old tips reach into the new clone; return those of which all is sound."""
        carried: dict[ObjectId, int] = {}
        tips = {ref.oid for ref in stored.refs.values()}
        haves = tuple(tip for tip in sorted(tips) if repository.source.contains(tip))[:HAVES_MAX]
        latest = sorted(kept, key=lambda oid: kept[oid], reverse=True)
        for oid in latest[:KEPT_CARRIED_MAX]:
            try:
                if not staged.source.contains(oid):
                    request = PackRequest(wants=(oid,), haves=haves, ofs_delta=True)
                    await self._carry(repository, staged, request)
            except LocalError as error:
                self._log.warning("old_tip_lost", oid=oid.decode(), error=str(error))
            else:
                carried[oid] = kept[oid]
        return carried

    async def _carry(
        self, repository: BareRepository, staged: BareRepository, request: PackRequest
    ) -> None:
        with staged.quarantine() as quarantine:
            with quarantine.received.open("wb") as file:
                async with aclosing(self._engine.build_pack(repository, request)) as pack:
                    async for chunk in pack:
                        await run_to_end(file.write, chunk)
            await self._engine.index_pack(quarantine)
            await self._engine.check_connected(quarantine, request.wants)
            await run_to_end(quarantine.migrate)


def _kept_by(repository: BareRepository) -> dict[ObjectId, int]:
    try:
        return dict(repository.read_refs().kept)
    except LocalError:
        return {}


def _put_index(made: Path, pack: Path) -> None:
    """Put the index that was made of a pack in the place of its damaged one.

    Raises:
        LocalError: It is of another pack, or can't be put there.
    """
    try:
        (index,) = made.glob("pack-*.idx")
        if checksum(index.with_suffix(".pack")) != checksum(pack):
            raise LocalError(f"the index that was made is not of {pack}")
        for suffix in (".rev", ".idx"):
            if index.with_suffix(suffix).exists():
                index.with_suffix(suffix).replace(pack.with_suffix(suffix))
        fsync_directory(pack.parent)
    except (OSError, ValueError) as error:
        raise LocalError(f"can't make the index of {pack} anew: {error}") from error


def _put_in_place(staged: BareRepository, path: Path) -> None:
    staged.make_durable()
    exchange(staged.path, path)


def _set_aside(found: Iterable[Damage], path: Path, old: Path, aside: Path) -> None:
    """Keep the damaged files for a look; those of an earlier time make room."""
    shutil.rmtree(aside, ignore_errors=True)
    for one in found:
        if one.path.is_relative_to(path):
            target = aside / one.path.name
            with suppress(OSError):  # without it all goes on
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
                (old / one.path.relative_to(path)).rename(target)
