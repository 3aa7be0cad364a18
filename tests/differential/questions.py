"""What readers ask: who they are, what they have from earlier fetches, and what they want now.

A question is drawn without knowing the history: its numbers are places, taken modulo what is there.
Who asks is a reader as git is one: it sends its haves in rounds, newest first, repeats what was
found common, and ends with ``done``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from mirror.wire.filters import ObjectFilter
from mirror.wire.names import HEAD, ObjectId, RefName
from mirror.wire.requests import (
    INFINITE_DEPTH,
    AckMode,
    Deepen,
    FetchRequest,
    SideBand,
    UploadPackRequest,
)
from tests.differential.reader import Reader
from tests.differential.servers import Reply, acknowledged, says_ready
from tests.differential.worlds import World
from tests.repository.packs import Kind
from tests.wire.bodies import command, fetch_groups, oid, upload_pack

UNKNOWN = [oid(number) for number in range(1, 5)]
"""Commits of the reader's own, which no server has."""


@dataclass(frozen=True)
class Depth:
    """How much history is asked for: `deepen` of places instead of dates and names.

    Attributes:
        depth: As in `Deepen`.
        relative: As in `Deepen`.
        since: The commit whose date it is, and how many seconds later.
        exclude: Refs.
    """

    depth: int | None = None
    relative: bool = False
    since: tuple[int, int] | None = None
    exclude: Sequence[int] = ()

    def resolve(self, world: World) -> Deepen:
        """Return what is asked for in one world."""
        since = None
        if self.since is not None:
            place, later = self.since
            since = world.commits[world.made[place % len(world.made)]].time + later
        names = sorted(world.refs)
        short = (names[place % len(names)] for place in self.exclude)
        exclude = tuple(dict.fromkeys(name.removeprefix(b"refs/") for name in short))
        return Deepen(self.depth, self.relative, since, exclude)


@dataclass(frozen=True)
class Past:
    """An earlier fetch of the reader's, from git's own server."""

    wants: Sequence[int]
    deepen: Depth = field(default_factory=Depth)
    filter: ObjectFilter | None = None


@dataclass(frozen=True)
class Question:
    """A fetch.

    Attributes:
        version: Of the protocol: 0 or 2.
        past: Earlier fetches of the reader.
        wants: Places: among the tips that refs name, or among all objects.
        wants_anything: Which of the two.
        wants_unknown: It wants one more, which nobody has.
        want_refs: Refs wanted by name; v2 only.
        deepen: How much history is wanted.
        filter: What to leave out.
        round_haves: How many new haves go into a round.
        untold: Which of its commits the reader does not tell of.
        strange: Where in its list of haves it tells of commits that only it has.
        odd_haves: Objects of any kind that it has and tells of first.
        foreign_shallow: Its boundary has commits that no server knows.
        flags: thin-pack, ofs-delta, include-tag, no-done, wait-for-done.
        acks: v0's form of acknowledgments.
        side_band: v0's framing.
    """

    wants: Sequence[int] = (0,)
    version: int = 2
    past: Sequence[Past] = ()
    wants_anything: bool = False
    wants_unknown: bool = False
    want_refs: Sequence[int] = ()
    deepen: Depth = field(default_factory=Depth)
    filter: ObjectFilter | None = None
    round_haves: int = 16
    untold: Sequence[int] = ()
    strange: Sequence[int] = ()
    odd_haves: Sequence[int] = ()
    foreign_shallow: bool = False
    flags: frozenset[str] = frozenset()
    acks: AckMode = AckMode.DETAILED
    side_band: SideBand = SideBand.LARGE

    def wanted(self, world: World) -> tuple[ObjectId, ...]:
        """Return the ids that are wanted."""
        tips = list(dict.fromkeys(world.refs[name] for name in sorted(world.refs)))
        candidates = list(world.objects) if self.wants_anything else tips
        wanted = dict.fromkeys(candidates[place % len(candidates)] for place in self.wants)
        return (*wanted, *UNKNOWN[:1]) if self.wants_unknown else tuple(wanted)

    def wanted_refs(self, world: World) -> tuple[RefName, ...]:
        """Return the refs that are wanted by their names."""
        names = [*sorted(world.refs), *([HEAD] if world.head() is not None else [])]
        return tuple(dict.fromkeys(names[place % len(names)] for place in self.want_refs))

    def haves(self, world: World, reader: Reader) -> list[ObjectId]:
        """Return what the reader tells of, in its order."""
        own = sorted(reader.commits(world), key=lambda one: (-world.commits[one].time, one))
        untold = {own[place % len(own)] for place in self.untold} if own else set()
        has = [one for one in world.objects if one in reader.objects]
        told = [has[place % len(has)] for place in self.odd_haves] if has else []
        told += [one for one in own if one not in untold]
        for number, place in enumerate(self.strange):
            told.insert(place % (len(told) + 1), UNKNOWN[number % len(UNKNOWN)])
        return list(dict.fromkeys(told))

    def asked(self, world: World, reader: Reader) -> FetchRequest:
        """Return the fetch without its haves."""
        shallow = reader.shallow | (frozenset(UNKNOWN[3:]) if self.foreign_shallow else frozenset())
        return FetchRequest(
            wants=self.wanted(world),
            want_refs=self.wanted_refs(world) if self.version == 2 else (),
            shallow=shallow,
            deepen=self.deepen.resolve(world),
            filter=self.filter,
            thin_pack="thin-pack" in self.flags,
            ofs_delta="ofs-delta" in self.flags,
            include_tag="include-tag" in self.flags,
            wait_for_done="wait-for-done" in self.flags and self.version == 2,
        )

    def encode(self, fetch: FetchRequest, *, wants_only: bool = False) -> bytes:
        """Write one request of it."""
        if self.version == 2:
            groups = fetch_groups(fetch)
            return command(b"fetch", *(line for group in groups for line in group))
        return upload_pack(
            UploadPackRequest(
                fetch,
                wants_only=wants_only,
                acks=self.acks,
                no_done="no-done" in self.flags,
                side_band=self.side_band,
            )
        )


