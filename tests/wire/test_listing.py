"""A listing is read to the same end whatever we knew before, but with less work."""

from collections.abc import Generator
from random import Random
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import ProtocolError
from mirror.wire.advertise import encode_ls_refs
from mirror.wire.client import Listing, parse_ls_refs
from mirror.wire.listing import STEP_LINES, read_ls_refs
from mirror.wire.names import ObjectId, Ref, RefName
from mirror.wire.pktline import FLUSH_PKT, Special, decode_all, encode, encode_lines
from mirror.wire.ref_table import RefTable
from mirror.wire.requests import LsRefsRequest
from tests.wire import strategies
from tests.wire.test_ref_table import many, models, refs_of, small_chunks
from tests.wire.work import calls_made

T = TypeVar("T")
EVERYTHING = LsRefsRequest(peel=True, symrefs=True, unborn=True)
MAIN = RefName(b"refs/heads/main")
HEAD_ID = ObjectId(b"e" * 40)


def ended(steps: Generator[None, None, T]) -> tuple[T, int]:
    """Run to the end; returns what came of it and the number of steps."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value, count
        count += 1


def read(body: bytes, known: RefTable) -> Listing:
    return ended(read_ls_refs(body, known))[0]


def same(one: Listing, other: Listing) -> bool:
    def plain(listing: Listing) -> tuple[object, ...]:
        refs = sorted(listing.refs, key=lambda ref: ref.name)
        return refs, listing.head, listing.head_target

    return plain(one) == plain(other)


@given(models, models, st.none() | st.just(HEAD_ID), st.none() | st.just(MAIN))
def test_a_listing_is_the_same_whatever_was_known(
    known: dict[RefName, tuple[ObjectId, ObjectId | None]],
    listed: dict[RefName, tuple[ObjectId, ObjectId | None]],
    head: ObjectId | None,
    head_target: RefName | None,
) -> None:
    names = {name: ids for name, ids in listed.items() if is_fit(name)}
    with small_chunks():
        for before in (known, {**known, **listed}, listed, {}):
            table = RefTable.of(refs_of(before).values())
            answer = encode_ls_refs(
                RefTable.of(refs_of(names).values()),
                EVERYTHING,
                head=head,
                head_target=head_target,
            )
            found = read(answer, table)
            assert same(found, parse_ls_refs(decode_all(answer)))
            assert RefTable.of(found.refs) == refs_of(names)


def is_fit(name: RefName) -> bool:
    try:
        parse_ls_refs([b"%040x %b" % (0, name), Special.FLUSH])
    except ProtocolError:
        return False
    return True


@given(strategies.refs(), st.randoms(use_true_random=False))
def test_refs_in_any_order_are_taken(refs: tuple[Ref, ...], chance: Random) -> None:
    lines = [b"%b %b" % (one.oid, one.name) for one in refs]
    chance.shuffle(lines)
    body = encode_lines(lines) + FLUSH_PKT
    assert same(read(body, RefTable.of(refs)), parse_ls_refs(decode_all(body)))


def test_what_comes_behind_all_that_was_known_is_read_too() -> None:
    refs = many(1000)
    known = RefTable.of(refs[:900])
    body = encode_ls_refs(RefTable.of(refs), EVERYTHING, head=None, head_target=None)
    assert RefTable.of(read(body, known).refs) == RefTable.of(refs)


def test_a_head_with_a_long_name_is_one_wherever_its_line_is_cut() -> None:
    for name in (b"refs/heads/a", b"refs/heads/" + b"z" * 60):
        body = encode_ls_refs(
            RefTable.of(many(5)), EVERYTHING, head=None, head_target=RefName(name)
        )
        assert read(body, RefTable()).head_target == name


@given(strategies.almost_packets, models)
def test_garbage_is_refused_or_read_as_before(
    packets: list[bytes | Special], known: dict[RefName, tuple[ObjectId, ObjectId | None]]
) -> None:
    body = b"".join(
        b"%04x" % packet.value if isinstance(packet, Special) else encode(packet)
        for packet in packets
    )
    table = RefTable.of(refs_of(known).values())
    try:
        expected = parse_ls_refs(decode_all(body))
    except ProtocolError:
        with pytest.raises(ProtocolError):
            read(body, table)
    else:
        assert same(
            read(body, table),
            Listing(
                tuple({r.name: r for r in expected.refs}.values()),
                expected.head,
                expected.head_target,
            ),
        )


def test_of_many_refs_only_those_near_a_change_are_looked_at() -> None:
    refs = many(40 * STEP_LINES)
    known = RefTable.of(refs)
    changed = known.replace({refs[500].name: Ref(refs[500].name, HEAD_ID)})
    body = encode_ls_refs(changed, EVERYTHING, head=HEAD_ID, head_target=MAIN)
    new = calls_made(lambda: read(body, RefTable()))
    again = calls_made(lambda: read(body, known))
    assert again < new / 10
    assert RefTable.of(read(body, known).refs).difference(known).keys() == {refs[500].name}


def test_much_that_is_new_is_read_in_many_short_steps() -> None:
    count = 20 * STEP_LINES
    body = encode_ls_refs(RefTable.of(many(count)), EVERYTHING, head=HEAD_ID, head_target=MAIN)
    assert ended(read_ls_refs(body, RefTable()))[1] >= count // STEP_LINES


def test_an_error_without_a_flush_is_passed_on() -> None:
    """What git says when it dies while it lists: its words, not that they are cut off."""
    with pytest.raises(ProtocolError, match="the upstream reports: the disk is full"):
        list(read_ls_refs(encode(b"ERR the disk is full"), RefTable()))
