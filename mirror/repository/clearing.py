"""Clearing away what a crash left in a repository, and packs that others stand for. Blocking.

`clear_leftovers` only while nobody else works on it. What it removes nothing refers to: parts of a
pack that is not whole, files on their way, and an index over several packs that names one which is
gone (a power cut may take back that this index was replaced, and not that the pack was removed).
"""

import struct
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Final

from mirror.durable import fsync_directory
from mirror.repository.leftovers import Leftovers

QUARANTINE_PREFIX: Final = "tmp_objdir-incoming-"
"""git's own name for a place where objects come in: its gc knows it."""

_MIDX_HEADER: Final = struct.Struct(">4sBBBBI")  # gitformat-pack(5), multi-pack-index
_CHUNK: Final = struct.Struct(">4sQ")
_PACK_FILES: Final = (".pack", ".idx", ".rev", ".bitmap", ".mtimes")
_REMOVED_FILES: Final = (".idx", ".rev", ".bitmap", ".mtimes", ".pack")
"""In that order: without its index a pack is not seen."""


def clear_leftovers(path: Path, leftovers: Leftovers) -> None:
    """Clear away what is half done in the repository at `path`; `leftovers` keep what can't be yet.

    Raises:
        OSError: Something can't be removed.
    """
    objects = path / "objects"
    for directory in objects.glob(QUARANTINE_PREFIX + "*"):
        leftovers.remove(directory)
    packs = objects / "pack"
    files = [
        *path.glob("*.tmp"),
        *path.glob("*.lock"),
        *objects.glob("tmp_*"),
        *(objects / "info").rglob("tmp_*"),
        *(objects / "info").glob("packs_*"),
        *(path / "info").glob("refs_*"),
        *unfinished(objects),
        *_halves(packs),
    ]
    for file in files:
        leftovers.remove_file(file)
    index = packs / "multi-pack-index"
    names = indexed_packs(index)
    if index.exists() and not (names and all((packs / one).exists() for one in names)):
        # Its bitmaps go first: alone they would be of no index.
        for file in [*packs.glob("multi-pack-index-*"), index]:
            leftovers.remove_file(file)
    elif not index.exists():
        for file in packs.glob("multi-pack-index-*"):
            leftovers.remove_file(file)
    else:
        checksum = _checksum(index)
        for file in packs.glob("multi-pack-index-*"):
            if not file.name.startswith(f"multi-pack-index-{checksum}."):
                leftovers.remove_file(file)


def unfinished(objects: Path) -> list[Path]:
    """Return what only git's own repack writes beside the packs, and moves when it is finished."""
    packs = objects / "pack"
    return [
        *(objects / "info").rglob("*.lock"),
        *packs.glob("*.lock"),
        *packs.glob("tmp_*"),
        *packs.glob(".tmp-*"),
    ]


def _halves(packs: Path) -> list[Path]:
    """Return the files of packs that lack the pack or its index, the index first."""
    found: dict[str, set[str]] = {}
    for file in packs.glob("pack-*"):
        if file.suffix in _PACK_FILES:
            found.setdefault(file.stem, set()).add(file.suffix)
    return [
        packs / f"{stem}{end}"
        for stem, ends in found.items()
        if not {".pack", ".idx"} <= ends
        for end in sorted(ends)
    ]


def remove_packs(packs: Path, names: Collection[str]) -> None:
    """Remove packs of which all that counts is in others; durably, and against a cut at any step.

    First the names of those others are flushed, and of what was made to index them: of a directory,
    a disk may keep the last change and lose the first. An index over several packs that still names
    one of those that go is removed before it.

    Args:
        packs: The directory.
        names: The packs, with their `.pack`.

    Raises:
        OSError: One can't be removed.
    """
    if not names:
        return
    fsync_directory(packs)
    index = packs / "multi-pack-index"
    if not {Path(name).stem for name in names}.isdisjoint(
        Path(name).stem for name in indexed_packs(index)
    ):
        for file in [*packs.glob("multi-pack-index-*"), index]:
            file.unlink(missing_ok=True)
        fsync_directory(packs)
    for name in names:
        for end in _REMOVED_FILES:
            (packs / name).with_suffix(end).unlink(missing_ok=True)
    fsync_directory(packs)


def indexed_packs(index: Path) -> list[str]:
    """Return the names (with `.idx`) in an index over several packs; none where it can't be read.

    Raises:
        OSError: But for that it is not there.
    """
    try:
        content = index.read_bytes()
        _, _, _, chunks, _, _ = _MIDX_HEADER.unpack_from(content)
        table = [
            _CHUNK.unpack_from(content, _MIDX_HEADER.size + number * _CHUNK.size)
            for number in range(chunks + 1)
        ]
    except (FileNotFoundError, struct.error):
        return []
    for (name, start), (_, end) in pairwise(table):
        if name == b"PNAM":
            return [
                one.decode("ascii", "replace") for one in content[start:end].split(b"\0") if one
            ]
    return []


def _checksum(index: Path) -> str:
    with index.open("rb") as file:
        file.seek(-20, 2)
        return file.read().hex()
