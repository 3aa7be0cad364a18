"""Object ids, ref names and refs: the words of every other module.

Rules for ref names: git-check-ref-format(1). Ids are SHA-1 in lower-case hex, as on the wire.
"""

import re
from dataclasses import dataclass
from typing import Final, NewType

from mirror.errors import ProtocolError

ObjectId = NewType("ObjectId", bytes)
"""A SHA-1 object id: 40 lower-case hexadecimal digits."""

RefName = NewType("RefName", bytes)
"""A full ref name such as ``refs/heads/main``, or ``HEAD``."""

ZERO_ID: Final = ObjectId(b"0" * 40)
HEAD: Final = RefName(b"HEAD")

_OBJECT_ID: Final = re.compile(rb"[0-9a-f]{40}")
_BAD_IN_REF_NAME: Final = re.compile(
    rb"[\x00-\x20\x7f~^:?*\[\\]"  # control characters, space and what revisions and patterns use
    rb"|\.\.|@\{|//|/\.|\.lock(?:/|$)|[./]$|^[./]"
)

REF_NAME_BYTES_MAX: Final = 4096
"""Longer names can't be files on any system git runs on."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A ref and what it points to; `peeled` is set for annotated tags only."""

    name: RefName
    oid: ObjectId
    peeled: ObjectId | None = None


def object_id(data: bytes) -> ObjectId:
    """Return `data` as an object id.

    Raises:
        ProtocolError: It is not 40 lower-case hex digits.
    """
    if not _OBJECT_ID.fullmatch(data):
        raise ProtocolError(f"expected an object id of 40 hex digits, got {data[:80]!r}")
    return ObjectId(data)


def is_ref_name(name: bytes) -> bool:
    """Tell whether `name` is a well-formed full ref name below ``refs/``."""
    return (
        name.startswith(b"refs/")
        and len(name) <= REF_NAME_BYTES_MAX
        and not _BAD_IN_REF_NAME.search(name)
    )


def ref_name(name: bytes) -> RefName:
    """Return `name` as a ref name: ``HEAD`` or a well-formed name below ``refs/``.

    Raises:
        ProtocolError: It is neither.
    """
    if name != HEAD and not is_ref_name(name):
        raise ProtocolError(f"{name[:80]!r} is not a valid ref name")
    return RefName(name)
