"""A reader: what it has, and what it makes of an answer, as git's client does."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mirror.wire.names import ObjectId, Ref, RefName
from tests.differential.servers import Reply
from tests.differential.worlds import World
from tests.repository.histories import Scratch
from tests.repository.packing.building import pack_of
from tests.repository.packs import Kind, Whole, entries, unpacked


@dataclass(frozen=True)
class Reader:
    """A repository of somebody's.

    Attributes:
        objects: What it has.
        shallow: Its shallow file.
        tips: What its refs point to.
        is_partial: Whether it fetched with a filter once: then objects may be missing.
    """

    objects: frozenset[ObjectId] = frozenset()
    shallow: frozenset[ObjectId] = frozenset()
    tips: frozenset[ObjectId] = frozenset()
    is_partial: bool = False

    def commits(self, world: World) -> set[ObjectId]:
        """Return the commits that its refs reach, as far as it has them."""
        found = world.history(self.tips, self.shallow)
        return found & self.objects

    def look_up(self, world: World, oid: ObjectId) -> Whole | None:
        """Return an object that it has."""
        return world.objects[oid] if oid in self.objects else None

    def received(self, world: World, pack: bytes, *, thin: bool, ofs_delta: bool) -> set[ObjectId]:
        """Index a pack as ``index-pack --strict`` does, with ``--fix-thin`` where it may be thin.

        Its objects are compared with the world's by their ids.
        """
        if not ofs_delta:
            assert not any(entry.kind is Kind.OFS_DELTA for entry in entries(pack))
        found = unpacked(pack, lambda oid: self.look_up(world, oid) if thin else None)
        assert found.keys() <= world.objects.keys(), "an object that nobody has made"
        return set(found)

    def after(
        self,
        reply: Reply,
        received: Iterable[ObjectId],
        wants: Iterable[ObjectId],
        *,
        partial: bool,
    ) -> "Reader":
        """Return the reader as it is after the answer."""
        rows = [line.split() for line in reply.lines if isinstance(line, bytes)]
        cut = {ObjectId(row[1]) for row in rows if row[0] == b"shallow"}
        mended = {ObjectId(row[1]) for row in rows if row[0] == b"unshallow"}
        return replace(
            self,
            objects=self.objects.union(received),
            shallow=(self.shallow | cut) - mended,
            tips=self.tips.union(wants),
            is_partial=self.is_partial or partial,
        )

    def missing(self, world: World) -> set[ObjectId]:
        """Return what its refs reach and it lacks: what a connectivity check complains of."""
        return world.reach(self.tips, self.shallow) - self.objects

    def followed_tags(self, listed: Iterable[Ref]) -> dict[RefName, ObjectId]:
        """Return the tags that it sets refs for on its own, because it has what they point to."""
        return {
            ref.name: ref.oid
            for ref in listed
            if ref.name.startswith(b"refs/tags/") and (ref.peeled or ref.oid) in self.objects
        }

    def take_in_as_git(
        self, world: World, pack: bytes, after: "Reader", path: Path, *, thin: bool
    ) -> None:
        """Let git's client take the pack in, and see that it ends as `after` does.

        This is what `received` and `missing` stand for, where it may cost a few child processes.
        """
        scratch = Scratch(path)
        if self.objects:
            scratch.git("index-pack", "--stdin", stdin=pack_of(world.scratch, self.objects))
        scratch.git("index-pack", "--stdin", *(["--fix-thin"] if thin else []), stdin=pack)
        listed = scratch.git("cat-file", "--batch-all-objects", "--batch-check=%(objectname)")
        free_tags = frozenset(world.tagged)  # a tag within what was told may come along, or not
        assert frozenset(listed.split()) - free_tags == after.objects - free_tags
        (path / "shallow").write_bytes(b"".join(b"%b\n" % oid for oid in sorted(after.shallow)))
        tips = b"".join(b"%b\n" % oid for oid in after.tips)
        scratch.git("rev-list", "--objects", "--quiet", "--stdin", stdin=tips)
        names = [oid.decode() for oid in sorted(after.tips)]
        scratch.git("fsck", "--strict", "--no-dangling", *names)
