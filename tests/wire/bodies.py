"""Request bodies and packets as a test writes them, by hand or from a request."""

from collections.abc import Iterable, Sequence

from mirror.wire.names import ObjectId
from mirror.wire.pktline import DELIM_PKT, FLUSH_PKT, Packet, Special, encode
from mirror.wire.requests import AckMode, FetchRequest, SideBand, UploadPackRequest

AGENT = b"git-mirror/test"


def oid(number: int) -> ObjectId:
    """Return an object id that tells its number at a glance."""
    return ObjectId(b"%040x" % number)


def join(packets: Iterable[Packet]) -> bytes:
    """Frame packets as they are, without adding newlines."""
    return b"".join(
        b"%04x" % packet.value if isinstance(packet, Special) else encode(packet)
        for packet in packets
    )


def lines(*payloads: bytes) -> list[Packet]:
    """Return text lines as packets, each with its newline."""
    return [payload + b"\n" for payload in payloads]


def command(name: bytes, *arguments: bytes, capabilities: Sequence[bytes] = ()) -> bytes:
    """Write a v2 request."""
    start = [b"command=" + name, *capabilities]
    return join(lines(*start)) + DELIM_PKT + join(lines(*arguments)) + FLUSH_PKT


def fetch_groups(request: FetchRequest) -> list[list[bytes]]:
    """Return the arguments of a v2 fetch in groups whose order among each other is free."""
    flags = {
        b"done": request.done,
        b"thin-pack": request.thin_pack,
        b"include-tag": request.include_tag,
        b"ofs-delta": request.ofs_delta,
        b"wait-for-done": request.wait_for_done,
        b"sideband-all": request.sideband_all,
        b"deepen-relative": request.deepen.relative,
    }
    return [
        [b"want " + want for want in request.wants],
        [b"want-ref " + name for name in request.want_refs],
        [b"have " + have for have in request.haves],
        *([flag] for flag, is_set in flags.items() if is_set),
        *_shallow_groups(request),
    ]


def upload_pack(request: UploadPackRequest, *, others: Sequence[bytes] = ()) -> bytes:
    """Write a v0 request; `others` are more capabilities."""
    fetch = request.fetch
    side_bands = {SideBand.SMALL: b"side-band", SideBand.LARGE: b"side-band-64k"}
    chosen = {
        b"thin-pack": fetch.thin_pack,
        b"include-tag": fetch.include_tag,
        b"ofs-delta": fetch.ofs_delta,
        b"deepen-relative": fetch.deepen.relative,
        b"no-done": request.no_done,
        b"filter": fetch.filter is not None,
    }
    capabilities = [name for name, is_set in chosen.items() if is_set]
    if request.acks is not AckMode.SINGLE:
        capabilities.append(request.acks.value.encode())
    if request.side_band is not SideBand.NONE:
        capabilities.append(side_bands[request.side_band])
    first, *more = fetch.wants
    wants = [
        b" ".join((b"want", first, *capabilities, *others)),
        *(b"want " + want for want in more),
    ]
    limits = (line for group in _shallow_groups(fetch) for line in group)
    body = join(lines(*wants, *limits)) + FLUSH_PKT
    if request.wants_only:
        return body
    body += join(lines(*(b"have " + have for have in fetch.haves)))
    return body + (join(lines(b"done")) if fetch.done else FLUSH_PKT)


def _shallow_groups(request: FetchRequest) -> list[list[bytes]]:
    deepen = request.deepen
    return [
        [b"shallow " + commit for commit in sorted(request.shallow)],
        [b"deepen %d" % deepen.depth] if deepen.depth is not None else [],
        [b"deepen-since %d" % deepen.since] if deepen.since is not None else [],
        [b"deepen-not " + name for name in deepen.exclude],
        [b"filter " + request.filter.spec()] if request.filter is not None else [],
    ]
