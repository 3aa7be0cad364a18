"""What a reader asks: parsers for the bodies of ``POST git-upload-pack``.

Protocol v2: gitprotocol-v2(5). Protocol v0 and v1: gitprotocol-pack(5) in its stateless form
(gitprotocol-http(5)), where each POST repeats the wants and ends with ``done`` or a flush-pkt.
Both end in the same `FetchRequest`; what only v0 has is in `UploadPackRequest`.
"""

import enum
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from mirror.errors import ProtocolError
from mirror.wire.filters import ObjectFilter, parse_filter
from mirror.wire.names import HEAD, ObjectId, RefName, is_ref_name, object_id
from mirror.wire.pktline import Packet, Special, decode_all, text

INFINITE_DEPTH: Final = 0x7FFFFFFF
"""What clients send as depth to unshallow."""

REF_PREFIXES_MAX: Final = 65536
"""As in git's own server: with that many prefixes all refs are sent."""

_NUMBER: Final = re.compile(rb"\d{1,19}")


@dataclass(frozen=True, slots=True)
class LsRefsRequest:
    """``command=ls-refs``."""

    peel: bool = False
    symrefs: bool = False
    unborn: bool = False
    ref_prefixes: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Deepen:
    """How much history a shallow fetch asks for; all unset means none of it."""

    depth: int | None = None
    relative: bool = False
    since: int | None = None
    exclude: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return self.depth is not None or self.since is not None or bool(self.exclude)


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """A fetch, whichever protocol it came in."""

    wants: tuple[ObjectId, ...] = ()
    want_refs: tuple[RefName, ...] = ()
    haves: tuple[ObjectId, ...] = ()
    done: bool = False
    shallow: frozenset[ObjectId] = frozenset()
    deepen: Deepen = field(default_factory=Deepen)
    filter: ObjectFilter | None = None
    thin_pack: bool = False
    include_tag: bool = False
    ofs_delta: bool = False
    wait_for_done: bool = False


@dataclass(frozen=True, slots=True)
class ObjectInfoRequest:
    """``command=object-info``: the sizes of objects."""

    oids: tuple[ObjectId, ...]
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


def parse_command(body: bytes) -> CommandRequest | None:
    """Parse the body of a v2 POST; `None` for an empty request (a lone flush-pkt: the probe).

    Raises:
        ProtocolError: Malformed, or a command, capability or argument that was not advertised.
    """
    packets = decode_all(body)
    if not packets or packets == [Special.FLUSH]:
        return None
    command, arguments = _split_command(packets)
    match command:
        case b"ls-refs":
            return _parse_ls_refs(arguments)
        case b"fetch":
            return _parse_fetch(arguments)
        case b"object-info":
            return _parse_object_info(arguments)
        case b"bundle-uri":
            return _parse_bundle_uri(arguments)
        case _:
            raise ProtocolError(f"invalid command {command[:80]!r}")


def _split_command(packets: list[Packet]) -> tuple[bytes, list[bytes]]:
    """Return the command and its arguments; capabilities are checked on the way."""
    command = b""
    lines: Iterator[Packet] = iter(packets)
    separator: Special | None = None
    for packet in lines:
        if isinstance(packet, Special):
            separator = packet
            break
        line = text(packet)
        key, _, value = line.partition(b"=")
        if key == b"command":
            if command:
                raise ProtocolError(f"command {value[:80]!r} requested after {command!r}")
            command = value
        elif key == b"object-format":
            if value != b"sha1":
                raise ProtocolError(f"mismatched object format: server sha1; client {value[:80]!r}")
        elif key not in (b"agent", b"server-option", b"session-id"):
            raise ProtocolError(f"unknown capability {line[:80]!r}")
    if not command:
        raise ProtocolError("no command requested")
    match separator:
        case Special.DELIM:
            return command, list(_until_flush(lines))
        case Special.FLUSH:
            return command, []
        case _:
            raise ProtocolError("expected a delim-pkt or a flush-pkt after the capabilities")


def _until_flush(packets: Iterable[Packet]) -> Iterator[bytes]:
    for packet in packets:
        if packet is Special.FLUSH:
            return
        if isinstance(packet, Special):
            raise ProtocolError(f"expected a line or a flush-pkt, got a {packet.name} packet")
        yield text(packet)
    raise ProtocolError("the request ends before its flush-pkt")


def _parse_ls_refs(arguments: list[bytes]) -> LsRefsRequest:
    flags = set()
    prefixes = []
    for line in arguments:
        if line in (b"peel", b"symrefs", b"unborn"):
            flags.add(line)
        elif line.startswith(b"ref-prefix "):
            prefixes.append(line.removeprefix(b"ref-prefix "))
        else:
            raise ProtocolError(f"unexpected line: {line[:80]!r}")
    if len(prefixes) >= REF_PREFIXES_MAX:
        prefixes = []
    return LsRefsRequest(b"peel" in flags, b"symrefs" in flags, b"unborn" in flags, tuple(prefixes))


_FETCH_FLAGS: Final = {
    b"done": "done",
    b"thin-pack": "thin_pack",
    b"include-tag": "include_tag",
    b"ofs-delta": "ofs_delta",
    b"wait-for-done": "wait_for_done",
}


