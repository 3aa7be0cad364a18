"""Bundles: the header of a bundle file, and the two forms in which a list of them is told.

gitformat-bundle(5), version 2. The list: gitprotocol-v2(5), ``bundle-uri``, and git's
technical/bundle-uri, whose heuristic ``creationToken`` has a client begin with the newest bundle
and go back no farther than it must.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mirror.errors import ProtocolError
from mirror.wire.names import ObjectId, RefName, object_id, ref_name
from mirror.wire.pktline import FLUSH_PKT, encode_lines

SIGNATURE: Final = b"# v2 git bundle\n"

BUNDLE_NAME: Final = re.compile(r"[0-9]{1,19}-([0-9a-f]{64})\.bundle")
"""The name of a bundle's file: its token, and the SHA-256 of its bytes."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """One bundle that is offered.

    Attributes:
        name: Of its file: `BUNDLE_NAME`.
        token: Its creation token: larger than those of all that it builds on.
        size: Of its file, in bytes.
    """

    name: str
    token: int
    size: int

    @property
    def digest(self) -> str:
        """The SHA-256 of its bytes, in hex."""
        return self.name.partition("-")[2].removesuffix(".bundle")


@dataclass(frozen=True, slots=True)
class BundleList:
    """The bundles of one repository.

    Attributes:
        bundles: The base first, then what builds on it, by rising token.
        built_at: When they last had all that the mirror had; seconds since the epoch.
    """

    bundles: tuple[Bundle, ...]
    built_at: float

    @property
    def size(self) -> int:
        """The bytes of all its files."""
        return sum(bundle.size for bundle in self.bundles)


def bundle_name(token: int, digest: str) -> str:
    """Return the name of the file of a bundle with that SHA-256."""
    return f"{token}-{digest}.bundle"


def encode_bundle_uris(listed: BundleList | None, *, below: str) -> bytes:
    """Encode the answer to ``command=bundle-uri``; of no list at all it is empty.

    Keys are in lower case, as git's own server sends them: its client compares them as they come.

    Args:
        listed: What is offered.
        below: Where the files are, relative to the repository's URL: a client puts the two together
            with a slash, whatever name it knows us by.
    """
    lines: list[bytes] = []
    if listed is not None:
        lines += (b"bundle.version=1", b"bundle.mode=all", b"bundle.heuristic=creationToken")
        for bundle in listed.bundles:
            lines.append(f"bundle.{bundle.token}.uri={below}/{bundle.name}".encode())
            lines.append(f"bundle.{bundle.token}.creationtoken={bundle.token}".encode())
    return encode_lines(lines) + FLUSH_PKT


def encode_bundle_list(listed: BundleList) -> bytes:
    """Encode a list as a file in git's configuration format, to be served beside the bundles."""
    lines = ["[bundle]", "\tversion = 1", "\tmode = all", "\theuristic = creationToken"]
    for bundle in listed.bundles:
        lines += (f'[bundle "{bundle.token}"]', f"\turi = {bundle.name}")
        lines.append(f"\tcreationToken = {bundle.token}")
    return ("\n".join(lines) + "\n").encode()


def encode_header(prerequisites: Iterable[ObjectId], refs: Mapping[RefName, ObjectId]) -> bytes:
    """Encode what stands before the pack of a bundle.

    Args:
        prerequisites: Commits that the reader must have, with all that they reach.
        refs: What the bundle brings.
    """
    lines = [b"-%b\n" % oid for oid in prerequisites]
    lines += [b"%b %b\n" % (refs[name], name) for name in sorted(refs)]
    return SIGNATURE + b"".join(lines) + b"\n"


def parse_header_refs(lines: Iterable[bytes]) -> dict[RefName, ObjectId]:
    """Return the refs of a header, given line by line from the signature on.

    Raises:
        ProtocolError: It is malformed, or ends before its empty line.
    """
    given = iter(lines)
    if next(given, b"") != SIGNATURE:
        raise ProtocolError("this is no bundle of version 2")
    refs: dict[RefName, ObjectId] = {}
    for line in given:
        if line == b"\n":
            return refs
        if line.startswith(b"-"):
            object_id(line[1:41])
            continue
        oid, _, name = line.removesuffix(b"\n").partition(b" ")
        refs[ref_name(name)] = object_id(oid)
    raise ProtocolError("the header of the bundle does not end")
