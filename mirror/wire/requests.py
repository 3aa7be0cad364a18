"""What a reader asks: parsers for the bodies of ``POST git-upload-pack``.

Protocol v2: gitprotocol-v2(5). Protocol v0 and v1: gitprotocol-pack(5) in its stateless form
(gitprotocol-http(5)), where each POST repeats the wants and ends with ``done`` or a flush-pkt.
Both end in the same `FetchRequest`; what only v0 has is in `UploadPackRequest`.

A body that is not made of pkt-lines, or is cut off, is a `ProtocolError`; one that is and asks for
what is not served is a `RequestRefused` in git's own words, for the client's user to read.
"""

import enum
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from mirror.errors import ProtocolError, RequestRefused
from mirror.wire.arguments import INFINITE_DEPTH as INFINITE_DEPTH  # noqa: PLC0414 - exported
from mirror.wire.arguments import Deepen as Deepen  # noqa: PLC0414 - exported
from mirror.wire.arguments import (
    LimitArguments,
    Packets,
    leading_id,
    line_of,
    lines_until_flush,
    quoted,
    shown,
)
from mirror.wire.filters import ObjectFilter
from mirror.wire.names import HEAD, ObjectId, RefName, is_ref_name
from mirror.wire.object_ids import Gathered
from mirror.wire.pktline import Packet, Special

REF_PREFIXES_MAX: Final = 65536
"""As in git's own server: with that many prefixes all refs are sent."""

WANT_REFS_MAX: Final = 65536
"""No client asks for so many refs by name; git's own server has no limit."""

OBJECT_FORMAT: Final = b"sha1"
"""The hash of all object ids here."""

_OBJECT_FORMATS: Final = frozenset({b"sha1", b"sha256"})

_COMMANDS: Final = frozenset({b"ls-refs", b"fetch", b"object-info", b"bundle-uri"})
_CAPABILITIES: Final = frozenset({b"agent", b"server-option", b"session-id"})
"""What a client may say and nothing follows from."""


@dataclass(frozen=True, slots=True)
class LsRefsRequest:
    """``command=ls-refs``."""

    peel: bool = False
    symrefs: bool = False
    unborn: bool = False
    ref_prefixes: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """A fetch, whichever protocol it came in. Of many object ids some may be repeated."""

    wants: Sequence[ObjectId] = ()
    want_refs: tuple[RefName, ...] = ()
    haves: Sequence[ObjectId] = ()
    done: bool = False
    shallow: Collection[ObjectId] = frozenset()
    deepen: Deepen = field(default_factory=Deepen)
    filter: ObjectFilter | None = None
    thin_pack: bool = False
    include_tag: bool = False
    ofs_delta: bool = False
    wait_for_done: bool = False
    sideband_all: bool = False


@dataclass(frozen=True, slots=True)
class ObjectInfoRequest:
    """``command=object-info``: the sizes of objects."""

    oids: Sequence[ObjectId]
    size: bool


@dataclass(frozen=True, slots=True)
class BundleUriRequest:
    """``command=bundle-uri``: where bundles are. It takes no arguments."""


CommandRequest = LsRefsRequest | FetchRequest | ObjectInfoRequest | BundleUriRequest


class AckMode(enum.Enum):
    """How a v0 server acknowledges haves."""

    SINGLE = "single"
    MULTI = "multi_ack"
    DETAILED = "multi_ack_detailed"


class SideBand(enum.Enum):
    """How pack bytes are framed; the value is the largest pkt-line, 0 for no framing."""

    NONE = 0
    SMALL = 1000
    LARGE = 65520


@dataclass(frozen=True, slots=True)
class UploadPackRequest:
    """A v0 or v1 fetch: the request and how its answer is to be framed.

    Attributes:
        fetch: What is asked for.
        wants_only: The body ended after the wants: a client that deepens reads the shallow lines
            first and comes again to negotiate. Nothing but these lines is to be answered.
        acks: How haves are acknowledged.
        no_done: The pack may follow as soon as we are ready.
        side_band: How the pack is framed.
    """

    fetch: FetchRequest
    wants_only: bool = False
    acks: AckMode = AckMode.SINGLE
    no_done: bool = False
    side_band: SideBand = SideBand.NONE


# --- protocol v2 -------------------------------------------------------------------------------


def parse_command(body: bytes, more: Iterable[bytes] = ()) -> CommandRequest | None:
    """Parse the body of a v2 POST; `None` for an empty request (a lone flush-pkt: the probe).

    Args:
        body: The body, or its first piece.
        more: The pieces that follow, which are asked for one by one.

    Raises:
        ProtocolError: Malformed.
        RequestRefused: A command, capability or argument that was not advertised.
    """
    packets = Packets(body, more)
    found = _split_command(packets)
    if found is None:
        return None
    command, arguments = found
    match command:
        case b"ls-refs":
            return _parse_ls_refs(arguments)
        case b"fetch":
            return _parse_fetch(arguments, packets)
        case b"bundle-uri":
            return _parse_bundle_uri(arguments)
        case _:
            return _parse_object_info(arguments)


