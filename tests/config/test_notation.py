import re
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.config.notation import (
    choice,
    count,
    duration,
    duration_or_never,
    format_duration,
    format_size,
    nearest,
    parse_duration,
    parse_size,
    size,
    switch,
)


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("0s", 0.0),
        ("250ms", 0.25),
        ("30s", 30.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1m5ms", 60.005),
        ("7d", 604800.0),
        ("1d1h1m1s1ms", 90061.001),
        ("90m", 5400.0),
    ],
)
def test_a_duration_is_read_as_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "1.5s",
        "-1s",
        "+1s",
        "1 s",
        "1S",
        "30m1h",
        "1s1s",
        "never",
        "1w",
        "1e3s",
        "٣s",
        "s1",
    ],
)
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; write it like `30s`"):
        parse_duration(text)


def test_a_duration_without_unit_is_refused_with_the_unit_to_write() -> None:
    with pytest.raises(ValueError, match="`30` has no unit; write `30s` for seconds"):
        parse_duration("30")


@given(st.integers(min_value=0, max_value=10**12))
def test_a_duration_that_is_written_reads_as_the_same(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.text(alphabet="0123456789dhms. -x", max_size=12))
def test_the_pattern_for_editors_takes_what_is_read_and_nothing_else(text: str) -> None:
    notation = duration("0s", "999999999d")
    matches = re.search(notation.schema["pattern"], text) is not None
    try:
        notation.read(text)
    except ValueError as error:
        assert not matches or "too long" in str(error)
    else:
        assert matches


def test_a_duration_outside_its_bounds_is_refused_with_the_bound() -> None:
    notation = duration("1s", "1h")
    assert notation.read("1s") == 1.0
    assert notation.read("1h") == 3600.0
    with pytest.raises(ValueError, match="`999ms` is too short; write at least `1s`"):
        notation.read("999ms")
    with pytest.raises(ValueError, match="`61m` is too long; write at most `1h`"):
        notation.read("61m")


def test_never_is_read_only_where_it_may_stand() -> None:
    assert duration_or_never("1s", "1h").read("never") is None
    assert duration_or_never("1s", "1h").read("5s") == 5.0
    with pytest.raises(ValueError, match="`never` is not a duration"):
        duration("1s", "1h").read("never")


def test_never_is_written_as_never() -> None:
    notation = duration_or_never("1s", "1h")
    assert notation.write(None) == "never"
    assert notation.write(90.0) == "1m30s"


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1048576", 1048576),
        ("512KiB", 512 * 1024),
        ("64MiB", 64 * 1024**2),
        ("20GiB", 20 * 1024**3),
        ("1TiB", 1024**4),
    ],
)
def test_a_size_is_read_as_bytes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "64MB", "64M", "64 MiB", "1.5GiB", "-1", "MiB", "64mib", "٣"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write it like `512KiB`"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=10**14))
def test_a_size_that_is_written_reads_as_the_same(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


def test_a_size_outside_its_bounds_is_refused_with_the_bound() -> None:
    notation = size("1KiB", "1MiB")
    assert notation.read("1024") == 1024
    assert notation.read("1MiB") == 1024**2
    with pytest.raises(ValueError, match="`1023` is too small; write at least `1KiB`"):
        notation.read("1023")
    with pytest.raises(ValueError, match="`1GiB` is too big; write at most `1MiB`"):
        notation.read("1GiB")


def test_a_count_is_read_within_its_bounds() -> None:
    notation = count(1, 256)
    assert [notation.read(text) for text in ("1", "8", "256")] == [1, 8, 256]


@pytest.mark.parametrize("text", ["0", "257", "", "-1", "1.0", "1_0", "two", "٣", "9" * 5000])
def test_what_is_no_count_within_its_bounds_is_refused_with_them(text: str) -> None:
    with pytest.raises(ValueError, match="is not a whole number from 1 to 256"):
        count(1, 256).read(text)


def test_a_switch_is_true_or_false_and_nothing_else() -> None:
    assert (switch().read("true"), switch().read("false")) == (True, False)
    for text in ("yes", "True", "1", "on", ""):
        with pytest.raises(ValueError, match="is not `true` or `false`"):
            switch().read(text)


def test_a_choice_is_read_as_its_member() -> None:
    assert choice(Colour).read("blue") is Colour.BLUE


def test_a_wrong_choice_is_refused_with_all_there_are() -> None:
    with pytest.raises(ValueError, match=r"`green` is not one of `red` or `blue`$"):
        choice(Colour).read("green")


def test_a_misspelt_choice_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(ValueError, match=r"; did you mean `blue`\?$"):
        choice(Colour).read("Bleu")


def test_a_message_repeats_only_the_beginning_of_a_long_value() -> None:
    with pytest.raises(ValueError, match=r"`x{60}\.\.\.` is not a duration"):
        parse_duration("x" * 1000)


def test_the_nearest_word_is_found_whatever_its_case() -> None:
    assert nearest("POL_INTERVAL", ["hold", "poll_interval"]) == "poll_interval"
    assert nearest("zebra", ["hold", "poll_interval"]) is None
