"""All refs of a repository in the order of their names: immutable, and cheap to change by a few.

A table is a list of chunks of at most `CHUNK_REFS_MAX` refs. A chunk holds its refs as they go over
the wire, in the lines of a v2 ls-refs answer with `peel` (gitprotocol-v2(5)), about 75 bytes for
each ref; all else is made of these lines when it is asked for. Chunks are shared: a table that
differs from another in one ref has one chunk of its own, and to tell two tables apart is to look at
the chunks that only one of them has. Nothing here takes longer for more refs but what says so.
"""

import re
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, ValuesView
from itertools import chain, pairwise
from typing import Final, Self

from mirror.wire.names import REF_NAME_BYTES_MAX, ObjectId, Ref, RefName

CHUNK_REFS_MAX: Final = 256
"""About 19 KB: to change one ref is to encode and compress so much, in a millisecond."""

CHUNK_REFS_MIN: Final = 64
"""Smaller neighbours are joined: deletions must not leave a table of crumbs."""

DEFLATE_LEVEL: Final = 6

_LINE: Final = re.compile(rb"....([0-9a-f]{40}) ([^ \n]+)(?: peeled:([0-9a-f]{40}))?\n")
_BEFORE_NAME: Final = 4 + 40  # the length and the id
_PEELED: Final = b" peeled:"
_PEELED_BYTES: Final = len(_PEELED) + 40
_REFS: Final = b"refs/"
_PACKED_LINES: Final = re.compile(
    rb"(?:[0-9a-f]{40} refs/[^\x00-\x20\x7f]{1,%d}\n(?:\^[0-9a-f]{40}\n)?)*" % REF_NAME_BYTES_MAX
)


class Chunk:
    """Some refs in the order of their names, encoded."""

    __slots__ = ("_advertised", "_deflated", "_tags", "count", "first", "has_tags", "lines")

    def __init__(self, lines: bytes) -> None:
        """Take over lines that are in order and well-formed; at least one."""
        self.lines = lines
        self.count = lines.count(b"\n")
        self.first = _name_at(lines, 0)
        self.has_tags = _PEELED in lines
        self._advertised: bytes | None = None
        self._deflated: bytes | None = None
        self._tags: tuple[Ref, ...] | None = None

    @property
    def last(self) -> RefName:
        """The name of the last ref."""
        return _name_at(self.lines, self.lines.rfind(b"\n", 0, -1) + 1)

    def refs(self) -> list[Ref]:
        """Return the refs."""
        return [
            Ref(RefName(name), ObjectId(oid), ObjectId(peeled) if peeled else None)
            for oid, name, peeled in _LINE.findall(self.lines)
        ]

    def tags(self) -> tuple[Ref, ...]:
        """Return the refs that have a peeled id."""
        if not self.has_tags:
            return ()
        if self._tags is None:
            self._tags = tuple(ref for ref in self.refs() if ref.peeled is not None)
        return self._tags

    @property
    def advertised(self) -> bytes:
        """The lines as a v0 advertisement has them."""
        if self._advertised is None:
            self._advertised = advertised_lines(self.lines) if self.has_tags else self.lines
        return self._advertised

    @property
    def is_deflated(self) -> bool:
        """Whether `deflated` is there already."""
        return self._deflated is not None

    @property
    def deflated(self) -> bytes:
        """`advertised`, compressed: see `deflate`. Takes a millisecond, without the GIL."""
        if self._deflated is None:
            self._deflated = deflate(self.advertised)
        return self._deflated


class RefView(ValuesView[Ref]):
    """The refs of a table in the order of their names; equal to the view of an equal table."""

    def __init__(self, table: "RefTable") -> None:
        super().__init__(table)
        self.table = table

    def __iter__(self) -> Iterator[Ref]:
        return chain.from_iterable(chunk.refs() for chunk in self.table.chunks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RefView) and self.table == other.table

    __hash__ = None  # type: ignore[assignment]


