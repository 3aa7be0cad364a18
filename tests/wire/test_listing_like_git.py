"""What our server says of its refs, compared with what git's own server says of the same ones."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.wire.advertise import SERVICE_LINE, encode_v2_capabilities
from mirror.wire.answers import encode_object_info
from mirror.wire.client import Listing, UpstreamFeatures, parse_info_refs, parse_ls_refs
from mirror.wire.names import ObjectId
from mirror.wire.pktline import Special, decode_all, encode, text
from mirror.wire.requests import LsRefsRequest, ObjectInfoRequest, parse_command
from tests.git_client import Upstream
from tests.wire.bodies import AGENT, command, oid
from tests.wire.git_server import Both, mirror_of, populate


def words(body: bytes) -> list[frozenset[bytes]]:
    """Return what a body says, line by line, each line as a set of words, agents left out."""
    lines = [text(line) for line in decode_all(body) if isinstance(line, bytes)]
    return [
        frozenset(word for word in line.replace(b"\0", b" ").split() if b"agent=" not in word)
        for line in lines
    ]


def ours(both: Both, version: int) -> bytes:
    return both.snapshot.advertisement(version).plain.removeprefix(SERVICE_LINE)


def features(body: bytes) -> UpstreamFeatures:
    return parse_info_refs(decode_all(body))


def listed(both: Both, *arguments: bytes) -> tuple[bytes, bytes]:
    """Return what git's server and what ours answer to the same ls-refs."""
    body = command(b"ls-refs", *arguments)
    request = parse_command(body)
    assert isinstance(request, LsRefsRequest)
    return both.git.command(body), both.snapshot.ls_refs(request)


def refs_and_head(listing: Listing | None) -> tuple[object, ...]:
    assert listing is not None
    return set(listing.refs), len(listing.refs), listing.head, listing.head_target


# --- v0 and v1 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1])
def test_the_advertisement_says_what_git_s_says(both: Both, version: int) -> None:
    by_git = both.git.first_answer(version)
    assert words(ours(both, version)) == words(by_git)
    read, expected = features(ours(both, version)), features(by_git)
    assert read.version == expected.version == version
    assert refs_and_head(read.listing) == refs_and_head(expected.listing)
    assert {**read.capabilities, b"agent": b""} == {**expected.capabilities, b"agent": b""}


def test_the_v2_capabilities_are_git_s_but_for_ref_in_want(both: Both) -> None:
    """It fails clones when a branch is deleted between ls-refs and fetch."""
    body = encode_v2_capabilities(AGENT).removeprefix(SERVICE_LINE)
    by_git = both.git.first_answer(2)
    if b"object-info=size" not in by_git:  # as newer versions of git say it
        by_git = by_git.replace(b"0010object-info\n", encode(b"object-info=size\n"))
    assert b"ref-in-want" in by_git
    assert b"ref-in-want" not in body
    fetch = [line for line in words(by_git) if b"ref-in-want" in line]
    others = [line for line in words(by_git) if line not in fetch]
    expected = [*others, *([word for word in line if word != b"ref-in-want"] for line in fetch)]
    assert sorted(map(sorted, words(body))) == sorted(map(sorted, expected))


# --- ls-refs -----------------------------------------------------------------------------------

FLAGS = [b"peel", b"symrefs", b"unborn"]


@pytest.mark.parametrize("flags", [(), (b"peel",), (b"symrefs",), (b"peel", b"symrefs", b"unborn")])
@pytest.mark.parametrize(
    "prefixes",
    [
        (),
        (b"HEAD",),
        (b"refs/heads/", b"refs/tags/"),
        (b"refs/heads/", b"refs/tags/", b"HEAD"),
        (b"refs/heads/main", b"refs/he"),
        (b"",),
        (b"nothing",),
    ],
)
def test_ls_refs_says_what_git_s_says(
    both: Both, flags: tuple[bytes, ...], prefixes: tuple[bytes, ...]
) -> None:
    by_git, by_us = listed(both, *flags, *(b"ref-prefix " + prefix for prefix in prefixes))
    assert words(by_us) == words(by_git)
    assert decode_all(by_us)[-1] is decode_all(by_git)[-1] is Special.FLUSH


@given(
    st.lists(st.sampled_from(FLAGS), unique=True),
    st.lists(
        st.sampled_from([b"H", b"HEAD", b"r", b"refs/heads/", b"refs/heads/main", b"refs/tags/v1"])
        | st.binary(max_size=3).filter(lambda raw: not {0, 10} & set(raw)),
        max_size=3,
    ),
)
def test_whatever_is_asked_of_ls_refs_git_says_the_same(
    both: Both, flags: list[bytes], prefixes: list[bytes]
) -> None:
    by_git, by_us = listed(both, *flags, *(b"ref-prefix " + prefix for prefix in prefixes))
    assert words(by_us) == words(by_git)
    assert refs_and_head(parse_ls_refs(decode_all(by_us))) == refs_and_head(
        parse_ls_refs(decode_all(by_git))
    )


# --- HEAD in all its forms ---------------------------------------------------------------------


@pytest.mark.parametrize("head", ["born", "unborn", "detached", "empty"])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_head_is_told_as_git_tells_it(head: str, version: int, tmp_path: Path) -> None:
    upstream = Upstream(tmp_path, branch="trunk")
    if head != "empty":
        populate(upstream)
    if head == "born":
        upstream.set_head("release/1.0")
    elif head == "detached":
        upstream.git("update-ref", "--no-deref", "HEAD", "refs/heads/main~3")
    both = mirror_of(upstream, tmp_path / "mirror.git")
    if version == 2:
        for flag in FLAGS:
            by_git, by_us = listed(both, flag)
            assert words(by_us) == words(by_git)
        by_git, by_us = listed(both, *FLAGS)
        read, expected = (parse_ls_refs(decode_all(body)) for body in (by_us, by_git))
        assert refs_and_head(read) == refs_and_head(expected)
        target = {"born": b"refs/heads/release/1.0", "detached": None}.get(
            head, b"refs/heads/trunk"
        )
        assert read.head_target == target
    else:
        by_git, by_us = both.git.first_answer(version), ours(both, version)
        assert refs_and_head(features(by_us).listing) == refs_and_head(features(by_git).listing)
    # Until 2.41 git announced nothing but a flush-pkt for an empty repository in v0.
    lacks_capabilities = head == "empty" and b"capabilities^{}" not in by_git
    assert words(by_us) == words(by_git) or lacks_capabilities
    both.close()


# --- object-info -------------------------------------------------------------------------------


@pytest.mark.parametrize("is_empty", [False, True])
def test_object_info_says_what_git_s_says(both: Both, is_empty: bool) -> None:
    """(Asked for ids alone, git 2.39 does not know whether it was asked for sizes.)"""
    asked = [] if is_empty else [*(ref.oid for ref in both.snapshot.refs), oid(7)]
    body = command(b"object-info", b"size", *(b"oid " + name for name in asked))
    request = parse_command(body)
    assert isinstance(request, ObjectInfoRequest)

    def size(name: ObjectId) -> int | None:
        source = both.mirror.source
        return source.size(name) if source.contains(name) else None

    sizes = [(name, size(name)) for name in request.oids]
    assert words(encode_object_info(sizes, with_size=True)) == words(both.git.command(body))
