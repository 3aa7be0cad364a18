"""What passes by in a push is understood however it is sliced, or said not to be."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.wire.names import ZERO_ID, ObjectId, RefName
from mirror.wire.pktline import FLUSH_PKT, encode
from mirror.wire.push import (
    COMMANDS_MAX,
    CommandsReader,
    RefUpdate,
    ReportReader,
    TipsReader,
    changes_of,
)

OLD, NEW = ObjectId(b"1" * 40), ObjectId(b"2" * 40)
MAIN, TAG = RefName(b"refs/heads/main"), RefName(b"refs/tags/v1")
CAPABILITIES = b"\0 report-status-v2 side-band-64k object-format=sha1 agent=git/2.39.5"
BODY = (
    encode(b"shallow " + OLD)
    + encode(b"%b %b %b%b" % (OLD, NEW, MAIN, CAPABILITIES))
    + encode(b"%b %b %b\n" % (ZERO_ID, NEW, TAG))
    + FLUSH_PKT
    + b"PACK\0\0\0\2 what follows is not looked at"
)
UPDATES = [RefUpdate(MAIN, OLD, NEW), RefUpdate(TAG, None, NEW)]
REPORT = (
    encode(b"unpack ok\n")
    + encode(b"ok refs/heads/main\n")
    + encode(b"option refname refs/heads/main\n")
    + encode(b"ng refs/tags/v1 pre-receive hook declined\n")
    + FLUSH_PKT
)
TIPS = (
    encode(b"# service=git-receive-pack\n")
    + FLUSH_PKT
    + encode(b"%b %b%b\n" % (NEW, MAIN, CAPABILITIES))
    + encode(b"%b %b\n" % (OLD, TAG))
    + encode(b"%b .have\n" % NEW)
    + FLUSH_PKT
)


def banded(report: bytes, *, size: int = 1000) -> bytes:
    pieces = [report[at : at + size] for at in range(0, len(report), size)]
    progress = encode(b"\2remote: Resolving deltas\n")
    return progress + progress.join(encode(b"\1" + piece) for piece in pieces) + FLUSH_PKT


def commands_of(*slices: bytes) -> CommandsReader:
    reader = CommandsReader()
    for data in slices:
        reader.feed(data)
    return reader


def report_of(*slices: bytes, has_side_band: bool = True) -> ReportReader:
    reader = ReportReader(has_side_band=has_side_band)
    for data in slices:
        reader.feed(data)
    return reader


def tips_of(*slices: bytes, known: Mapping[RefName, ObjectId]) -> dict[RefName, ObjectId]:
    reader = TipsReader(lambda ref, oid: known.get(ref) == oid)
    for piece in slices:
        reader.feed(piece)
    return reader.news


def sliced(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


@given(st.lists(st.integers(0, 10_000), max_size=20))
def test_commands_are_read_up_to_the_flush_packet_however_they_are_sliced(cuts: list[int]) -> None:
    reader = commands_of(*sliced(BODY, cuts))
    assert list(reader.updates().values()) == UPDATES
    assert reader.is_ended
    assert reader.is_understood
    assert reader.has_side_band


@given(st.lists(st.integers(0, 10_000), max_size=20))
def test_of_the_refs_of_an_upstream_those_are_news_that_one_knows_otherwise(
    cuts: list[int],
) -> None:
    slices = sliced(TIPS, cuts)
    assert tips_of(*slices, known={}) == {MAIN: NEW, TAG: OLD}
    assert tips_of(*slices, known={MAIN: OLD, TAG: OLD}) == {MAIN: NEW}
    assert tips_of(*slices, known={MAIN: NEW, TAG: OLD}) == {}


def test_an_empty_upstream_has_no_news_and_of_very_many_not_each_is_kept() -> None:
    empty = encode(b"%b capabilities^{}%b" % (ZERO_ID, CAPABILITIES)) + FLUSH_PKT
    assert tips_of(empty, known={}) == {}
    many = b"".join(
        encode(b"%b refs/heads/%d" % (NEW, number)) for number in range(COMMANDS_MAX + 9)
    )
    assert len(tips_of(many, known={})) == COMMANDS_MAX


@given(st.lists(st.integers(0, 10_000), max_size=20), st.integers(1, 200), st.booleans())
def test_a_report_is_read_in_a_side_band_and_without_however_it_is_sliced(
    cuts: list[int], size: int, has_side_band: bool
) -> None:
    answer = banded(REPORT, size=size) if has_side_band else REPORT
    report = report_of(*sliced(answer, cuts), has_side_band=has_side_band)
    assert (report.accepted, report.rejected) == ({MAIN}, {TAG})
    assert report.is_understood
    assert changes_of(commands_of(BODY), report) == UPDATES[:1]


def test_a_lone_flush_packet_is_a_push_of_nothing() -> None:
    reader = commands_of(FLUSH_PKT)
    assert reader.is_ended
    assert reader.is_understood
    assert reader.updates() == {}


def test_a_deleted_ref_has_no_tip_afterwards() -> None:
    reader = commands_of(encode(b"%b %b %b\0 report-status" % (OLD, ZERO_ID, MAIN)) + FLUSH_PKT)
    assert reader.updates() == {MAIN: RefUpdate(MAIN, OLD, None)}
    assert not reader.has_side_band


@pytest.mark.parametrize(
    "body",
    [
        encode(b"push-cert\0 report-status\n") + encode(b"certificate version 0.1\n") + FLUSH_PKT,
        encode(b"%b %b nowhere\0" % (OLD, NEW)) + FLUSH_PKT,
        encode(b"%b %b %b\0" % (OLD[:-1], NEW, MAIN)) + FLUSH_PKT,
        encode(b"%b %b %b\0" % (OLD, NEW, MAIN)) + b"0001",
        encode(b"%b %b %b\0" % (OLD, NEW, MAIN)) + b"what is this",
        encode(b"%b %b %b\0" % (OLD, NEW, MAIN)),
        b"",
    ],
    ids=["certificate", "no-ref", "no-id", "delimiter", "garbage", "no-end", "nothing"],
)
def test_what_is_no_plain_list_of_commands_leaves_open_what_was_changed(body: bytes) -> None:
    report = report_of(encode(b"unpack ok\n") + encode(b"ok refs/heads/main\n") + FLUSH_PKT)
    assert changes_of(commands_of(body), report) is None


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        banded(REPORT[:-4]),
        banded(REPORT.replace(b"ng refs/tags/v1", b"ng refs/tags/v2")),
        banded(encode(b"unpack ok\n") + FLUSH_PKT),
        banded(b"zzzz"),
        b"zzzz",
        encode(b"\3the disk is full\n"),
    ],
)
def test_a_report_that_does_not_fit_leaves_open_what_was_changed(answer: bytes) -> None:
    assert changes_of(commands_of(BODY), report_of(answer)) is None


def test_of_very_many_commands_not_each_is_kept() -> None:
    body = b"".join(
        encode(b"%b %b refs/heads/%d\n" % (OLD, NEW, number)) for number in range(COMMANDS_MAX + 1)
    )
    reader = commands_of(body + FLUSH_PKT)
    assert len(reader.updates()) == COMMANDS_MAX
    assert reader.is_ended
    assert not reader.is_understood
    report = report_of(
        b"".join(encode(b"ok refs/heads/%d" % number) for number in range(COMMANDS_MAX + 1)),
        has_side_band=False,
    )
    assert len(report.accepted) == COMMANDS_MAX


@given(st.lists(st.binary(max_size=200), max_size=10), st.booleans())
def test_garbage_raises_nothing(slices: list[bytes], has_side_band: bool) -> None:
    commands, report = commands_of(*slices), report_of(*slices, has_side_band=has_side_band)
    changes_of(commands, report)
    tips_of(*slices, known={})
