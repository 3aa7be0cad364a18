"""What readers see at one moment: it never changes, and it is encoded but once."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.repository.snapshot import ANSWERS_MAX, GZIP_BYTES_MIN, UNASKED_MAX, RefSnapshot
from mirror.wire.advertise import encode_ls_refs
from mirror.wire.names import HEAD, ObjectId, Ref, RefName
from mirror.wire.ref_table import RefTable
from mirror.wire.requests import LsRefsRequest
from tests.wire.work import calls_made

MAIN = RefName(b"refs/heads/main")
AGENT = b"git-mirror/test"


def oid(number: int) -> ObjectId:
    return ObjectId(b"%040x" % number)


def ref(name: bytes, number: int = 1, peeled: int | None = None) -> Ref:
    return Ref(RefName(name), oid(number), None if peeled is None else oid(peeled))


def snapshot(*refs: Ref, number: int = 1, head_target: RefName | None = MAIN) -> RefSnapshot:
    return RefSnapshot(number, refs, head_target=head_target, agent=AGENT)


def names_in(answer: bytes) -> list[bytes]:
    """Return the names in an answer to a bare ls-refs."""
    found = []
    while answer != b"0000":
        length = int(answer[:4], 16)
        found.append(answer[4:length].split()[1])
        answer = answer[length:]
    return found


PIECES = st.sampled_from([b"a", b"b", b"heads", b"/", b"\xff", b"ab"])
NAMES = st.lists(PIECES, min_size=1).map(lambda pieces: b"refs/" + b"".join(pieces))
COMMON = [b"", b"r", b"refs/", b"refs/heads", b"refs/heads/", b"HEAD", b"refs/b\xff"]
PREFIXES = st.one_of(NAMES, st.sampled_from(COMMON))


@given(st.sets(NAMES, max_size=20), st.lists(PREFIXES, max_size=6))
def test_refs_are_found_by_their_prefixes_as_if_each_were_looked_at(
    names: set[bytes], prefixes: list[bytes]
) -> None:
    taken = snapshot(*(ref(name, number) for number, name in enumerate(names)), head_target=None)
    expected = sorted(
        name for name in names if not prefixes or any(name.startswith(one) for one in prefixes)
    )
    assert names_in(taken.ls_refs(LsRefsRequest(ref_prefixes=tuple(prefixes)))) == expected


def test_a_reader_can_not_make_us_look_at_all_refs_again_and_again() -> None:
    """By as many prefixes of prefixes as fit into a request."""
    refs = [ref(b"refs/heads/%04d" % number) for number in range(500)]
    long = b"refs/heads/" + b"0" * 60
    prefixes = tuple(long[:length] for length in range(len(long)))
    few = calls_made(lambda: snapshot(*refs).ls_refs(LsRefsRequest(ref_prefixes=(b"",))))
    many = calls_made(lambda: snapshot(*refs).ls_refs(LsRefsRequest(ref_prefixes=prefixes)))
    assert many < 1.5 * few


def test_refs_come_in_the_order_of_their_names_whatever_order_they_were_given_in() -> None:
    taken = snapshot(ref(b"refs/tags/b"), ref(b"refs/heads/main"), ref(b"refs/tags/a"))
    assert [one.name for one in taken.refs] == [MAIN, b"refs/tags/a", b"refs/tags/b"]


def test_what_is_published_later_does_not_reach_who_holds_an_earlier_one() -> None:
    given = [ref(MAIN, 1)]
    before = snapshot(*given)
    answer = before.ls_refs(LsRefsRequest())
    advertised = before.advertisement(0)
    given.append(ref(b"refs/tags/late", 2))
    after = snapshot(*given, number=2)
    assert tuple(before.refs) == (ref(MAIN, 1),)
    assert before.ls_refs(LsRefsRequest()) == answer
    assert before.advertisement(0) == advertised
    assert b"late" in after.advertisement(0).plain


def test_preparing_changes_no_answer() -> None:
    refs = [ref(MAIN, 1), ref(b"refs/tags/v1", 2, 1), ref(b"refs/notes/x", 3)]
    prepared, plain = snapshot(*refs).prepare(), snapshot(*refs)
    for prefixes in ((), (b"refs/heads/", b"refs/tags/"), (b"refs/notes/",)):
        for flag in (False, True):
            request = LsRefsRequest(peel=flag, symrefs=flag, unborn=flag, ref_prefixes=prefixes)
            assert prepared.ls_refs(request) == plain.ls_refs(request)
    for version in (0, 1):
        assert prepared.advertisement(version) == plain.advertisement(version)


def test_an_answer_is_encoded_once() -> None:
    taken = snapshot(ref(MAIN)).prepare()
    request = LsRefsRequest(ref_prefixes=(b"refs/heads/",))
    assert taken.ls_refs(request) is taken.ls_refs(LsRefsRequest(ref_prefixes=(b"refs/heads/",)))
    assert taken.advertisement(0) is taken.advertisement(0)
    assert taken.advertisement(0) is not taken.advertisement(1)


def test_only_so_many_kinds_of_answers_are_kept() -> None:
    taken = snapshot(ref(MAIN))
    requests = [LsRefsRequest(ref_prefixes=(b"%d" % n,)) for n in range(3 * ANSWERS_MAX)]
    for request in requests:
        taken.ls_refs(request)
    assert len(taken._kept) == ANSWERS_MAX
    expected = encode_ls_refs(RefTable(), requests[0], head=taken.head, head_target=MAIN)
    assert taken.ls_refs(requests[0]) == expected


def test_a_large_advertisement_is_there_as_gzip_too() -> None:
    small = snapshot(ref(MAIN)).advertisement(0)
    assert small.gzip is None
    large = snapshot(*(ref(b"refs/heads/%d" % n, n) for n in range(100))).advertisement(0)
    assert len(large.plain) > GZIP_BYTES_MIN
    assert large.gzip is not None
    assert gzip.decompress(large.gzip) == large.plain
    assert len(large.gzip) < len(large.plain)


def test_the_same_refs_give_the_same_bytes() -> None:
    """Caches and conditional requests need it: there is no time of day in the gzip."""
    refs = [ref(b"refs/heads/%d" % n, n) for n in range(100)]
    assert snapshot(*refs).advertisement(0) == snapshot(*reversed(refs)).advertisement(0)


def test_head_is_what_its_branch_points_to() -> None:
    assert snapshot(ref(MAIN, 5)).head == oid(5)
    assert snapshot(ref(b"refs/heads/other", 5)).head is None
    assert snapshot(head_target=None).head is None
    detached = RefSnapshot(1, [ref(MAIN)], head_target=None, detached_head=oid(9), agent=AGENT)
    assert detached.head == detached.find(HEAD) == oid(9)
    assert snapshot().is_empty
    assert not snapshot(ref(MAIN)).is_empty


def test_short_names_are_expanded_in_gits_order() -> None:
    taken = snapshot(
        ref(MAIN, 1),
        ref(b"refs/tags/main", 2),
        ref(b"refs/x", 3),
        ref(b"refs/tags/x", 4),
        ref(b"refs/heads/y", 5),
        ref(b"refs/heads/tags/z", 6),
        ref(b"refs/tags/z", 7),
    )
    assert taken.expand(b"main") == [oid(2), oid(1)]
    assert taken.expand(b"heads/main") == taken.expand(b"refs/heads/main") == [oid(1)]
    assert taken.expand(b"x") == [oid(3), oid(4)]
    assert taken.expand(b"y") == [oid(5)]
    assert taken.expand(b"tags/z") == [oid(7), oid(6)]
    assert taken.expand(b"HEAD") == [oid(1)]
    assert taken.expand(b"none") == taken.expand(b"") == []
    assert taken.find(RefName(b"main")) is None


def test_changes_are_told_by_name_with_what_was_and_what_is() -> None:
    before = snapshot(ref(MAIN, 1), ref(b"refs/heads/gone", 2), ref(b"refs/heads/same", 3))
    after = snapshot(ref(MAIN, 4), ref(b"refs/heads/new", 5, 6), ref(b"refs/heads/same", 3))
    assert after.changes_since(before) == {
        MAIN: (oid(1), oid(4)),
        b"refs/heads/new": (None, oid(5)),
        b"refs/heads/gone": (oid(2), None),
    }
    assert after.changes_since(after) == {}
    assert before.changes_since(None) == {one.name: (None, one.oid) for one in before.refs}


def test_only_annotated_tags_are_tags_to_be_followed() -> None:
    taken = snapshot(ref(MAIN), ref(b"refs/tags/light", 1), ref(b"refs/tags/v1", 2, 1))
    assert list(taken.tags()) == [ref(b"refs/tags/v1", 2, 1)]


def lots(count: int) -> list[Ref]:
    return [ref(b"refs/heads/%05d" % number, number) for number in range(count)]


def test_what_was_asked_of_one_snapshot_is_ready_in_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    odd = LsRefsRequest(ref_prefixes=(b"refs/heads/0001",))
    before = snapshot(*lots(1000)).prepare()
    before.ls_refs(odd)
    before.advertisement(1)
    after = snapshot(*lots(1001), number=2).prepare(before)
    monkeypatch.delattr(RefSnapshot, "_encode")
    assert b"refs/heads/00019" in after.ls_refs(odd)
    assert b"refs/heads/01000" in after.advertisement(1).plain


def test_a_form_that_nobody_asks_for_is_forgotten_after_a_while() -> None:
    request = LsRefsRequest(ref_prefixes=(b"refs/heads/0001",))
    taken = snapshot(*lots(10)).prepare()
    taken.ls_refs(request)
    for _ in range(UNASKED_MAX + 1):
        assert request in taken.wanted_forms()
        taken = snapshot(*lots(10)).prepare(taken)
        taken.advertisement(0)
    assert list(taken.wanted_forms()) == [0]


def test_answers_kept_are_bounded_in_bytes_but_the_latest_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mirror.repository.snapshot.ANSWERS_BYTES_MAX", 3000)
    taken = snapshot(*lots(40))
    requests = [LsRefsRequest(ref_prefixes=(b"refs/heads/", b"%d" % number)) for number in (1, 2)]
    answers = [taken.ls_refs(request) for request in requests]
    assert len(answers[0]) > 1500
    assert list(taken.wanted_forms()) == requests[1:]
    assert taken.ls_refs(requests[0]) == answers[0]
    assert list(taken.wanted_forms()) == requests[:1]


def test_who_comes_before_much_is_compressed_gets_it_plain_and_the_next_snapshot_has_it() -> None:
    refs = lots(10_000)
    taken = snapshot(*refs)
    assert taken.advertisement(0).gzip is None
    after = snapshot(*refs, number=2).prepare(taken).advertisement(0)
    assert after.gzip is not None
    assert gzip.decompress(after.gzip) == after.plain
