"""What is refused, and in which words; what is odd and taken all the same. git's server decides.

git tells most refusals on its own stderr only, where no client sees them. Ours are ERR pkt-lines
with the same text.
"""

import pytest

from mirror.errors import RequestRefused
from mirror.repository.fetching import plan_v0, plan_v2
from mirror.wire.names import RefName
from mirror.wire.pktline import DELIM_PKT, FLUSH_PKT
from mirror.wire.requests import FetchRequest, parse_command, parse_upload_pack
from tests.wire.bodies import command, join, lines, oid
from tests.wire.git_server import Answer, Both
from tests.wire.test_fetch_like_git import assert_same

ONE = oid(1)
MAIN = RefName(b"refs/heads/main")


def filled(both: Both, line: bytes) -> bytes:
    """Put real ids where a line names them."""
    found = {
        b"MAIN": both.snapshot.by_name[MAIN].oid,
        b"SIDE": both.snapshot.by_name[RefName(b"refs/heads/side")].oid,
        b"ROOT": next(iter(both.parents)),
        b"TAG": both.snapshot.by_name[RefName(b"refs/tags/v1")].oid,
    }
    for name, real in found.items():
        line = line.replace(name, real)
    return line


# --- v2 ----------------------------------------------------------------------------------------

COMMANDS = {
    "no command": join(lines(b"agent=x")) + FLUSH_PKT,
    "a delim-pkt alone": DELIM_PKT + FLUSH_PKT,
    "an unknown command": command(b"push"),
    "an empty command": command(b""),
    "a command with a value": command(b"ls-refs=1"),
    "a command in capitals": command(b"LS-REFS"),
    "an unknown command before a second one": command(b"push", capabilities=[b"command=fetch"]),
    "a command as a capability": command(b"fetch", capabilities=[b"fetch"]),
    "an unknown capability": command(b"fetch", capabilities=[b"side-band-64k"]),
    "an empty line": command(b"fetch", capabilities=[b""]),
    "command without a value": command(b"fetch", capabilities=[b"command"]),
    "agent with a suffix": command(b"fetch", capabilities=[b"agents=x"]),
    "another object format": command(b"ls-refs", capabilities=[b"object-format=sha256"]),
    "another one after ours": command(
        b"ls-refs", capabilities=[b"object-format=sha1", b"object-format=sha256"]
    ),
    "an unknown object format": command(b"fetch", capabilities=[b"object-format=md5"]),
    "object-format without a value": command(b"fetch", capabilities=[b"object-format"]),
    "another format and no command": join(lines(b"object-format=sha256")) + FLUSH_PKT,
    "an unknown argument of ls-refs": command(b"ls-refs", b"peeled"),
    "peel with a suffix": command(b"ls-refs", b"peel "),
    "ref-prefix without a space": command(b"ls-refs", b"ref-prefix"),
    "an empty argument": command(b"ls-refs", b""),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_a_command_is_refused_in_git_s_words(both: Both, what: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        parse_command(COMMANDS[what])
    assert str(refused.value) == both.git.refusal(COMMANDS[what], version=2)


def test_a_second_command_is_refused_as_by_git(both: Both) -> None:
    body = command(b"fetch", capabilities=[b"command=ls-refs"])
    assert "requested after already requesting" in both.git.refusal(body, version=2)
    with pytest.raises(RequestRefused, match="'ls-refs' requested after already requesting"):
        parse_command(body)


FETCH_ARGUMENTS = [
    *(
        b"",
        b"wants",
        b"want",
        b"want ",
        b"want  MAIN",
        b"want 123",
        b"have",
        b"have x",
        b"Want MAIN",
    ),
    *(b"done ", b"thin-packs", b"shallow", b"shallow x", b"deepen", b"deepen ", b"deepen 0"),
    *(b"deepen -1", b"deepen x", b"deepen 1x", b"deepen 1 ", b"deepen 0x", b"deepen 09"),
    *(b"deepen-since x", b"deepen-since 1_0", b"deepen-not", b"deepen-relative 1", b"filter"),
    *(b"packfile-uris", b"want-ref", b"multi_ack", b"side-band-64k", b"sideband-all 1"),
    *(b"filter blob:limit=-1", b"filter blob:limit=1t", b"filter blob:limit=1kb", b"filter "),
    *(b"filter blob:limit=99999999999999999999", b"filter tree:", b"filter tree:x", b"filter blob"),
    *(b"filter object:type=", b"filter object:type=note", b"filter sparse:path=x", b"filter x"),
    *(b"filter combine:", b"filter combine:blob:none+x", b"filter combine:tree:1+tree:~1"),
    *(b"filter combine:tree:1 ", b"filter combine:sparse:path=x", b"filter combine:tree%253a1"),
    *(b"filter combine:combine:x", b"filter combine:combine%3atree:1%2by"),
    *(b"filter sparse:x", b"filter blob:none=", b"filter blob:none ", b"filter tree:1\x01"),
]


@pytest.mark.parametrize("argument", FETCH_ARGUMENTS, ids=bytes.decode)
def test_an_argument_of_fetch_is_refused_in_git_s_words(both: Both, argument: bytes) -> None:
    body = command(b"fetch", b"want " + both.snapshot.by_name[MAIN].oid, filled(both, argument))
    with pytest.raises(RequestRefused) as refused:
        parse_command(body)
    assert str(refused.value) == both.git.refusal(body, version=2)


@pytest.mark.parametrize(
    "arguments",
    [
        (b"filter tree:1", b"filter tree:1"),
        (b"filter blob:none", b"filter combine:"),
        (b"deepen 1", b"deepen-since 1", b"done"),
        (b"deepen 1", b"deepen-not v1", b"done"),
    ],
    ids=b" ".join,
)
def test_arguments_that_exclude_each_other_are_refused_in_git_s_words(
    both: Both, arguments: tuple[bytes, ...]
) -> None:
    body = command(b"fetch", b"want " + both.snapshot.by_name[MAIN].oid, *arguments)
    with pytest.raises(RequestRefused) as refused:
        parse_command(body)
    assert str(refused.value) == both.git.refusal(body, version=2)


@pytest.mark.parametrize(
    "arguments",
    [
        (b"want-ref main",),
        (b"want-ref ",),
        (b"want-ref refs/heads/../x",),
    ],
    ids=b" ".join,
)
def test_a_ref_in_want_is_refused_in_git_s_words(both: Both, arguments: tuple[bytes, ...]) -> None:
    body = command(b"fetch", *arguments, b"done")
    with pytest.raises(RequestRefused) as refused:
        parse_command(body)
    assert str(refused.value) == both.git.refusal(body, version=2)


@pytest.mark.parametrize("argument", [b"type", b"oid 123", b"oid", b"", b"size 1"])
def test_object_info_is_refused_with_git_s_err(both: Both, argument: bytes) -> None:
    body = command(b"object-info", b"size", argument, b"oid " + ONE)
    with pytest.raises(RequestRefused) as refused:
        parse_command(body)
    assert str(refused.value) == both.git.error_packet(body, version=2)


# --- v0 ----------------------------------------------------------------------------------------

V0_LINES = [
    *(b"", b"want", b"want ", b"want 123", b"want  MAIN", b"have MAIN", b"command=fetch", b"done"),
    *(b"deepen 0", b"deepen-since x", b"shallow x", b"deepen-relative", b"thin-pack", b"filter"),
    *(b"filter blob:none", b"filter nonsense", b"want-ref refs/heads/main"),
]


@pytest.mark.parametrize("line", V0_LINES, ids=bytes.decode)
def test_a_line_among_the_wants_is_refused_in_git_s_words(both: Both, line: bytes) -> None:
    start = lines(filled(both, b"want MAIN multi_ack"), filled(both, line))
    body = join(start) + FLUSH_PKT + join(lines(b"done"))
    with pytest.raises(RequestRefused) as refused:
        parse_upload_pack(body)
    assert str(refused.value) == both.git.refusal(body, version=0)


@pytest.mark.parametrize(
    "line", [b"filter blob:x", b"filter combine:tree:x", b"filter sparse:path=x"], ids=bytes.decode
)
def test_a_filter_is_refused_in_git_s_words_in_v0_too(both: Both, line: bytes) -> None:
    start = lines(filled(both, b"want MAIN filter"), line)
    body = join(start) + FLUSH_PKT + join(lines(b"done"))
    with pytest.raises(RequestRefused) as refused:
        parse_upload_pack(body)
    assert str(refused.value) == both.git.refusal(body, version=0)


@pytest.mark.parametrize("line", [b"", b"have", b"have x", b"want MAIN", b"done ", b"ready"])
def test_a_line_among_the_haves_is_refused_in_git_s_words(both: Both, line: bytes) -> None:
    body = join(lines(filled(both, b"want MAIN"))) + FLUSH_PKT
    body += join(lines(filled(both, line), b"done"))
    with pytest.raises(RequestRefused) as refused:
        parse_upload_pack(body)
    assert str(refused.value) == both.git.refusal(body, version=0)


# --- odd, and taken all the same ---------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        (b"want MAIN and more", b"have ROOT and more", b"done"),
        (b"want MAIN\0and more", b"thin-pack\0x", b"done\0"),
        (b"done", b"have ROOT", b"want MAIN", b"no-progress", b"no-progress"),
        (b"done", b"done", b"want MAIN", b"want MAIN", b"have ROOT", b"have ROOT"),
        (b"have SIDE", b"want MAIN", b"have ROOT"),
        (b"want MAIN", b"deepen 3", b"deepen 2", b"done"),
        (b"want MAIN", b"deepen 0x2", b"done"),
        (b"want MAIN", b"deepen 02", b"done"),
        (b"want MAIN", b"deepen  \t+2", b"done"),
        (b"want MAIN", b"deepen-since 0x684ee18c", b"done"),
        (b"want MAIN", b"deepen-not v1", b"deepen-not v1", b"done"),
        (b"want MAIN", b"shallow SIDE", b"shallow SIDE", b"done"),
        (b"want MAIN", b"shallow " + ONE, b"done"),
        (b"want MAIN", b"deepen-relative", b"done"),
        (b"want TAG", b"wait-for-done", b"done"),
        (b"have ROOT", b"done"),
        (b"want MAIN", b"filter combine:combine%3atree:1%2btree:2+blob:none", b"done"),
        (b"want MAIN", b"filter combine:combine:combine:tree:0x1k", b"done"),
        (b"want MAIN", b"filter combine:blob%3Anone", b"done"),
    ],
    ids=b", ".join,
)
def test_an_odd_v2_fetch_is_answered_as_by_git(both: Both, arguments: tuple[bytes, ...]) -> None:
    body = command(b"fetch", *(filled(both, line) for line in arguments)) + b"and garbage"
    request = parse_command(body)
    assert isinstance(request, FetchRequest)
    assert_same(
        Answer.planned(plan_v2(both.mirror, both.snapshot, request)), both.git.fetch_v2(body)
    )


