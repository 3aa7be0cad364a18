"""What the objects of a pack would take in memory, looked at before anybody makes room for them.

A few kilobytes inflate to gigabytes, and a delta of a few bytes may claim any size for its result.
git is told a limit for its allocations; dulwich has none, so a pack is looked through first: sizes
are read, and what is inflated is thrown away piece by piece. Specification: gitformat-pack(5).
"""

import mmap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dulwich.pack import OFS_DELTA, REF_DELTA

from mirror.errors import PackError

HEADER_BYTES: Final = 12
_BASE_ID_BYTES: Final = 20
_PIECE_BYTES: Final = 64 * 1024
_SIZES_BYTES_MAX: Final = 32  # two numbers at the start of a delta take less


def object_count(header: bytes) -> int:
    """Return how many objects the header of a pack promises."""
    return int.from_bytes(header[8:HEADER_BYTES])


def read_size(data: bytes | mmap.mmap, position: int, *, bits: int = 0) -> tuple[int, int]:
    """Read a number of seven bits a byte, the least first; returns it and the position behind it.

    Args:
        data: Where it is.
        position: Where it begins.
        bits: How many of it the first byte holds, when that holds something else as well.

    Raises:
        IndexError: The data end before it does.
    """
    size = shift = 0
    width = bits or 7
    while True:
        byte = data[position]
        position += 1
        size |= (byte & ((1 << width) - 1)) << shift
        shift += width
        width = 7
        if not byte & 0x80:
            return size, position


def check_sizes(received: Path, *, object_bytes_max: int, is_abandoned: Callable[[], bool]) -> None:
    """Look through a pack; blocking. What is malformed is left for its indexer to judge.

    Args:
        received: The pack.
        object_bytes_max: No object may take more, nor the result of a delta.
        is_abandoned: Asked now and then; ends the look.

    Raises:
        PackError: One does, or nobody waits any more.
    """
    if received.stat().st_size <= HEADER_BYTES:
        return
    with (
        received.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pack,
    ):
        position = HEADER_BYTES
        try:
            for _ in range(object_count(pack[:HEADER_BYTES])):
                if is_abandoned():
                    raise PackError("nobody waits for this pack any more")
                position = _check_entry(pack, position, object_bytes_max)
        except (IndexError, zlib.error):
            return


def _check_entry(pack: mmap.mmap, position: int, object_bytes_max: int) -> int:
    kind = pack[position] >> 4 & 7
    size, position = read_size(pack, position, bits=4)
    _check(size, object_bytes_max)
    if kind == REF_DELTA:
        position += _BASE_ID_BYTES
    elif kind == OFS_DELTA:
        _, position = read_size(pack, position)
    start, position = _pass_over(pack, position, size)
    if kind in {REF_DELTA, OFS_DELTA}:
        _, end = read_size(start, 0)
        result, _ = read_size(start, end)
        _check(result, object_bytes_max)
    return position


def _check(size: int, object_bytes_max: int) -> None:
    if size > object_bytes_max:
        raise PackError(
            f"the pack holds an object of {size} bytes once it is inflated, more than"
            f" {object_bytes_max}; if that is right, install git and set engine: auto"
        )


def _pass_over(pack: mmap.mmap, position: int, size: int) -> tuple[bytes, int]:
    """Return the beginning of what is compressed there, and the position behind it."""
    inflater = zlib.decompressobj()
    start, length = b"", 0
    while not inflater.eof:
        piece = inflater.unconsumed_tail
        if not piece:
            piece = pack[position : position + _PIECE_BYTES]
            if not piece:
                raise IndexError
            position += len(piece)
        inflated = inflater.decompress(piece, _PIECE_BYTES)
        length += len(inflated)
        if length > size:
            raise zlib.error("longer than it says")
        if len(start) < _SIZES_BYTES_MAX:
            start += inflated[:_SIZES_BYTES_MAX]
    return start, position - len(inflater.unused_data) - len(inflater.unconsumed_tail)
