"""From the bytes of a YAML file to plain values that remember the line each was written on.

Owns the bounds on what is read (size, depth, aliases), duplicate keys, anchors and merge keys. A
scalar stays the text that was written, so that `no`, `1:30` and `010` mean what they look like;
only an empty value or `null` becomes `None`. YAML 1.1, as PyYAML reads it.

Must never construct objects from tags, or expand aliases without a bound.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from mirror.config.notation import shown
from mirror.errors import ConfigError

try:
    from yaml import CSafeLoader as _Loader  # libyaml: 20 times faster on a long file
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

DOCUMENT_BYTES_MAX: Final = 4 * 1024 * 1024
"""Tens of thousands of repositories. More is the wrong file."""

DOCUMENT_DEPTH_MAX: Final = 20
"""The deepest key there is stands at 4; PyYAML composes recursively, in C without a guard."""

DOCUMENT_VALUES_MAX: Final = 400_000
"""Keys and values after aliases are expanded: a few nested aliases can stand for billions."""

_TOO_DEEP: Final = f"nested deeper than {DOCUMENT_DEPTH_MAX} levels; no key stands below the fourth"

_TAG: Final = "tag:yaml.org,2002:"
_MERGE: Final = _TAG + "merge"
_NULL: Final = _TAG + "null"
_KNOWN_TAGS: Final = frozenset(
    _TAG + kind
    for kind in (
        *("null", "bool", "int", "float", "timestamp", "str"),
        *("merge", "value", "seq", "map"),
    )
)
_UNREADABLE: Final = re.compile(
    r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)  # what YAML 1.1 calls non-printable; libyaml refuses it without saying where

KeyPath = tuple[str | int, ...]
"""Where a value stands: keys of mappings and positions in lists."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong, and what to do about it."""

    line: int
    path: KeyPath
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """The top mapping of a file.

    Attributes:
        value: Mappings, lists, text and `None`, nothing else.
        lines: The line of every key and list entry; that of `()` is the document's first.
        mistakes: What is wrong already, before anybody asks which keys there are.
        unusable: Where a stand-in replaces a value that can't be used; the mistake is reported.
    """

    value: Mapping[str, object]
    lines: Mapping[KeyPath, int]
    mistakes: tuple[Mistake, ...]
    unusable: frozenset[KeyPath]

    def line_of(self, path: KeyPath) -> int:
        """Return the line of `path`, or of the nearest thing around it when it is missing."""
        while path not in self.lines:
            path = path[:-1]
        return self.lines[path]


def mapping_of(value: object) -> Mapping[str, Any]:
    """Return a written value if it is a mapping, else an empty one: what it is, others report."""
    return value if isinstance(value, dict) else {}


def entries_of(document: Document) -> Iterator[tuple[KeyPath, str, Mapping[str, Any]]]:
    """Yield where repositories and places stand, the key of their URL, and what is written."""
    for name, entry in mapping_of(document.value.get("repositories")).items():
        yield ("repositories", name), "upstream", mapping_of(entry)
    places = document.value.get("upstreams")
    for position, entry in enumerate(places if isinstance(places, list) else ()):
        yield ("upstreams", position), "from", mapping_of(entry)


def read_document(content: bytes, *, source: Path) -> Document:
    """Read the bytes of the file `source`.

    Raises:
        ConfigError: They are not one YAML mapping, or pass a bound.
    """
    try:
        return _read(content)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}:{_explain(error)}") from error
    except _Fatal as error:
        raise ConfigError(f"{source}:{error.line}: {error}") from error


