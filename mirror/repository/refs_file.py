"""The refs of a repository as one file, `packed-refs`, with a checksum of our own in its header.

    # pack-refs with: peeled fully-peeled sorted git-mirror:1:SHA256:UPSTREAM:HEAD

git passes over traits that it does not know, so the file is an ordinary one to it, and refs,
checksum and HEAD are replaced in one step. SHA256 is over what follows it in the header and all
lines after it; UPSTREAM is the beginning of the SHA-256 of the URL; HEAD is the branch that HEAD
names, or the id of a detached one. The file HEAD, which git needs, is a copy of that.

A file without a checksum is of an earlier version of this program, or was written by git: plain git
tools must not write refs here (`git pack-refs`, `git gc`, `git fetch`). It is read as it stands
where its header is git's own; anything else is damage, never new refs. No IO.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from mirror.wire.names import ObjectId, RefName, object_id, ref_name

_TRAITS: Final = b"# pack-refs with: peeled fully-peeled sorted "
_HEADER: Final = re.compile(
    re.escape(_TRAITS) + rb"git-mirror:1:([0-9a-f]{64}):(([0-9a-f]{16}):([^ \n]+)) \n"
)
_DEFAULT_HEAD: Final = RefName(b"refs/heads/main")


@dataclass(frozen=True, slots=True)
class RefsFile:
    """What the file says.

    Attributes:
        lines: The refs: what follows the header.
        upstream: `upstream_mark` of what is mirrored; `None` where there is no checksum.
        head: What the file HEAD must be; `None` where there is no checksum.
    """

    lines: bytes
    upstream: bytes | None = None
    head: bytes | None = None


def upstream_mark(url: str) -> bytes:
    """Return what stands for an upstream in the header."""
    return hashlib.sha256(url.encode()).hexdigest()[:16].encode()


def head_content(target: RefName | None, oid: ObjectId | None) -> bytes:
    """Return the content of the file HEAD: it names a branch, or else an object."""
    if target is None and oid is not None:
        return oid + b"\n"
    return b"ref: %b\n" % (target or _DEFAULT_HEAD)


def parse_head(content: bytes) -> tuple[RefName | None, ObjectId | None]:
    """Return the branch or the object that the file HEAD names.

    Raises:
        ProtocolError: It names none.
    """
    content = content.strip()
    if content.startswith(b"ref: "):
        return ref_name(content.removeprefix(b"ref: ").strip()), None
    return None, object_id(content)


def encode_refs(lines: bytes, *, upstream: str, head: bytes) -> bytes:
    """Return the file with these lines; `head` as `head_content` makes it."""
    name = head.strip().removeprefix(b"ref: ")
    summed = b"%b:%b" % (upstream_mark(upstream), name)
    return b"%bgit-mirror:1:%b:%b \n%b" % (_TRAITS, _digest(summed, lines), summed, lines)


def parse_refs(content: bytes) -> RefsFile:
    """Check the file, and take it apart.

    Raises:
        ValueError: It is not what was written.
    """
    header, newline, lines = content.partition(b"\n")
    header += newline
    if header == _TRAITS + newline:
        return RefsFile(lines)
    found = _HEADER.fullmatch(header)
    if found is None:
        raise ValueError("their header is not what was written")
    digest, summed, upstream, name = found.groups()
    if _digest(summed, lines) != digest:
        raise ValueError("their checksum is not right")
    head = b"ref: %b\n" % name if name.startswith(b"refs/") else name + b"\n"
    return RefsFile(lines, upstream, head)


def _digest(summed: bytes, lines: bytes) -> bytes:
    digest = hashlib.sha256(summed + b"\n")
    digest.update(lines)
    return digest.hexdigest().encode()