def _split_command(packets: Iterator[Packet]) -> tuple[bytes, Iterator[bytes]] | None:
    """Return the command and its arguments; capabilities are checked on the way."""
    command, client_format = b"", b"sha1"
    is_empty, has_arguments = True, False
    for packet in packets:
        if packet is Special.FLUSH:
            break
        if packet is Special.DELIM:
            is_empty, has_arguments = False, True
            break
        if isinstance(packet, Special):
            raise RequestRefused("unexpected response end packet")
        is_empty = False
        line = line_of(packet)
        key, equals, value = line.partition(b"=")
        if key == b"command" and equals:
            command = _checked_command(value, command)
        elif key == b"object-format":
            client_format = _checked_format(value)
        elif key not in _CAPABILITIES:
            raise RequestRefused(f"unknown capability {quoted(line)}")
    else:
        if not is_empty:
            raise ProtocolError("the request ends before its flush-pkt")
    if is_empty:
        return None
    if not command:
        raise RequestRefused("no command requested")
    if client_format != OBJECT_FORMAT:
        ours, theirs = OBJECT_FORMAT.decode(), client_format.decode()
        raise RequestRefused(f"mismatched object format: server {ours}; client {theirs}")
    return command, lines_until_flush(packets) if has_arguments else iter(())


def _checked_command(name: bytes, before: bytes) -> bytes:
    if before:
        raise RequestRefused(
            f"command {quoted(name)} requested after already requesting command {quoted(before)}"
        )
    if name not in _COMMANDS:
        raise RequestRefused(f"invalid command {quoted(name)}")
    return name


def _checked_format(name: bytes) -> bytes:
    if not name:
        raise RequestRefused("object-format capability requires an argument")
    if name not in _OBJECT_FORMATS:
        raise RequestRefused(f"unknown object format {quoted(name)}")
    return name


def _parse_ls_refs(arguments: Iterator[bytes]) -> LsRefsRequest:
    flags = set()
    prefixes: list[bytes] = []
    for line in arguments:
        if line in (b"peel", b"symrefs", b"unborn"):
            flags.add(line)
        elif line.startswith(b"ref-prefix "):
            if len(prefixes) < REF_PREFIXES_MAX:
                prefixes.append(line.removeprefix(b"ref-prefix "))
        else:
            raise RequestRefused(f"unexpected line: {quoted(line)}")
    if len(prefixes) >= REF_PREFIXES_MAX:
        prefixes = []
    return LsRefsRequest(b"peel" in flags, b"symrefs" in flags, b"unborn" in flags, tuple(prefixes))


_FETCH_FLAGS: Final = {
    b"done": "done",
    b"thin-pack": "thin_pack",
    b"include-tag": "include_tag",
    b"ofs-delta": "ofs_delta",
    b"wait-for-done": "wait_for_done",
    b"sideband-all": "sideband_all",
}


def _parse_fetch(arguments: Iterator[bytes], packets: Packets) -> FetchRequest:
    """Parse what `arguments` are still to be taken from `packets`."""
    wants, haves = Gathered(), Gathered()
    want_refs: dict[RefName, None] = {}
    flags: dict[str, bool] = {}
    limits = LimitArguments()
    for line in arguments:
        if line in _FETCH_FLAGS:
            flags[_FETCH_FLAGS[line]] = True
        elif line.startswith(b"want "):
            wants.add(_wanted(line))
            _take_runs(packets, b"want", wants)
        elif line.startswith(b"have "):
            haves.add(_had(line))
            _take_runs(packets, b"have", haves)
        elif line.startswith(b"want-ref "):
            want_refs[_wanted_ref(line.removeprefix(b"want-ref "), want_refs)] = None
        elif line == b"deepen-relative":
            limits.relative = True
        elif not limits.take(line) and line != b"no-progress":
            raise RequestRefused(f"unexpected line: {quoted(line)}")
    return FetchRequest(
        wants=wants.distinct(),
        want_refs=tuple(want_refs),
        haves=haves.distinct(),
        shallow=limits.shallow.as_set(),
        deepen=limits.checked_deepen(),
        filter=limits.filter,
        **flags,
    )


def _take_runs(packets: Packets, key: bytes, oids: Gathered) -> None:
    while digits := packets.run(key):
        oids.add_all(digits)


def _wanted(line: bytes) -> ObjectId:
    oid = leading_id(line.removeprefix(b"want "))
    if oid is None:
        raise RequestRefused(
            f"git upload-pack: protocol error, expected to get oid, not {quoted(line)}"
        )
    return oid


def _had(line: bytes) -> ObjectId:
    value = line.removeprefix(b"have ")
    oid = leading_id(value)
    if oid is None:
        raise RequestRefused(f"git upload-pack: expected SHA1 object, got {quoted(value)}")
    return oid