class _Fatal(Exception):
    """There is no sense in reading on."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def _read(content: bytes) -> Document:
    text = _decode(content)
    _check_depth(text)
    root = yaml.compose(text, Loader=_Loader)
    if root is None or _is_null(root):
        raise _Fatal(1, "the file is empty; name at least one repository under `repositories:`")
    if not isinstance(root, yaml.MappingNode):
        line = root.start_mark.line + 1
        raise _Fatal(line, "the file must be a mapping (`key: value` lines)")
    return _Values().document(root)


def _decode(content: bytes) -> str:
    if len(content) > DOCUMENT_BYTES_MAX:
        raise _Fatal(1, f"the file is longer than {DOCUMENT_BYTES_MAX // 1024**2} MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        text = f"the byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise _Fatal(line, text) from None
    if found := _UNREADABLE.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise _Fatal(line, f"not valid YAML: it holds the character U+{ord(found[0]):04X}")
    return text


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DOCUMENT_DEPTH_MAX:
            raise _Fatal(event.start_mark.line + 1 if event.start_mark else 1, _TOO_DEEP)


def _explain(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"1: not valid YAML: {error}"
    mark = error.problem_mark or error.context_mark
    line = 1 if mark is None else mark.line + 1
    words = ", ".join(part for part in (error.context, error.problem) if part)
    return f"{line}: not valid YAML: {words}"


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL


@dataclass(slots=True)
class _Values:
    """Turns nodes into values; the state of one walk."""

    lines: dict[KeyPath, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    unusable: set[KeyPath] = field(default_factory=set)
    _open: set[int] = field(default_factory=set)
    _count: int = 0

    def document(self, root: yaml.MappingNode) -> Document:
        self.lines[()] = root.start_mark.line + 1
        value = self._mapping(root, ())
        return Document(value, self.lines, tuple(self.mistakes), frozenset(self.unusable))

    def _value(self, node: yaml.Node, path: KeyPath) -> object:
        self._spend(node)
        if node.tag not in _KNOWN_TAGS:
            self._refuse(path, f"the tag {shown(node.tag)} is not supported; leave it out")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            self._refuse(path, "the alias stands inside its own anchor")
            return None
        if isinstance(node, yaml.SequenceNode):
            return self._sequence(node, path)
        return self._mapping(node, path)

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> str | None:
        if _is_null(node):
            return None
        if unprintable := _unprintable(node.value):
            self._refuse(path, f"holds {unprintable}; write it on one line, as plain text")
            return None
        return str(node.value)

    def _sequence(self, node: yaml.SequenceNode, path: KeyPath) -> list[object]:
        self._open.add(id(node))
        values = []
        for position, entry in enumerate(node.value):
            where = (*path, position)
            self.lines[where] = entry.start_mark.line + 1
            values.append(self._value(entry, where))
        self._open.discard(id(node))
        return values

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, object]:
        self._open.add(id(node))
        values = {}
        for key, (key_node, value_node) in self._pairs(node, path).items():
            where = (*path, key)
            self.lines[where] = key_node.start_mark.line + 1
            values[key] = self._value(value_node, where)
        self._open.discard(id(node))
        return values

    def _pairs(self, node: yaml.Node, path: KeyPath) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return the keys of a mapping with those it merges in (`<<`), which never override."""
        pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            self._spend(key_node)
            if key_node.tag == _MERGE:
                merged += self._merge_sources(key_node, value_node, path)
                continue
            key = self._key(key_node, path)
            if key is None:
                continue
            if key in pairs:
                first = pairs[key][0].start_mark.line + 1
                text = f"the key stands twice, on line {first} too; keep one of them"
                self._report(key_node, (*path, key), text)
                continue
            pairs[key] = (key_node, value_node)
        for source in merged:
            self._open.add(id(source))
            for key, pair in self._pairs(source, path).items():
                pairs.setdefault(key, pair)
            self._open.discard(id(source))
        return pairs

    def _merge_sources(
        self, key_node: yaml.Node, node: yaml.Node, path: KeyPath
    ) -> Iterator[yaml.Node]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                text = "`<<` merges mappings: `<<: *anchor`, or a list of those"
                self._report(key_node, path, text)
            elif id(source) in self._open:
                self._report(key_node, path, "`<<` merges a mapping into itself")
            else:
                yield source

    def _key(self, node: yaml.Node, path: KeyPath) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._report(node, path, "a key must be plain text")
            return None
        if unprintable := _unprintable(node.value):
            self._report(node, path, f"a key holds {unprintable}")
            return None
        return str(node.value)

    def _spend(self, node: yaml.Node) -> None:
        self._count += 1
        if self._count > DOCUMENT_VALUES_MAX:
            text = f"more than {DOCUMENT_VALUES_MAX} keys and values, with aliases expanded"
            raise _Fatal(node.start_mark.line + 1, text)
        if len(self._open) > DOCUMENT_DEPTH_MAX:
            raise _Fatal(node.start_mark.line + 1, _TOO_DEEP)

    def _report(self, node: yaml.Node, path: KeyPath, text: str) -> None:
        self.mistakes.append(Mistake(node.start_mark.line + 1, path, text))

    def _refuse(self, path: KeyPath, text: str) -> None:
        self.mistakes.append(Mistake(self.lines[path], path, text))
        self.unusable.add(path)


def _unprintable(text: str) -> str | None:
    if text.isprintable():
        return None
    found = next(character for character in text if not character.isprintable())
    return "a line break" if found == "\n" else f"the character U+{ord(found):04X}"
