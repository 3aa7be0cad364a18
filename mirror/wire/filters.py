"""Object filters of partial clones: the filter-spec of git-rev-list(1) `--filter`, typed.

What a filter leaves out is decided by the pack engines; here is only what a request may say.
`sparse:oid` is refused, as GitHub does: it makes the server evaluate a client's pattern file.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from mirror.errors import ProtocolError

_SIZE: Final = re.compile(rb"(\d{1,18})([kmg]?)", re.IGNORECASE)
_UNITS: Final = {b"": 1, b"k": 1 << 10, b"m": 1 << 20, b"g": 1 << 30}
_DEPTH: Final = re.compile(rb"\d{1,9}")
_TYPES: Final = frozenset({b"commit", b"tree", b"blob", b"tag"})

COMBINED_FILTERS_MAX: Final = 16
"""A client has no use for more, and each one costs a test per object."""


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
        ProtocolError: It is malformed or not supported here.
    """
    if not spec.startswith(b"combine:"):
        return _parse_simple(spec)
    parts = spec.removeprefix(b"combine:").split(b"+")
    if len(parts) > COMBINED_FILTERS_MAX:
        raise ProtocolError(f"more than {COMBINED_FILTERS_MAX} filters combined")
    combined = ObjectFilter()
    for part in parts:
        combined = _both(combined, _parse_simple(unquote_to_bytes(part)))
    return combined


def _parse_simple(spec: bytes) -> ObjectFilter:
    kind, _, argument = spec.partition(b":")
    if spec == b"blob:none":
        return ObjectFilter(blob_limit_bytes=0)
    if kind == b"blob" and argument.startswith(b"limit="):
        size = _SIZE.fullmatch(argument.removeprefix(b"limit="))
        if size:
            return ObjectFilter(blob_limit_bytes=int(size[1]) * _UNITS[size[2].lower()])
    if kind == b"tree" and _DEPTH.fullmatch(argument):
        return ObjectFilter(tree_depth=int(argument))
    if kind == b"object" and argument.startswith(b"type="):
        name = argument.removeprefix(b"type=")
        if name in _TYPES:
            return ObjectFilter(object_types=frozenset({name}))
    if kind == b"sparse":
        raise ProtocolError(
            "sparse: filters are not supported; use blob:none and a sparse checkout"
        )
    raise ProtocolError(f"invalid filter-spec {spec[:80]!r}")


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
