"""The other end of the protocol: what we ask an upstream, and how its answers are read.

Protocol v2 where the upstream speaks it, v0 and v1 where not: gitprotocol-v2(5),
gitprotocol-pack(5).
One POST per fetch: all wants, our tips as haves, and ``done``; the upstream works out the rest.
"""

import enum
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from mirror.errors import ProtocolError
from mirror.wire.names import HEAD, ZERO_ID, ObjectId, Ref, RefName, is_ref_name, object_id
from mirror.wire.pktline import (
    DELIM_PKT,
    FLUSH_PKT,
    Packet,
    PacketDecoder,
    Special,
    encode,
    encode_lines,
    text,
)

REMOTE_MESSAGE_BYTES_MAX: Final = 1000
"""Of an upstream's error message, that much is worth keeping."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The refs of an upstream.

    Attributes:
        refs: All refs but HEAD, in any order; peeled where the upstream told.
        head: What HEAD resolves to; `None` when it is unborn or not there.
        head_target: The branch that HEAD names, also an unborn one; `None` when it is detached.
        shallow: Whether the upstream itself is a shallow repository (only v0 tells).
        digest: Of the answer's bytes, where the caller of the parser made one.
    """

    refs: Collection[Ref]
    head: ObjectId | None
    head_target: RefName | None
    shallow: bool = False
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class UpstreamFeatures:
    """What the upstream's first answer announced.

    Attributes:
        version: 0, 1 or 2.
        capabilities: v0: the capability list. v2: the keys, and ``key=value`` split into both.
        listing: The refs, where the first answer holds them already (v0 and v1).
    """

    version: int
    capabilities: dict[bytes, bytes] = field(default_factory=dict)
    listing: Listing | None = None

    @property
    def object_format(self) -> bytes:
        """The hash that the upstream's object ids use."""
        return self.capabilities.get(b"object-format", b"sha1")


# --- the first answer --------------------------------------------------------------------------


def parse_info_refs(packets: Sequence[Packet]) -> UpstreamFeatures:
    """Read the answer to ``GET info/refs?service=git-upload-pack``, whichever version it is.

    Raises:
        ProtocolError: Malformed, or an ``ERR`` (whose text is passed on).
    """
    lines = list(packets)
    if lines and isinstance(lines[0], bytes) and text(lines[0]) == b"# service=git-upload-pack":
        del lines[: 2 if lines[1:2] == [Special.FLUSH] else 1]
    if not lines:
        raise ProtocolError("the ref advertisement is empty")
    _raise_if_error(lines[0])
    first = b"" if isinstance(lines[0], Special) else text(lines[0])
    if first == b"version 2":
        return _parse_v2_capabilities(lines[1:])
    version = 1 if first == b"version 1" else 0
    return _parse_v0_advertisement(lines[version:], version)


def _parse_v2_capabilities(packets: list[Packet]) -> UpstreamFeatures:
    capabilities = {}
    for line in _lines_until_flush(packets):
        key, _, value = line.partition(b"=")
        capabilities[key] = value
    for needed in (b"ls-refs", b"fetch"):
        if needed not in capabilities:
            raise ProtocolError(f"the upstream speaks protocol v2 without {needed.decode()}")
    return UpstreamFeatures(2, capabilities)


def _parse_v0_advertisement(packets: list[Packet], version: int) -> UpstreamFeatures:
    names: dict[RefName, ObjectId] = {}
    peeled: dict[RefName, ObjectId] = {}
    capabilities: dict[bytes, bytes] = {}
    head_target: RefName | None = None
    shallow = False
    for number, line in enumerate(_lines_until_flush(packets)):
        if number == 0:
            line, _, words = line.partition(b"\0")  # noqa: PLW2901 - the first line carries both
            for word in words.split():
                key, _, value = word.partition(b"=")
                if key == b"symref" and value.startswith(b"HEAD:"):
                    head_target = _head_target(value.removeprefix(b"HEAD:"))
                capabilities[key] = value
            if capabilities.get(b"object-format", b"sha1") != b"sha1":
                # Ids of another hash: that the caller refuses it is better news than a bad id.
                return UpstreamFeatures(version, capabilities, Listing((), None, None))
        oid, _, name = line.partition(b" ")
        if oid == b"shallow":
            shallow = True
        elif name == b"capabilities^{}" and oid == ZERO_ID:
            continue
        elif name.endswith(b"^{}"):
            peeled[_known_ref(name.removesuffix(b"^{}"))] = object_id(oid)
        elif name != b".have":
            names[_known_ref(name)] = object_id(oid)
    head = names.pop(HEAD, None)
    if head is not None and head_target is None:
        head_target = _guess_head(names, head)
    refs = tuple(Ref(name, oid, peeled.get(name)) for name, oid in names.items())
    return UpstreamFeatures(version, capabilities, Listing(refs, head, head_target, shallow))


