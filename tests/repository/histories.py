"""Repositories to test on, made by git itself in the directory of a bare mirror."""

import hashlib
import os
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mirror.repository.bare import BareRepository
from mirror.repository.objects import EMPTY_TREE
from mirror.repository.refs import StoredRefs
from mirror.wire.names import ObjectId, Ref, RefName
from tests.git_client import FIRST_COMMIT_AT, GIT_SECONDS_MAX, environment

UPSTREAM_URL: Final = "https://forge.example/acme/gitops-repo.git"
FOREIGN_COMMIT: Final = b"c0ffee0000000000000000000000000000000000"
"""What a submodule names: a commit that no repository of ours has."""


MAIN: Final = RefName(b"refs/heads/main")


def stored(
    *refs: Ref, head: RefName | None = MAIN, kept: Mapping[ObjectId, int] | None = None
) -> StoredRefs:
    """Return refs as a repository keeps them."""
    return StoredRefs({ref.name: ref for ref in refs}, head, None, kept or {})


@dataclass(frozen=True, slots=True)
class File:
    """What lies at a path: by default an ordinary file."""

    content: bytes
    mode: str = "100644"


def executable(content: bytes) -> File:
    return File(content, "100755")


def symlink(target: bytes) -> File:
    return File(target, "120000")


def gitlink(commit: bytes = FOREIGN_COMMIT) -> File:
    return File(commit, "160000")


@dataclass(frozen=True, slots=True)
class Change:
    """A commit to make.

    Attributes:
        files: Contents by path; `None` deletes, a directory with all that is in it.
        parents: Commits that exist, or places in the list of changes made at once. The first
            parent's files stay; with no parents it is a new root.
        at: Its date; otherwise a minute after the change before.
    """

    files: Mapping[str, File | bytes | None] = field(default_factory=dict)
    parents: Sequence[ObjectId | int] = ()
    at: int | None = None


