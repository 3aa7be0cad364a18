"""What hypothesis may send: valid messages, the same with damage, and plain garbage."""

from collections.abc import Callable, Sequence
from typing import Final

from hypothesis import strategies as st

from mirror.errors import ProtocolError
from mirror.wire.filters import ObjectFilter
from mirror.wire.names import ObjectId, Ref, RefName, is_ref_name
from mirror.wire.pktline import DELIM_PKT, FLUSH_PKT, Packet, Special
from mirror.wire.requests import (
    INFINITE_DEPTH,
    AckMode,
    Deepen,
    FetchRequest,
    SideBand,
    UploadPackRequest,
)
from tests.wire.bodies import command, fetch_groups, join, lines, upload_pack

oids: Final = st.binary(min_size=20, max_size=20).map(lambda raw: ObjectId(raw.hex().encode()))
unique_oids: Final = st.lists(oids, unique=True, max_size=6).map(tuple)

ref_names: Final = (
    st.lists(st.text("abcXYZ019-_.@+é雪", min_size=1, max_size=8), min_size=1, max_size=3)
    .map(lambda parts: RefName(b"refs/heads/" + "/".join(parts).encode()))
    .filter(is_ref_name)
)

GARBAGE_EXAMPLES: Final = 400
"""Most garbage is refused at its first packet; it takes many to reach every corner."""

specials: Final = st.sampled_from(Special)
packets: Final[st.SearchStrategy[Packet]] = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"0000", b"PACK", b"\n", b"x" * 65516]),
    specials,
)


# --- valid messages ----------------------------------------------------------------------------

filters: Final = st.builds(
    ObjectFilter,
    blob_limit_bytes=st.none() | st.integers(0, 10**18 - 1),
    tree_depth=st.none() | st.integers(0, 10**9 - 1),
    object_types=st.none()
    | st.just(frozenset[bytes]())
    | st.sampled_from([b"commit", b"tree", b"blob", b"tag"]).map(lambda name: frozenset({name})),
).filter(lambda chosen: chosen != ObjectFilter())

deepens: Final = st.one_of(
    st.just(Deepen()),
    st.builds(Deepen, depth=st.integers(1, INFINITE_DEPTH), relative=st.booleans()),
    st.builds(
        Deepen,
        since=st.none() | st.integers(0, 2**40),
        exclude=st.lists(ref_names, max_size=3).map(tuple),
    ),
)


@st.composite
def refs(draw: st.DrawFn) -> tuple[Ref, ...]:
    """Refs in the order of their names."""
    names = draw(st.lists(ref_names, unique=True, max_size=6))
    return tuple(Ref(name, draw(oids), draw(st.none() | oids)) for name in sorted(names))


fetches: Final = st.builds(
    FetchRequest,
    wants=unique_oids,
    want_refs=st.lists(ref_names | st.just(RefName(b"HEAD")), unique=True, max_size=3).map(tuple),
    haves=unique_oids,
    done=st.booleans(),
    shallow=st.frozensets(oids, max_size=3),
    deepen=deepens,
    filter=st.none() | filters,
    thin_pack=st.booleans(),
    include_tag=st.booleans(),
    ofs_delta=st.booleans(),
    wait_for_done=st.booleans(),
    sideband_all=st.booleans(),
)


@st.composite
def upload_pack_requests(draw: st.DrawFn) -> UploadPackRequest:
    """A request as protocol v0 can say it."""
    wants_only = draw(st.booleans())
    fetch = FetchRequest(
        wants=tuple(draw(st.lists(oids, unique=True, min_size=1, max_size=6))),
        haves=() if wants_only else draw(unique_oids),
        done=not wants_only and draw(st.booleans()),
        shallow=draw(st.frozensets(oids, max_size=3)),
        deepen=draw(deepens),
        filter=draw(st.none() | filters),
        thin_pack=draw(st.booleans()),
        include_tag=draw(st.booleans()),
        ofs_delta=draw(st.booleans()),
    )
    return UploadPackRequest(
        fetch,
        wants_only=wants_only,
        acks=draw(st.sampled_from(AckMode)),
        no_done=draw(st.booleans()),
        side_band=draw(st.sampled_from(SideBand)),
    )


