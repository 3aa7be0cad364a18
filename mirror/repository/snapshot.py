"""The refs of a repository as readers see them at one moment, with the answers encoded beforehand.

A snapshot never changes; publishing makes a new one with the next number and swaps one reference,
so a reader is never held up by a writer. The v0 advertisement (plain and gzip) and the commonest
ls-refs answers are bytes before anybody asks; further ls-refs argument sets are kept, bounded.
"""

import gzip
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from mirror.wire.advertise import encode_ls_refs, encode_v0_advertisement
from mirror.wire.names import HEAD, ObjectId, Ref, RefName
from mirror.wire.requests import LsRefsRequest

LS_REFS_ANSWERS_MAX: Final = 64
"""Clients of one kind all ask the same; past that many argument sets the oldest is forgotten."""

GZIP_BYTES_MIN: Final = 1400
"""What fits into one TCP segment gains nothing from compression."""

_COMMON_LS_REFS: Final = (
    # git clone, git ls-remote, and git fetch --tags: what almost every client asks.
    LsRefsRequest(peel=True, symrefs=True, unborn=True, ref_prefixes=()),
    LsRefsRequest(peel=True, symrefs=True, ref_prefixes=(b"refs/heads/", b"refs/tags/")),
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An answer, plain and (where it pays) as gzip."""

    plain: bytes
    gzip: bytes | None


class RefSnapshot:
    """Immutable. `number` counts the snapshots of one repository."""

    def __init__(
        self,
        number: int,
        refs: Iterable[Ref],
        *,
        head_target: RefName | None,
        detached_head: ObjectId | None = None,
        agent: bytes,
    ) -> None:
        self.number = number
        self.refs = tuple(sorted(refs, key=lambda ref: ref.name))
        self.head_target = head_target
        self.by_name = {ref.name: ref for ref in self.refs}
        target = self.by_name.get(head_target) if head_target is not None else None
        self.head = target.oid if target is not None else detached_head
        self._names = [ref.name for ref in self.refs]
        self._agent = agent
        self._ls_refs: dict[LsRefsRequest, bytes] = {}

    @property
    def is_empty(self) -> bool:
        """Whether there is no ref at all."""
        return not self.refs

    def prepare(self) -> "RefSnapshot":
        """Encode the answers that are sure to be asked for; returns itself. May run in a thread."""
        _ = self._v0, self._v1
        for request in _COMMON_LS_REFS:
            self.ls_refs(request)
        return self

    def advertisement(self, version: int) -> Encoded:
        """Return the v0 or v1 advertisement."""
        return self._v1 if version == 1 else self._v0

    @cached_property
    def _v0(self) -> Encoded:
        return self._advertise(0)

    @cached_property
    def _v1(self) -> Encoded:
        return self._advertise(1)

    def _advertise(self, version: int) -> Encoded:
        plain = encode_v0_advertisement(
            self.refs,
            head=self.head,
            head_target=self.head_target,
            agent=self._agent,
            version=version,
        )
        small = len(plain) < GZIP_BYTES_MIN
        return Encoded(plain, None if small else gzip.compress(plain, 6, mtime=0))

    def ls_refs(self, request: LsRefsRequest) -> bytes:
        """Return the answer to a v2 ls-refs."""
        answer = self._ls_refs.get(request)
        if answer is None:
            answer = encode_ls_refs(
                self._matching(request.ref_prefixes),
                request,
                head=self.head,
                head_target=self.head_target,
            )
            if len(self._ls_refs) >= LS_REFS_ANSWERS_MAX:
                self._ls_refs.pop(next(iter(self._ls_refs)))
            self._ls_refs[request] = answer
        return answer

    def _matching(self, prefixes: tuple[bytes, ...]) -> Iterable[Ref]:
        """Return the refs whose names begin with one of `prefixes`, in order, each once."""
        if not prefixes:
            return self.refs
        found: list[Ref] = []
        covered: bytes | None = None
        for prefix in sorted(prefixes):
            if covered is not None and prefix.startswith(covered):
                continue
            covered = prefix
            for index in range(bisect_left(self._names, prefix), len(self._names)):
                if not self._names[index].startswith(prefix):
                    break
                found.append(self.refs[index])
        return found

    def find(self, name: RefName) -> ObjectId | None:
        """Return what a ref, or HEAD, points to."""
        if name == HEAD:
            return self.head
        ref = self.by_name.get(name)
        return ref.oid if ref is not None else None

    def resolve(self, short: bytes) -> ObjectId | None:
        """Return what a ref points to, named as briefly as git allows it (gitrevisions(7))."""
        for rule in (b"%b", b"refs/%b", b"refs/tags/%b", b"refs/heads/%b"):
            if (oid := self.find(RefName(rule % short))) is not None:
                return oid
        return None

    def tags(self) -> Iterator[Ref]:
        """Yield the annotated tags."""
        return (ref for ref in self.refs if ref.peeled is not None)

    def changes_since(
        self, before: "RefSnapshot | None"
    ) -> Mapping[RefName, tuple[ObjectId | None, ObjectId | None]]:
        """Return, by name, the old and new id of each ref that differs from `before`."""
        old = before.by_name if before is not None else {}
        names = [*self.by_name, *(name for name in old if name not in self.by_name)]
        changes = {}
        for name in names:
            was, now = old.get(name), self.by_name.get(name)
            if was is None or now is None or was.oid != now.oid:
                changes[name] = (was.oid if was else None, now.oid if now else None)
        return changes
