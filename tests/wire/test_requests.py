from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import ProtocolError, RequestRefused
from mirror.wire.filters import ObjectFilter
from mirror.wire.names import HEAD, RefName
from mirror.wire.pktline import DELIM_PKT, FLUSH_PKT, RESPONSE_END_PKT
from mirror.wire.requests import (
    INFINITE_DEPTH,
    REF_PREFIXES_MAX,
    BundleUriRequest,
    CommandRequest,
    Deepen,
    FetchRequest,
    LsRefsRequest,
    ObjectInfoRequest,
    parse_command,
)
from tests.wire import strategies
from tests.wire.bodies import command, join, lines, oid
from tests.wire.strategies import GARBAGE_EXAMPLES, refuses_only_with_protocol_error
from tests.wire.work import assert_linear, calls_made

ONE, TWO, THREE = oid(0xA1), oid(2), oid(3)
MAIN = RefName(b"refs/heads/main")


@pytest.mark.parametrize("body", [b"", b"0000"])
def test_an_empty_request_asks_for_nothing(body: bytes) -> None:
    assert parse_command(body) is None


# --- ls-refs and object-info -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], LsRefsRequest()),
        ([b"peel"], LsRefsRequest(peel=True)),
        ([b"symrefs", b"symrefs"], LsRefsRequest(symrefs=True)),
        ([b"unborn"], LsRefsRequest(unborn=True)),
        (
            [b"ref-prefix HEAD", b"peel", b"ref-prefix refs/heads/"],
            LsRefsRequest(peel=True, ref_prefixes=(b"HEAD", b"refs/heads/")),
        ),
        ([b"ref-prefix "], LsRefsRequest(ref_prefixes=(b"",))),
        ([b"ref-prefix a b"], LsRefsRequest(ref_prefixes=(b"a b",))),
    ],
)
def test_ls_refs_is_read(arguments: list[bytes], expected: LsRefsRequest) -> None:
    assert parse_command(command(b"ls-refs", *arguments)) == expected


def test_with_very_many_prefixes_all_refs_are_asked_for() -> None:
    prefixes = [b"ref-prefix refs/heads/%d" % number for number in range(REF_PREFIXES_MAX)]
    few = parse_command(command(b"ls-refs", *prefixes[1:]))
    assert isinstance(few, LsRefsRequest)
    assert len(few.ref_prefixes) == REF_PREFIXES_MAX - 1
    assert parse_command(command(b"ls-refs", *prefixes, b"peel")) == LsRefsRequest(peel=True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ObjectInfoRequest((), size=False)),
        ([b"size", b"oid " + ONE], ObjectInfoRequest((ONE,), size=True)),
        ([b"oid " + TWO, b"oid " + ONE], ObjectInfoRequest((TWO, ONE), size=False)),
    ],
)
def test_object_info_is_read(arguments: list[bytes], expected: ObjectInfoRequest) -> None:
    assert parse_command(command(b"object-info", *arguments)) == expected


@pytest.mark.parametrize("end", [FLUSH_PKT, DELIM_PKT + FLUSH_PKT])
def test_bundle_uri_is_read(end: bytes) -> None:
    assert parse_command(join([b"command=bundle-uri\n"]) + end) == BundleUriRequest()


def test_bundle_uri_takes_no_arguments() -> None:
    with pytest.raises(RequestRefused, match="bundle-uri: unexpected argument: 'filter blob:none'"):
        parse_command(command(b"bundle-uri", b"filter blob:none"))


def test_a_command_may_come_without_arguments_and_without_newlines() -> None:
    assert parse_command(join([b"command=ls-refs"]) + FLUSH_PKT) == LsRefsRequest()
    body = join([b"command=ls-refs"]) + DELIM_PKT + join([b"peel"]) + FLUSH_PKT
    assert parse_command(body) == LsRefsRequest(peel=True)


@pytest.mark.parametrize(
    "capability",
    [b"agent=git/2.39.5", b"object-format=sha1", b"server-option=x=y", b"session-id=1", b"agent"],
)
def test_capabilities_that_were_advertised_are_accepted(capability: bytes) -> None:
    assert parse_command(command(b"ls-refs", capabilities=[capability])) == LsRefsRequest()


