"""git as the judge of packs: what a reader has, what it needs, and whether a pack gives it that."""

import itertools
import os
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from dulwich.object_format import SHA1
from dulwich.pack import load_pack_index

from mirror.repository.packing.engine import PackRequest
from mirror.wire.filters import ObjectFilter
from mirror.wire.names import ObjectId
from tests.git_client import environment
from tests.repository.histories import Scratch
from tests.repository.packs import Kind, entries


@dataclass(frozen=True, slots=True)
class Received:
    """A pack as a reader has taken it in: its objects lie in `objects`."""

    oids: frozenset[ObjectId]
    objects: Path


class Judge:
    """Compares packs made from one repository with what git makes of the same requests."""

    def __init__(self, scratch: Scratch, workdir: Path) -> None:
        self._scratch = scratch
        self._workdir = workdir
        self._env = environment(workdir)
        self._readers: dict[tuple[frozenset[ObjectId], frozenset[ObjectId]], Path] = {}
        self._reachable: dict[tuple[object, ...], frozenset[ObjectId]] = {}
        self._numbers = itertools.count()
        workdir.mkdir(parents=True, exist_ok=True)

    def check(self, request: PackRequest, pack: bytes) -> Received:
        """Take `pack` in as the reader would, and check that it is what was asked for."""
        self._check_form(request, pack)
        received = self._receive(request, pack)
        needed = self.needed(request)
        assert needed <= received.oids, f"left out: {sorted(needed - received.oids)}"
        reachable = self.reachable(request.wants, request.shallow)
        spare = received.oids - reachable - self._tags(request)
        assert not spare, f"nobody asked for {sorted(spare)}"
        return received

    def needed(self, request: PackRequest) -> frozenset[ObjectId]:
        """Return what the wants reach, as far as the filter goes, and the haves do not."""
        wanted = self.reachable(request.wants, request.shallow, request.filter)
        had = self.reachable(request.haves, request.shallow)
        return wanted - had

    def reachable(
        self,
        starts: Sequence[ObjectId],
        shallow: frozenset[ObjectId] = frozenset(),
        wanted: ObjectFilter | None = None,
    ) -> frozenset[ObjectId]:
        """Return all that `starts` reach."""
        key = (frozenset(starts), shallow, wanted)
        if key not in self._reachable:
            filters = [f"--filter={wanted.spec().decode()}"] if wanted is not None else []
            printed = self._scratch.git(
                *self._shallow_file(shallow),
                *("rev-list", "--objects", "--no-object-names", "--stdin", *filters),
                stdin=b"".join(b"%b\n" % oid for oid in starts),
            )
            self._reachable[key] = _ids(printed)
        return self._reachable[key]

    def git_sends(self, request: PackRequest) -> frozenset[ObjectId]:
        """Return what git puts into a pack for the same request."""
        words = ["pack-objects", "--revs", "--stdout", "-q"]
        words += ["--include-tag"] if request.tags else []
        words += ["--shallow"] if request.shallow else []
        words += [f"--filter={request.filter.spec().decode()}"] if request.filter else []
        given = [b"--shallow " + oid for oid in sorted(request.shallow)]
        given += [*request.wants, b"--not", *request.haves]
        pack = self._scratch.git("--shallow-file", "", *words, stdin=b"\n".join(given) + b"\n")
        return self._receive(replace(request, thin=False), pack).oids

    def check_history(
        self, request: PackRequest, received: Received, shallow: Iterable[ObjectId] | None = None
    ) -> None:
        """Check that the reader's history is whole now, as git sees it.

        Args:
            request: What the reader asked for.
            received: What it got.
            shallow: Its boundary from now on, where that is not the request's.
        """
        reader = self._reader(request)
        info = received.objects / "info"
        info.mkdir(exist_ok=True)
        (info / "alternates").write_bytes(os.fsencode(reader / "objects") + b"\n")
        boundary = self._shallow_file(request.shallow if shallow is None else shallow)
        wants = [oid.decode() for oid in request.wants]
        words = (*boundary, "fsck", "--strict", "--no-dangling", "--full", *wants)
        self._git(reader, received.objects, *words)
        words = (*boundary, "rev-list", "--objects", "--quiet", "--stdin")
        given = b"".join(b"%b\n" % oid for oid in request.wants)
        self._git(reader, received.objects, *words, stdin=given)

    def _check_form(self, request: PackRequest, pack: bytes) -> None:
        kinds = {entry.kind for entry in entries(pack)}
        assert request.ofs_delta or Kind.OFS_DELTA not in kinds

    def _receive(self, request: PackRequest, pack: bytes) -> Received:
        """Index a pack with what the reader has at hand, where that is allowed."""
        reader = self._reader(request)
        objects = self._workdir / f"received-{next(self._numbers)}"
        (objects / "pack").mkdir(parents=True)
        if request.thin:
            (objects / "info").mkdir()
            (objects / "info/alternates").write_bytes(os.fsencode(reader / "objects") + b"\n")
        fix = ["--fix-thin"] if request.thin else []
        self._git(reader, objects, "index-pack", "--stdin", *fix, stdin=pack)
        index = next((objects / "pack").glob("*.idx"))
        # Behind the end of what was sent lie the bases that --fix-thin added.
        oids = [oid for offset, oid in self._index(index) if offset < len(pack) - 20]
        assert len(oids) == len(set(oids)), "an object was sent twice"
        return Received(frozenset(oids), objects)

    def _reader(self, request: PackRequest) -> Path:
        """Make a repository with exactly what the haves reach."""
        key = (frozenset(request.haves), request.shallow)
        if key not in self._readers:
            path = self._workdir / f"reader-{next(self._numbers)}.git"
            subprocess.run(
                ["git", "init", "--quiet", "--bare", "--template=", path], env=self._env, check=True
            )
            had = self.reachable(request.haves, request.shallow)
            given = b"".join(b"%b\n" % oid for oid in had)
            pack = self._scratch.git("pack-objects", "-q", "--stdout", stdin=given)
            self._git(path, path / "objects", "index-pack", "--stdin", stdin=pack)
            self._readers[key] = path
        return self._readers[key]

    def _tags(self, request: PackRequest) -> frozenset[ObjectId]:
        return self.reachable([ref.oid for ref in request.tags]) if request.tags else frozenset()

    def _shallow_file(self, shallow: Iterable[ObjectId]) -> list[str]:
        path = self._workdir / f"shallow-{next(self._numbers)}"
        path.write_bytes(b"".join(b"%b\n" % oid for oid in sorted(shallow)))
        return ["--shallow-file", os.fspath(path)]

    @staticmethod
    def _index(path: Path) -> list[tuple[int, ObjectId]]:
        """Return what git found in a pack, and where."""
        with closing(load_pack_index(path, SHA1)) as index:
            found = [(oid.hex().encode(), offset) for oid, offset, _ in index.iterentries()]
        return [(offset, ObjectId(oid)) for oid, offset in found]

    def _git(self, directory: Path, objects: Path, *args: str, stdin: bytes = b"") -> bytes:
        env = self._env | {"GIT_DIR": str(directory), "GIT_OBJECT_DIRECTORY": str(objects)}
        completed = subprocess.run(
            ["git", *args], env=env, input=stdin, capture_output=True, check=False, timeout=60
        )
        assert completed.returncode == 0, f"git {args}: {completed.stderr.decode()}"
        return completed.stdout


def _ids(printed: bytes) -> frozenset[ObjectId]:
    return frozenset(map(ObjectId, printed.split()))