def _guess_head(names: dict[RefName, ObjectId], head: ObjectId) -> RefName | None:
    """Guess as git's client does when a server is too old to tell."""
    for name in (b"refs/heads/main", b"refs/heads/master", *sorted(names)):
        if name.startswith(b"refs/heads/") and names.get(RefName(name)) == head:
            return RefName(name)
    return None


def _head_target(name: bytes) -> RefName:
    if not is_ref_name(name):
        raise ProtocolError(f"the upstream's HEAD names {name[:80]!r}, which is not a branch")
    return RefName(name)


def _known_ref(name: bytes) -> RefName:
    if name != HEAD and not is_ref_name(name):
        raise ProtocolError(f"the upstream announced {name[:80]!r}, which is not a valid ref name")
    return RefName(name)


# --- ls-refs -----------------------------------------------------------------------------------


def encode_ls_refs_command(
    features: UpstreamFeatures, prefixes: Iterable[bytes], agent: bytes
) -> bytes:
    """Encode ``command=ls-refs`` with everything we want to know of each ref."""
    arguments = [b"peel", b"symrefs"]
    if b"unborn" in features.capabilities.get(b"ls-refs", b"").split():
        arguments.append(b"unborn")
    arguments += [b"ref-prefix " + prefix for prefix in prefixes]
    return _command(b"ls-refs", features, agent) + encode_lines(arguments) + FLUSH_PKT


def parse_ls_refs(packets: Sequence[Packet]) -> Listing:
    """Read the answer to ls-refs.

    Raises:
        ProtocolError: Malformed, or an ``ERR``.
    """
    refs: dict[RefName, Ref] = {}
    head: ObjectId | None = None
    head_target: RefName | None = None
    for line in _lines_until_flush(packets):
        oid, _, rest = line.partition(b" ")
        name, *attributes = rest.split(b" ")
        known = dict(attribute.partition(b":")[::2] for attribute in attributes)
        if name == HEAD:
            target = known.get(b"symref-target")
            head_target = _head_target(target) if target else None
            head = None if oid == b"unborn" else object_id(oid)
            continue
        peeled = known.get(b"peeled")
        ref = Ref(_known_ref(name), object_id(oid), object_id(peeled) if peeled else None)
        if refs.setdefault(ref.name, ref) != ref:
            raise ProtocolError(f"the upstream announced {name[:80]!r} twice, and not the same")
    return Listing(tuple(refs.values()), head, head_target)


# --- fetch -------------------------------------------------------------------------------------


def encode_fetch(
    features: UpstreamFeatures,
    *,
    wants: Sequence[ObjectId],
    haves: Sequence[ObjectId],
    agent: bytes,
) -> bytes:
    """Encode a whole fetch: one POST, in whichever version the upstream speaks."""
    lines = [b"have " + oid for oid in haves]
    if features.version == 2:
        arguments = [
            b"thin-pack",
            b"ofs-delta",
            *(b"want " + oid for oid in wants),
            *lines,
            b"done",
        ]
        return _command(b"fetch", features, agent) + encode_lines(arguments) + FLUSH_PKT
    offered = features.capabilities
    wished = (b"multi_ack_detailed", b"side-band-64k", b"side-band", b"thin-pack", b"ofs-delta")
    chosen = [name for name in wished if name in offered]
    if b"side-band-64k" in chosen and b"side-band" in chosen:
        chosen.remove(b"side-band")
    if b"agent" in offered:
        chosen.append(b"agent=" + agent)
    first, *others = wants
    return (
        encode_lines([b"want %b %b" % (first, b" ".join(chosen)), *(b"want " + o for o in others)])
        + FLUSH_PKT
        + encode_lines([*lines, b"done"])
    )


def encode_fetch_of_one_commit(features: UpstreamFeatures, commit: ObjectId, agent: bytes) -> bytes:
    """Encode the smallest fetch there is: one commit, without its trees where filters are known.

    For measurements: `FetchAnswerDecoder` does not read the answer, which has a shallow section.
    """
    if features.version == 2:
        lines = [b"want " + commit, b"deepen 1"]
        if b"filter" in features.capabilities.get(b"fetch", b"").split():
            lines.append(b"filter tree:0")
        lines.append(b"done")
        return _command(b"fetch", features, agent) + encode_lines(lines) + FLUSH_PKT
    has_filter = b"filter" in features.capabilities
    lines = [b"want %b side-band-64k ofs-delta%b" % (commit, b" filter" if has_filter else b"")]
    lines += [b"deepen 1", *([b"filter tree:0"] if has_filter else [])]
    return encode_lines(lines) + FLUSH_PKT + encode_lines([b"done"])


