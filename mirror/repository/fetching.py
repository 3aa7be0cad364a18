"""From a fetch request to its answer: what is said before the pack, and what the pack is to hold.

Blocking work on objects (negotiation walks history): callers run it in a thread.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain

from mirror.errors import ClientError, ProtocolError
from mirror.repository.bare import BareRepository
from mirror.repository.frontier import find_frontier
from mirror.repository.packing.engine import PackRequest
from mirror.repository.shallow import ShallowUpdate, update_shallow
from mirror.repository.snapshot import RefSnapshot
from mirror.wire.answers import encode_in_side_band, encode_shallow_lines, encode_v2_sections
from mirror.wire.filters import ObjectFilter
from mirror.wire.names import ObjectId, Ref, RefName
from mirror.wire.negotiation import negotiate_v0, negotiate_v2
from mirror.wire.pktline import FLUSH_PKT
from mirror.wire.requests import FetchRequest, SideBand, UploadPackRequest


class UnknownRef(ClientError):
    """A ref that was asked for by its name is not there, or there are several."""

    label = "unknown_ref"


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """How a fetch is answered.

    Attributes:
        head: pkt-lines that go first.
        pack: The pack that follows; `None` when the answer ends here.
        side_band: How the pack is framed.
    """

    head: bytes
    pack: PackRequest | None
    side_band: SideBand

    def in_side_band(self) -> "FetchPlan":
        """Return it as ``sideband-all`` wants it; the pack is framed as it always is."""
        return replace(self, head=encode_in_side_band(self.head))


def first_missing(repository: BareRepository, oids: Iterable[ObjectId]) -> ObjectId | None:
    """Return the first of `oids` that the mirror lacks: one is enough to refuse a million."""
    return next((oid for oid in oids if not repository.source.contains(oid)), None)


def plan_v2(repository: BareRepository, snapshot: RefSnapshot, fetch: FetchRequest) -> FetchPlan:
    """Plan the answer to a v2 fetch whose wants are all here.

    Raises:
        UnknownRef: A `want-ref` or `deepen-not` names no ref of ours.
        ProtocolError: The request makes no sense.
    """
    plan = _plan_v2(repository, snapshot, fetch)
    return plan.in_side_band() if fetch.sideband_all else plan


def _plan_v2(repository: BareRepository, snapshot: RefSnapshot, fetch: FetchRequest) -> FetchPlan:
    wanted_refs = {name: _resolve(snapshot, name) for name in fetch.want_refs}
    wants = tuple(dict.fromkeys(chain(fetch.wants, wanted_refs.values())))
    request = replace(fetch, wants=wants)
    client_shallow = _known_shallow(repository, fetch)
    outcome = negotiate_v2(
        request,
        repository.source.contains,
        lambda common: repository.graph.all_reach(wants, common),
    )
    if not outcome.send_pack:
        return FetchPlan(outcome.lines, None, SideBand.LARGE)
    update = _shallow_update(repository, snapshot, request, client_shallow)
    shallow_info = None
    if fetch.deepen or client_shallow:
        shallow_info = encode_shallow_lines(update.shallow, update.unshallow)
    head = outcome.lines + encode_v2_sections(shallow_info=shallow_info, wanted_refs=wanted_refs)
    pack = _pack_request(repository, snapshot, request, outcome.common, update)
    return FetchPlan(head, pack, SideBand.LARGE)


def plan_v0(
    repository: BareRepository, snapshot: RefSnapshot, request: UploadPackRequest
) -> FetchPlan:
    """Plan the answer to a v0 or v1 fetch whose wants are all here.

    Raises:
        UnknownRef: A `deepen-not` names no ref of ours.
        ProtocolError: The request makes no sense.
    """
    fetch = request.fetch
    update = _shallow_update(repository, snapshot, fetch, _known_shallow(repository, fetch))
    head = b""
    if fetch.deepen:
        head = encode_shallow_lines(update.shallow, update.unshallow) + FLUSH_PKT
    if request.wants_only:
        return FetchPlan(head, None, request.side_band)
    outcome = negotiate_v0(
        request,
        repository.source.contains,
        lambda common: repository.graph.all_reach(fetch.wants, common),
    )
    head += outcome.lines
    if not outcome.send_pack:
        return FetchPlan(head, None, request.side_band)
    pack = _pack_request(repository, snapshot, fetch, outcome.common, update)
    return FetchPlan(head, pack, request.side_band)


def _resolve(snapshot: RefSnapshot, name: RefName) -> ObjectId:
    oid = snapshot.find(name)
    if oid is None:
        raise UnknownRef(f"unknown ref {name.decode('utf-8', 'backslashreplace')}")
    return oid


def _known_shallow(repository: BareRepository, fetch: FetchRequest) -> frozenset[ObjectId]:
    """Return the reader's boundary, as far as we know these commits."""
    known = {oid for oid in fetch.shallow if repository.source.contains(oid)}
    for oid in known:
        if repository.graph.node(oid) is None:
            raise ProtocolError(f"invalid shallow object {oid.decode()}: it is not a commit")
    return frozenset(known)


def _shallow_update(
    repository: BareRepository,
    snapshot: RefSnapshot,
    fetch: FetchRequest,
    client_shallow: frozenset[ObjectId],
) -> ShallowUpdate:
    excluded = []
    for short in fetch.deepen.exclude:
        found = snapshot.expand(short)
        if len(found) != 1:
            what = "ambiguous deepen-not" if found else "deepen-not is not a ref"
            shown = short.decode("utf-8", "backslashreplace")
            raise UnknownRef(f"git upload-pack: {what}: deepen-not {shown}")
        excluded.append(found[0])
    return update_shallow(
        repository.graph,
        wants=fetch.wants,
        client_shallow=client_shallow,
        deepen=fetch.deepen,
        excluded=excluded,
    )


def _pack_request(
    repository: BareRepository,
    snapshot: RefSnapshot,
    fetch: FetchRequest,
    common: tuple[ObjectId, ...],
    update: ShallowUpdate,
) -> PackRequest:
    """Put the request in its canonical form, so that equal questions are equal.

    What a reader has is told by the common frontier, and of the tags that it would take along only
    those that can be in the pack are named. A shallow reader does not have what lies above its
    boundary: what it says is taken as it is.

    A reader with a filter may lack the very object that a thin delta would build on. Without blobs
    it does not matter: then deltas are of trees, and it has these.
    """
    has_bases = fetch.filter in (None, ObjectFilter(blob_limit_bytes=0))
    wants = tuple(sorted({*fetch.wants, *update.wants}))
    haves = tuple(sorted({*common, *update.haves}))
    tags = tuple(snapshot.tags()) if fetch.include_tag else ()
    commits = None
    if haves and not update.boundary:
        frontier = find_frontier(repository.graph, wants, haves)
        if frontier is not None:
            haves, commits = frontier.commits, len(frontier.new)
            tags = tuple(tag for tag in tags if _may_be_sent(repository, tag, frontier.new))
    return PackRequest(
        wants=wants,
        haves=haves,
        shallow=update.boundary,
        filter=fetch.filter,
        thin=fetch.thin_pack and has_bases,
        ofs_delta=fetch.ofs_delta,
        tags=tags,
        commits=commits,
    )


def _may_be_sent(repository: BareRepository, tag: Ref, commits: frozenset[ObjectId]) -> bool:
    """Tell whether a pack with these commits may hold what a tag points to."""
    peeled = tag.peeled
    return peeled is not None and (peeled in commits or repository.graph.node(peeled) is None)
