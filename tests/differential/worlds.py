"""A repository that both servers serve, and all that is in it, known without asking either.

What commits reach is worked out here from the objects' own bytes: neither git's walks nor the
mirror's have a part in it, and a case needs no child process for it.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hypothesis import strategies as st

from mirror.wire.filters import ObjectFilter
from mirror.wire.names import ObjectId, RefName
from tests.repository.histories import FOREIGN_COMMIT, Change, Scratch
from tests.repository.packs import Kind, Whole
from tests.repository.strategies import histories

OBJECTS_IN_A_LINE: Final = 3
"""`cat-file --batch` begins an object with its id, type and size."""


class Storage(enum.Enum):
    """How the objects lie on disk. It may change how a pack is made, never what it is good for."""

    AS_PUSHED = "a pack from each push"
    PACKED = "one pack with git's best deltas"
    BITMAPPED = "one pack with a bitmap, and a commit-graph"
    INDEXED = "a multi-pack-index with a bitmap, and a commit-graph"


class Target(enum.Enum):
    """What a tag points to."""

    COMMIT = enum.auto()
    TREE = enum.auto()
    BLOB = enum.auto()
    TAG = enum.auto()


@dataclass(frozen=True)
class WorldPlan:
    """A history, its refs and its storage; numbers are places, taken modulo what there is.

    Attributes:
        changes: The commits.
        tags: Annotated tags and whether a ref names each.
        branches: The commits that have a branch.
        default: The branch that HEAD names; it need not be there.
        storage: How it lies on disk.
        pushes: In how many steps it came.
    """

    changes: Sequence[Change]
    tags: Sequence[tuple[Target, int, bool]] = ()
    branches: Sequence[int] = (-1,)
    default: str = "main"
    storage: Storage = Storage.AS_PUSHED
    pushes: int = 1


@st.composite
def world_plans(draw: st.DrawFn) -> WorldPlan:
    places = st.integers(0, 99)
    tags = st.tuples(st.sampled_from(Target), places, st.sampled_from([True, True, False]))
    return WorldPlan(
        draw(histories()),
        draw(st.lists(tags, max_size=4)),
        [-1, *draw(st.lists(places, max_size=3))],
        draw(st.sampled_from(["main", "main", "trunk", "b1", "nowhere"])),
        draw(st.sampled_from(Storage)),
        draw(st.integers(1, 3)),
    )


@dataclass(frozen=True, slots=True)
class Commit:
    tree: ObjectId
    parents: tuple[ObjectId, ...]
    time: int


@dataclass(slots=True)
class World:
    """A repository and what is in it.

    Attributes:
        scratch: It, on disk.
        made: The commits in the order of the plan.
        objects: All objects.
        refs: Its refs.
        default: The branch that HEAD names.
        commits: The commits among the objects.
        tagged: What each tag points to.
    """

    scratch: Scratch
    made: list[ObjectId]
    objects: dict[ObjectId, Whole]
    refs: dict[RefName, ObjectId]
    default: bytes
    commits: dict[ObjectId, Commit] = field(default_factory=dict)
    tagged: dict[ObjectId, ObjectId] = field(default_factory=dict)
    _contents: dict[ObjectId, frozenset[ObjectId]] = field(default_factory=dict)

    @classmethod
    def make(cls, plan: WorldPlan, path: Path) -> "World":
        """Make it in the directory `path`, which must not be there yet."""
        scratch = Scratch(path)
        made: list[ObjectId] = []
        for part in _parts(plan.changes, plan.pushes):
            made += scratch.commits(*(_on(change, made) for change in part))
        world = cls(scratch, made, _read_all(scratch), {}, plan.default.encode())
        for place in range(len(plan.branches)):
            commit = made[plan.branches[place] % len(made)]
            world.refs[RefName(b"refs/heads/" + _branch(plan, place))] = commit
        for number, tag in enumerate(plan.tags):
            world._add_tag(number, *tag)
        (path / "HEAD").write_text(f"ref: refs/heads/{plan.default}\n")
        scratch.refs({name.decode(): oid for name, oid in world.refs.items()})
        scratch.pack_loose()
        _store(scratch, plan.storage)
        for oid, (kind, content) in world.objects.items():
            world._note(oid, kind, content)
        return world

    def _add_tag(self, number: int, kind: Target, place: int, has_ref: bool) -> None:
        name = Kind[kind.name]
        targets = [oid for oid, whole in self.objects.items() if whole[0] is name] or self.made
        target = targets[place % len(targets)]
        kind_name = self.objects[target][0].name.lower().encode()
        oid = self.scratch.tag(target, f"v{number}", kind_name)
        self.objects[oid] = Kind.TAG, self.scratch.loose(oid)
        if has_ref:
            self.refs[RefName(b"refs/tags/v%d" % number)] = oid

    def _note(self, oid: ObjectId, kind: Kind, content: bytes) -> None:
        head = content.partition(b"\n\n")[0].splitlines()
        if kind is Kind.TAG:
            self.tagged[oid] = ObjectId(head[0].split()[1])
        if kind is Kind.COMMIT:
            rows = [line.split() for line in head]
            parents = tuple(ObjectId(row[1]) for row in rows if row[0] == b"parent")
            time = next(int(row[-2]) for row in rows if row[0] == b"committer")
            self.commits[oid] = Commit(ObjectId(rows[0][1]), parents, time)

    def head(self) -> ObjectId | None:
        """Return what HEAD leads to; `None` when its branch is not there."""
        return self.refs.get(RefName(b"refs/heads/" + self.default))

    def kind(self, oid: ObjectId) -> Kind:
        return self.objects[oid][0]

    def peeled(self, oid: ObjectId) -> ObjectId:
        """Return what a tag finally points to, and anything else as it is."""
        while oid in self.tagged:
            oid = self.tagged[oid]
        return oid

    def tag_chain(self, oid: ObjectId) -> set[ObjectId]:
        """Return a tag and the tags that it points to."""
        found = set()
        while oid in self.tagged:
            found.add(oid)
            oid = self.tagged[oid]
        return found

    def history(
        self, starts: Iterable[ObjectId], boundary: frozenset[ObjectId] = frozenset()
    ) -> set[ObjectId]:
        """Return the commits that `starts` reach, no parent of `boundary` followed."""
        found: set[ObjectId] = set()
        todo = [self.peeled(start) for start in starts]
        while todo:
            oid = todo.pop()
            if oid in self.commits and oid not in found:
                found.add(oid)
                if oid not in boundary:
                    todo += self.commits[oid].parents
        return found

    def reach(
        self, starts: Iterable[ObjectId], boundary: frozenset[ObjectId] = frozenset()
    ) -> set[ObjectId]:
        """Return all objects that `starts` reach, no parent of `boundary` followed."""
        starts = list(starts)
        found = self.history(starts, boundary)
        for commit in list(found):
            found |= self.contents(self.commits[commit].tree)
        for start in starts:
            found |= self.tag_chain(start)
            if (target := self.peeled(start)) not in self.commits:
                found |= self.contents(target)
        return found

    def entries(self, tree: ObjectId) -> dict[bytes, tuple[bytes, ObjectId]]:
        """Return the entries of a tree, but for submodules: mode and id by name."""
        content = self.objects[tree][1]
        found = {}
        position = 0
        while position < len(content):
            end = content.index(b"\0", position)
            mode, _, name = content[position:end].partition(b" ")
            position = end + 21
            if mode != b"160000":
                found[name] = mode, ObjectId(content[end + 1 : position].hex().encode())
        return found

    def contents(self, oid: ObjectId) -> frozenset[ObjectId]:
        """Return a tree or a blob, and all that is in it."""
        if oid not in self._contents:
            found = {oid}
            if self.kind(oid) is Kind.TREE:
                for _, entry in self.entries(oid).values():
                    found |= self.contents(entry)
            self._contents[oid] = frozenset(found)
        return self._contents[oid]

    def passing(
        self, wanted: ObjectFilter, starts: Iterable[ObjectId], boundary: frozenset[ObjectId]
    ) -> set[ObjectId]:
        """Return the trees and blobs that `starts` reach and a filter lets pass."""
        depths: dict[ObjectId, int] = {}
        starts = list(starts)
        commits = self.history(starts, boundary)
        others = [oid for start in starts if (oid := self.peeled(start)) not in self.commits]
        for tree in [*(self.commits[oid].tree for oid in commits), *others]:
            self._note_depths(tree, 0, depths)
        return {oid for oid, depth in depths.items() if self._passes(oid, depth, wanted)}

    def _note_depths(self, oid: ObjectId, depth: int, depths: dict[ObjectId, int]) -> None:
        if depths.get(oid, depth + 1) <= depth:
            return
        depths[oid] = depth
        if self.kind(oid) is Kind.TREE:
            for _, entry in self.entries(oid).values():
                self._note_depths(entry, depth + 1, depths)

    def _passes(self, oid: ObjectId, depth: int, wanted: ObjectFilter) -> bool:
        kind, content = self.objects[oid]
        if wanted.tree_depth is not None and depth >= wanted.tree_depth:
            return False
        types = wanted.object_types
        if types is not None and kind.name.lower().encode() not in types:
            return False
        limit = wanted.blob_limit_bytes
        return kind is not Kind.BLOB or limit is None or len(content) < limit


def _parts(changes: Sequence[Change], count: int) -> list[Sequence[Change]]:
    size = -(-len(changes) // count)
    return [changes[start : start + size] for start in range(0, len(changes), size)]


def _on(change: Change, made: Sequence[ObjectId]) -> Change:
    """Name the parents that came with an earlier push by their ids."""
    parents = [
        made[parent]
        if isinstance(parent, int) and parent < len(made)
        else parent - len(made)
        if isinstance(parent, int)
        else parent
        for parent in change.parents
    ]
    return Change(change.files, parents, change.at)


def _branch(plan: WorldPlan, place: int) -> bytes:
    """The first branch is called main or, where that was renamed, trunk."""
    if place:
        return b"b%d" % place
    return b"trunk" if plan.default == "trunk" else b"main"


def _read_all(scratch: Scratch) -> dict[ObjectId, Whole]:
    printed = scratch.git("cat-file", "--batch", "--batch-all-objects", "--buffer")
    found: dict[ObjectId, Whole] = {}
    position = 0
    while position < len(printed):
        end = printed.index(b"\n", position)
        oid, kind, size = printed[position:end].split()
        start, position = end + 1, end + 2 + int(size)
        found[ObjectId(oid)] = Kind[kind.decode().upper()], printed[start : position - 1]
    assert FOREIGN_COMMIT not in found
    return found


def _store(scratch: Scratch, storage: Storage) -> None:
    match storage:
        case Storage.AS_PUSHED:
            pass
        case Storage.PACKED:
            scratch.git("repack", "-adkfq", "--window=20", "--depth=20")
        case Storage.BITMAPPED:
            scratch.git("repack", "-adkqb")
            scratch.git("commit-graph", "write", "--reachable", "--no-progress")
        case Storage.INDEXED:
            scratch.git("multi-pack-index", "write", "--bitmap", "--no-progress")
            scratch.git("commit-graph", "write", "--reachable", "--no-progress")
