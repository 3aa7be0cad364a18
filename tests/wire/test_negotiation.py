from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.wire.names import ObjectId
from mirror.wire.negotiation import Negotiated, negotiate_v0, negotiate_v2
from mirror.wire.pktline import Special, decode_all, text
from mirror.wire.requests import AckMode, FetchRequest, UploadPackRequest
from tests.wire.bodies import oid

WANT = oid(0xFF)
BY_LETTER = {letter: oid(number) for number, letter in enumerate("ABCDXYZ", start=1)}
BY_OID = {name: letter for letter, name in BY_LETTER.items()}
MIRROR = "ABCD"  # X, Y and Z are the reader's own commits


def oids(letters: str) -> tuple[ObjectId, ...]:
    return tuple(BY_LETTER[letter] for letter in letters)


def letters(names: tuple[ObjectId, ...]) -> str:
    return "".join(BY_OID[name] for name in names)


def contains(name: ObjectId) -> bool:
    return BY_OID[name] in MIRROR


def ready_with(needed: str | None) -> Callable[[tuple[ObjectId, ...]], bool]:
    """Ready once all of these are common; `None`: never."""
    return lambda common: needed is not None and set(oids(needed)) <= set(common)


def said(outcome: Negotiated) -> list[str]:
    """Return the lines, ids as letters and special packets by name."""
    lines = [
        packet.name if isinstance(packet, Special) else text(packet).decode()
        for packet in decode_all(outcome.lines)
    ]
    return [
        " ".join(BY_OID.get(ObjectId(word.encode()), word) for word in line.split())
        for line in lines
    ]


# --- protocol v2 -------------------------------------------------------------------------------


def v2(
    haves: str,
    *,
    needed: str | None = None,
    wants: tuple[ObjectId, ...] = (WANT,),
    done: bool = False,
    wait_for_done: bool = False,
) -> Negotiated:
    request = FetchRequest(wants=wants, haves=oids(haves), done=done, wait_for_done=wait_for_done)
    return negotiate_v2(request, contains, ready_with(needed))


@pytest.mark.parametrize(
    ("haves", "needed", "lines"),
    [
        ("X", None, ["acknowledgments", "NAK", "FLUSH"]),
        ("XY", "", ["acknowledgments", "NAK", "FLUSH"]),
        ("A", None, ["acknowledgments", "ACK A", "FLUSH"]),
        ("BXA", None, ["acknowledgments", "ACK B", "ACK A", "FLUSH"]),
        ("A", "A", ["acknowledgments", "ACK A", "ready", "DELIM"]),
        ("AX", "A", ["acknowledgments", "ACK A", "ready", "DELIM"]),
        ("XAB", "B", ["acknowledgments", "ACK A", "ACK B", "ready", "DELIM"]),
        ("A", "AB", ["acknowledgments", "ACK A", "FLUSH"]),
    ],
)
def test_a_v2_round_acknowledges_what_is_common_and_says_when_it_is_enough(
    haves: str, needed: str | None, lines: list[str]
) -> None:
    outcome = v2(haves, needed=needed)
    assert said(outcome) == lines
    assert outcome.send_pack == ("ready" in lines)
    assert letters(outcome.common) == "".join(name for name in haves if name in MIRROR)


def test_a_v2_client_that_is_done_gets_the_pack_without_acknowledgments() -> None:
    assert v2("AXB", done=True) == Negotiated(b"", send_pack=True, common=oids("AB"))


def test_a_v2_clone_gets_the_pack_at_once() -> None:
    assert v2("") == Negotiated(b"", send_pack=True, common=())


def test_a_v2_client_that_waits_for_done_gets_no_pack_before() -> None:
    waiting = v2("A", needed="A", wait_for_done=True)
    assert said(waiting) == ["acknowledgments", "ACK A", "FLUSH"]
    assert not waiting.send_pack
    assert v2("A", needed="A", wait_for_done=True, done=True).send_pack


def test_a_v2_client_may_ask_what_is_common_without_a_want() -> None:
    outcome = v2("AX", needed="A", wants=(), wait_for_done=True)
    assert said(outcome) == ["acknowledgments", "ACK A", "FLUSH"]
    assert not outcome.send_pack


