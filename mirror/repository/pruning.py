"""Removes what nothing reaches: the whole repository is written anew without it.

Safe while the repository is read and refreshed, and against an end at any moment:

* Which packs there are, and what is to stay, is seen at one moment between two refreshes: whatever
  had arrived by then is reached by a ref or a kept tip, or by nothing. Packs that arrive later are
  left alone, so that nothing is removed before it could be named.
* The new pack is whole and durable before a file of the old ones goes. They go between two
  refreshes, and only after what refs name by then was found whole without them: a ref may have
  come back to what was given up.
* Who has an old pack open reads on. A reader who asked for a kept tip while it was kept is done
  long before: see `PRUNE_MARGIN_SECONDS`.
* Until it is done, the note of what is unreachable stays: after a crash it is begun again.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mirror.durable import write_durably
from mirror.errors import LocalError
from mirror.repository.bare import BareRepository
from mirror.repository.maintenance import Unreachable
from mirror.repository.packing.engine import PackEngine
from mirror.repository.refs import StoredRefs
from mirror.repository.threads import run_to_end
from mirror.wire.names import ObjectId

PRUNE_MARGIN_SECONDS: Final = 2 * 3600
"""A kept tip is given up so long after its time: a pack that a reader asked for in time may take an
hour to make, and may have waited for its turn."""

BEGIN_SECONDS_MAX: Final = 30.0
END_SECONDS_MAX: Final = 1800.0
"""To wait for a refresh to end; others have their repositories maintained after this one. What was
written anew is worth a longer wait."""

_NOTE: Final = "git-mirror-unreachable"


def given_up(stored: StoredRefs, *, wall_now: float) -> list[ObjectId]:
    """Return the kept tips whose time, and the margin, are over."""
    last = wall_now - PRUNE_MARGIN_SECONDS
    return [oid for oid, until in stored.kept.items() if until <= last]


def tips_of(stored: StoredRefs) -> set[ObjectId]:
    """Return all that keeps objects: refs, a detached HEAD, kept tips."""
    tips = {ref.oid for ref in stored.refs.values()} | stored.kept.keys()
    return tips if stored.head is None else tips | {stored.head}


def read_unreachable(repository: BareRepository) -> Unreachable | None:
    """Return what was noted of unreachable objects; blocking."""
    note = repository.path / _NOTE
    try:
        text, since = note.read_text(encoding="ascii"), note.stat().st_mtime
        return Unreachable(int(text), since)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):  # there are some, and nobody knows how many
        return Unreachable(1, 0.0)


async def give_up_tips(
    repository: BareRepository, engine: PackEngine, *, changing: asyncio.Lock, wall_now: float
) -> None:
    """Give up the kept tips whose time is over, and note how much nothing reaches from then on.

    Raises:
        LocalError: It could not be done; the tips are kept.
    """
    stored = await asyncio.to_thread(repository.read_refs)
    tips = set(given_up(stored, wall_now=wall_now))
    if not tips:
        return
    left = replace(stored, kept={oid: at for oid, at in stored.kept.items() if oid not in tips})
    live = tips_of(left)
    size = await engine.unreachable_bytes(repository, sorted(tips - live), live=sorted(live))
    async with _held(changing, BEGIN_SECONDS_MAX):
        await run_to_end(_drop_tips, repository, tips, size, wall_now)


def _drop_tips(repository: BareRepository, tips: set[ObjectId], size: int, wall_now: float) -> None:
    last = wall_now - PRUNE_MARGIN_SECONDS
    stored = repository.read_refs()  # a refresh may have kept one of them anew
    kept = {oid: at for oid, at in stored.kept.items() if at > last or oid not in tips}
    if size > 0:
        _note_unreachable(repository, size, wall_now)
    repository.write_refs(replace(stored, kept=kept))


def _note_unreachable(repository: BareRepository, size: int, wall_now: float) -> None:
    known = read_unreachable(repository) or Unreachable(0, wall_now)
    draft, note = repository.path / f"{_NOTE}.tmp", repository.path / _NOTE
    try:
        write_durably(draft, b"%d\n" % (known.size + size))
        os.utime(draft, (known.since, known.since))
        draft.rename(note)  # durable with the refs, which come next
    except OSError as error:
        raise LocalError(f"can't write {note}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Sight:
    """Packs and tips of one moment; `live` are those that are no kept ones."""

    packs: frozenset[str]
    tips: frozenset[ObjectId]
    live: frozenset[ObjectId]


async def prune(repository: BareRepository, engine: PackEngine, *, changing: asyncio.Lock) -> None:
    """Write the repository anew, without what nothing reaches.

    In a pack of what refs reach, and one of what kept tips reach beside that.

    Args:
        repository: The repository.
        engine: Makes the pack.
        changing: Held by whoever changes refs or adds packs; here for two short moments.

    Raises:
        LocalError: It could not be done; nothing is lost, and what was unreachable still is there.
    """
    async with _held(changing, BEGIN_SECONDS_MAX):
        before = await run_to_end(_look, repository)
    with repository.quarantine() as quarantine:
        live = sorted(before.live)
        if live:
            await engine.pack_reachable(quarantine, live)
        # Apart from what readers clone, which then is all of one pack, with nothing in between.
        if kept := sorted(before.tips - before.live):
            await engine.pack_reachable(quarantine, kept, without=live)
        made = {pack.name for pack in (quarantine.objects / "pack").glob("pack-*.pack")}
        await run_to_end(quarantine.migrate)
    old = before.packs - made
    await engine.index(repository, without=old)
    async with _held(changing, END_SECONDS_MAX):
        now = await run_to_end(_look, repository)
        came = sorted(now.tips - before.tips)
        if came:
            with _survivors(repository, now.packs - old) as objects:
                await engine.check_alone(repository, objects, came, known=sorted(before.tips))
        await run_to_end(_remove, repository, old)


@asynccontextmanager
async def _held(changing: asyncio.Lock, seconds_max: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds_max):
            await changing.acquire()
    except TimeoutError:
        raise LocalError(f"a refresh is under way for more than {seconds_max:.0f} s") from None
    try:
        yield
    finally:
        changing.release()


def _look(repository: BareRepository) -> _Sight:
    packs = frozenset(pack.name for pack in repository.pack_files())
    stored = repository.read_refs()
    live = frozenset(tips_of(replace(stored, kept={})))
    return _Sight(packs, frozenset(tips_of(stored)), live)


@contextmanager
def _survivors(repository: BareRepository, packs: Iterable[str]) -> Iterator[Path]:
    """Show these packs alone, in an object directory of their own."""
    with repository.quarantine() as view:
        try:
            (view.objects / "info" / "alternates").unlink()
            for name in packs:
                for end in (".pack", ".idx"):
                    file = (repository.objects / "pack" / name).with_suffix(end)
                    (view.objects / "pack" / file.name).symlink_to(file.absolute())
        except OSError as error:
            raise LocalError(f"can't look at {view.objects}: {error.strerror}") from error
        yield view.objects


def _remove(repository: BareRepository, packs: Collection[str]) -> None:
    repository.remove_packs(packs)
    try:
        (repository.path / _NOTE).unlink(missing_ok=True)
    except OSError as error:
        raise LocalError(f"can't remove {repository.path / _NOTE}: {error.strerror}") from error


def free_bytes(repository: BareRepository) -> int:
    """Return the room on the repository's disk; blocking."""
    with suppress(OSError):
        return shutil.disk_usage(repository.path).free
    return 0
