"""Requests of very many object ids: read as few ones are, in little memory and few steps."""

import tracemalloc
from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mirror.errors import ProtocolError, RequestRefused
from mirror.wire import arguments, requests
from mirror.wire.names import ObjectId
from mirror.wire.object_ids import FEW, Gathered
from mirror.wire.pktline import DELIM_PKT, FLUSH_PKT, Special, encode
from mirror.wire.requests import (
    FetchRequest,
    ObjectInfoRequest,
    UploadPackRequest,
    parse_command,
    parse_upload_pack,
)
from tests.wire.bodies import command, join, lines, oid
from tests.wire.work import calls_made

BYTES_PER_ID = 50
"""Of which 20 are the id; without packing them it is 180."""


def gathered(oids: Sequence[ObjectId], runs: Sequence[int] = ()) -> Gathered:
    """Give ids to `Gathered`: in runs of such lengths, and the rest one by one."""
    them, rest = Gathered(), list(oids)
    for length in runs:
        them.add_all(b"".join(rest[:length]))
        del rest[:length]
    for each in rest:
        them.add(each)
    return them


@given(
    count=st.integers(0, 3 * FEW),
    runs=st.lists(st.integers(0, FEW), max_size=3),
    index=st.integers(-4 * FEW, 4 * FEW),
    step=st.integers(-3, 3).filter(bool),
)
@example(count=FEW + 1, runs=[FEW], index=-1, step=1)
def test_many_ids_are_the_sequence_that_a_few_are(
    count: int, runs: list[int], index: int, step: int
) -> None:
    expected = [oid(number) for number in range(count)]
    found = gathered(expected, runs).in_order()
    assert isinstance(found, tuple) == (count <= FEW)
    assert len(found) == count
    assert list(found) == expected
    assert list(found[index::step]) == expected[index::step]
    if -count <= index < count:
        assert found[index] == expected[index]
    else:
        with pytest.raises(IndexError):
            found[index]


def test_of_a_few_each_is_there_once() -> None:
    few = gathered([oid(2), oid(1), oid(2)])
    assert few.in_order() == (oid(2), oid(1), oid(2))
    assert few.distinct() == (oid(2), oid(1))
    assert few.as_set() == {oid(1), oid(2)}
    many = gathered([oid(1)] * (FEW + 1))
    assert {*many.distinct()} == {*many.as_set()} == {oid(1)}


def wants_and_haves(count: int, ending: bytes = b"\n") -> bytes:
    """Return a v2 fetch of so many of each."""
    said = [
        encode(b"%b %b%b" % (key, oid(number), ending))
        for key in (b"want", b"have")
        for number in range(count)
    ]
    return encode(b"command=fetch\n") + DELIM_PKT + b"".join(said) + FLUSH_PKT


@pytest.mark.parametrize("count", [1, 2, 999, 1000, 1001, 1002, 5000])
@pytest.mark.parametrize("ending", [b"\n", b"", b" \n"])
def test_runs_of_lines_are_read_like_single_ones(count: int, ending: bytes) -> None:
    found = parse_command(wants_and_haves(count, ending))
    assert isinstance(found, FetchRequest)
    expected = [oid(number) for number in range(count)]
    assert list(found.wants) == list(found.haves) == expected


@pytest.mark.parametrize("bad", [b"want " + b"g" * 40, b"want " + b"0" * 39, b"wanted"])
def test_a_bad_line_behind_many_good_ones_is_refused(bad: bytes) -> None:
    body = wants_and_haves(2000).removesuffix(FLUSH_PKT) + encode(bad + b"\n") + FLUSH_PKT
    with pytest.raises(RequestRefused):
        parse_command(body)


def test_a_body_that_ends_within_many_lines_is_malformed() -> None:
    with pytest.raises(ProtocolError, match="ends within a pkt-line: b'0032have 0"):
        parse_command(wants_and_haves(2000)[: -len(FLUSH_PKT) - 30])


@pytest.mark.parametrize("piece_bytes", [1, 49, 50, 51, 4096])
def test_pieces_are_read_like_the_whole_and_let_go_of(piece_bytes: int) -> None:
    body = wants_and_haves(100)
    pieces = deque(body[at : at + piece_bytes] for at in range(0, len(body), piece_bytes))
    found = parse_command(b"", (pieces.popleft() for _ in range(len(pieces))))
    assert found == parse_command(body)
    assert not pieces
    v0 = join([b"want " + oid(1), Special.FLUSH, b"have " + oid(2), b"done"])
    again = [v0[at : at + piece_bytes] for at in range(0, len(v0), piece_bytes)]
    assert parse_upload_pack(again[0], again[1:]) == parse_upload_pack(v0)
    with pytest.raises(ProtocolError, match="ends within a pkt-line"):
        parse_command(body[:1000], [body[1000:1020], body[1020:1040]])


def test_v0_keeps_the_order_and_repetitions_of_many_haves() -> None:
    wants = [b"want " + oid(1) + b" multi_ack", *(b"want " + oid(n) for n in range(2, 3000))]
    haves = [b"have " + oid(n % 1500) for n in range(3000)]
    body = join([*lines(*wants), Special.FLUSH, *lines(*haves, b"done")])
    found = parse_upload_pack(body)
    assert isinstance(found, UploadPackRequest)
    assert found.fetch.done
    assert list(found.fetch.wants) == [oid(n) for n in range(1, 3000)]
    assert list(found.fetch.haves) == [oid(n % 1500) for n in range(3000)]


def test_many_shallow_lines_and_object_infos_are_read() -> None:
    shallow = parse_command(command(b"fetch", *(b"shallow " + oid(n) for n in range(3000))))
    assert isinstance(shallow, FetchRequest)
    assert {*shallow.shallow} == {oid(n) for n in range(3000)}
    sizes = parse_command(command(b"object-info", *(b"oid " + oid(n) for n in range(3000))))
    assert isinstance(sizes, ObjectInfoRequest)
    assert list(sizes.oids) == [oid(n) for n in range(3000)]


def test_many_ids_take_little_memory_and_few_steps() -> None:
    count = 20_000
    body = wants_and_haves(count)
    assert calls_made(lambda: parse_command(body)) < count
    tracemalloc.start()
    try:
        found = parse_command(body)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(found, FetchRequest)
    assert kept < peak < 2 * count * BYTES_PER_ID


def test_what_no_client_asks_for_so_often_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "WANT_REFS_MAX", 3)
    monkeypatch.setattr(arguments, "EXCLUDED_MAX", 3)
    for key in (b"want-ref", b"deepen-not"):
        asked = [b"%b refs/heads/%d" % (key, number) for number in range(4)]
        assert parse_command(command(b"fetch", *asked[:3])) is not None
        with pytest.raises(RequestRefused, match=f"more than 3 {key.decode()}"):
            parse_command(command(b"fetch", *asked))


def test_prefixes_beyond_what_counts_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "REF_PREFIXES_MAX", 1000)
    prefixes = [b"ref-prefix refs/heads/%d" % number for number in range(20_000)]
    body = command(b"ls-refs", *prefixes)
    tracemalloc.start()
    try:
        parse_command(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(body) / 4
