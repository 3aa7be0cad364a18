"""How single values are written: durations, sizes, counts, switches, choices.

A `Notation` says all there is to say of one kind of value: how its text is read, how it is
written back, its JSON Schema and its words in the reference. Put it in `Annotated[...]` and
pydantic uses it; the messages are ours, so they can say what to write instead.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

T = TypeVar("T")
Choice = TypeVar("Choice", bound=StrEnum)

SHOWN_CHARACTERS_MAX: Final = 60
"""How much of a wrong value a message repeats."""


@dataclass(frozen=True, slots=True, eq=False)
class Notation(Generic[T]):
    """One kind of value, as it is written in the file.

    Attributes:
        words: What it is, for messages and the reference: "a duration from 1s to 1h".
        read: From text to value; raises `ValueError` that says what to write instead.
        write: From value to text, or to the number that JSON Schema calls a default.
        schema: JSON Schema of what may be written.
        python_type: Values of this type are taken as they are: code may pass them, a file can't.
    """

    words: str
    read: Callable[[str], T]
    write: Callable[[T], str | int]
    schema: Mapping[str, Any]
    python_type: type | None = None

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return dict(self.schema)

    def _validate(self, value: object) -> object:
        if value is None:
            raise ValueError("has no value; write one, or leave the key out")
        if self.python_type is not None and isinstance(value, self.python_type):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise ValueError(f"must be {self.words}, not {kind_of(value)}")  # noqa: TRY004 - pydantic collects ValueErrors
        return self.read(value)


def kind_of(value: object) -> str:
    """Return what `value` is called in YAML."""
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case _:
            return "a single value"


def shown(text: str) -> str:
    """Return `text` in backquotes, shortened where it is long."""
    if len(text) > SHOWN_CHARACTERS_MAX:
        text = text[:SHOWN_CHARACTERS_MAX] + "..."
    return f"`{text}`"


def enumerate_words(words: Iterable[str], *, last: str = "or") -> str:
    """Return "`a`, `b` or `c`"."""
    *head, tail = [f"`{word}`" for word in words]
    return f"{', '.join(head)} {last} {tail}" if head else tail


def nearest(text: str, known: Iterable[str]) -> str | None:
    """Return the one of `known` that `text` was probably meant to be."""
    by_lower = {word.lower(): word for word in known}
    found = difflib.get_close_matches(text.lower(), by_lower, n=1)
    return by_lower[found[0]] if found else None


# Durations: seconds as float, `None` for never.

_DURATION_UNITS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_DURATION_PATTERN: Final = "".join(f"(?:([0-9]{{1,9}}){unit})?" for unit in _DURATION_UNITS)
_DURATION: Final = re.compile(_DURATION_PATTERN)


def parse_duration(text: str) -> float:
    """Return the seconds of `30s`, `5m`, `1h30m`, `250ms` or a bare `0`.

    Raises:
        ValueError: It is something else.
    """
    if text == "0":
        return 0.0
    found = _DURATION.fullmatch(text)
    if found is None or not text:
        if text.isascii() and text.isdigit():
            raise ValueError(f"{shown(text)} has no unit; write `{text[:9]}s` for seconds")
        raise ValueError(
            f"{shown(text)} is not a duration; write it like `30s`, `5m`, `1h30m` or `250ms`"
        )
    amounts = zip(found.groups(), _DURATION_UNITS.values(), strict=True)
    return sum(int(amount) * unit for amount, unit in amounts if amount) / 1000


def format_duration(seconds: float) -> str:
    """Return what `parse_duration` reads as `seconds`, to the millisecond."""
    rest = round(seconds * 1000)
    parts = []
    for unit, milliseconds in _DURATION_UNITS.items():
        amount, rest = divmod(rest, milliseconds)
        if amount:
            parts.append(f"{amount}{unit}")
    return "".join(parts) or "0s"


def duration(at_least: str, at_most: str) -> Notation[float]:
    """Return the notation of a duration between two bounds."""
    low, high = parse_duration(at_least), parse_duration(at_most)

    def read(text: str) -> float:
        seconds = parse_duration(text)
        if seconds < low:
            raise ValueError(f"{shown(text)} is too short; write at least `{at_least}`")
        if seconds > high:
            raise ValueError(f"{shown(text)} is too long; write at most `{at_most}`")
        return seconds

    schema: dict[str, Any] = {"type": "string", "pattern": f"^(?=[0-9])({_DURATION_PATTERN}|0)$"}
    if low == 0:
        schema |= {"type": ["string", "integer"], "minimum": 0, "maximum": 0}
    words = f"a duration from `{at_least}` to `{at_most}`"
    return Notation(words, read, format_duration, schema, float)


def duration_or_never(at_least: str, at_most: str) -> Notation[float | None]:
    """Return the notation of a duration between two bounds, or `never`."""
    bounded = duration(at_least, at_most)

    def read(text: str) -> float | None:
        return None if text == "never" else bounded.read(text)

    def write(seconds: float | None) -> str:
        return "never" if seconds is None else format_duration(seconds)

    pattern = bounded.schema["pattern"].removesuffix("$")
    schema = {**bounded.schema, "pattern": f"{pattern}$|^never$"}
    return Notation(f"{bounded.words}, or `never`", read, write, schema, float)


# Sizes: bytes as int.

_SIZE_UNITS: Final = {"TiB": 1024**4, "GiB": 1024**3, "MiB": 1024**2, "KiB": 1024}
_SIZE: Final = re.compile(r"([0-9]{1,15})(KiB|MiB|GiB|TiB)?")


def parse_size(text: str) -> int:
    """Return the bytes of `512KiB`, `64MiB`, `20GiB`, `1TiB` or a bare number.

    Raises:
        ValueError: It is something else.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{shown(text)} is not a size; write it like `512KiB`, `64MiB`, `20GiB` or `1048576`"
        )
    return int(found[1]) * _SIZE_UNITS.get(found[2], 1)


