"""A netrc file as curl and git's credential helper read it: who signs in where.

Pure. `machine HOST` is for every port; `machine HOST:PORT` and `machine HOST port PORT` for one.
The first entry that fits counts, one with the port before one without; `default` fits everywhere.
Words may stand in double quotes, with backslashes as in C. Never repeats a word of the file: which
of them are secrets is not known where the file is wrong.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

ENTRIES_MAX: Final = 1000

_TOKEN: Final = re.compile(r'"((?:[^"\\\n]|\\.)*)"|([^\s"]\S*)')
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t"}


@dataclass(frozen=True, slots=True)
class NetrcEntry:
    """One entry.

    Attributes:
        host: In lower case; `None` for `default`.
        port: `None` for every port.
        line: Where it begins, from 1.
    """

    host: str | None
    port: int | None
    line: int
    login: str | None = None
    password: str | None = field(default=None, repr=False)


def parse_netrc(text: str) -> list[NetrcEntry]:
    """Return the entries in their order.

    Raises:
        ValueError: It is no netrc file; says in which line.
    """
    entries: list[NetrcEntry] = []
    tokens = list(_tokens(text))
    position = 0
    while position < len(tokens):
        line, word = tokens[position]
        if word not in {"machine", "default"}:
            raise ValueError(f"line {line} has a word where `machine` or `default` is expected")
        position += 1
        host: str | None = None
        if word == "machine":
            host, position = _argument(tokens, position, line)
        named: dict[str, str] = {}
        while position < len(tokens) and tokens[position][1] in _KEYS:
            at, key = tokens[position]
            named[key], position = _argument(tokens, position + 1, at)
        entries.append(_entry(host, named, line))
        if len(entries) > ENTRIES_MAX:
            raise ValueError(f"it has more than {ENTRIES_MAX} entries")
    return entries


_KEYS: Final = frozenset({"login", "user", "account", "password", "port", "protocol"})


def find_entry(entries: Sequence[NetrcEntry], host: str, port: int) -> NetrcEntry | None:
    """Return the entry for a host and port, `None` where there is none."""
    host = host.lower()
    for wanted in ((host, port), (host, None), (None, None)):
        for entry in entries:
            if (entry.host, entry.port) == wanted:
                return entry
    return None


def _entry(host: str | None, named: dict[str, str], line: int) -> NetrcEntry:
    port = named.get("port")
    if host is not None and port is None:
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:]+):([0-9]+)", host)
        if match:
            host, port = match[1], match[2]
    if port is not None and not (port.isascii() and port.isdigit() and len(port) <= 5):
        raise ValueError(f"the entry in line {line} has a port that is no number")
    return NetrcEntry(
        host=None if host is None else host.strip("[]").lower(),
        port=None if port is None else int(port),
        line=line,
        login=named.get("login", named.get("user")),
        password=named.get("password"),
    )


def _argument(tokens: Sequence[tuple[int, str]], position: int, line: int) -> tuple[str, int]:
    if position >= len(tokens):
        raise ValueError(f"the word at the end of line {line} has nothing after it")
    return tokens[position][1], position + 1


def _tokens(text: str) -> Iterator[tuple[int, str]]:
    """Yield the words, each with its line; comments and macros are left out."""
    in_macro = False
    for number, line in enumerate(text.split("\n"), 1):
        if in_macro:
            in_macro = bool(line.strip())
            continue
        if line.lstrip().startswith("#"):
            continue
        if _TOKEN.sub("", line).strip():
            raise ValueError(f"line {number} has a quotation mark without its other one")
        for match in _TOKEN.finditer(line):
            quoted, plain = match[1], match[2]
            if plain == "macdef":
                in_macro = True
                break
            if quoted is not None:
                yield number, re.sub(r"\\(.)", lambda one: _ESCAPES.get(one[1], one[1]), quoted)
            else:
                yield number, plain