class RefTable(Mapping[RefName, Ref]):
    """Immutable; refs by name."""

    __slots__ = ("_count", "_firsts", "chunks")

    def __init__(self, chunks: Iterable[Chunk] = ()) -> None:
        """Take over chunks that are in the order of their names and don't overlap."""
        self.chunks = tuple(chunks)
        self._firsts = [chunk.first for chunk in self.chunks]
        self._count = sum(chunk.count for chunk in self.chunks)

    @classmethod
    def of(cls, refs: Iterable[Ref]) -> Self:
        """Make a table of `refs`, in any order. What is a view of such a table costs nothing.

        Raises:
            ValueError: A name comes twice, or can't be a ref's.
        """
        if isinstance(refs, RefView) and isinstance(refs.table, cls):
            return refs.table
        return cls(encode_chunks(sorted(refs, key=_name)))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[RefName]:
        return (ref.name for ref in self.values())

    def __getitem__(self, name: RefName) -> Ref:
        lines = self._lines_where(name)
        at = lines.find(b" %b\n" % name)
        if at < 0 and (at := lines.find(b" %b peeled:" % name)) < 0:
            raise KeyError(name)
        start = at - _BEFORE_NAME
        line = _LINE.match(lines, start)
        if line is None or line[2] != name:
            raise KeyError(name)
        return Ref(name, ObjectId(line[1]), ObjectId(line[3]) if line[3] else None)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, bytes) and self.get(RefName(name)) is not None

    def values(self) -> RefView:
        """Return the refs in the order of their names."""
        return RefView(self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, RefTable):
            return self is other or (
                self._count == other._count
                and b"".join(one.lines for one in self.chunks)
                == b"".join(one.lines for one in other.chunks)
            )
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]

    def tags(self) -> Iterator[Ref]:
        """Yield the refs that have a peeled id."""
        return chain.from_iterable(chunk.tags() for chunk in self.chunks)

    def replace(self, changes: Mapping[RefName, Ref | None]) -> "RefTable":
        """Return a table with some refs set and others, those that are `None`, taken away.

        Takes its time by the changes, and shares all chunks that they do not touch.

        Raises:
            ValueError: A name can't be a ref's.
        """
        if not self.chunks:
            return RefTable.of(ref for ref in changes.values() if ref is not None)
        touched: dict[int, dict[RefName, Ref | None]] = {}
        for name, ref in changes.items():
            touched.setdefault(self._index(name), {})[name] = ref
        chunks: list[Chunk] = []
        loose: list[Ref] = []
        for index, chunk in enumerate(self.chunks):
            here = touched.get(index)
            if here is not None:
                refs: dict[RefName, Ref | None] = {ref.name: ref for ref in chunk.refs()}
                refs.update(here)
                loose += sorted((ref for ref in refs.values() if ref is not None), key=_name)
            elif 0 < len(loose) < CHUNK_REFS_MIN:
                loose += chunk.refs()
            else:
                chunks += encode_chunks(loose)
                loose = []
                chunks.append(chunk)
        return RefTable((*chunks, *encode_chunks(loose)))

    def difference(self, before: "RefTable") -> dict[RefName, tuple[Ref | None, Ref | None]]:
        """Return, by name, each ref that differs from `before`: what it was and what it is.

        Takes its time by the chunks that only one of the two tables has.
        """
        shared = {one.lines for one in self.chunks} & {one.lines for one in before.chunks}
        old = _refs_outside(before, shared)
        new = _refs_outside(self, shared)
        found: dict[RefName, tuple[Ref | None, Ref | None]] = {}
        for name, ref in new.items():
            if old.get(name) != ref:
                found[name] = (old.get(name), ref)
        for name, ref in old.items():
            if name not in new:
                found[name] = (ref, None)
        return found

    def lines_with(self, prefix: bytes) -> Iterator[bytes]:
        """Yield the lines of the refs whose names begin with `prefix`, chunk by chunk."""
        if _REFS.startswith(prefix):
            yield from (chunk.lines for chunk in self.chunks)
            return
        if not prefix.startswith(_REFS) or b" " in prefix or b"\n" in prefix:
            return
        wanted = b" " + prefix
        for index in range(self._index(RefName(prefix)), len(self.chunks)):
            chunk = self.chunks[index]
            if chunk.first > prefix and not chunk.first.startswith(prefix):
                return
            start = chunk.lines.find(wanted)
            if start >= 0:
                end = chunk.lines.index(b"\n", chunk.lines.rfind(wanted)) + 1
                yield chunk.lines[start - _BEFORE_NAME : end]

    def _index(self, name: RefName) -> int:
        return max(0, bisect_right(self._firsts, name) - 1)

    def _lines_where(self, name: RefName) -> bytes:
        return self.chunks[self._index(name)].lines if self.chunks else b""


