"""Events: what befalls the disk and the files on it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from tests.corruption.world import files_of, flip
from tests.soak.estate import Repository
from tests.soak.events import Scene, event
from tests.soak.ledger import Trouble
from tests.soak.log_lines import CACHES
from tests.soak.operating import command

MENDED_SECONDS_MAX: Final = 90.0
"""It is found when it is read, or by the scrub, four times a minute; backoffs go to a minute."""

LOOK_SECONDS: Final = 2.0


# --- the disk ------------------------------------------------------------------------------------


@asynccontextmanager
async def _full(scene: Scene) -> AsyncIterator[None]:
    """Another program fills the disk, to the last byte or into the reserve."""
    disk = scene.estate.disk
    assert disk is not None
    leave = scene.chance.choice([0, 0, 64 * 1024, 4 * 1024 * 1024])
    with scene.estate.conditions.during(Trouble.DISK):
        try:
            await asyncio.to_thread(disk.fill, leave=leave)
            yield
        finally:
            await asyncio.to_thread(disk.free)


@event("disk full", weight=2, needs_disk=True)
async def _disk_full(scene: Scene) -> None:
    """It explains that nothing new is mirrored; what was there is served on."""
    async with _full(scene):
        await scene.last(3, 9)


@event("disk read-only", needs_disk=True)
async def _disk_read_only(scene: Scene) -> None:
    disk = scene.estate.disk
    assert disk is not None
    with scene.estate.conditions.during(Trouble.DISK):
        await asyncio.to_thread(disk.become_read_only)
        try:
            await scene.last(3, 9)
        finally:
            await asyncio.to_thread(disk.become_writable)


@event("killed on a full disk", ends=True, needs_disk=True)
async def _killed_on_a_full_disk(scene: Scene) -> None:
    """It starts there, too."""
    estate = scene.estate
    async with _full(scene):
        await scene.last(1, 3)
        with estate.conditions.during(Trouble.SERVICE):
            await estate.mirror.kill()
            await estate.start(scene.workers)
        await scene.last(1, 3)


# --- damage --------------------------------------------------------------------------------------


@event("bit flipped", weight=3)
async def _bit_flipped(scene: Scene) -> None:
    """Bits of a mirror's files flip: errors until it is mended, of this repository, none wrong."""
    estate = scene.estate
    found = [one for one in estate.repositories.values() if not one.is_pulled]
    one = scene.chance.choice(found)
    files = files_of(estate.data / "repositories" / f"{one.name}.git")
    there = [kind for kind, found in files.items() if found]
    kinds = scene.chance.sample(there, min(len(there), scene.chance.choice([1, 1, 2, 3])))
    with estate.conditions.during(Trouble.DAMAGE, of=one.name):
        one.damaged_at = float("inf")
        for kind in kinds:
            _flip(scene, scene.chance.choice(files[kind]))
            estate.ledger.damaged[kind] += 1
        if scene.chance.random() < 0.3:
            with estate.conditions.during(Trouble.UPSTREAM):
                await estate.line.close()
                await scene.last()
                await estate.line.start()
        await _until_mended(scene, one, " and ".join(kinds))
        one.damaged_at = time.monotonic()


async def _until_mended(scene: Scene, one: Repository, kind: str) -> None:
    """Wait until nothing is damaged any more: as the operator's command says."""
    until = time.monotonic() + MENDED_SECONDS_MAX
    while True:
        status, said = await command(scene.estate, "fsck", one.name)
        if status == 0:
            break
        if time.monotonic() > until:
            words = f"a flipped bit in its {kind} is not mended in {MENDED_SECONDS_MAX:.0f} s"
            scene.estate.ledger.violate(one.name, f"{words}: {said}")
            break
        await asyncio.sleep(LOOK_SECONDS)
    scene.estate.ledger.judged["mended"] += 1


@event("bit flipped in a cache", weight=2)
async def _bit_flipped_in_a_cache(scene: Scene) -> None:
    """In a kept pack, a bundle or an LFS object: it is made or fetched anew; no reader notices."""
    data = scene.estate.data
    with scene.estate.conditions.during(Trouble.DAMAGE, of=CACHES):
        for _ in range(3):
            kind = scene.chance.choice(["packs", "bundles", "lfs"])
            files = await asyncio.to_thread(_kept, data / kind)
            if files:
                _flip(scene, scene.chance.choice(files))
                scene.estate.ledger.damaged[kind] += 1
            await scene.last(1, 3)
        # What nobody reads, the scrub finds.
        await scene.last(15, 20)


def _kept(place: Path) -> list[Path]:
    return sorted(
        one
        for one in place.rglob("*")
        if "tmp" not in one.parts and not one.name.endswith((".lock", ".tmp")) and _size(one) > 0
    )


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except FileNotFoundError:
        return 0


def _flip(scene: Scene, file: Path) -> None:
    with suppress(FileNotFoundError):  # it has just been merged, or evicted
        flip(file, scene.chance.randrange(8 * file.stat().st_size))