def _command(name: bytes, features: UpstreamFeatures, agent: bytes) -> bytes:
    lines = [b"command=" + name]
    if b"agent" in features.capabilities:
        lines.append(b"agent=" + agent)
    if b"object-format" in features.capabilities:
        lines.append(b"object-format=" + features.object_format)
    return b"".join(encode(line) for line in lines) + DELIM_PKT


class _State(enum.Enum):
    LINES = "before the pack"
    BANDS = "side-band packets"
    RAW = "raw pack bytes"
    DONE = "after the pack"


class FetchAnswerDecoder:
    """Reads the answer to `encode_fetch` as it arrives: `feed` bytes, get pack bytes.

    Attributes:
        progress: The upstream's latest progress message.
    """

    def __init__(self, features: UpstreamFeatures) -> None:
        self._version = features.version
        self._bands = self._version == 2 or bool(
            {b"side-band", b"side-band-64k"} & features.capabilities.keys()
        )
        self._packets = PacketDecoder()
        self._state = _State.LINES
        self.progress = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take the next bytes of the answer; yield the pack bytes among them.

        Raises:
            ProtocolError: Malformed, or an error that the upstream sent in any of its ways.
        """
        if self._state is _State.RAW:
            yield data
            return
        self._packets.feed(data)
        while (packet := self._packets.next_packet()) is not None:
            if self._state is _State.BANDS:
                yield from self._take_band(packet)
            elif self._take_line(packet) is _State.RAW:
                yield self._packets.remainder()
                return

    def finish(self) -> None:
        """Say that the answer is over.

        Raises:
            ProtocolError: It ended before the pack did.
        """
        if self._state is _State.RAW or (
            self._state is _State.DONE and not self._packets.remainder()
        ):
            return
        raise ProtocolError("the upstream's answer was cut off before the end of the pack")

    def _take_line(self, packet: Packet) -> _State:
        _raise_if_error(packet)
        if self._state is _State.DONE:
            raise ProtocolError("the upstream's answer goes on after the end of the pack")
        line = b"" if isinstance(packet, Special) else text(packet)
        if line.startswith(b"shallow "):
            raise ProtocolError("the upstream is a shallow repository; unshallow it to mirror it")
        if self._version == 2:
            if line == b"packfile":
                self._state = _State.BANDS
        elif line.startswith((b"ACK ", b"NAK")):
            if not line.endswith((b" common", b" ready", b" continue")):
                self._state = _State.BANDS if self._bands else _State.RAW
        elif line:
            raise ProtocolError(f"expected ACK or NAK from the upstream, got {line[:80]!r}")
        return self._state

    def _take_band(self, packet: Packet) -> Iterator[bytes]:
        if packet is Special.FLUSH:
            self._state = _State.DONE
        elif isinstance(packet, Special) or not packet:
            raise ProtocolError("expected a side-band packet from the upstream")
        elif packet[0] == 1:
            yield packet[1:]
        elif packet[0] == 2:
            self.progress = packet[1:].replace(b"\r", b"\n").strip().rpartition(b"\n")[2][:200]
        elif packet[0] == 3:
            raise ProtocolError(f"the upstream reports: {_message(packet[1:])}")
        else:
            raise ProtocolError(f"the upstream sent side-band {packet[0]}, which does not exist")


def _lines_until_flush(packets: Iterable[Packet]) -> Iterator[bytes]:
    for packet in packets:
        if packet is Special.FLUSH:
            return
        if isinstance(packet, Special):
            raise ProtocolError("expected a line or a flush-pkt from the upstream")
        _raise_if_error(packet)
        yield text(packet)
    raise ProtocolError("the upstream's answer was cut off before its flush-pkt")


def _raise_if_error(packet: Packet) -> None:
    if isinstance(packet, bytes) and packet.startswith(b"ERR "):
        raise ProtocolError(f"the upstream reports: {_message(packet.removeprefix(b'ERR '))}")


def _message(raw: bytes) -> str:
    said = raw[:REMOTE_MESSAGE_BYTES_MAX].decode("utf-8", "backslashreplace")
    return " ".join("".join(c if c.isprintable() else " " for c in said).split())