def encode_chunks(refs: list[Ref]) -> Iterator[Chunk]:
    """Encode refs that are in the order of their names, in chunks of about equal size.

    Raises:
        ValueError: They are not in order, a name comes twice or can't be a ref's.
    """
    count = -(-len(refs) // CHUNK_REFS_MAX)
    for number in range(count):
        part = refs[number * len(refs) // count : (number + 1) * len(refs) // count]
        lines = b"".join(map(_encode, part))
        peeled = sum(ref.peeled is not None for ref in part)
        if lines.count(b"\n") != len(part) or lines.count(b" ") != len(part) + peeled:
            raise ValueError("the name of a ref holds a space or a newline")
        names = [ref.name for ref in part]
        if any(one >= other for one, other in pairwise(names)):
            raise ValueError(f"{names[0]!r} and those after it: not in order")
        yield Chunk(lines)


def parse_packed_lines(content: bytes) -> Iterator[Chunk]:
    """Parse lines of a packed-refs file: `packed_lines` of chunks, or what git has written.

    Raises:
        ValueError: They are damaged, or not sorted.
    """
    last = b""
    position = 0
    while position < len(content):
        end = _end_of_packed(content, position)
        part = content[position:end]
        if not _PACKED_LINES.fullmatch(part):
            raise ValueError(f"no ref where there should be one, after byte {position}")
        lines = part.replace(b"\n^", _PEELED).split(b"\n")[:-1]
        names = [last, *(line[41:].partition(b" ")[0] for line in lines)]
        if any(one >= other for one, other in pairwise(names)):
            raise ValueError(f"the refs after byte {position} are not in order")
        last = names[-1]
        yield Chunk(b"".join([b"%04x%b\n" % (len(line) + 5, line) for line in lines]))
        position = end


def packed_lines(lines: bytes) -> bytes:
    """Return a chunk's lines as a packed-refs file has them."""
    return b"\n".join([line[4:] for line in lines.split(b"\n")]).replace(_PEELED, b"\n^")


def advertised_lines(lines: bytes) -> bytes:
    """Return lines as a v0 advertisement has them: peeled ids on lines of their own."""
    return b"\n".join(
        [_advertise(line) if _PEELED in line else line for line in lines.split(b"\n")]
    )


def unpeeled_lines(lines: bytes) -> bytes:
    """Return lines as ls-refs has them without `peel`."""
    if _PEELED not in lines:
        return lines
    return b"\n".join([_unpeel(line) if _PEELED in line else line for line in lines.split(b"\n")])


def deflate(data: bytes) -> bytes:
    """Compress `data` into a piece of a raw deflate stream (RFC 1951).

    Such pieces can be put one after the other, for each ends at a byte (`Z_FULL_FLUSH`) and refers
    to nothing before it. What they hold is one stream once `DEFLATE_END` follows.
    """
    compressor = zlib.compressobj(DEFLATE_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush(zlib.Z_FULL_FLUSH)


DEFLATE_END: Final = b"\x03\x00"
"""An empty last block."""


def _encode(ref: Ref) -> bytes:
    if ref.peeled is None:
        return b"%04x%b %b\n" % (_BEFORE_NAME + 2 + len(ref.name), ref.oid, ref.name)
    length = _BEFORE_NAME + 2 + len(ref.name) + _PEELED_BYTES
    return b"%04x%b %b peeled:%b\n" % (length, ref.oid, ref.name, ref.peeled)


def _advertise(line: bytes) -> bytes:
    ref, _, peeled = line.partition(_PEELED)
    length = len(ref) + 1  # with the newline
    return b"%04x%b\n%04x%b%b^{}" % (length, ref[4:], length + 3, peeled, ref[_BEFORE_NAME:])


def _unpeel(line: bytes) -> bytes:
    ref = line.partition(_PEELED)[0]
    return b"%04x%b" % (len(ref) + 1, ref[4:])


def _name(ref: Ref) -> RefName:
    return ref.name


def _name_at(lines: bytes, start: int) -> RefName:
    at = start + _BEFORE_NAME + 1
    end = lines.index(b"\n", at)
    space = lines.find(b" ", at, end)
    return RefName(lines[at : end if space < 0 else space])


def _refs_outside(table: RefTable, shared: set[bytes]) -> dict[RefName, Ref]:
    return {
        ref.name: ref for chunk in table.chunks if chunk.lines not in shared for ref in chunk.refs()
    }


def _end_of_packed(content: bytes, position: int) -> int:
    """Return where the chunk that begins at `position` ends: never before a peeled line."""
    end = min(len(content), position + CHUNK_REFS_MAX * 64)
    if end < len(content):
        newline = content.find(b"\n", end)
        end = len(content) if newline < 0 else newline + 1
        if content.startswith(b"^", end):
            newline = content.find(b"\n", end)
            end = len(content) if newline < 0 else newline + 1
    return end