def _wanted_ref(name: bytes, others: dict[RefName, None]) -> RefName:
    if name != HEAD and not is_ref_name(name):
        raise RequestRefused(f"unknown ref {shown(name)}")
    if name in others:
        raise RequestRefused(f"duplicate want-ref {shown(name)}")
    if len(others) >= WANT_REFS_MAX:
        raise RequestRefused(f"more than {WANT_REFS_MAX} want-refs; fetch fewer at a time")
    return RefName(name)


def _parse_object_info(arguments: Iterator[bytes]) -> ObjectInfoRequest:
    oids = Gathered()
    size = False
    for line in arguments:
        if line == b"size":
            size = True
        elif line.startswith(b"oid "):
            value = line.removeprefix(b"oid ")
            oid = leading_id(value)
            if oid is None:
                raise RequestRefused(
                    f"object-info: protocol error, expected to get oid, not {quoted(value)}"
                )
            oids.add(oid)
        else:
            raise RequestRefused(f"object-info: unexpected line: {quoted(line)}")
    return ObjectInfoRequest(oids.in_order(), size)


def _parse_bundle_uri(arguments: Iterator[bytes]) -> BundleUriRequest:
    for line in arguments:
        raise RequestRefused(f"bundle-uri: unexpected argument: {quoted(line)}")
    return BundleUriRequest()


# --- protocol v0 and v1 ------------------------------------------------------------------------


def parse_upload_pack(body: bytes, more: Iterable[bytes] = ()) -> UploadPackRequest | None:
    """Parse the body of a v0 or v1 POST; `None` when it wants nothing (the ``0000`` probe).

    A request may end after the wants. If it goes on, the haves end at the first flush-pkt or at
    ``done``, as for git's own stateless server; what follows is not looked at.

    Its arguments are those of `parse_command`.

    Raises:
        ProtocolError: Malformed.
        RequestRefused: Not a fetch, or one that is not served.
    """
    packets = Packets(body, more)
    first = next(packets, None)
    if first is None:
        return None
    wants = Gathered()
    features = _Features()
    limits = LimitArguments()
    for line in _lines_of_round(chain((first,), packets)):
        if line.startswith(b"want ") and (oid := leading_id(line.removeprefix(b"want "))):
            wants.add(oid)
            features.take(line[len(b"want ") + len(oid) :])
            _take_runs(packets, b"want", wants)
        elif line.startswith(b"filter ") and b"filter" not in features.seen:
            raise RequestRefused("git upload-pack: filtering capability not negotiated")
        elif not limits.take(line):
            raise RequestRefused(
                f"git upload-pack: protocol error, expected to get object ID, not {quoted(line)}"
            )
    if not wants:
        return None
    first = next(packets, None)
    haves, done = _parse_haves(first, packets) if first is not None else ((), False)
    limits.relative = b"deepen-relative" in features.seen
    return UploadPackRequest(
        FetchRequest(
            wants=wants.distinct(),
            haves=haves,
            done=done,
            shallow=limits.shallow.as_set(),
            deepen=limits.checked_deepen(),
            filter=limits.filter,
            thin_pack=b"thin-pack" in features.seen,
            include_tag=b"include-tag" in features.seen,
            ofs_delta=b"ofs-delta" in features.seen,
        ),
        wants_only=first is None,
        acks=features.acks,
        no_done=b"no-done" in features.seen,
        side_band=features.side_band,
    )


def _lines_of_round(packets: Iterator[Packet]) -> Iterator[bytes]:
    """Yield lines up to a special packet: any of them ends a part of a v0 request."""
    for packet in packets:
        if isinstance(packet, Special):
            return
        yield line_of(packet)
    raise ProtocolError("the request ends before its flush-pkt")


def _parse_haves(first: Packet, packets: Packets) -> tuple[Sequence[ObjectId], bool]:
    haves = Gathered()
    for line in _lines_of_round(chain((first,), packets)):
        if line == b"done":
            return haves.in_order(), True
        if not line.startswith(b"have "):
            raise RequestRefused(f"git upload-pack: expected SHA1 list, got {quoted(line)}")
        haves.add(_had(line))
        _take_runs(packets, b"have", haves)
    return haves.in_order(), False


class _Features:
    """The capabilities of a v0 request: those of all its wants; of two ways, the latest counts."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.acks = AckMode.SINGLE
        self.side_band = SideBand.NONE

    def take(self, words: bytes) -> None:
        """Take what stands behind one want."""
        names = {word.partition(b"=")[0] for word in words.split()}
        self.seen |= names
        if b"multi_ack_detailed" in names:
            self.acks = AckMode.DETAILED
        elif b"multi_ack" in names:
            self.acks = AckMode.MULTI
        if b"side-band-64k" in names:
            self.side_band = SideBand.LARGE
        elif b"side-band" in names:
            self.side_band = SideBand.SMALL
