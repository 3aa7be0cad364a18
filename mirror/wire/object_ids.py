"""Object ids as a request names them: one, or a million.

A few are a tuple. Many are kept packed, 20 bytes each, and are made into `ObjectId` as they are
asked for: a million of them as objects of their own would take nine times the memory, and to make
them one container, or to let go of them, would stop everybody else for tens of milliseconds.
"""

from binascii import hexlify, unhexlify
from collections.abc import Collection, Iterator, Sequence
from typing import Final, overload

from mirror.wire.names import ObjectId

FEW: Final = 1024

_SHA_BYTES: Final = 20
_DIGITS: Final = 2 * _SHA_BYTES
_AT_ONCE: Final = 256


class ManyIds(Sequence[ObjectId]):
    """Many object ids, in the order they came; one may be there more than once."""

    def __init__(self, packed: bytearray) -> None:
        """Take them: 20 bytes each."""
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed) // _SHA_BYTES

    @overload
    def __getitem__(self, index: int) -> ObjectId: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ObjectId, ...]: ...
    def __getitem__(self, index: int | slice) -> ObjectId | tuple[ObjectId, ...]:
        if isinstance(index, slice):
            return tuple(self[each] for each in range(*index.indices(len(self))))
        start = range(len(self))[index] * _SHA_BYTES
        return ObjectId(hexlify(self._packed[start : start + _SHA_BYTES]))

    def __iter__(self) -> Iterator[ObjectId]:
        for start in range(0, len(self._packed), _AT_ONCE * _SHA_BYTES):
            digits = hexlify(self._packed[start : start + _AT_ONCE * _SHA_BYTES])
            for at in range(0, len(digits), _DIGITS):
                yield ObjectId(digits[at : at + _DIGITS])


class Gathered:
    """Takes the object ids of a request as they are read."""

    def __init__(self) -> None:
        self._few: list[ObjectId] = []
        self._packed: bytearray | None = None

    def __bool__(self) -> bool:
        return bool(self._few) or self._packed is not None

    def add(self, oid: ObjectId) -> None:
        """Add one."""
        if self._packed is not None:
            self._packed += unhexlify(oid)
            return
        self._few.append(oid)
        if len(self._few) > FEW:
            self._packed = bytearray(unhexlify(b"".join(self._few)))
            self._few.clear()

    def add_all(self, digits: bytes) -> None:
        """Add those whose 40 hexadecimal digits follow one another here."""
        if self._packed is not None:
            self._packed += unhexlify(digits)
            return
        for at in range(0, len(digits), _DIGITS):
            self.add(ObjectId(digits[at : at + _DIGITS]))

    def in_order(self) -> Sequence[ObjectId]:
        """Return them as they came; one that came twice is there twice."""
        return tuple(self._few) if self._packed is None else ManyIds(self._packed)

    def distinct(self) -> Sequence[ObjectId]:
        """Return each once, in the order they came; where there are many, some may be repeated."""
        return tuple(dict.fromkeys(self._few)) if self._packed is None else ManyIds(self._packed)

    def as_set(self) -> Collection[ObjectId]:
        """Return them without an order; where there are many, some may be repeated."""
        return frozenset(self._few) if self._packed is None else ManyIds(self._packed)