# --- fetch -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], FetchRequest()),
        ([b"want " + ONE, b"done"], FetchRequest(wants=(ONE,), done=True)),
        (
            [b"want " + TWO, b"want " + ONE, b"want " + TWO],
            FetchRequest(wants=(TWO, ONE)),
        ),
        (
            [b"have " + THREE, b"have " + ONE, b"have " + THREE],
            FetchRequest(haves=(THREE, ONE)),
        ),
        (
            [b"want-ref refs/heads/main", b"want-ref HEAD"],
            FetchRequest(want_refs=(MAIN, HEAD)),
        ),
        (
            [b"thin-pack", b"no-progress", b"include-tag", b"ofs-delta", b"wait-for-done"],
            FetchRequest(thin_pack=True, include_tag=True, ofs_delta=True, wait_for_done=True),
        ),
        (
            [b"shallow " + ONE, b"shallow " + TWO],
            FetchRequest(shallow=frozenset({ONE, TWO})),
        ),
        ([b"deepen 3"], FetchRequest(deepen=Deepen(depth=3))),
        ([b"deepen 2147483647"], FetchRequest(deepen=Deepen(depth=INFINITE_DEPTH))),
        ([b"deepen 9999999999"], FetchRequest(deepen=Deepen(depth=INFINITE_DEPTH))),
        (
            [b"deepen-relative", b"deepen 2"],
            FetchRequest(deepen=Deepen(depth=2, relative=True)),
        ),
        (
            [b"deepen-since 1750000000", b"deepen-not v1", b"deepen-not refs/tags/v2"],
            FetchRequest(deepen=Deepen(since=1750000000, exclude=(b"v1", b"refs/tags/v2"))),
        ),
        ([b"filter blob:none"], FetchRequest(filter=ObjectFilter(blob_limit_bytes=0))),
        ([b"filter tree:010"], FetchRequest(filter=ObjectFilter(tree_depth=8))),
        ([b"sideband-all", b"want " + ONE], FetchRequest(wants=(ONE,), sideband_all=True)),
        (
            [b"want %b and more" % ONE.upper(), b"have %b." % TWO, b"shallow %b!" % THREE],
            FetchRequest(wants=(ONE,), haves=(TWO,), shallow=frozenset({THREE})),
        ),
        ([b"deepen 0x10"], FetchRequest(deepen=Deepen(depth=16))),
    ],
)
def test_a_fetch_is_read(arguments: list[bytes], expected: FetchRequest) -> None:
    assert parse_command(command(b"fetch", *arguments)) == expected


@pytest.mark.parametrize(
    ("deepen", "asked"),
    [
        (Deepen(), False),
        (Deepen(relative=True), False),
        (Deepen(depth=1), True),
        (Deepen(since=0), True),
        (Deepen(exclude=(b"v1",)), True),
    ],
)
def test_a_fetch_deepens_when_it_has_a_depth_a_date_or_an_excluded_ref(
    deepen: Deepen, asked: bool
) -> None:
    assert bool(deepen) is asked


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"0001", "no command requested"),
        (join(lines(b"agent=x")) + FLUSH_PKT, "no command requested"),
        (command(b"push"), "invalid command 'push'"),
        (
            command(b"fetch", capabilities=[b"command=ls-refs"]),
            "command 'ls-refs' requested after already requesting command 'fetch'",
        ),
        (command(b"fetch", capabilities=[b"fetch"]), "unknown capability 'fetch'"),
        (
            command(b"fetch", capabilities=[b"object-format=sha256"]),
            "mismatched object format: server sha1; client sha256",
        ),
        (RESPONSE_END_PKT, "unexpected response end packet"),
        (command(b"fetch", b"done")[:-4] + DELIM_PKT + FLUSH_PKT, "expected flush after arguments"),
    ],
)
def test_what_is_no_command_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(RequestRefused, match=message):
        parse_command(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (join(lines(b"command=fetch")), "ends before its flush-pkt"),
        (join(lines(b"command=fetch")) + DELIM_PKT, "ends before its flush-pkt"),
        (command(b"fetch", b"done")[:-4], "ends before its flush-pkt"),
        (command(b"fetch", b"done")[:-2], "ends within a pkt-line"),
        (b"what is this", "four hex digits"),
    ],
)
def test_a_body_that_is_cut_off_or_no_pkt_lines_is_no_request_at_all(
    body: bytes, message: str
) -> None:
    with pytest.raises(ProtocolError, match=message) as refused:
        parse_command(body)
    assert not isinstance(refused.value, RequestRefused)


def test_what_follows_a_request_is_not_looked_at() -> None:
    assert parse_command(command(b"ls-refs", b"peel") + b"nonsense") == LsRefsRequest(peel=True)
    assert parse_command(FLUSH_PKT + b"nonsense") is None


def test_a_line_ends_at_a_nul_as_for_git_s_server() -> None:
    body = command(b"fetch\0x", b"want %b\0thin-pack" % ONE, b"done\0", capabilities=[b"agent\0="])
    assert parse_command(body) == FetchRequest(wants=(ONE,), done=True)


