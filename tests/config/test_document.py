from pathlib import Path

import pytest
import yaml

from mirror.config import document
from mirror.config.document import (
    DOCUMENT_BYTES_MAX,
    DOCUMENT_DEPTH_MAX,
    DOCUMENT_VALUES_MAX,
    Document,
    read_document,
)
from mirror.errors import ConfigError

SOURCE = Path("mirror.yaml")


@pytest.fixture(autouse=True, params=["CSafeLoader", "SafeLoader"])
def _each_parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with libyaml and with the parser in Python, used where libyaml is missing."""
    if not hasattr(yaml, request.param):
        pytest.skip("PyYAML was built without libyaml")
    monkeypatch.setattr(document, "_Loader", getattr(yaml, request.param))


def read(text: str | bytes) -> Document:
    content = text if isinstance(text, bytes) else text.encode()
    return read_document(content, source=SOURCE)


def refusal(text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value)


def reported(text: str) -> list[tuple[int, tuple[str | int, ...], str]]:
    return [(mistake.line, mistake.path, mistake.text) for mistake in read(text).mistakes]


def test_a_scalar_stays_the_text_that_was_written() -> None:
    text = "a: no\nb: 1:30\nc: 010\nd: 1_000\ne: 1.10\nf: 2026-01-01\ng: 'x'\nh: =\n"
    assert read(text).value == {
        "a": "no",
        "b": "1:30",
        "c": "010",
        "d": "1_000",
        "e": "1.10",
        "f": "2026-01-01",
        "g": "x",
        "h": "=",
    }


def test_a_key_stays_the_text_that_was_written() -> None:
    assert read("no: a\n1.10: b\n~: c\n").value == {"no": "a", "1.10": "b", "~": "c"}


def test_only_an_empty_value_and_null_are_nothing() -> None:
    text = "a:\nb: null\nc: ~\nd: ''\ne: 'null'\n"
    assert read(text).value == {"a": None, "b": None, "c": None, "d": "", "e": "null"}


def test_every_key_and_list_entry_knows_its_line() -> None:
    document = read("# a comment\na:\n  b: x\n  c:\n    - y\n    - z\nd: {e: f}\n")
    assert dict(document.lines) == {
        (): 2,
        ("a",): 2,
        ("a", "b"): 3,
        ("a", "c"): 4,
        ("a", "c", 0): 5,
        ("a", "c", 1): 6,
        ("d",): 7,
        ("d", "e"): 7,
    }


def test_the_line_of_a_missing_key_is_that_of_the_mapping_around_it() -> None:
    document = read("a:\n  b:\n    c: x\n")
    assert document.line_of(("a", "b", "missing", "deeper")) == 2
    assert document.line_of(("missing",)) == 1


def test_a_byte_order_mark_is_skipped() -> None:
    assert read(b"\xef\xbb\xbfa: b\n").value == {"a": "b"}


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but a comment\n", "---\n...\n", "null\n"])
def test_an_empty_file_is_refused(text: str) -> None:
    assert refusal(text).startswith("mirror.yaml:1: the file is empty")


@pytest.mark.parametrize("text", ["\n- a\n- b\n", "\njust words\n"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    assert refusal(text) == "mirror.yaml:2: the file must be a mapping (`key: value` lines)"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: b\nc: [d\ne: f\n", 3),
        ("a: b\n\tc: d\n", 2),
        ("a: b\nc: *unknown\n", 2),
        ("a: b\nc: 'open\n", 3),
        ("a: b\nc: d: e\n", 2),
        ("a: &x b\nc: &x d\n", 2),
        ("a: b\n---\nc: d\n", 2),
        ("%YAML 3.0\n---\na: b\n", 1),
    ],
)
def test_a_yaml_mistake_is_reported_with_its_line(text: str, line: int) -> None:
    assert refusal(text).startswith(f"mirror.yaml:{line}: not valid YAML: ")


def test_a_file_that_is_not_utf_8_is_refused_with_the_line() -> None:
    assert refusal("a: b\nc: é\n".encode("latin-1")) == (
        "mirror.yaml:2: the byte 0xe9 is not UTF-8; save the file as UTF-8"
    )


def test_a_control_character_is_refused_with_its_line() -> None:
    assert refusal("a: b\nc: \x07\n") == (
        "mirror.yaml:2: not valid YAML: it holds the character U+0007"
    )


def test_a_file_over_the_size_limit_is_refused() -> None:
    assert refusal(b"#" * (DOCUMENT_BYTES_MAX + 1)) == (
        "mirror.yaml:1: the file is longer than 4 MiB"
    )


def test_a_file_at_the_size_limit_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "DOCUMENT_BYTES_MAX", 5)
    assert read(b"a: b\n").value == {"a": "b"}


@pytest.mark.parametrize(
    "text",
    [
        "a: b\nc: " + "[" * 100_000,
        "a: b\nc: " + "{d: " * 100_000,
        "a: b\n? " + "- " * 100_000,
    ],
)
def test_deep_nesting_is_refused_before_anything_recurses(text: str) -> None:
    assert refusal(text).startswith("mirror.yaml:2: nested deeper than 20 levels")


def test_nesting_is_read_up_to_the_limit() -> None:
    depth = DOCUMENT_DEPTH_MAX - 1
    assert read("a: " + "[" * depth + "]" * depth).lines


@pytest.mark.parametrize("link", ["a{i}: &a{i} [*a{before}]\n", "a{i}: &a{i} {{<<: *a{before}}}\n"])
def test_a_long_chain_of_aliases_is_refused_as_too_deep(link: str) -> None:
    chain = "".join(link.format(i=i, before=i - 1) for i in range(1, 2000))
    assert "nested deeper than" in refusal("a0: &a0 {x: y}\n" + chain)


@pytest.mark.parametrize(
    ("first", "again"),
    [("[x, x]", "[{}]"), ("{x: y}", "{{<<: [{}]}}"), ("{x: y}", "[{}]")],
)
def test_aliases_that_would_expand_to_billions_are_refused(first: str, again: str) -> None:
    levels = "".join(
        f"a{i}: &a{i} {again.format(', '.join([f'*a{i - 1}'] * 9))}\n" for i in range(1, 12)
    )
    assert f"more than {DOCUMENT_VALUES_MAX} keys and values" in refusal(
        f"a0: &a0 {first}\n{levels}"
    )


def test_an_alias_is_its_anchor_once_more_with_the_lines_where_it_is_written() -> None:
    document = read("a: &x\n  b: [c]\nd: *x\n")
    assert document.value == {"a": {"b": ["c"]}, "d": {"b": ["c"]}}
    assert document.line_of(("d",)) == 3
    assert document.line_of(("d", "b", 0)) == 2


def test_a_merge_key_adds_what_is_not_written() -> None:
    text = "a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  c: 3\n  e: 4\n"
    assert read(text).value == {"a": {"b": "1", "c": "2"}, "d": {"c": "3", "e": "4", "b": "1"}}


def test_of_several_merged_mappings_the_first_wins() -> None:
    text = "a: &x {b: 1}\nc: &y {b: 2, d: 3}\ne: {<<: [*x, *y]}\nf: {<<: *y, <<: *x}\n"
    value = read(text).value
    assert value["e"] == {"b": "1", "d": "3"}
    assert value["f"] == {"b": "2", "d": "3"}


def test_a_merged_mapping_may_merge_another() -> None:
    text = "a: &x {b: 1}\nc: &y {<<: *x, d: 2}\ne: {<<: *y}\n"
    assert read(text).value["e"] == {"d": "2", "b": "1"}


def test_a_quoted_merge_key_is_an_ordinary_key() -> None:
    assert read("'<<': a\n").value == {"<<": "a"}


@pytest.mark.parametrize("value", ["x", "[x]", "[[x]]"])
def test_merging_what_is_no_mapping_is_reported(value: str) -> None:
    assert reported(f"a: b\nc: {{<<: {value}}}\n") == [
        (2, ("c",), "`<<` merges mappings: `<<: *anchor`, or a list of those")
    ]


def test_merging_a_mapping_into_itself_is_reported() -> None:
    text = "a: b\nc: &x\n  d: e\n  <<: *x\n"
    assert reported(text) == [(4, ("c",), "`<<` merges a mapping into itself")]


@pytest.mark.parametrize("text", ["a: &x [*x]\n", "a: &x {b: *x}\n"])
def test_an_alias_inside_its_own_anchor_is_reported(text: str) -> None:
    document = read(text)
    assert [mistake.text for mistake in document.mistakes] == [
        "the alias stands inside its own anchor"
    ]
    assert len(document.unusable) == 1


def test_a_key_that_stands_twice_is_reported_with_both_lines() -> None:
    assert reported("a:\n  b: 1\n  c: 2\n  b: 3\n  b: 4\n") == [
        (4, ("a", "b"), "the key stands twice, on line 2 too; keep one of them"),
        (5, ("a", "b"), "the key stands twice, on line 2 too; keep one of them"),
    ]


def test_a_key_that_is_no_text_is_reported() -> None:
    assert reported("a: b\n? [c]\n: d\n") == [(2, (), "a key must be plain text")]


def test_a_key_with_a_line_break_is_reported() -> None:
    assert reported('a: b\n"c\\nd": e\n') == [(2, (), "a key holds a line break")]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ('"x\\ny"', "a line break"),
        ("|\n  x", "a line break"),
        ('"\\x1b[0m"', "the character U+001B"),
        ("x\u00a0y", "the character U+00A0"),
    ],
)
def test_a_value_with_a_character_nobody_sees_is_reported(value: str, what: str) -> None:
    if value.startswith("|"):
        value += "\n"
    assert reported(f"a: b\nc: {value}\n") == [
        (2, ("c",), f"holds {what}; write it on one line, as plain text")
    ]


@pytest.mark.parametrize("tag", ["!secret", "!!python/object/apply:os.system", "!!binary", "!!set"])
def test_a_tag_is_reported_and_constructs_nothing(tag: str) -> None:
    [(line, path, text)] = reported(f"a: b\nc: {tag} {{d: e}}\n")
    assert (line, path) == (2, ("c",))
    assert text.startswith("the tag `")
    assert text.endswith("is not supported; leave it out")
