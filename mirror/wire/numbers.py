"""Numbers as git reads them: C's ``strtoumax`` with base 0, and git-config(1)'s k, m and g."""

import re
from typing import Final

UNSIGNED_MAX: Final = (1 << 64) - 1

_NUMBER: Final = rb"[ \t-\r]*\+?(?:0[xX]([0-9a-fA-F]{1,16})|(0[0-7]{0,22})|([1-9][0-9]{0,19}))"
_UNSIGNED: Final = re.compile(_NUMBER)
_SIZE: Final = re.compile(_NUMBER + rb"([kKmMgG]?)")
_BASES: Final = ((1, 16), (2, 8), (3, 10))
"""The groups of a number, and the base of each."""

_UNITS: Final = {b"": 1, b"k": 1 << 10, b"m": 1 << 20, b"g": 1 << 30}


def parse_unsigned(data: bytes) -> int | None:
    """Return an unsigned number: decimal, octal after ``0``, hexadecimal after ``0x``."""
    return _value(_UNSIGNED.fullmatch(data))


def parse_size(data: bytes) -> int | None:
    """Return an unsigned number, which may have a unit."""
    found = _SIZE.fullmatch(data)
    value = _value(found)
    if found is None or value is None:
        return None
    scaled = value * _UNITS[found[4].lower()]
    return scaled if scaled <= UNSIGNED_MAX else None


def _value(found: "re.Match[bytes] | None") -> int | None:
    if found is None:
        return None
    digits, base = next((found[group], base) for group, base in _BASES if found[group])
    value = int(digits, base)
    return value if value <= UNSIGNED_MAX else None
