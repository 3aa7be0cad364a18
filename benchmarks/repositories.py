"""Repositories of stated shapes, the same on every machine, kept between runs.

Contents are base64 of a seeded generator's bytes: they compress by a quarter and make no deltas
with each other, so that a size in a name is about the size of the pack.
"""

import base64
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from benchmarks.git import ENVIRONMENT, git
from mirror.demo import gitops_repo

RECIPES: Final = "1"
"""Raised when a recipe changes, so that kept repositories of the old one are not used."""

AUTHOR: Final = "Kari Nordmann <kari@acme.example>"
FIRST_AT: Final = 1_767_600_000
COMMITS_OF_HISTORY: Final = 2_200


@dataclass(frozen=True, slots=True)
class Repository:
    """A bare repository on disk."""

    name: str
    bare: Path

    def commit(self, revision: str = "refs/heads/main") -> str:
        return git("rev-parse", revision, cwd=self.bare)

    def line_of(self, count: int) -> list[str]:
        """Return the last `count` commits of main, newest first."""
        listed = git("rev-list", "--first-parent", f"--max-count={count}", "main", cwd=self.bare)
        return listed.split()


class Repositories:
    """Makes what is asked for, once.

    Args:
        kept: Where repositories are kept between runs.
        root: Where they are served from in this run.
    """

    def __init__(self, kept: Path, root: Path) -> None:
        self._kept = kept / RECIPES
        self._root = root
        self._kept.mkdir(parents=True, exist_ok=True)

    def gitops(self) -> Repository:
        """The demonstration's: three dozen commits, a few refs, 1 KB of advertisement."""
        return self._serve("gitops", gitops_repo.create)

    def depth_400_kb(self) -> Repository:
        """400 KB at depth 1, ten commits."""
        return self._serve("depth-400-kb", partial(_files, count=200, size=2_600, commits=10))

    def depth_13_mb(self) -> Repository:
        """13 MB at depth 1, ten commits."""
        return self._serve("depth-13-mb", partial(_files, count=2_600, size=6_700, commits=10))

    def pack_20_mb(self) -> Repository:
        """20 MB in all."""
        return self._serve("pack-20-mb", partial(_files, count=400, size=66_000, commits=3))

    def big(self, megabytes: int) -> Repository:
        """Two thirds of it in small files."""
        return self._serve(f"big-{megabytes}-mb", partial(_big, megabytes=megabytes))

    def history(self) -> Repository:
        """1,500 files, 2,200 commits that change two each."""
        return self._serve("history", _history)

    def with_refs(self, count: int) -> Repository:
        """So many branches, over 100 commits."""
        return self._serve(f"refs-{count}", partial(_refs, count=count))

    def unpublished(self, repository: Repository) -> Repository:
        """Take a repository away from readers."""
        (self._root / f"{repository.name}.git").unlink()
        return repository

    def publish(self, repository: Repository) -> None:
        """Give it to readers."""
        (self._root / f"{repository.name}.git").symlink_to(repository.bare)

    def copy(self, repository: Repository, name: str) -> Repository:
        """Return a copy for this run, to be pushed to."""
        bare = self._root / f"{name}.git"
        shutil.copytree(repository.bare, bare)
        return Repository(name, bare)

    def _serve(self, name: str, make: Callable[[Path], object]) -> Repository:
        bare = self._kept / f"{name}.git"
        if not bare.exists():
            draft = self._kept / f"{name}.draft"
            shutil.rmtree(draft, ignore_errors=True)
            make(draft)
            draft.rename(bare)
        place = self._root / f"{name}.git"
        if not place.is_symlink():
            place.symlink_to(bare)
        return Repository(name, bare)


def push(repository: Repository, number: int) -> tuple[str, str]:
    """Commit onto main what CI would; returns the ids of the parent and of the new commit."""
    parent = repository.commit()
    at = int(git("show", "--no-patch", "--format=%ct", parent, cwd=repository.bare)) + 60
    change = {f"release/{number % 7}.yaml": f"newTag: 2.{number}.0\n".encode()}
    stream = _commit(change, f"Release 2.{number}.0", at=at, onto=parent) + b"done\n"
    git("fast-import", "--quiet", "--done", cwd=repository.bare, stdin=stream)
    return parent, repository.commit()


FORCED_EVERY: Final = 10
BRANCH_EVERY: Final = 25


def pushes(repository: Repository, count: int) -> Iterator[str]:
    """Push so many times, each when the next is asked for; yields main's new commits.

    The commits are made beforehand, all at once, where nobody mirrors them. One push in ten is
    taken back by the next; one in 25 comes with a branch, which the next deletes.
    """
    marks = repository.bare / "marks"
    _import(repository.bare, _pushes(repository, count), f"--export-marks={marks}")
    ids = dict(each.split() for each in marks.read_text().splitlines())
    marks.unlink()
    heads = repository.bare / "refs" / "heads"
    for number in range(count):
        (heads / f"feature-{number - 1}").unlink(missing_ok=True)
        if branch := ids.get(_mark(number, of_branch=True)):
            (heads / f"feature-{number}").write_text(branch + "\n")
        draft = heads / "main.lock"
        draft.write_text(ids[_mark(number)] + "\n")
        draft.rename(heads / "main")
        yield ids[_mark(number)]