@st.composite
def fetch_bodies(draw: st.DrawFn) -> tuple[FetchRequest, bytes]:
    """A v2 fetch and its body, the groups of its arguments in any order."""
    request = draw(fetches)
    groups = draw(st.permutations(fetch_groups(request)))
    return request, command(b"fetch", *(line for group in groups for line in group))


# --- garbage -----------------------------------------------------------------------------------

_WORDS: Final = (
    *(b"want", b"have", b"done", b"shallow", b"unshallow", b"deepen", b"deepen-since", b"filter"),
    *(b"deepen-not", b"deepen-relative", b"want-ref", b"oid", b"size", b"peel", b"symrefs"),
    *(b"unborn", b"ref-prefix", b"command=fetch", b"command=ls-refs", b"command=object-info"),
    *(b"agent=x", b"object-format=sha1", b"object-format=sha256", b"version 1", b"version 2"),
    *(
        b"# service=git-upload-pack",
        b"symref=HEAD:refs/heads/main",
        b"symref=HEAD:HEAD",
        b"ls-refs",
    ),
    *(b"HEAD", b"refs/heads/main", b"refs/tags/v1^{}", b"capabilities^{}", b".have", b"peeled:"),
    *(b"symref-target:refs/heads/main", b"fetch=shallow", b"0" * 40, b"a" * 40, b"A" * 40, b"1"),
    *(b"combine:blob:none+tree:1", b"combine:%3", b"blob:limit=1k", b"tree:x", b"sparse:oid=a"),
    *(b"ACK", b"NAK", b"common", b"ready", b"continue", b"packfile", b"acknowledgments", b"ERR"),
    *(b"shallow-info", b"wanted-refs", b"\x01PACK", b"\x02done\r", b"\x03fatal", b"\x04", b"\xff"),
)

_joined: Final = st.lists(
    st.tuples(
        st.sampled_from(_WORDS) | st.binary(max_size=4), st.sampled_from([b" ", b"\0", b"=", b""])
    ),
    max_size=5,
).map(lambda pairs: b"".join(part for pair in pairs for part in pair))

almost_packets: Final[st.SearchStrategy[list[Packet]]] = st.lists(
    st.one_of(
        _joined,
        _joined.map(lambda line: line.rstrip(b" ") + b"\n"),
        st.sampled_from(_WORDS),
        specials,
    ),
    max_size=12,
)
"""Packets of words that the protocol knows, in places where they may not belong."""


def edited(bodies: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Valid bodies with a few bytes replaced, inserted or taken away."""
    edit = st.tuples(
        st.integers(0, 10_000), st.integers(0, 5), st.binary(max_size=5) | st.sampled_from(_WORDS)
    )
    return st.builds(_edit, bodies, st.lists(edit, min_size=1, max_size=4))


def _edit(body: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for place, taken, put in edits:
        at = place % (len(body) + 1)
        body = body[:at] + put + body[at + taken :]
    return body


def edited_packets(valid: st.SearchStrategy[list[Packet]]) -> st.SearchStrategy[list[Packet]]:
    """Valid packets of which one was replaced, so that the framing stays right."""
    return st.builds(_replace, valid, st.integers(0, 10_000), almost_packets)


def _replace(valid: list[Packet], place: int, put: list[Packet]) -> list[Packet]:
    at = place % (len(valid) + 1)
    return [*valid[:at], *put, *valid[at + 1 :]]


garbage: Final = st.one_of(
    st.binary(max_size=200),
    almost_packets.map(join),
    edited(almost_packets.map(join)),
    edited(fetch_bodies().map(lambda pair: pair[1])),
    edited(upload_pack_requests().map(upload_pack)),
    st.builds(
        lambda name, arguments: join(lines(name)) + DELIM_PKT + join(arguments) + FLUSH_PKT,
        st.sampled_from([b"command=fetch", b"command=ls-refs", b"command=object-info"]),
        almost_packets,
    ),
)
"""Bodies that nobody should send."""


def refuses_only_with_protocol_error(function: Callable[[], object]) -> None:
    """Call `function`; every outcome but a value or `ProtocolError` fails the test."""
    try:
        function()
    except ProtocolError as error:
        assert str(error)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """Cut `data` at these places (taken modulo its length) into slices, some of them empty."""
    at = sorted(place % (len(data) + 1) for place in places)
    return [data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True)]


cuts: Final = st.lists(st.integers(0, 1 << 20), max_size=12)
