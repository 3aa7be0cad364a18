import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import ProtocolError
from mirror.wire.names import (
    HEAD,
    REF_NAME_BYTES_MAX,
    ZERO_ID,
    is_ref_name,
    object_id,
    ref_name,
)
from tests.git_client import environment
from tests.wire import strategies
from tests.wire.strategies import GARBAGE_EXAMPLES, refuses_only_with_protocol_error

GOOD_NAMES = [
    *("refs/heads/main", "refs/tags/v1.0.0", "refs/pull/1/head", "refs/heads/feature/a-b_c"),
    *("refs/heads/@", "refs/heads/a@b", "refs/heads/-x", "refs/heads/a.b", "refs/heads/lock"),
    *(
        "refs/heads/a.locked",
        "refs/heads/é",
        "refs/heads/雪",
        "refs/x",
        "refs/heads/{a}",
        "refs/a'b",
    ),
]
BAD_NAMES = [
    *("refs/heads/", "refs/heads//a", "refs/heads/.a", "refs/heads/a.", "refs/heads/a..b"),
    *("refs/heads/a.lock", "refs/a.lock/b", "refs/heads/a b", "refs/heads/a~1", "refs/heads/a^"),
    *("refs/heads/a:b", "refs/heads/a?", "refs/heads/a*", "refs/heads/[a", "refs/heads/a\\b"),
    *("refs/heads/a@{1}", "refs/heads/\x7f", "refs/heads/a\n", "refs/heads/\x01", "refs/heads/a/"),
    *("refs/", "refs/./a", "refs/heads/a.lock/"),
]


def test_an_object_id_is_40_hex_digits_in_lower_case() -> None:
    assert object_id(b"0123456789abcdef" * 2 + b"01234567") == b"0123456789abcdef" * 2 + b"01234567"
    assert object_id(ZERO_ID) == ZERO_ID


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a" * 39,
        b"a" * 41,
        b"a" * 64,
        b"A" * 40,
        b"g" * 40,
        b"a" * 40 + b"\n",
        b" " + b"a" * 40,
    ],
)
def test_anything_else_is_no_object_id(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="40 hex digits"):
        object_id(data)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_names_that_git_accepts_are_accepted(name: str) -> None:
    assert is_ref_name(name.encode())
    assert ref_name(name.encode()) == name.encode()


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_git_refuses_are_refused(name: str) -> None:
    assert not is_ref_name(name.encode())
    with pytest.raises(ProtocolError, match="is not a valid ref name"):
        ref_name(name.encode())


@pytest.mark.parametrize("name", GOOD_NAMES + BAD_NAMES)
def test_git_itself_agrees_about_these_names(name: str, tmp_path: Path) -> None:
    command = ["git", "check-ref-format", name]
    checked = subprocess.run(command, env=environment(tmp_path), check=False)
    assert (checked.returncode == 0) == is_ref_name(name.encode())


@pytest.mark.parametrize("name", [b"", b"main", b"heads/main", b"HEAD", b"refs", b"xrefs/heads/a"])
def test_a_name_outside_refs_is_no_full_ref_name(name: bytes) -> None:
    assert not is_ref_name(name)


def test_a_name_holds_no_nul() -> None:
    assert not is_ref_name(b"refs/heads/a\0b")


def test_head_is_a_ref_name_of_its_own() -> None:
    assert ref_name(b"HEAD") == HEAD


def test_a_name_longer_than_a_path_is_refused() -> None:
    longest = b"refs/heads/".ljust(REF_NAME_BYTES_MAX, b"x")
    assert is_ref_name(longest)
    assert not is_ref_name(longest + b"x")


@settings(max_examples=GARBAGE_EXAMPLES)
@given(st.binary(max_size=60) | strategies.ref_names | strategies.oids)
def test_garbage_is_a_name_or_refused(data: bytes) -> None:
    refuses_only_with_protocol_error(lambda: object_id(data))
    refuses_only_with_protocol_error(lambda: ref_name(data))
    refuses_only_with_protocol_error(lambda: ref_name(b"refs/" + data))
