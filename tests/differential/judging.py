"""When two answers to the same fetch agree.

Both servers must refuse the request, or neither. Then

* **lines** agree: the same ACK, NAK and ready lines in the same order, the same shallow and
  unshallow lines and wanted refs in any order, round for round, and a pack in the same round. In
  v0, where there is a boundary, ready is free: git looks behind the boundary or not, depending on
  whether a want has been parsed by then, and so on the commit-graph file and on tags;
* **forms** are what was asked for: no object twice, no delta against what the reader lacks unless
  the pack may be thin, no offset delta that was not allowed;
* **objects** agree but for what both sides know the reader to have. `told` is what the common haves
  reach (and the commits that are unshallowed), no parent followed behind the reader's boundary and
  the new one. An object outside `told` is sent by both servers or by neither. So a reader that has
  all that it tells of ends with exactly the same objects, the same shallow file, the same tags
  followed, and a whole history;
* **spare** objects, those within `told` that we send and git does not, are only such as a commit to
  be sent has at a path where none of its parents that are followed has the same: our own engine
  looks no further than the parents (`mirror.repository.packing.selection`). Which of the objects in
  `told` git itself leaves out depends on bitmaps and on which trees lie at the edge of its walk.
  Where a commit claims to be older than a parent, walks by date end too early, git's as ours, and
  more of `told` may be sent.

A filter that combines tree:N with others is not kept by git as it is written: once an object was
met too deep, git takes it for seen and leaves it out, though it lies higher elsewhere. There we may
send more than git: what passes each of the filters.

What a filter says of an object that was asked for, itself or by a tag, git obeys or not, depending
on the order in which it meets it (`NOT_USER_GIVEN` in list-objects.c): such an object is free, and
what is in it.

The history is whole as far as git itself makes it so. With a date or an excluded ref it cuts also
at commits behind the boundary, which the reader never gets; when it deepens such a reader, it takes
them for had.

Tags that come along by include-tag follow their targets, and are free where these are; one that the
reader has told of itself may come again.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from mirror.wire.names import ObjectId, Ref, RefName
from mirror.wire.pktline import Packet
from mirror.wire.requests import AckMode
from tests.differential.questions import Conversation, Past, Question
from tests.differential.reader import Reader
from tests.differential.servers import Git, Ours, Reply
from tests.differential.worlds import World
from tests.repository.packs import Kind
from tests.wire.git_server import sections


@dataclass(slots=True)
class Judge:
    """Asks both sides the same, and compares what they make of it.

    Attributes:
        world: What both serve.
        git: git's server.
        ours: Our servers.
        listed: The refs that each of ours lists, which are git's.
    """

    world: World
    git: Git
    ours: list[Ours]
    listed: dict[str, list[Ref]]

    @classmethod
    async def of(cls, world: World, ours: list[Ours]) -> "Judge":
        """Put all of them in front of a repository, and compare what they say of its refs."""
        git = Git(world.scratch.path)
        by_git = git.listings()
        listed = {}
        for server in ours:
            server.show(world.scratch.path)
            with named(server.name):
                for said, expected in zip(await server.listings(), by_git, strict=True):
                    assert set(said.refs) == set(expected.refs)
                    assert (said.head, said.head_target) == (expected.head, expected.head_target)
                    listed[server.name] = list(said.refs)
        return cls(world, git, ours, listed)

    async def compare(self, question: Question) -> "Outcome | None":
        """Hold one conversation with all servers; returns what came of it if it led to packs."""
        conversation = Conversation(question, self.world, self.reader_after(question.past))
        replies: list[Reply] = []
        for body in conversation.rounds():
            by_git, *replies = await self._ask_all(question.version, body)
            again = await asyncio.gather(*(one.ask(question.version, body) for one in self.ours))
            conversation.reply = by_git
            packs = {reply.pack is not None for reply in (by_git, *replies)}
            if conversation.may_be_ready and len(packs) > 1:
                conversation.reply = replace(by_git, pack=None)
                conversation.gives_up = True
            for server, reply, repeated in zip(self.ours, replies, again, strict=True):
                with named(server.name):
                    assert_same_lines(conversation, reply, by_git)
                    assert repeated == reply, "asked again, it answers differently"
        if conversation.reply is None or conversation.reply.pack is None:
            return None
        outcome = Outcome.of(conversation, conversation.reply)
        for server, reply in zip(self.ours, replies, strict=True):
            with named(server.name):
                outcome.check(reply, self.listed[server.name])
                assert reply.pack is not None
                outcome.packs[server.name] = reply.pack
        return outcome

    async def _ask_all(self, version: int, body: bytes) -> list[Reply]:
        """Return git's answer, then ours."""
        by_git = asyncio.to_thread(self.git.ask, version, body)
        return await asyncio.gather(by_git, *(one.ask(version, body) for one in self.ours))

    def reader_after(self, past: Iterable[Past]) -> Reader:
        """Return the reader that has fetched from git's server before."""
        reader = Reader()
        for fetch in past:
            question = Question(
                fetch.wants,
                deepen=fetch.deepen,
                filter=fetch.filter,
                flags=frozenset({"ofs-delta"}),
            )
            conversation = Conversation(question, self.world, reader)
            for body in conversation.rounds():
                conversation.reply = self.git.ask(question.version, body)
            if conversation.reply is not None and conversation.reply.pack is not None:
                reader = Outcome.of(conversation, conversation.reply).after
        return reader


