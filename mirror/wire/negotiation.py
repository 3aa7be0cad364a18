"""What to acknowledge and whether the pack may be sent now.

The rules of gitprotocol-pack(5) and gitprotocol-v2(5), as git's own server keeps them:

* A have is common when the mirror holds that object; the others are passed over.
* "Ready" (give up asking): every want has a common object among its ancestors.
* v2: ``done`` → the pack, without acknowledgments. Otherwise NAK or one ACK per common have; then,
  when ready and the client does not ``wait-for-done``, ``ready`` and the pack in the same answer.
  Without a want only ``wait-for-done`` is answered: the client asks what is common, no more.
* v0, per have: detailed ``ACK x common``, multi ``ACK x continue``, single ``ACK x`` for the first.
  Once ready, haves that we lack are answered too (``ready``, or ``continue`` in multi), so that the
  client stops walking. At the flush-pkt: NAK (in single mode only when nothing is common) and the
  answer ends, unless ``no-done`` and ready: then a last ``ACK`` and the pack. At ``done``: a last
  ``ACK`` in the multi modes when anything is common, NAK when nothing is, and the pack.

Pure: what the mirror holds and whether a walk finds a common ancestor are passed in.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mirror.wire.names import ObjectId
from mirror.wire.pktline import DELIM_PKT, FLUSH_PKT, encode_lines
from mirror.wire.requests import AckMode, FetchRequest, UploadPackRequest

Contains = Callable[[ObjectId], bool]
"""Tells whether the mirror holds an object."""

ReadyWith = Callable[[tuple[ObjectId, ...]], bool]
"""Tells whether every want has an ancestor among these common objects."""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The outcome of one round.

    Attributes:
        lines: pkt-lines to send now.
        send_pack: Whether the pack follows in this answer.
        common: The haves that the mirror holds too, in the client's order.
    """

    lines: bytes
    send_pack: bool
    common: tuple[ObjectId, ...]


def negotiate_v2(request: FetchRequest, contains: Contains, ready_with: ReadyWith) -> Negotiated:
    """Answer one v2 round; `lines` is the acknowledgments section with its end, or empty."""
    common = tuple(oid for oid in request.haves if contains(oid))
    asks = bool(request.wants) or request.wait_for_done
    if request.done or not request.haves or not asks:
        return Negotiated(b"", send_pack=bool(request.wants), common=common)
    lines = [b"acknowledgments"]
    lines += [b"ACK " + oid for oid in common] or [b"NAK"]
    ready = bool(common) and not request.wait_for_done and ready_with(common)
    if ready:
        lines.append(b"ready")
    end = DELIM_PKT if ready else FLUSH_PKT
    return Negotiated(encode_lines(lines) + end, send_pack=ready, common=common)


def negotiate_v0(
    request: UploadPackRequest, contains: Contains, ready_with: ReadyWith
) -> Negotiated:
    """Answer one v0 round; `lines` is what goes before the pack."""
    acks = request.acks
    common: list[ObjectId] = []
    lines: list[bytes] = []
    ready = _OncePerCommon(common, ready_with)
    sent_ready = False
    for oid in request.fetch.haves:
        if contains(oid):
            common.append(oid)
            if acks in _COMMON_WORD:
                lines.append(b"ACK %b %b" % (oid, _COMMON_WORD[acks]))
            elif len(common) == 1:
                lines.append(b"ACK " + oid)
        elif acks in _READY_WORD and ready():
            sent_ready = acks is AckMode.DETAILED
            lines.append(b"ACK %b %b" % (oid, _READY_WORD[acks]))
    if request.fetch.done:
        if not common:
            lines.append(b"NAK")
        elif acks is not AckMode.SINGLE:
            lines.append(b"ACK " + common[-1])
        return Negotiated(encode_lines(lines), send_pack=True, common=tuple(common))
    all_known = len(common) == len(request.fetch.haves)
    if acks is AckMode.DETAILED and common and all_known and ready():
        sent_ready = True
        lines.append(b"ACK %b ready" % common[-1])
    if not common or acks is not AckMode.SINGLE:
        lines.append(b"NAK")
    send_pack = request.no_done and sent_ready
    if send_pack:
        lines.append(b"ACK " + common[-1])
    return Negotiated(encode_lines(lines), send_pack=send_pack, common=tuple(common))


_COMMON_WORD = {AckMode.DETAILED: b"common", AckMode.MULTI: b"continue"}
_READY_WORD = {AckMode.DETAILED: b"ready", AckMode.MULTI: b"continue"}


class _OncePerCommon:
    """Asks `ready_with` again only after another common have was found: it walks history."""

    def __init__(self, common: list[ObjectId], ready_with: ReadyWith) -> None:
        self._common = common
        self._ready_with = ready_with
        self._asked_at = 0
        self._ready = False

    def __call__(self) -> bool:
        if not self._ready and len(self._common) > self._asked_at:
            self._asked_at = len(self._common)
            self._ready = self._ready_with(tuple(self._common))
        return self._ready
