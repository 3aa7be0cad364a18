"""``sideband-all``: each line before the pack is on side-band 1, as git's own server frames it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.repository.fetching import plan_v2
from mirror.wire.answers import encode_in_side_band
from mirror.wire.names import RefName
from mirror.wire.pktline import (
    DELIM_PKT,
    FLUSH_PKT,
    Packet,
    Special,
    decode_all,
    encode_lines,
    text,
)
from mirror.wire.requests import FetchRequest, parse_command
from tests.wire.bodies import command, oid
from tests.wire.git_server import Both
from tests.wire.test_fetch_like_git import sorted_shallow

MAIN = RefName(b"refs/heads/main")


def head_by_git(both: Both, body: bytes) -> list[Packet]:
    """Return the packets of git's answer up to the heading of the pack."""
    packets = decode_all(both.git.command(body))
    lines = [packet if isinstance(packet, Special) else text(packet) for packet in packets]
    end = lines.index(b"\1packfile") + 1 if b"\1packfile" in lines else len(lines)
    return lines[:end]


def head_by_us(both: Both, body: bytes) -> list[Packet]:
    request = parse_command(body)
    assert isinstance(request, FetchRequest)
    packets = decode_all(plan_v2(both.mirror, both.snapshot, request).head)
    return [packet if isinstance(packet, Special) else text(packet) for packet in packets]


@pytest.mark.parametrize(
    "arguments",
    [
        ("done",),
        ("have ROOT", "done"),
        ("have ROOT",),
        (f"have {oid(1).decode()}",),
        ("have ROOT", "wait-for-done"),
        ("deepen 1", "done"),
        ("deepen 2", "have ROOT"),
        ("deepen-since 1750000300", "done"),
        ("shallow PARENT", "deepen 2147483647", "done"),
        ("want-ref refs/heads/side", "done"),
    ],
    ids=", ".join,
)
def test_the_sections_before_the_pack_are_framed_as_by_git(
    both: Both, arguments: tuple[str, ...]
) -> None:
    main = both.snapshot.by_name[MAIN].oid
    names = {"ROOT": next(iter(both.parents)).decode(), "PARENT": both.parents[main][0].decode()}
    for name, real in names.items():
        arguments = tuple(line.replace(name, real) for line in arguments)
    lines = [b"want " + main, b"no-progress", b"sideband-all", *map(str.encode, arguments)]
    body = command(b"fetch", *lines)
    assert sorted_shallow(head_by_us(both, body)) == sorted_shallow(head_by_git(both, body))


def test_what_is_said_is_the_same_as_without(both: Both) -> None:
    lines = [b"want " + both.snapshot.by_name[MAIN].oid, b"deepen 2", b"done"]
    plain, framed = (
        head_by_us(both, command(b"fetch", *more, *lines)) for more in ([], [b"sideband-all"])
    )
    assert framed == [line if isinstance(line, Special) else b"\1" + line for line in plain]


@given(
    st.lists(
        st.sampled_from([FLUSH_PKT, DELIM_PKT])
        | st.binary(max_size=9).map(lambda line: encode_lines([line]))
    )
)
def test_any_lines_keep_their_order_and_their_special_packets(packets: list[bytes]) -> None:
    framed = decode_all(encode_in_side_band(b"".join(packets)))
    assert framed == [
        packet if isinstance(packet, Special) else b"\1" + packet
        for packet in decode_all(b"".join(packets))
    ]
