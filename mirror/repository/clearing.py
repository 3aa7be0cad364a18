"""Clearing away what a crash, or a git that was killed, left in a repository. Blocking.

Only while nobody else works on it. What is removed here nothing refers to: parts of a pack that is
not whole, files on their way, and an index over several packs that names one which is gone (git
removes the packs that it has merged one file after the other, and makes that index anew later).
"""

import struct
from itertools import pairwise
from pathlib import Path
from typing import Final

from mirror.repository.leftovers import Leftovers

QUARANTINE_PREFIX: Final = "tmp_objdir-incoming-"
"""git's own name for a place where objects come in: its gc knows it."""

_MIDX_HEADER: Final = struct.Struct(">4sBBBBI")  # gitformat-pack(5), multi-pack-index
_CHUNK: Final = struct.Struct(">4sQ")
_PACK_FILES: Final = (".pack", ".idx", ".rev", ".bitmap", ".mtimes")


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
    if index.exists() and not _is_about_what_is_there(index):
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


def _is_about_what_is_there(index: Path) -> bool:
    """Tell whether all packs that an index over several names are there."""
    content = index.read_bytes()
    try:
        _, _, _, chunks, _, _ = _MIDX_HEADER.unpack_from(content)
        table = [
            _CHUNK.unpack_from(content, _MIDX_HEADER.size + number * _CHUNK.size)
            for number in range(chunks + 1)
        ]
    except struct.error:
        return False
    for (name, start), (_, end) in pairwise(table):
        if name == b"PNAM":
            names = [
                one.decode("ascii", "replace") for one in content[start:end].split(b"\0") if one
            ]
            return all((index.parent / one).exists() for one in names)
    return False


def _checksum(index: Path) -> str:
    with index.open("rb") as file:
        file.seek(-20, 2)
        return file.read().hex()