def test_ids_in_capitals_are_the_same_ids(both: Both) -> None:
    main = both.snapshot.by_name[MAIN].oid
    body = command(b"fetch", b"want " + main.upper(), b"have " + main.upper(), b"done")
    request = parse_command(body)
    assert isinstance(request, FetchRequest)
    assert request.wants == request.haves == (main,)
    assert Answer.planned(plan_v2(both.mirror, both.snapshot, request)) == both.git.fetch_v2(body)


@pytest.mark.parametrize(
    ("wants", "then"),
    [
        ([b"want MAIN\0multi_ack side-band-64k"], [b"have ROOT", b"done"]),
        ([b"want MAINmulti_ack"], [b"have ROOT", b"done"]),
        ([b"want MAIN multi_ack_detailed", b"want SIDE multi_ack"], [b"have ROOT", b"done"]),
        ([b"want MAIN multi_ack=1 no-done="], [b"have ROOT", None]),
        ([b"want MAIN", b"want SIDE multi_ack_detailed no-done"], [b"have ROOT", None]),
        ([b"want MAIN   multi_ack\tside-band"], [b"have ROOT", b"done", b"have x"]),
        ([b"want MAIN multi_ack_detailedx xno-done"], [b"have ROOT", None]),
        ([b"deepen 2", b"want MAIN", b"deepen 1", b"want MAIN"], [b"done", b"done"]),
        ([b"shallow ROOT", b"want MAIN"], [None, b"have ROOT", b"done"]),
        ([b"want MAIN multi_ack"], [b"have ROOT", b"have ROOT", b"have " + ONE, b"done"]),
        ([b"want MAIN object-format=sha256 agent="], [b"done"]),
    ],
)
@pytest.mark.parametrize("end", [FLUSH_PKT, DELIM_PKT], ids=["flush", "delim"])
def test_an_odd_v0_fetch_is_answered_as_by_git(
    both: Both, wants: list[bytes], then: list[bytes | None], end: bytes
) -> None:
    body = join(lines(*(filled(both, line) for line in wants))) + end
    for line in then:
        body += end if line is None else join(lines(filled(both, line)))
    request = parse_upload_pack(body)
    assert request is not None
    assert_same(
        Answer.planned(plan_v0(both.mirror, both.snapshot, request)), both.git.fetch_v0(body)
    )
