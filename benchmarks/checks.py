"""Right answers: a timing of a wrong one is worth nothing.

Every function raises WrongAnswer, or GitFailed with git's words.
"""

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from benchmarks.git import git
from benchmarks.http_client import WrongAnswer
from benchmarks.protocol import FetchAnswer
from benchmarks.repositories import Repository


def lists(answer: bytes, commit: str, ref: str = "refs/heads/main") -> None:
    """Check that an advertisement or listing shows `ref` at `commit`."""
    if f"{commit} {ref}".encode() not in answer:
        raise WrongAnswer(f"{ref} is not at {commit}: {answer[:200]!r}")


def pack_is_whole(answer: bytes) -> FetchAnswer:
    """Check a pack's own hash and header; cheap enough for every answer."""
    try:
        found = FetchAnswer.parse(answer)
    except ValueError as error:
        raise WrongAnswer(str(error)) from error
    pack = found.pack
    digest = hashlib.sha1(pack[:-20], usedforsecurity=False).digest()
    if pack[:4] != b"PACK" or digest != pack[-20:]:
        raise WrongAnswer(f"a pack of {len(pack)} bytes is damaged")
    return found


def git_takes(
    answer: bytes, repository: Repository, place: Path, *, want: str, have: str | None = None
) -> None:
    """Check that a client at `have` that gets this answer has all of `want`, and nothing broken.

    Args:
        answer: The answer to a fetch.
        repository: Where `have` comes from.
        place: A directory that is made for it, and removed.
        want: The commit that was asked for.
        have: The commit that the client had, with its history.
    """
    found = pack_is_whole(answer)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    git("init", "--quiet", "--bare", "--template=", ".", cwd=place)
    if have is not None:
        git("fetch", "--quiet", repository.bare, f"{have}:refs/heads/had", cwd=place)
    git("index-pack", "--stdin", "--fix-thin", cwd=place, stdin=found.pack)
    if found.shallow:
        (place / "shallow").write_text("".join(f"{each}\n" for each in found.shallow))
    git("update-ref", "refs/heads/got", want, cwd=place)
    git("fsck", "--strict", "--no-dangling", cwd=place)
    shutil.rmtree(place)


def clone_is_whole(clone: Path, commit: str, revision: str = "HEAD") -> None:
    """Check a clone that a client made."""
    found = git("rev-parse", revision, cwd=clone)
    if found != commit:
        raise WrongAnswer(f"{clone.name}: {revision} is {found}, not {commit}")
    git("fsck", "--strict", "--no-dangling", cwd=clone)


def all_equal(answers: Iterable[bytes]) -> bytes:
    """Check that all answers are the same, and return it."""
    different = set(answers)
    if len(different) != 1:
        raise WrongAnswer(f"{len(different)} different answers to one question")
    return different.pop()