@pytest.mark.parametrize("haves", ["", "A", "X"])
@pytest.mark.parametrize("done", [False, True])
def test_a_v2_request_that_wants_nothing_gets_nothing(haves: str, done: bool) -> None:
    outcome = v2(haves, needed="", wants=(), done=done)
    assert (outcome.lines, outcome.send_pack) == (b"", False)


# --- protocol v0 -------------------------------------------------------------------------------


def v0(
    acks: AckMode, haves: str, *, needed: str | None, done: bool = False, no_done: bool = False
) -> Negotiated:
    fetch = FetchRequest(wants=(WANT,), haves=oids(haves), done=done)
    request = UploadPackRequest(fetch, acks=acks, no_done=no_done)
    return negotiate_v0(request, contains, ready_with(needed))


@pytest.mark.parametrize(
    ("acks", "haves", "needed", "lines"),
    [
        (AckMode.SINGLE, "", None, ["NAK"]),
        (AckMode.SINGLE, "XY", None, ["NAK"]),
        (AckMode.SINGLE, "XAB", None, ["ACK A"]),
        (AckMode.SINGLE, "AX", "A", ["ACK A"]),
        (AckMode.MULTI, "", None, ["NAK"]),
        (AckMode.MULTI, "X", None, ["NAK"]),
        (AckMode.MULTI, "XAB", None, ["ACK A continue", "ACK B continue", "NAK"]),
        (AckMode.MULTI, "XAY", "A", ["ACK A continue", "ACK Y continue", "NAK"]),
        (AckMode.MULTI, "AB", "A", ["ACK A continue", "ACK B continue", "NAK"]),
        (AckMode.DETAILED, "", None, ["NAK"]),
        (AckMode.DETAILED, "XY", "", ["NAK"]),
        (AckMode.DETAILED, "XAB", None, ["ACK A common", "ACK B common", "NAK"]),
        (AckMode.DETAILED, "AB", "B", ["ACK A common", "ACK B common", "ACK B ready", "NAK"]),
        # A have that we lack keeps the flush-pkt from saying ready; the haves after it say it.
        (AckMode.DETAILED, "XA", "A", ["ACK A common", "NAK"]),
        (AckMode.DETAILED, "AX", "A", ["ACK A common", "ACK X ready", "NAK"]),
        (
            AckMode.DETAILED,
            "AXBY",
            "B",
            ["ACK A common", "ACK B common", "ACK Y ready", "NAK"],
        ),
    ],
)
def test_a_v0_round_that_ends_with_a_flush_acknowledges_and_waits(
    acks: AckMode, haves: str, needed: str | None, lines: list[str]
) -> None:
    outcome = v0(acks, haves, needed=needed)
    assert said(outcome) == lines
    assert not outcome.send_pack
    assert letters(outcome.common) == "".join(name for name in haves if name in MIRROR)


@pytest.mark.parametrize(
    ("acks", "haves", "needed", "lines"),
    [
        (AckMode.SINGLE, "", None, ["NAK"]),
        (AckMode.SINGLE, "X", None, ["NAK"]),
        (AckMode.SINGLE, "XAB", "A", ["ACK A"]),
        (AckMode.MULTI, "X", None, ["NAK"]),
        (AckMode.MULTI, "AB", None, ["ACK A continue", "ACK B continue", "ACK B"]),
        (AckMode.DETAILED, "", None, ["NAK"]),
        (AckMode.DETAILED, "X", None, ["NAK"]),
        (AckMode.DETAILED, "AB", "B", ["ACK A common", "ACK B common", "ACK B"]),
        (AckMode.DETAILED, "AX", "A", ["ACK A common", "ACK X ready", "ACK A"]),
    ],
)
def test_a_v0_client_that_is_done_gets_a_last_acknowledgment_and_the_pack(
    acks: AckMode, haves: str, needed: str | None, lines: list[str]
) -> None:
    outcome = v0(acks, haves, needed=needed, done=True)
    assert said(outcome) == lines
    assert outcome.send_pack