def _parse_fetch(arguments: list[bytes]) -> FetchRequest:
    wants: dict[ObjectId, None] = {}
    want_refs: dict[RefName, None] = {}
    haves: dict[ObjectId, None] = {}
    flags: dict[str, bool] = {}
    shallow = _ShallowArguments()
    for line in arguments:
        key, _, value = line.partition(b" ")
        if line in _FETCH_FLAGS:
            flags[_FETCH_FLAGS[line]] = True
        elif key == b"want":
            wants[object_id(value)] = None
        elif key == b"have":
            haves[object_id(value)] = None
        elif key == b"want-ref":
            want_refs[_wanted_ref(value)] = None
        elif line == b"deepen-relative":
            shallow.relative = True
        elif not shallow.take(key, value) and line != b"no-progress":
            raise ProtocolError(f"unexpected line: {line[:80]!r}")
    return FetchRequest(
        wants=tuple(wants),
        want_refs=tuple(want_refs),
        haves=tuple(haves),
        shallow=frozenset(shallow.shallow),
        deepen=shallow.checked_deepen(),
        filter=shallow.filter,
        **flags,
    )


def _wanted_ref(name: bytes) -> RefName:
    if name != HEAD and not is_ref_name(name):
        raise ProtocolError(f"unknown ref {name[:80]!r}")
    return RefName(name)


def _parse_object_info(arguments: list[bytes]) -> ObjectInfoRequest:
    oids = []
    size = False
    for line in arguments:
        if line == b"size":
            size = True
        elif line.startswith(b"oid "):
            oids.append(object_id(line.removeprefix(b"oid ")))
        else:
            raise ProtocolError(f"object-info: unexpected line: {line[:80]!r}")
    return ObjectInfoRequest(tuple(oids), size)


def _parse_bundle_uri(arguments: list[bytes]) -> BundleUriRequest:
    if arguments:
        raise ProtocolError(f"bundle-uri: unexpected argument: {arguments[0][:80]!r}")
    return BundleUriRequest()


class _ShallowArguments:
    """The arguments that v0 and v2 share: shallow, deepen*, filter."""

    def __init__(self) -> None:
        self.shallow: set[ObjectId] = set()
        self.depth: int | None = None
        self.relative = False
        self.since: int | None = None
        self.exclude: list[bytes] = []
        self.filter: ObjectFilter | None = None

    def take(self, key: bytes, value: bytes) -> bool:
        """Take one line; tell whether it was one of these."""
        match key:
            case b"shallow":
                self.shallow.add(object_id(value))
            case b"deepen":
                depth = _number(value, "deepen")
                if depth == 0:
                    raise ProtocolError("invalid deepen: 0")
                self.depth = min(depth, INFINITE_DEPTH)
            case b"deepen-since":
                self.since = _number(value, "deepen-since")
            case b"deepen-not":
                self.exclude.append(value)
            case b"filter":
                self.filter = parse_filter(value)
            case _:
                return False
        return True

    def checked_deepen(self) -> Deepen:
        """Return what was asked for.

        Raises:
            ProtocolError: A depth together with a date or an excluded ref.
        """
        if self.depth is not None and (self.since is not None or self.exclude):
            raise ProtocolError("deepen and deepen-since (or deepen-not) cannot be used together")
        return Deepen(self.depth, self.relative, self.since, tuple(self.exclude))


def _number(value: bytes, key: str) -> int:
    if not _NUMBER.fullmatch(value):
        raise ProtocolError(f"invalid {key}: {value[:80]!r}")
    return int(value)


# --- protocol v0 and v1 ------------------------------------------------------------------------


def parse_upload_pack(body: bytes) -> UploadPackRequest | None:
    """Parse the body of a v0 or v1 POST; `None` when it wants nothing (the ``0000`` probe).

    A request may end after the wants. If it goes on, the haves end at the first flush-pkt or at
    ``done``, as for git's own stateless server; what follows is not looked at.

    Raises:
        ProtocolError: Malformed.
    """
    if not body:
        return None
    packets = iter(decode_all(body))
    wants: dict[ObjectId, None] = {}
    capabilities: set[bytes] = set()
    shallow = _ShallowArguments()
    for line in _until_flush(packets):
        key, _, value = line.partition(b" ")
        if key == b"want":
            # git separates by a space, older clients by NUL.
            oid, _, features = value.replace(b"\0", b" ").partition(b" ")
            wants[object_id(oid)] = None
            capabilities.update(features.split())
        elif not shallow.take(key, value):
            raise ProtocolError(
                f"git upload-pack: protocol error, expected to get oid, not {line[:80]!r}"
            )
    if not wants:
        return None
    rest = list(packets)
    haves, done = _parse_haves(rest) if rest else ((), False)
    shallow.relative = b"deepen-relative" in capabilities
    return UploadPackRequest(
        FetchRequest(
            wants=tuple(wants),
            haves=haves,
            done=done,
            shallow=frozenset(shallow.shallow),
            deepen=shallow.checked_deepen(),
            filter=shallow.filter,
            thin_pack=b"thin-pack" in capabilities,
            include_tag=b"include-tag" in capabilities,
            ofs_delta=b"ofs-delta" in capabilities,
        ),
        wants_only=not rest,
        acks=_ack_mode(capabilities),
        no_done=b"no-done" in capabilities,
        side_band=_side_band(capabilities),
    )


def _parse_haves(packets: Iterable[Packet]) -> tuple[tuple[ObjectId, ...], bool]:
    haves: dict[ObjectId, None] = {}
    for line in _until_flush(packets):
        if line == b"done":
            return tuple(haves), True
        if not line.startswith(b"have "):
            raise ProtocolError(f"git upload-pack: expected oid list, got {line[:80]!r}")
        haves[object_id(line.removeprefix(b"have "))] = None
    return tuple(haves), False


def _ack_mode(capabilities: set[bytes]) -> AckMode:
    for mode in (AckMode.DETAILED, AckMode.MULTI):
        if mode.value.encode() in capabilities:
            return mode
    return AckMode.SINGLE


def _side_band(capabilities: set[bytes]) -> SideBand:
    if b"side-band-64k" in capabilities:
        return SideBand.LARGE
    return SideBand.SMALL if b"side-band" in capabilities else SideBand.NONE
