"""What a server says first: ref advertisements, capabilities, and answers to ls-refs.

v0 and v1: gitprotocol-pack(5), "Reference Discovery", under the service line of
gitprotocol-http(5). v2: gitprotocol-v2(5). Only what works is advertised.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from mirror.wire.names import HEAD, ZERO_ID, ObjectId, Ref, RefName
from mirror.wire.pktline import FLUSH_PKT, encode, encode_lines
from mirror.wire.requests import LsRefsRequest

SERVICE_LINE: Final = encode(b"# service=git-upload-pack\n") + FLUSH_PKT

_V0_CAPABILITIES: Final = (
    b"multi_ack thin-pack side-band side-band-64k ofs-delta shallow deepen-since deepen-not"
    b" deepen-relative no-progress include-tag multi_ack_detailed no-done"
    b" allow-tip-sha1-in-want allow-reachable-sha1-in-want filter"
)


def encode_v2_capabilities(agent: bytes) -> bytes:
    """Encode the v2 capability advertisement, service line included."""
    return (
        SERVICE_LINE
        + encode_lines(
            [
                b"version 2",
                b"agent=" + agent,
                b"ls-refs=unborn",
                # Not ref-in-want, though we answer it: a client that may name refs does so, and
                # fails when one of them is deleted between its ls-refs and its fetch.
                b"fetch=shallow wait-for-done filter",
                b"server-option",
                b"object-format=sha1",
                b"object-info",
            ]
        )
        + FLUSH_PKT
    )


def encode_v0_advertisement(
    refs: Sequence[Ref],
    *,
    head: ObjectId | None,
    head_target: RefName | None,
    agent: bytes,
    version: int = 0,
) -> bytes:
    """Encode the whole v0 (or v1) advertisement, service line included.

    Args:
        refs: The refs in the order of their names, HEAD not among them.
        head: What HEAD resolves to; `None` when it is unborn.
        head_target: The branch that HEAD names. Only HEAD's symref is announced: two `symref=`
            capabilities make git 2.39's client loop for ever.
        agent: Our agent string.
        version: 1 adds the line that v1 has.
    """
    capabilities = _V0_CAPABILITIES
    if head is not None and head_target is not None:
        capabilities += b" symref=HEAD:" + head_target
    capabilities += b" object-format=sha1 agent=" + agent
    lines = [head + b" HEAD"] if head is not None else []
    for ref in refs:
        lines.append(b"%b %b" % (ref.oid, ref.name))
        if ref.peeled is not None:
            lines.append(b"%b %b^{}" % (ref.peeled, ref.name))
    if not lines:
        lines = [ZERO_ID + b" capabilities^{}"]
    lines[0] += b"\0" + capabilities
    start = SERVICE_LINE + (encode(b"version 1\n") if version == 1 else b"")
    return start + encode_lines(lines) + FLUSH_PKT


def encode_ls_refs(
    refs: Iterable[Ref],
    request: LsRefsRequest,
    *,
    head: ObjectId | None,
    head_target: RefName | None,
) -> bytes:
    """Encode the answer to ls-refs.

    Args:
        refs: The refs that match `request.ref_prefixes`, in the order of their names.
        request: What the client asked for.
        head: What HEAD resolves to; `None` when it is unborn.
        head_target: The branch that HEAD names.
    """
    lines: list[bytes] = []
    if _matches(HEAD, request.ref_prefixes):
        symref = b" symref-target:" + head_target if head_target and request.symrefs else b""
        if head is not None:
            lines.append(b"%b HEAD%b" % (head, symref))
        elif request.unborn and symref:
            lines.append(b"unborn HEAD" + symref)
    if request.peel:
        lines += [
            b"%b %b" % (ref.oid, ref.name)
            if ref.peeled is None
            else b"%b %b peeled:%b" % (ref.oid, ref.name, ref.peeled)
            for ref in refs
        ]
    else:
        lines += [b"%b %b" % (ref.oid, ref.name) for ref in refs]
    return encode_lines(lines) + FLUSH_PKT


def _matches(name: bytes, prefixes: tuple[bytes, ...]) -> bool:
    return not prefixes or name.startswith(prefixes)