def format_size(size_bytes: int) -> str:
    """Return what `parse_size` reads as `size_bytes`, in the largest unit that divides it."""
    for unit, factor in _SIZE_UNITS.items():
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return str(size_bytes)


def size(at_least: str, at_most: str) -> Notation[int]:
    """Return the notation of a size between two bounds."""
    low, high = parse_size(at_least), parse_size(at_most)

    def read(text: str) -> int:
        size_bytes = parse_size(text)
        if size_bytes < low:
            raise ValueError(f"{shown(text)} is too small; write at least `{at_least}`")
        if size_bytes > high:
            raise ValueError(f"{shown(text)} is too big; write at most `{at_most}`")
        return size_bytes

    schema = {
        "type": ["string", "integer"],
        "pattern": f"^{_SIZE.pattern}$",
        "minimum": low,
        "maximum": high,
    }
    return Notation(f"a size from `{at_least}` to `{at_most}`", read, format_size, schema)


def size_or_none(at_least: str, at_most: str) -> Notation[int | None]:
    """Return the notation of a size between two bounds, or `none` for no bound."""
    bounded = size(at_least, at_most)

    def read(text: str) -> int | None:
        return None if text == "none" else bounded.read(text)

    def write(size_bytes: int | None) -> str:
        return "none" if size_bytes is None else format_size(size_bytes)

    schema = {"anyOf": [dict(bounded.schema), {"const": "none"}]}
    return Notation(f"{bounded.words}, or `none`", read, write, schema)


_SHARE: Final = re.compile(r"([0-9]{1,2}(?:\.[0-9]{1,2})?)%")


def size_or_share(at_most: str, share_max: int) -> Notation[int | float]:
    """Return the notation of a size, as an int, or of a share in per cent, as a float below 1."""
    bounded = size("0", at_most)

    def read(text: str) -> int | float:
        if "%" not in text:
            return bounded.read(text)
        found = _SHARE.fullmatch(text)
        if found is None or float(found[1]) > share_max:
            raise ValueError(
                f"{shown(text)} is not a share; write from `0%` to `{share_max}%`, or a size"
            )
        return float(found[1]) / 100

    def write(value: float) -> str:
        return format_size(value) if isinstance(value, int) else f"{value * 100:g}%"

    schema = {"anyOf": [dict(bounded.schema), {"type": "string", "pattern": f"^{_SHARE.pattern}$"}]}
    return Notation(f"{bounded.words}, or a share from `0%` to `{share_max}%`", read, write, schema)


# Words, counts, switches and choices.


def words(what: str, example: str) -> Notation[str]:
    """Return the notation of a line of text."""

    def read(text: str) -> str:
        if not text or text != text.strip() or not text.isprintable():
            raise ValueError(f"must be {what}, like `{example}`")
        return text

    return Notation(what, read, str, {"type": "string", "minLength": 1, "examples": [example]})


def count(at_least: int, at_most: int) -> Notation[int]:
    """Return the notation of a whole number between two bounds."""
    words = f"a whole number from {at_least} to {at_most}"

    def read(text: str) -> int:
        digits = text if len(text) <= len(str(at_most)) else ""
        if not (digits.isascii() and digits.isdigit() and at_least <= int(digits) <= at_most):
            raise ValueError(f"{shown(text)} is not {words}")
        return int(digits)

    schema = {"type": "integer", "minimum": at_least, "maximum": at_most}
    return Notation(words, read, lambda number: number, schema)


def switch() -> Notation[bool]:
    """Return the notation of what is on or off."""
    words = "`true` or `false`"
    known = {"true": True, "false": False}

    def read(text: str) -> bool:
        if text not in known:
            raise ValueError(f"{shown(text)} is not {words}")
        return known[text]

    return Notation(words, read, bool, {"type": "boolean"}, bool)


def count_or_auto(at_least: int, at_most: int) -> Notation[int | None]:
    """Return the notation of a whole number between two bounds, or `auto`."""
    bounded = count(at_least, at_most)

    def read(text: str) -> int | None:
        return None if text == "auto" else bounded.read(text)

    def write(number: int | None) -> str | int:
        return "auto" if number is None else number

    schema = {"anyOf": [dict(bounded.schema), {"const": "auto"}]}
    return Notation(f"{bounded.words}, or `auto`", read, write, schema)


def choice(kind: type[Choice]) -> Notation[Choice]:
    """Return the notation of one of a few words."""
    known = [member.value for member in kind]
    words = enumerate_words(known)

    def read(text: str) -> Choice:
        if text in known:
            return kind(text)
        meant = nearest(text, known)
        hint = f"; did you mean `{meant}`?" if meant else ""
        raise ValueError(f"{shown(text)} is not one of {words}{hint}")

    return Notation(words, read, str, {"enum": known})