def _pushes(repository: Repository, count: int) -> Iterator[bytes]:
    chance = random.Random(repository.name)
    at = int(git("show", "--no-patch", "--format=%ct", "main", cwd=repository.bare))
    parent = tip = repository.commit()
    for number in range(count):
        change = {
            _path(chance.randrange(1_500)): _text(chance, 900),
            f"release/{number % 40}.yaml": _release(number),
        }
        at += 60
        if number % FORCED_EVERY or not number:
            parent = tip
        tip = _mark(number)
        yield _commit(change, f"Push {number}", at=at, onto=parent, ref="refs/bench/main", mark=tip)
        if number % BRANCH_EVERY == 0:
            feature = {f"features/{number}.yaml": _text(chance, 900)}
            mark = _mark(number, of_branch=True)
            yield _commit(feature, "A feature", at=at, onto=tip, ref="refs/bench/a", mark=mark)


def _mark(number: int, *, of_branch: bool = False) -> str:
    return f":{2 * number + 1 + of_branch}"


def _release(number: int) -> bytes:
    lines = (f"  variable-{each}: {each * 7919 % 1000}" for each in range(60))
    return "\n".join([*lines, f"newTag: 3.{number}.0", ""]).encode()


# --- recipes --------------------------------------------------------------------------------


def _files(bare: Path, *, count: int, size: int, commits: int) -> None:
    """Files of one size in directories of fifty; further commits change one each."""
    chance = random.Random(bare.name)

    def stream() -> Iterator[bytes]:
        first = {_path(number): _text(chance, size) for number in range(count)}
        yield _commit(first, "Begin", at=FIRST_AT)
        for number in range(1, commits):
            change = {_path(number): _text(chance, size)}
            yield _commit(change, f"Change {number}", at=FIRST_AT + number * 60)

    _create(bare, stream())


def _big(bare: Path, *, megabytes: int) -> None:
    chance = random.Random(bare.name)
    small = megabytes * 1_000_000 * 2 // 3 // 6_000
    large = megabytes // 3

    def stream() -> Iterator[bytes]:
        # In a hundred commits, so that no part of the stream is large.
        for number in range(100):
            files = {_path(each): _text(chance, 8_000) for each in range(number, small, 100)}
            big = range(number, large, 100)
            files |= {f"charts/{each}.tgz": chance.randbytes(1_000_000) for each in big}
            yield _commit(files, f"Part {number}", at=FIRST_AT + number * 60)

    _create(bare, stream())


def _history(bare: Path) -> None:
    chance = random.Random(bare.name)

    def stream() -> Iterator[bytes]:
        first = {_path(number): _text(chance, 900) for number in range(1_500)}
        yield _commit(first, "Begin", at=FIRST_AT)
        for number in range(1, COMMITS_OF_HISTORY):
            change = {_path(chance.randrange(1_500)): _text(chance, 900) for _ in range(2)}
            yield _commit(change, f"Release 1.{number}.0", at=FIRST_AT + number * 600)

    _create(bare, stream())
    git("repack", "-adq", cwd=bare)


def _refs(bare: Path, *, count: int) -> None:
    _files(bare, count=20, size=600, commits=100)
    commits = Repository("", bare).line_of(100)
    names = sorted(
        f"refs/heads/team-{each % 40:02d}/change-{each:06d}" for each in range(count - 1)
    )
    lines = [f"{commits[0]} refs/heads/main"]
    lines += [f"{commits[at % 100]} {name}" for at, name in enumerate(names)]
    (bare / "refs/heads/main").unlink(missing_ok=True)
    header = "# pack-refs with: peeled fully-peeled sorted \n"
    (bare / "packed-refs").write_text(header + "\n".join(lines) + "\n")


def _create(bare: Path, stream: Iterator[bytes]) -> None:
    bare.mkdir(parents=True)
    git("init", "--quiet", "--bare", "--template=", "--initial-branch=main", ".", cwd=bare)
    for key in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):
        git("config", key, "true", cwd=bare)
    _import(bare, stream)
    git("pack-refs", "--all", cwd=bare)


def _import(bare: Path, stream: Iterator[bytes], *options: str) -> None:
    process = subprocess.Popen(
        ["git", "fast-import", "--quiet", "--done", *options],
        cwd=bare,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
    )
    pipe: BinaryIO = process.stdin
    with pipe:
        pipe.writelines(stream)
        pipe.write(b"done\n")
    if process.wait(600):
        raise RuntimeError(f"git fast-import failed with {process.returncode}")


def _commit(
    files: dict[str, bytes],
    message: str,
    *,
    at: int,
    onto: str = "",
    ref: str = "refs/heads/main",
    mark: str = "",
) -> bytes:
    """Return one commit of a fast-import stream (git-fast-import(1))."""
    parts = [
        f"commit {ref}\n".encode(),
        f"mark {mark}\n".encode() if mark else b"",
        f"author {AUTHOR} {at} +0100\n".encode(),
        f"committer {AUTHOR} {at} +0100\n".encode(),
        _data(message.encode()),
        f"from {onto}\n".encode() if onto else b"",
    ]
    parts += [f"M 100644 inline {path}\n".encode() + _data(text) for path, text in files.items()]
    return b"".join([*parts, b"\n"])


def _data(content: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(content), content)


def _path(number: int) -> str:
    return f"apps/{number // 50:03d}/{number % 50:02d}.yaml"


def _text(chance: random.Random, size: int) -> bytes:
    return base64.encodebytes(chance.randbytes(size * 3 // 4))
