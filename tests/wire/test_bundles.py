"""The header of a bundle and the two forms of a list, as git writes and reads them."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import ProtocolError
from mirror.wire.bundles import (
    BUNDLE_NAME,
    SIGNATURE,
    Bundle,
    BundleList,
    bundle_name,
    encode_bundle_list,
    encode_bundle_uris,
    encode_header,
    parse_header_refs,
)
from mirror.wire.names import RefName
from mirror.wire.pktline import decode_all
from tests.git_client import environment
from tests.wire.bodies import oid

MAIN = RefName(b"refs/heads/main")
V1 = RefName(b"refs/tags/v1")

BASE = Bundle(bundle_name(7, "a" * 64), 7, 1000)
NEXT = Bundle(bundle_name(9, "b" * 64), 9, 20)
LISTED = BundleList((BASE, NEXT), 1.5)


def lines_of(header: bytes) -> list[bytes]:
    return header.splitlines(keepends=True)


def test_a_bundle_is_named_by_its_token_and_its_checksum() -> None:
    assert BUNDLE_NAME.fullmatch(BASE.name)
    assert BASE.digest == "a" * 64
    assert LISTED.size == 1020


@pytest.mark.parametrize("name", ["list", "../7-" + "a" * 64 + ".bundle", "7-ab.bundle", "draft"])
def test_nothing_else_is_the_name_of_a_bundle(name: str) -> None:
    assert BUNDLE_NAME.fullmatch(name) is None


def test_the_list_is_told_in_lines_with_addresses_relative_to_the_repository() -> None:
    assert decode_all(encode_bundle_uris(LISTED, below="bundles"))[:-1] == [
        b"bundle.version=1\n",
        b"bundle.mode=all\n",
        b"bundle.heuristic=creationToken\n",
        f"bundle.7.uri=bundles/{BASE.name}\n".encode(),
        b"bundle.7.creationtoken=7\n",
        f"bundle.9.uri=bundles/{NEXT.name}\n".encode(),
        b"bundle.9.creationtoken=9\n",
    ]


def test_without_a_list_nothing_is_told() -> None:
    assert encode_bundle_uris(None, below="bundles") == b"0000"


def test_the_list_as_a_file_is_a_configuration_to_git(tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_bytes(encode_bundle_list(LISTED))
    shown = subprocess.run(
        ["git", "config", "--file", file, "--list"],
        env=environment(tmp_path),
        capture_output=True,
        check=True,
        text=True,
    ).stdout.splitlines()
    assert shown == [
        "bundle.version=1",
        "bundle.mode=all",
        "bundle.heuristic=creationToken",
        f"bundle.7.uri={BASE.name}",
        "bundle.7.creationtoken=7",
        f"bundle.9.uri={NEXT.name}",
        "bundle.9.creationtoken=9",
    ]


def test_a_header_names_what_the_reader_must_have_and_what_it_gets() -> None:
    header = encode_header([oid(3)], {V1: oid(2), MAIN: oid(1)})
    assert lines_of(header) == [
        SIGNATURE,
        b"-%b\n" % oid(3),
        b"%b refs/heads/main\n" % oid(1),
        b"%b refs/tags/v1\n" % oid(2),
        b"\n",
    ]
    assert parse_header_refs(lines_of(header + b"PACK\n\n")) == {MAIN: oid(1), V1: oid(2)}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"# v3 git bundle\n\n",
        SIGNATURE,
        SIGNATURE + b"%b refs/heads/main\n" % oid(1),
        SIGNATURE + b"-short\n\n",
        SIGNATURE + b"%b main\n\n" % oid(1),
        SIGNATURE + b"%b\n\n" % oid(1),
    ],
)
def test_a_header_that_is_none_is_refused(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_header_refs(lines_of(header))


@given(st.lists(st.binary(max_size=60)))
def test_garbage_is_refused_and_nothing_worse(lines: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        parse_header_refs([SIGNATURE, *(b"x" + line for line in lines)])