def test_only_so_much_of_a_line_is_told_to_who_sent_it() -> None:
    with pytest.raises(RequestRefused) as refused:
        parse_command(command(b"fetch", b"x" * 60_000))
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        (b"ls-refs", b"peeled", "unexpected line: 'peeled'"),
        (b"object-info", b"oid " + ONE[:39], "object-info: protocol error, expected to get oid"),
        (b"object-info", b"type", "object-info: unexpected line: 'type'"),
        (b"fetch", b"", "unexpected line: ''"),
        (b"fetch", b"want refs/heads/main", "expected to get oid, not 'want refs/heads/main'"),
        (b"fetch", b"have " + ONE[:39], "expected SHA1 object, got '0"),
        (b"fetch", b"shallow x", "invalid shallow line: shallow x"),
        (b"fetch", b"want-ref main", "unknown ref main"),
        (b"fetch", b"packfile-uris https", "unexpected line"),
        (b"fetch", b"deepen 0", "Invalid deepen: deepen 0"),
        (b"fetch", b"deepen-since 9223372036854775808", "Invalid deepen-since"),
        (b"fetch", b"deepen-since " + b"1" * 60_000, "Invalid deepen-since"),
        (b"fetch", b"filter blob:all", "invalid filter-spec"),
    ],
)
def test_an_argument_that_is_wrong_is_refused(name: bytes, argument: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        parse_command(command(name, argument))


def test_a_ref_can_not_be_wanted_twice() -> None:
    with pytest.raises(RequestRefused, match="duplicate want-ref refs/heads/main"):
        parse_command(command(b"fetch", *[b"want-ref refs/heads/main"] * 2))


@pytest.mark.parametrize("other", [b"deepen-since 1", b"deepen-not v1"])
def test_a_depth_together_with_another_limit_is_refused(other: bytes) -> None:
    with pytest.raises(ProtocolError, match="cannot be used together"):
        parse_command(command(b"fetch", b"deepen 1", other))


# --- properties --------------------------------------------------------------------------------


@given(strategies.fetch_bodies())
def test_a_fetch_that_is_written_reads_as_the_same(pair: tuple[FetchRequest, bytes]) -> None:
    request, body = pair
    assert parse_command(body) == request


@given(
    st.builds(
        LsRefsRequest,
        peel=st.booleans(),
        symrefs=st.booleans(),
        unborn=st.booleans(),
        ref_prefixes=st.lists(strategies.ref_names | st.just(b""), max_size=4).map(tuple),
    )
)
def test_an_ls_refs_that_is_written_reads_as_the_same(request: LsRefsRequest) -> None:
    flags = {b"peel": request.peel, b"symrefs": request.symrefs, b"unborn": request.unborn}
    arguments = [name for name, is_set in flags.items() if is_set]
    arguments += [b"ref-prefix " + prefix for prefix in request.ref_prefixes]
    assert parse_command(command(b"ls-refs", *arguments)) == request


@settings(max_examples=GARBAGE_EXAMPLES)
@given(strategies.garbage)
def test_garbage_is_a_command_or_refused(body: bytes) -> None:
    refuses_only_with_protocol_error(lambda: parse_command(body))


# --- work --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (b"fetch", b"want %040x"),
        (b"fetch", b"have %040x"),
        (b"fetch", b"shallow %040x"),
        (b"fetch", b"want-ref refs/heads/%d"),
        (b"fetch", b"deepen-not refs/heads/%d"),
        (b"ls-refs", b"ref-prefix refs/heads/%d"),
        (b"object-info", b"oid %040x"),
    ],
)
def test_many_arguments_cost_in_proportion(name: bytes, argument: bytes) -> None:
    def calls(count: int) -> int:
        body = command(name, *(argument % number for number in range(count)))
        return calls_made(lambda: parse_command(body))

    assert_linear(calls, size=500)


def test_excluded_refs_are_not_copied_again_for_each_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied: list[int] = []

    def counted(depth: None, relative: bool, since: None, exclude: tuple[bytes, ...]) -> Deepen:
        copied.append(len(exclude))
        return Deepen(depth, relative, since, exclude)

    monkeypatch.setattr("mirror.wire.arguments.Deepen", counted)
    request = parse_command(command(b"fetch", *(b"deepen-not r%d" % n for n in range(1000))))
    assert isinstance(request, FetchRequest)
    assert len(request.deepen.exclude) == 1000
    assert sum(copied) == 1000


def test_requests_that_ask_the_same_are_equal_and_hash_alike() -> None:
    first, second = (
        parse_command(command(b"fetch", b"want " + ONE, *flags))
        for flags in ((b"done", b"thin-pack"), (b"thin-pack", b"done"))
    )
    assert isinstance(first, FetchRequest)
    assert first == second
    assert hash(first) == hash(second)
    assert replace(first, done=False) != second


def test_each_command_has_its_own_kind_of_request() -> None:
    kinds: dict[bytes, type[CommandRequest]] = {
        b"ls-refs": LsRefsRequest,
        b"fetch": FetchRequest,
        b"object-info": ObjectInfoRequest,
    }
    for name, kind in kinds.items():
        assert type(parse_command(command(name))) is kind
