"""Messages survive the channel however it slices them, and nothing else passes for one."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.refresh.refresher import Trigger
from mirror.wire.names import ObjectId, Ref, RefName
from mirror.workers import frames
from mirror.workers.frames import ChannelError, Decoder, encode
from mirror.workers.messages import (
    Added,
    Announced,
    CanaryWanted,
    ChangeState,
    CountsWanted,
    Delivered,
    Envelope,
    FiguresWanted,
    FreshnessState,
    LastState,
    Leave,
    Listen,
    Message,
    MirrorWanted,
    ReadsWanted,
    Reconfigure,
    Refreshed,
    RefreshWanted,
    Removed,
    Reply,
    Setup,
    SnapshotNews,
    Stop,
)

TEXT = st.text(max_size=20)
NUMBERS = st.integers(min_value=0, max_value=2**53)
SECONDS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.binary(max_size=20).map(RefName)
IDS = st.text("0123456789abcdef", min_size=40, max_size=40).map(lambda text: text.encode())
REFS = st.builds(Ref, NAMES, IDS.map(ObjectId), st.none() | IDS.map(ObjectId))
NEWS = st.builds(
    SnapshotNews,
    NUMBERS,
    st.none() | NUMBERS,
    st.lists(REFS, max_size=3).map(tuple),
    st.lists(NAMES, max_size=3).map(tuple),
    st.none() | NAMES,
    st.none() | IDS.map(ObjectId),
)
FRESHNESS = st.builds(
    FreshnessState,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    SECONDS,
    NUMBERS,
    st.floats(0, 1e9),
    st.floats(0, 1e9),
)
LAST = st.builds(LastState, SECONDS, SECONDS, st.none() | TEXT, SECONDS)
CHANGES = st.lists(st.builds(ChangeState, NAMES, TEXT, TEXT), max_size=3).map(tuple)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Setup, st.binary(max_size=50), st.binary(max_size=50), TEXT, NUMBERS, NUMBERS),
    st.builds(Reconfigure, st.binary(max_size=50)),
    st.builds(Announced, TEXT, NUMBERS),
    st.builds(Refreshed, TEXT, FRESHNESS, LAST, st.none() | NEWS),
    st.builds(Added, TEXT),
    st.builds(Removed, TEXT, st.booleans()),
    st.just(ReadsWanted()),
    st.just(Listen()),
    st.just(CountsWanted()),
    st.just(CanaryWanted()),
    st.just(Leave()),
    st.builds(Stop, st.floats(0, 1e9)),
    st.builds(RefreshWanted, TEXT, st.sampled_from(Trigger)),
    st.builds(MirrorWanted, TEXT, TEXT),
    st.builds(Delivered, TEXT, TEXT, st.lists(TEXT, max_size=3).map(tuple), CHANGES),
    st.builds(FiguresWanted, st.sampled_from(["metrics", "status"])),
    st.builds(Reply, TEXT, st.none() | TEXT),
)
ENVELOPES = st.lists(st.builds(Envelope, NUMBERS, MESSAGES), max_size=4)


@given(ENVELOPES, st.integers(min_value=1, max_value=50))
def test_any_slicing_gives_the_messages_that_were_sent(sent: list[Envelope], size: int) -> None:
    stream = b"".join(map(encode, sent))
    decoder = Decoder()
    got = []
    for start in range(0, len(stream), size):
        got += decoder.feed(stream[start : start + size])
    assert got == sent


@given(st.binary(max_size=200))
def test_garbage_raises_a_channel_error_and_nothing_else(garbage: bytes) -> None:
    framed = struct.pack(">I", len(garbage)) + garbage
    with pytest.raises(ChannelError):
        Decoder().feed(framed)


@pytest.mark.parametrize(
    "body",
    [
        b'{"id": 1, "message": {"kind": "stop"}, "more": 1}',
        b'{"id": 1, "message": {"kind": "unheard of"}}',
        b'{"id": 1, "message": {"kind": "announced", "repository": "a/b"}}',
        b'{"id": "x", "message": {"kind": "stop"}}',
    ],
)
def test_what_is_nearly_a_message_is_none(body: bytes) -> None:
    with pytest.raises(ChannelError, match="no message"):
        Decoder().feed(struct.pack(">I", len(body)) + body)


def test_a_frame_that_is_announced_too_long_is_refused_before_it_comes() -> None:
    with pytest.raises(ChannelError, match="too long"):
        Decoder().feed(struct.pack(">I", frames.FRAME_BYTES_MAX + 1))


def test_a_message_too_long_to_be_read_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAME_BYTES_MAX", 100)
    with pytest.raises(ChannelError, match="too long"):
        encode(Envelope(1, Reply("x" * 100)))
