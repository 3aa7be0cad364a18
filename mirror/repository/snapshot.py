"""The refs of a repository as readers see them at one moment, with their answers ready.

A snapshot never changes; publishing makes a new one with the next number and swaps one reference,
so a reader is never held up by a writer. What was asked of the one before is encoded beforehand;
anything else at its first demand, from the encoded chunks of the table: to join them takes 2 ms for
100,000 refs, and to find those with one prefix no longer than for ten.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from mirror.wire.advertise import encode_ls_refs, encode_v0_advertisement
from mirror.wire.names import HEAD, ObjectId, Ref, RefName
from mirror.wire.ref_table import RefTable, RefView
from mirror.wire.requests import LsRefsRequest

ANSWERS_MAX: Final = 64
"""Clients of one kind all ask the same; past that many forms the oldest is forgotten."""

ANSWERS_BYTES_MAX: Final = 32 << 20
"""As many bytes of answers are kept, or the latest alone if it is longer."""

REFS_PREPARED_MAX: Final = 10_000
"""With more refs, an answer that nobody has asked for yet is not worth its memory."""

UNASKED_MAX: Final = 8
"""A form that nobody asked for in so many snapshots is not prepared in the next."""

GZIP_BYTES_MIN: Final = 1400
"""What fits into one TCP segment gains nothing from compression."""

DEFLATE_INLINE_CHUNKS_MAX: Final = 2
"""So much is compressed while a reader waits; who comes before the rest is, gets it plain."""

Form = int | LsRefsRequest
"""What a reader can ask for: an advertisement of version 0 or 1, or ls-refs and its arguments."""


_COMMON: Final[tuple[Form, ...]] = (
    # git clone, git ls-remote, and git fetch --tags: what almost every client asks.
    0,
    LsRefsRequest(peel=True, symrefs=True, unborn=True, ref_prefixes=()),
    LsRefsRequest(peel=True, symrefs=True, ref_prefixes=(b"refs/heads/", b"refs/tags/")),
)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An answer, plain and (where it pays) as gzip."""

    plain: bytes
    gzip: bytes | None


@dataclass(slots=True)
class _Kept:
    """An answer, and for how many snapshots in a row nobody has asked for its form."""

    answer: Encoded
    unasked: int = 0


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
        self.by_name = RefTable.of(refs)
        self.head_target = head_target
        target = self.by_name.get(head_target) if head_target is not None else None
        self.head = target.oid if target is not None else detached_head
        self._agent = agent
        self._kept: dict[Form, _Kept] = {}
        self._kept_bytes = 0

    @property
    def refs(self) -> RefView:
        """The refs in the order of their names. To count them is cheap; to look at each is not."""
        return self.by_name.values()

    @property
    def is_empty(self) -> bool:
        """Whether there is no ref at all."""
        return not self.by_name

    def prepare(self, before: "RefSnapshot | None" = None) -> "RefSnapshot":
        """Encode the answers that are sure to be asked for; returns itself. May run in a thread.

        Args:
            before: The snapshot that this one replaces: what was asked of it will be again.
        """
        forms = before.wanted_forms() if before is not None else {}
        if not forms:
            # Of many refs only the one that has to be compressed: the others are made in no time.
            forms = dict.fromkeys(
                _COMMON if len(self.refs) <= REFS_PREPARED_MAX else _COMMON[:1], 0
            )
        for form, unasked in forms.items():
            answer = self._encode(form, chunks_deflated_max=None)
            self._keep(form, answer).unasked = unasked
        return self

    def wanted_forms(self) -> dict[Form, int]:
        """Return in which forms the next snapshot is to be ready, and how long each was unasked."""
        kept = {form: one.unasked + 1 for form, one in list(self._kept.items())}
        return {form: unasked for form, unasked in kept.items() if unasked <= UNASKED_MAX}

    def advertisement(self, version: int) -> Encoded:
        """Return the v0 or v1 advertisement."""
        return self._answer(1 if version == 1 else 0)

    def ls_refs(self, request: LsRefsRequest) -> bytes:
        """Return the answer to a v2 ls-refs."""
        return self._answer(request).plain

    def _answer(self, form: int | LsRefsRequest) -> Encoded:
        kept = self._kept.get(form)
        if kept is None:
            encoded = self._encode(form, chunks_deflated_max=DEFLATE_INLINE_CHUNKS_MAX)
            kept = self._keep(form, encoded)
        kept.unasked = -1
        return kept.answer

    def _keep(self, form: Form, answer: Encoded) -> _Kept:
        old = self._kept.pop(form, None)
        self._kept_bytes += _size(answer) - (_size(old.answer) if old is not None else 0)
        kept = self._kept[form] = _Kept(answer)
        while len(self._kept) > ANSWERS_MAX or (
            len(self._kept) > 1 and self._kept_bytes > ANSWERS_BYTES_MAX
        ):
            self._kept_bytes -= _size(self._kept.pop(next(iter(self._kept))).answer)
        return kept

    def _encode(self, form: Form, *, chunks_deflated_max: int | None) -> Encoded:
        if isinstance(form, LsRefsRequest):
            refs, head = self.by_name, self.head
            plain = encode_ls_refs(refs, form, head=head, head_target=self.head_target)
            return Encoded(plain, None)
        advertisement = encode_v0_advertisement(
            self.by_name,
            head=self.head,
            head_target=self.head_target,
            agent=self._agent,
            version=form,
        )
        plain = advertisement.plain()
        if len(plain) < GZIP_BYTES_MIN or (
            chunks_deflated_max is not None
            and advertisement.chunks_to_deflate() > chunks_deflated_max
        ):
            return Encoded(plain, None)
        return Encoded(plain, advertisement.gzip(plain))

    def find(self, name: RefName) -> ObjectId | None:
        """Return what a ref, or HEAD, points to."""
        if name == HEAD:
            return self.head
        ref = self.by_name.get(name)
        return ref.oid if ref is not None else None

    def expand(self, short: bytes) -> list[ObjectId]:
        """Return what refs point to that are named so, as briefly as git allows it.

        The rules of gitrevisions(7), the first one first; more than one ref is ambiguous.
        """
        rules = (b"%b", b"refs/%b", b"refs/tags/%b", b"refs/heads/%b", b"refs/remotes/%b")
        found = (self.find(RefName(rule % short)) for rule in (*rules, b"refs/remotes/%b/HEAD"))
        return [oid for oid in found if oid is not None]

    def tags(self) -> Iterator[Ref]:
        """Yield the annotated tags."""
        return self.by_name.tags()

    def changes_since(
        self, before: "RefSnapshot | None"
    ) -> Mapping[RefName, tuple[ObjectId | None, ObjectId | None]]:
        """Return, by name, the old and new id of each ref that differs from `before`."""
        old = before.by_name if before is not None else RefTable()
        return {
            name: (was.oid if was else None, now.oid if now else None)
            for name, (was, now) in self.by_name.difference(old).items()
            if was is None or now is None or was.oid != now.oid
        }


def _size(answer: Encoded) -> int:
    return len(answer.plain) + len(answer.gzip or b"")