@contextmanager
def named(server: str) -> Iterator[None]:
    """Say whose answer it is that fails."""
    try:
        yield
    except AssertionError as error:
        error.add_note(f"the answer is that of engine: {server}")
        raise


def assert_same_lines(conversation: Conversation, by_us: Reply, by_git: Reply) -> None:
    """Compare what comes before the pack, whether one comes, and whether it is refused."""
    assert (by_us.error is None) == (by_git.error is None), (by_us.error, by_git.error)
    if by_git.error is not None:
        return
    if conversation.question.version == 2:
        said, expected = sections(by_us.lines), sections(by_git.lines)
        assert said == expected, f"we say {said}, git {expected}"
    else:
        ours, gits = in_order(conversation, by_us.lines), in_order(conversation, by_git.lines)
        assert ours == gits, f"we say {ours}, git {gits}"
    if not conversation.may_be_ready or conversation.request.done:
        assert (by_us.pack is None) == (by_git.pack is None), "one of them sends a pack"


def in_order(conversation: Conversation, lines: list[Packet]) -> list[Packet]:
    """Sort the shallow lines of a v0 answer, and leave out what git says or not."""
    acks = [line for line in lines if isinstance(line, bytes) and line.startswith(b"ACK")]
    left_out: list[bytes] = []
    if conversation.question.acks is AckMode.SINGLE:
        left_out = acks[1:]
    elif conversation.may_be_ready and not conversation.request.done:
        known = conversation.world.objects
        left_out = [
            line
            for line in acks
            if line.endswith(b" ready") or line.count(b" ") == 1 or line.split()[1] not in known
        ]
    kept = [line for line in lines if line not in left_out]
    found = [line for line in kept if isinstance(line, bytes) and b"shallow " in line]
    order = iter(sorted(found))
    return [next(order) if line in found else line for line in kept]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What git's answer made of a reader, and what ours must therefore make of it.

    Attributes:
        told: What the reader has, as far as the servers know.
        boundary: Commits whose parents were not followed.
        wants: What was sent, with all that it reaches.
        by_git: The objects in git's pack.
        after: The reader after git's answer.
        packs: Ours, by the engine that made them.
    """

    conversation: Conversation
    told: frozenset[ObjectId]
    boundary: frozenset[ObjectId]
    wants: frozenset[ObjectId]
    by_git: frozenset[ObjectId]
    after: Reader
    packs: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, conversation: Conversation, reply: Reply) -> "Outcome":
        """Work it out from git's reply."""
        world, reader, request = conversation.world, conversation.reader, conversation.request
        rows = [line.split() for line in reply.lines if isinstance(line, bytes)]
        mended = {ObjectId(row[1]) for row in rows if row[0] == b"unshallow"}
        cut = {ObjectId(row[1]) for row in rows if row[0] == b"shallow"}
        boundary = frozenset(reader.shallow | cut)
        named = {oid for name in request.want_refs if (oid := _resolved(world, name)) is not None}
        above = {parent for oid in mended for parent in world.commits[oid].parents}
        common = {oid for oid in request.haves if oid in world.objects}
        assert reply.pack is not None
        # A partial reader asks a second time for a base that it lacks.
        trusting = replace(reader, objects=frozenset(world.objects))
        received = trusting.received(world, reply.pack, thin=request.thin_pack, ofs_delta=True)
        partial = request.filter is not None
        wants = frozenset({*request.wants, *named})
        return cls(
            conversation,
            told=frozenset(world.reach({*common, *mended}, boundary)),
            boundary=boundary,
            wants=wants | above,
            by_git=frozenset(received),
            after=reader.after(reply, received, wants, partial=partial),
        )

    def check(self, reply: Reply, listed: list[Ref]) -> None:
        """Compare our answer with git's."""
        world, request = self.conversation.world, self.conversation.request
        reader = self.conversation.reader
        assert reply.pack is not None
        # What a partial reader was promised, it can ask for; any other must have it.
        promised = self.told if reader.is_partial else frozenset[ObjectId]()
        received = replace(reader, objects=reader.objects | promised).received(
            world, reply.pack, thin=request.thin_pack, ofs_delta=request.ofs_delta
        )
        free = self._free()
        left_out = self.by_git - received - free
        assert not left_out, f"left out: {self._described(left_out)}"
        added = received - self.by_git - free - self._lost_by_git()
        assert not added, f"nobody asked for: {self._described(added)}"
        partial = request.filter is not None
        asked = frozenset(self.after.tips - reader.tips) | (self.wants & self.after.tips)
        after = reader.after(reply, received, asked, partial=partial)
        assert after.shallow == self.after.shallow
        if not after.is_partial:
            lacking = after.missing(world) - self.after.missing(world)
            assert not lacking, f"its history is not whole: {self._described(lacking)}"
            differing = (after.objects ^ self.after.objects) - free
            assert not differing, self._described(differing)
            assert after.followed_tags(listed) == self.after.followed_tags(listed)
        spare = ((received - self.by_git) & self.told) - world.tagged.keys()
        if spare and self._has_right_clocks() and (unchanged := spare - self._changed()):
            raise AssertionError(f"sent for no reason: {self._described(unchanged)}")

    def take_in_as_git(self, directory: Path) -> None:
        """Let git's client take our packs in."""
        world, reader = self.conversation.world, self.conversation.reader
        for name, pack in self.packs.items():
            with named(name):
                thin = self.conversation.request.thin_pack
                reader.take_in_as_git(world, pack, self.after, directory / f"{name}.git", thin=thin)

    def _lost_by_git(self) -> frozenset[ObjectId]:
        """Return what passes a combined filter, though git may lose it."""
        request = self.conversation.request
        if request.filter is None or request.filter.tree_depth is None:
            return frozenset()
        if len(request.filter.specs()) < 2:
            return frozenset()
        passing = self.conversation.world.passing(request.filter, self.wants, self.boundary)
        return frozenset(passing) | frozenset(
            tag
            for oid in self.conversation.world.tagged
            if request.include_tag and self.conversation.world.peeled(oid) in passing
            for tag in self.conversation.world.tag_chain(oid)
        )

    def _free(self) -> frozenset[ObjectId]:
        """Return what git may send or not."""
        world, request = self.conversation.world, self.conversation.request
        free = self.told
        if request.filter is not None:
            targets = {world.peeled(want) for want in self.wants}
            free = free.union(targets, *map(world.contents, targets - world.commits.keys()))
        tags = [oid for oid in world.tagged if world.peeled(oid) in free and request.include_tag]
        return free.union(*map(world.tag_chain, tags))

    def _has_right_clocks(self) -> bool:
        world, request = self.conversation.world, self.conversation.request
        common = [oid for oid in request.haves if oid in world.objects]
        commits = world.commits
        return all(
            commits[parent].time <= commits[oid].time
            for oid in world.history([*self.wants, *common])
            for parent in commits[oid].parents
        )

    def _changed(self) -> set[ObjectId]:
        """Return what each commit to be sent has that its parents do not have at its place."""
        world = self.conversation.world
        had = self.told
        found: set[ObjectId] = set()
        for want in self.wants:
            target = world.peeled(want)
            found |= world.tag_chain(want)
            if target not in world.commits:
                found |= world.contents(target)
        for oid in world.history(self.wants, self.boundary):
            if oid in had:
                continue
            commit = world.commits[oid]
            parents = () if oid in self.boundary else commit.parents
            bases = [world.commits[parent].tree for parent in parents]
            found.add(oid)
            found |= changed(world, commit.tree, bases)
        return found

    def _described(self, oids: Iterable[ObjectId]) -> list[str]:
        world = self.conversation.world
        return [f"{world.kind(oid).name.lower()} {oid.decode()}" for oid in sorted(oids)]


def changed(world: World, tree: ObjectId, bases: list[ObjectId]) -> set[ObjectId]:
    """Return what is in a tree, but for what one of `bases` has at the same path."""
    if tree in bases:
        return set()
    found = {tree}
    before = [world.entries(base) for base in bases]
    for name, entry in world.entries(tree).items():
        if any(base.get(name) == entry for base in before):
            continue
        if world.kind(entry[1]) is not Kind.TREE:
            found.add(entry[1])
            continue
        below = [base[name][1] for base in before if name in base]
        found |= changed(world, entry[1], [one for one in below if world.kind(one) is Kind.TREE])
    return found


def _resolved(world: World, name: RefName) -> ObjectId | None:
    return world.head() if name == b"HEAD" else world.refs.get(name)