@pytest.mark.parametrize(
    ("acks", "haves", "needed", "end"),
    [
        (AckMode.DETAILED, "AB", "B", ["ACK B ready", "NAK", "ACK B"]),
        (AckMode.DETAILED, "ABX", "B", ["ACK X ready", "NAK", "ACK B"]),
        (AckMode.DETAILED, "AXB", None, ["ACK B common", "NAK"]),
        (AckMode.DETAILED, "XA", "A", ["ACK A common", "NAK"]),
        (AckMode.DETAILED, "X", "", ["NAK"]),
        (AckMode.MULTI, "AX", "A", ["ACK X continue", "NAK"]),
        (AckMode.SINGLE, "A", "A", ["ACK A"]),
    ],
)
def test_with_no_done_the_pack_follows_a_ready_round(
    acks: AckMode, haves: str, needed: str | None, end: list[str]
) -> None:
    outcome = v0(acks, haves, needed=needed, no_done=True)
    assert said(outcome)[-len(end) :] == end
    assert outcome.send_pack == (len(end) == 3)


@pytest.mark.parametrize("acks", [AckMode.MULTI, AckMode.DETAILED])
def test_history_is_walked_again_only_when_another_have_is_common(acks: AckMode) -> None:
    walks: list[str] = []

    def never(common: tuple[ObjectId, ...]) -> bool:
        walks.append(letters(common))
        return False

    request = UploadPackRequest(FetchRequest(wants=(WANT,), haves=oids("XABYZCX")), acks=acks)
    negotiate_v0(request, contains, never)
    assert walks == ["AB", "ABC"]


def test_once_ready_history_is_walked_no_more() -> None:
    walks: list[str] = []

    def at_once(common: tuple[ObjectId, ...]) -> bool:
        walks.append(letters(common))
        return True

    fetch = FetchRequest(wants=(WANT,), haves=oids("AXBYCZ"))
    negotiate_v0(UploadPackRequest(fetch, acks=AckMode.DETAILED), contains, at_once)
    assert walks == ["A"]


# --- properties --------------------------------------------------------------------------------

some_haves = st.permutations("ABCDXYZ").flatmap(
    lambda order: st.integers(0, 7).map(lambda count: "".join(order[:count]))
)
needs = st.none() | st.sampled_from(["", "A", "AB", "D"])


@given(some_haves, needs, st.sampled_from(AckMode), st.booleans(), st.booleans())
def test_whatever_the_haves_a_v0_round_keeps_the_rules(
    haves: str, needed: str | None, acks: AckMode, done: bool, no_done: bool
) -> None:
    outcome = v0(acks, haves, needed=needed, done=done, no_done=no_done)
    lines = said(outcome)
    assert letters(outcome.common) == "".join(name for name in haves if name in MIRROR)
    assert outcome.send_pack == (done or (no_done and any("ready" in line for line in lines)))
    if outcome.send_pack:
        last = outcome.common and letters(outcome.common[-1:])
        assert lines[-1] == (f"ACK {last}" if last else "NAK") or acks is AckMode.SINGLE
    if acks is AckMode.SINGLE:
        assert len(lines) == 1
    acknowledged = {line.split()[1] for line in lines if line.startswith("ACK")}
    assert acknowledged <= set(haves)


@given(some_haves.filter(bool), needs, st.booleans())
def test_whatever_the_haves_a_v2_round_keeps_the_rules(
    haves: str, needed: str | None, wait_for_done: bool
) -> None:
    outcome = v2(haves, needed=needed, wait_for_done=wait_for_done)
    common = [name for name in haves if name in MIRROR]
    expected = [f"ACK {name}" for name in common] or ["NAK"]
    lines = said(outcome)
    assert lines[: len(expected) + 1] == ["acknowledgments", *expected]
    end = ["ready", "DELIM"] if outcome.send_pack else ["FLUSH"]
    assert lines[len(expected) + 1 :] == end
    ready = bool(common) and needed is not None and set(needed) <= set(common)
    assert outcome.send_pack == (ready and not wait_for_done)