@dataclass(slots=True)
class Conversation:
    """The rounds of one fetch. The reader is led by git's answers.

    Attributes:
        request: What was asked last.
        reply: git's answer to it.
        gives_up: The next request is to be the last.
    """

    question: Question
    world: World
    reader: Reader
    request: FetchRequest = field(default_factory=FetchRequest)
    reply: Reply | None = None
    gives_up: bool = False

    @property
    def may_be_ready(self) -> bool:
        """Whether git's own server says at random that it is ready, or does not."""
        known = self.reader.shallow & self.world.objects.keys()
        return self.question.version == 0 and bool(self.request.deepen or known)

    def rounds(self) -> Iterator[bytes]:
        """Yield the bodies, each after `reply` was set to git's answer to the one before."""
        question = self.question
        asked = question.asked(self.world, self.reader)
        haves = question.haves(self.world, self.reader)
        if question.version != 2 and asked.deepen:
            self.request = asked
            yield question.encode(asked, wants_only=True)
            if self.reply is not None and self.reply.error is not None:
                return
        common: dict[ObjectId, None] = {}
        is_ready = False
        while True:
            batch = [] if is_ready or self.gives_up else haves[: question.round_haves]
            haves = haves[question.round_haves :]
            told = tuple(dict.fromkeys((*common, *batch)))
            self.request = replace(asked, haves=told, done=not batch)
            yield question.encode(self.request)
            if self.reply is None or self.request.done or self.reply.pack or self.reply.error:
                return
            common |= {one: None for one in acknowledged(self.reply) if one in self.world.objects}
            is_ready = says_ready(self.reply) or (
                question.version == 0 and question.acks is AckMode.SINGLE and bool(common)
            )


# --- strategies --------------------------------------------------------------------------------

_places = st.integers(0, 99)
_few = st.lists(_places, min_size=1, max_size=3)

filters = st.builds(
    ObjectFilter,
    st.sampled_from([None, None, 0, 0, 1, 80]),
    st.sampled_from([None, None, 0, 1, 2, 3]),
    st.sampled_from(
        [None, None, None, *(frozenset({kind.name.lower().encode()}) for kind in list(Kind)[:4])]
    ),
).filter(lambda one: one != ObjectFilter())

_since = st.tuples(_places, st.sampled_from([-1, 0, 1]))
_by_count = st.builds(Depth, st.integers(1, 5) | st.just(INFINITE_DEPTH), st.booleans())
depths = st.one_of(
    _by_count,
    _by_count,
    _by_count,
    st.builds(Depth, since=_since),
    st.builds(Depth, exclude=st.lists(_places, min_size=1, max_size=2)),
    st.builds(Depth, since=_since, exclude=st.lists(_places, min_size=1, max_size=1)),
)
_depths_sometimes = st.booleans().flatmap(lambda has: depths if has else st.just(Depth()))
_filters_sometimes = st.sampled_from([True, False, False, False]).flatmap(
    lambda has: filters if has else st.none()
)
_pasts = st.builds(Past, _few, _depths_sometimes, _filters_sometimes)
_flags = st.frozensets(
    st.sampled_from(["thin-pack", "ofs-delta", "include-tag", "no-done", "wait-for-done"])
)
_now_and_then = st.sampled_from([True, False, False, False, False])


@st.composite
def questions(draw: st.DrawFn) -> Question:
    few_or_none = st.lists(_places, max_size=2)
    return Question(
        wants=draw(_few),
        version=draw(st.sampled_from([0, 2])),
        past=draw(st.lists(_pasts, max_size=2)),
        wants_anything=draw(_now_and_then),
        wants_unknown=draw(st.integers(0, 29)) == 0,
        want_refs=draw(few_or_none) if draw(_now_and_then) else (),
        deepen=draw(_depths_sometimes),
        filter=draw(_filters_sometimes),
        round_haves=draw(st.sampled_from([1, 2, 3, 16, 16])),
        untold=draw(few_or_none),
        strange=draw(few_or_none),
        odd_haves=draw(few_or_none) if draw(_now_and_then) else (),
        foreign_shallow=draw(_now_and_then),
        flags=draw(_flags),
        acks=draw(st.sampled_from([AckMode.DETAILED, AckMode.DETAILED, *AckMode])),
        side_band=draw(st.sampled_from([SideBand.LARGE, *SideBand])),
    )
