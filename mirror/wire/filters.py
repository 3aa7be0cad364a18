"""Object filters of partial clones: the filter-spec of git-rev-list(1) `--filter`, typed.

What a filter leaves out is decided by the pack engines; here is only what a request may say.
`sparse:oid` is refused, as GitHub does: it makes the server evaluate a client's pattern file.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from mirror.errors import RequestRefused
from mirror.wire.numbers import parse_size

_TYPES: Final = frozenset({b"commit", b"tree", b"blob", b"tag"})

_MUST_BE_ESCAPED: Final = re.compile(rb"[\x00-\x20\x80-\xff~`!@#$^&*()\[\]{}\\;'\",<>?]")

COMBINED_FILTERS_MAX: Final = 16
"""A client has no use for more, however nested, and each one costs a test per object."""


@dataclass(frozen=True, slots=True)
class ObjectFilter:
    """What to leave out of a pack. Several limits are a `combine:` filter: each of them applies.

    Attributes:
        blob_limit_bytes: Leave out blobs of at least this many bytes; 0 is ``blob:none``.
        tree_depth: Leave out trees and blobs at least this deep; a root tree is at depth 0.
        object_types: Keep only objects of this type; empty where two types were combined.
    """

    blob_limit_bytes: int | None = None
    tree_depth: int | None = None
    object_types: frozenset[bytes] | None = None

    def specs(self) -> list[bytes]:
        """Return the filter-specs that say this, in a canonical order."""
        specs = []
        if self.blob_limit_bytes is not None:
            specs.append(b"blob:limit=%d" % self.blob_limit_bytes)
        if self.object_types is not None:
            # No type at all is said as git does: two types, and nothing is of both.
            names = sorted(self.object_types) or [b"blob", b"commit"]
            specs += [b"object:type=" + name for name in names]
        if self.tree_depth is not None:
            specs.append(b"tree:%d" % self.tree_depth)
        return specs

    def spec(self) -> bytes:
        """Return one canonical filter-spec: equal filters give equal bytes."""
        specs = self.specs()
        if len(specs) == 1:
            return specs[0]
        return b"combine:" + b"+".join(spec.replace(b"=", b"%3d") for spec in specs)


def parse_filter(spec: bytes) -> ObjectFilter:
    """Parse a filter-spec.

    Raises:
        RequestRefused: It is malformed or not supported here.
    """
    chosen: ObjectFilter | None = None
    for number, simple in enumerate(_simple_specs(spec)):
        if number >= COMBINED_FILTERS_MAX:
            raise RequestRefused(f"more than {COMBINED_FILTERS_MAX} filters combined")
        part = _parse_simple(simple)
        chosen = part if chosen is None else _both(chosen, part)
    if chosen is None:
        raise RequestRefused("expected something after combine:")
    return chosen


def _simple_specs(spec: bytes) -> Iterator[bytes]:
    """Yield the filters that are combined, through all layers of ``combine:`` and escapes."""
    todo = [(spec, 0)]
    while todo:
        spec, depth = todo.pop()
        if not spec.startswith(b"combine:"):
            yield spec
            continue
        if depth >= COMBINED_FILTERS_MAX:
            raise RequestRefused(f"filters combined more than {COMBINED_FILTERS_MAX} layers deep")
        # Empty parts are passed over, as newer versions of git do.
        parts = [part for part in spec.removeprefix(b"combine:").split(b"+") if part]
        if len(parts) > COMBINED_FILTERS_MAX:
            raise RequestRefused(f"more than {COMBINED_FILTERS_MAX} filters combined")
        for part in parts:
            if found := _MUST_BE_ESCAPED.search(part):
                shown = found[0].decode("ascii", "backslashreplace")
                raise RequestRefused(f"must escape char in sub-filter-spec: '{shown}'")
        todo += [(unquote_to_bytes(part), depth + 1) for part in reversed(parts)]


def _parse_simple(spec: bytes) -> ObjectFilter:
    kind, _, argument = spec.partition(b":")
    name, _, value = argument.partition(b"=")
    shown = spec[:80].decode("utf-8", "backslashreplace")
    match kind, name:
        case b"blob", b"none" if spec == b"blob:none":
            return ObjectFilter(blob_limit_bytes=0)
        case b"blob", b"limit" if (size := parse_size(value)) is not None:
            return ObjectFilter(blob_limit_bytes=size)
        case b"tree", _ if (depth := parse_size(argument)) is not None:
            return ObjectFilter(tree_depth=depth)
        case b"tree", _:
            raise RequestRefused("expected 'tree:<depth>'")
        case b"object", b"type" if value in _TYPES:
            return ObjectFilter(object_types=frozenset({value}))
        case b"object", b"type" if b"=" in argument:
            named = shown.removeprefix("object:type=")
            raise RequestRefused(f"'{named}' for 'object:type=<type>' is not a valid object type")
        case b"sparse", b"path":
            raise RequestRefused("sparse:path filters support has been dropped")
        case b"sparse", b"oid":
            raise RequestRefused(
                "filter 'sparse:oid' not supported; use blob:none and a sparse checkout"
            )
        case _:
            raise RequestRefused(f"invalid filter-spec '{shown}'")


def _both(one: ObjectFilter, other: ObjectFilter) -> ObjectFilter:
    types = [kinds for kinds in (one.object_types, other.object_types) if kinds is not None]
    return ObjectFilter(
        blob_limit_bytes=_least(one.blob_limit_bytes, other.blob_limit_bytes),
        tree_depth=_least(one.tree_depth, other.tree_depth),
        object_types=frozenset.intersection(*types) if types else None,
    )


def _least(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
