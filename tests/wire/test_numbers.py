import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.wire.numbers import UNSIGNED_MAX, parse_size, parse_unsigned

UNITS = {b"": 1, b"k": 1024, b"K": 1024, b"m": 1024**2, b"M": 1024**2, b"g": 1024**3, b"G": 1024**3}


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"0", 0),
        (b"42", 42),
        (b"  \t+42", 42),
        (b"0x1F", 31),
        (b"0X1f", 31),
        (b"017", 15),
        (b"18446744073709551615", UNSIGNED_MAX),
        (b"0xffffffffffffffff", UNSIGNED_MAX),
        (b"01777777777777777777777", UNSIGNED_MAX),
    ],
)
def test_a_number_is_read_as_c_reads_it(data: bytes, value: int) -> None:
    assert parse_unsigned(data) == parse_size(data) == value


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b" ", b"-1", b"+-1", b"1 ", b"1_0", b"0x", b"0xg", b"08", b"x", b"1.0", b"\xd9\xa3"),
        *(b"18446744073709551616", b"99999999999999999999", b"02000000000000000000000", b"1\n"),
        *(b"1" * 60_000, b"0" * 60_000, b"0x" + b"f" * 60_000),
    ],
)
def test_what_is_no_number_or_none_of_64_bits_is_none(data: bytes) -> None:
    assert parse_unsigned(data) is None
    assert parse_size(data) is None


@given(st.integers(0, UNSIGNED_MAX), st.sampled_from(sorted(UNITS)))
def test_a_size_is_a_number_and_a_unit(number: int, unit: bytes) -> None:
    scaled = number * UNITS[unit]
    assert parse_size(b"%d%b" % (number, unit)) == (scaled if scaled <= UNSIGNED_MAX else None)
    assert parse_unsigned(b"%dk" % number) is None