class Scratch:
    """The directory of a bare mirror, filled by git; afterwards all is packed, as in earnest."""

    def __init__(self, path: Path) -> None:
        """Make it, or take what is there."""
        self.path = path
        self._env = environment(path.parent) | {"GIT_DIR": os.fspath(path)}
        self._clock = FIRST_COMMIT_AT
        if not path.exists():
            BareRepository.create(path, upstream_url=UPSTREAM_URL).close()

    def git(self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
        """Run git in the repository and return what it prints."""
        completed = self._run(*args, stdin=stdin, env=env)
        assert completed.returncode == 0, f"git {args}: {completed.stderr.decode()}"
        return completed.stdout

    def succeeds(self, *args: str) -> bool:
        """Tell whether a git command does."""
        return self._run(*args).returncode == 0

    def _run(
        self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            ["git", *args],
            env=self._env | dict(env or {}),
            input=stdin,
            capture_output=True,
            check=False,
            timeout=GIT_SECONDS_MAX,
        )

    def commits(self, *changes: Change) -> list[ObjectId]:
        """Make commits in one pack."""
        stream = bytearray(b"feature done\n")
        for mark, change in enumerate(changes, start=1):
            self._clock += 60
            at = self._clock if change.at is None else change.at
            stream += f"reset refs/scratch\ncommit refs/scratch\nmark :{mark}\n".encode()
            stream += f"committer Test Committer <committer@example.com> {at} +0000\n".encode()
            stream += b"data 7\nChange\n\n"
            for number, parent in enumerate(change.parents):
                name = b":%d" % (parent + 1) if isinstance(parent, int) else parent
                stream += b"%b %b\n" % (b"merge" if number else b"from", name)
            for path, file in change.files.items():
                stream += _file(path, file)
        stream += b"".join(b"get-mark :%d\n" % mark for mark in range(1, len(changes) + 1))
        stream += b"done\n"
        printed = self.git(
            "-c", "fastimport.unpackLimit=0", "fast-import", "--quiet", "--force",
            stdin=bytes(stream),
        )  # fmt: skip
        self.git("update-ref", "-d", "refs/scratch")
        return [ObjectId(oid) for oid in printed.split()]

    def commit(
        self,
        files: Mapping[str, File | bytes | None] | None = None,
        *parents: ObjectId,
        at: int | None = None,
    ) -> ObjectId:
        """Make one commit."""
        return self.commits(Change(files or {}, parents, at))[0]

    def merge_of_tree(self, tree: ObjectId, *parents: ObjectId) -> ObjectId:
        """Make a commit of a tree that exists."""
        self._clock += 60
        words = [word for parent in parents for word in ("-p", parent.decode())]
        date = f"{self._clock} +0000"
        env = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
        return ObjectId(
            self.git("commit-tree", "-m", "Merge", *words, tree.decode(), env=env).strip()
        )

    def tag(self, target: ObjectId, name: str, kind: bytes | None = None) -> ObjectId:
        """Make an annotated tag of any object; no ref names it. Who knows its `kind` may say so."""
        kind = kind or self.git("cat-file", "-t", target.decode()).strip()
        return self.hash_object(
            "tag",
            b"object %b\ntype %b\ntag %b\ntagger T <t@example.com> %d +0000\n\nTag\n"
            % (target, kind, name.encode(), FIRST_COMMIT_AT),
        )

    def hash_object(self, kind: str, content: bytes) -> ObjectId:
        """Store any bytes as an object, well-formed or not."""
        whole = b"%b %d\0%b" % (kind.encode(), len(content), content)
        oid = hashlib.sha1(whole, usedforsecurity=False).hexdigest()
        loose = self._loose(ObjectId(oid.encode()))
        loose.parent.mkdir(exist_ok=True)
        loose.write_bytes(zlib.compress(whole))
        return ObjectId(oid.encode())

    def loose(self, oid: ObjectId) -> bytes:
        """Return the content of an object that is not in a pack yet."""
        return zlib.decompress(self._loose(oid).read_bytes()).partition(b"\0")[2]

    def _loose(self, oid: ObjectId) -> Path:
        return self.path / "objects" / oid[:2].decode() / oid[2:].decode()

    def refs(self, targets: Mapping[str, ObjectId]) -> None:
        """Set refs."""
        lines = [b"update %b %b\n" % (name.encode(), oid) for name, oid in targets.items()]
        self.git("update-ref", "--stdin", stdin=b"".join(lines))
        self.git("pack-refs", "--all")

    def pack_loose(self) -> None:
        """Put the loose objects into a pack: a mirror has packs only."""
        loose = [
            f"{file.parent.name}{file.name}\n".encode()
            for file in (self.path / "objects").glob("[0-9a-f][0-9a-f]/*")
        ]
        if loose:
            base = os.fspath(self.path / "objects/pack/pack")
            self.git("pack-objects", "-q", base, stdin=b"".join(loose))
            self.git("prune-packed", "-q")

    def oid(self, revision: str) -> ObjectId:
        """Resolve a revision."""
        return ObjectId(self.git("rev-parse", "--verify", revision).strip())

    def open(self) -> BareRepository:
        """Open it as the mirror does."""
        self.pack_loose()
        return BareRepository.open(self.path)


def _file(path: str, file: File | bytes | None) -> bytes:
    if file is None:
        return f'D "{path}"\n'.encode()
    entry = File(file) if isinstance(file, bytes) else file
    if entry.mode == "160000":
        return b'M 160000 %b "%b"\n' % (entry.content, path.encode())
    start = f'M {entry.mode} inline "{path}"\n'.encode()
    return start + b"data %d\n%b\n" % (len(entry.content), entry.content)


def lines(count: int, *, change: int | None = None, word: str = "line") -> bytes:
    """A file of many lines, one of which may differ: what deltas are good for."""
    rows = [f"{word} {number}: {number * 7919 % 1000}" for number in range(count)]
    if change is not None:
        rows[change % count] = f"{word} changed to {change}"
    return "\n".join(rows).encode()


def make_atlas(path: Path) -> "Atlas":
    """Make a repository with a bit of everything that trees and histories can have."""
    scratch = Scratch(path)
    names: dict[str, ObjectId] = {}

    def grow(name: str, files: Mapping[str, File | bytes | None], *parents: str) -> None:
        names[name] = scratch.commit(files, *(names[parent] for parent in parents))

    big = {f"apps/app{n}/values.yaml": lines(40, change=n) for n in range(8)}
    grow("root", {"README.md": b"# GitOps\n", "big.txt": lines(200), "same.txt": b"same\n", **big})
    grow("edited", {"big.txt": lines(200, change=5), "run.sh": executable(b"#!/bin/sh\n")}, "root")
    grow("reverted", {"big.txt": lines(200), "link": symlink(b"run.sh")}, "edited")
    grow("chmod", {"run.sh": File(b"#!/bin/sh\n"), "thing": b"a file\n"}, "reverted")
    grow("directory", {"thing": None, "thing/inside.txt": b"a file\n", "copy": b"same\n"}, "chmod")
    grow("file-again", {"thing": b"a file\n", "link": b"run.sh"}, "directory")
    blob = scratch.oid(f"{names['root'].decode()}:README.md")
    modules = b'[submodule "sub"]\n\tpath = sub\n\turl = ../sub.git\n'
    grow(
        "submodule",
        {".gitmodules": modules, "sub": gitlink(), "odd": gitlink(blob), "thing": gitlink()},
        "file-again",
    )
    grow(
        "no-submodule",
        {"sub": None, "sub/here.txt": b"here\n", "odd": b"# GitOps\n", "thing": lines(90)},
        "submodule",
    )
    deep = "/".join(f"d{n}" for n in range(300))
    grow("deep", {f"{deep}/leaf.txt": b"deep\n"}, "no-submodule")
    grow("deep-edited", {f"{deep}/leaf.txt": b"deeper\n", "apps/app3/values.yaml": b"x\n"}, "deep")
    # What came so far lies in one pack, with git's best deltas; the rest in a pack for each change.
    scratch.refs({"refs/heads/main": names["deep-edited"], "refs/heads/edited": names["edited"]})
    scratch.git("repack", "-adfq", "--window=50", "--depth=50")
    grow("empty", dict.fromkeys((".gitmodules", "sub", "odd", "thing")), "deep-edited")
    # A criss-cross: each of two merges has both sides as parents, and they are merged again.
    grow("left", {"left.txt": lines(60), "apps/app1/values.yaml": b"left\n"}, "empty")
    grow("right", {"right.txt": lines(60), "apps/app2/values.yaml": b"right\n"}, "empty")
    grow("cross-left", {"right.txt": lines(60), "cross": b"left\n"}, "left", "right")
    grow("cross-right", {"left.txt": lines(60), "cross": b"right\n"}, "right", "left")
    grow("crossed", {"cross": b"both\n", "right.txt": lines(60, change=3)},
         "cross-left", "cross-right")  # fmt: skip
    tree = scratch.oid(f"{names['crossed'].decode()}^{{tree}}")
    names["equal"] = scratch.merge_of_tree(tree, names["crossed"], names["root"])
    grow("main", {"big.txt": lines(200, change=9), "new/file.txt": lines(30)}, "equal")
    grow("diverged", {"big.txt": lines(200, change=17), "mine.txt": b"mine\n"}, "file-again")
    grow("unrelated", {"alone.txt": lines(50), "same.txt": b"same\n"})
    grow("unrelated-2", {"alone.txt": lines(50, change=4)}, "unrelated")
    names["empty-tree"] = scratch.merge_of_tree(
        ObjectId(scratch.git("mktree").strip()), names["unrelated-2"]
    )
    names["empty-directory"] = scratch.merge_of_tree(
        ObjectId(scratch.git("mktree", stdin=b"040000 tree %b\tnone\n" % EMPTY_TREE).strip()),
        names["empty-tree"],
    )
    names["tree"] = scratch.oid(f"{names['main'].decode()}:apps")
    names["root-tree"] = scratch.oid(f"{names['main'].decode()}^{{tree}}")
    names["blob"] = scratch.oid(f"{names['main'].decode()}:big.txt")
    names["tag"] = scratch.tag(names["crossed"], "v1")
    names["nested-tag"] = scratch.tag(names["tag"], "v1-signed")
    names["old-tag"] = scratch.tag(names["edited"], "v0")
    names["tree-tag"] = scratch.tag(names["tree"], "apps")
    names["blob-tag"] = scratch.tag(names["blob"], "big")
    tags = ("tag", "nested-tag", "old-tag", "tree-tag", "blob-tag")
    branches = ("main", "edited", "diverged", "unrelated-2", "empty-directory")
    scratch.refs(
        {f"refs/heads/{name}": names[name] for name in branches}
        | {f"refs/tags/{name}": names[name] for name in tags}
        | {"refs/tags/light": names["left"]}
    )
    scratch.pack_loose()
    return Atlas(scratch, names)


@dataclass(frozen=True, slots=True)
class Atlas:
    """A repository and the names of what is in it."""

    scratch: Scratch
    names: Mapping[str, ObjectId]

    def __getitem__(self, name: str) -> ObjectId:
        return self.names[name]

    def all(self, *names: str) -> tuple[ObjectId, ...]:
        """Return objects by their names."""
        return tuple(self.names[name] for name in names)
