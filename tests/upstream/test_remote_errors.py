"""What an upstream may do wrong, and what we say then: to a person, and without the secrets."""

import asyncio
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path

import pytest
from aiohttp import web

from mirror.demo.forge import Faults, HttpBackend
from mirror.errors import OtherObjectFormat, UpstreamRefused, UpstreamUnavailable
from mirror.upstream.credentials import BasicCredentials
from mirror.upstream.failures import RETRY_AFTER_SECONDS_MAX
from mirror.wire.pktline import FLUSH_PKT, encode, encode_lines
from tests.git_client import Upstream
from tests.upstream.conftest import ALL, BASIC, SECRET, MakeRemote, failure
from tests.upstream.scripted import (
    MAIN,
    OID,
    a_v2_server,
    advertisement,
    always,
    raw_server,
    scripted,
    v0_listing,
    v2_listing,
)

# --- statuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "with_credentials", "without"),
    [
        (401, "wrong or expired", "wants credentials; set `credentials`"),
        (403, "may not read the repository", "set `credentials`"),
        (404, "may not see it", "can't be seen without `credentials`"),
        (410, "is gone", "is gone"),
        (418, "418: short and stout", "418: short and stout"),
    ],
)
async def test_a_refusal_says_what_to_do(
    make_remote: MakeRemote,
    credentials: BasicCredentials,
    status: int,
    with_credentials: str,
    without: str,
) -> None:
    async with scripted(always(status, "short\n and stout")) as server:
        for known, expected in ((credentials, with_credentials), (None, without)):
            error = await failure(make_remote(server.repository_url, credentials=known))
            assert isinstance(error, UpstreamRefused)
            assert expected in str(error)
            assert f"{server.repository_url} answered {status}" in str(error)


async def test_wrong_credentials_of_a_real_forge_are_refused(
    upstream: Upstream,
    upstream_root: Path,
    make_remote: MakeRemote,
    credentials: BasicCredentials,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("DEBUG"):
        async with HttpBackend(upstream_root, basic_auth=("ci", "another")) as forge:
            url = forge.repository_url(upstream.name)
            error = await failure(make_remote(url, credentials=credentials))
    assert "401" in str(error)
    assert len(forge.requests) == 1, "a failed login is not repeated: forges count them"
    assert SECRET not in caplog.text
    assert BASIC not in caplog.text


async def test_an_unknown_repository_is_refused(
    forge: HttpBackend, make_remote: MakeRemote
) -> None:
    error = await failure(make_remote(forge.repository_url("acme/nothing")))
    assert isinstance(error, UpstreamRefused)
    assert "404: there is no such repository" in str(error)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_trouble_on_their_side_is_passing_and_quoted(
    make_remote: MakeRemote, status: int
) -> None:
    page = "<html>\n the disk   is on fire\n" + "x" * 100_000
    async with scripted(always(status, page, kind="text/html")) as server:
        error = await failure(make_remote(server.repository_url))
    assert isinstance(error, UpstreamUnavailable)
    assert f"{status}: <html> the disk is on fire x" in str(error)
    assert len(str(error)) < 1000
    assert error.retry_after_seconds is None


@pytest.mark.parametrize("length", [0, 100])
async def test_an_error_page_that_can_not_be_read_is_no_further_trouble(
    make_remote: MakeRemote, length: int
) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 On fire\r\nContent-Length: %d\r\n\r\n" % length)
        await writer.drain()

    async with raw_server(talk) as url:
        error = await failure(make_remote(url))
    assert "answered 500: On fire" in str(error)


@pytest.mark.parametrize("status", [403, 429, 500, 503])
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 120 ", 120.0),
        ("0", 0.0),
        ("99999999999999999999", RETRY_AFTER_SECONDS_MAX),
        ("date+90", 90.0),
        ("date-90", 0.0),
        ("date+864000", RETRY_AFTER_SECONDS_MAX),
    ],
)
async def test_retry_after_is_read_in_seconds_and_as_a_date(
    make_remote: MakeRemote, status: int, value: str, seconds: float
) -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"

    async def answer(_: web.Request) -> web.StreamResponse:
        at = value
        if value.startswith("date"):
            # By their clock, whatever ours says.
            moment = parsedate_to_datetime(date).timestamp() + float(value.removeprefix("date"))
            at = format_datetime(parsedate_to_datetime(date).fromtimestamp(moment).astimezone())
        return web.Response(status=status, headers={"Retry-After": at, "Date": date})

    async with scripted(answer) as server:
        error = await failure(make_remote(server.repository_url))
    assert isinstance(error, UpstreamUnavailable)
    assert error.retry_after_seconds == seconds
    assert "slow down" in str(error)


async def test_a_date_counts_by_our_clock_where_the_upstream_tells_no_time(
    make_remote: MakeRemote,
) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at = b"Fri, 31 Dec 2199 23:59:59 GMT"
        writer.write(b"HTTP/1.1 429 No\r\nContent-Length: 0\r\nRetry-After: %b\r\n\r\n" % at)
        await writer.drain()

    async with raw_server(talk) as url:
        error = await failure(make_remote(url))
    assert isinstance(error, UpstreamUnavailable)
    assert error.retry_after_seconds == RETRY_AFTER_SECONDS_MAX


@pytest.mark.parametrize("value", ["", "soon", "-1", "1.5", "Wed, 99 Oct 2015 07:28:00 GMT", "²"])
async def test_a_retry_after_that_makes_no_sense_is_none(
    make_remote: MakeRemote, value: str
) -> None:
    async with scripted(always(429, headers={"Retry-After": value})) as server:
        error = await failure(make_remote(server.repository_url))
    assert isinstance(error, UpstreamUnavailable)
    assert error.retry_after_seconds is None


async def test_a_forge_that_asks_to_slow_down_is_not_asked_again_at_once(
    forge: HttpBackend, upstream: Upstream, make_remote: MakeRemote
) -> None:
    remote = make_remote(forge.repository_url(upstream.name))
    await remote.list_refs(ALL)
    forge.requests.clear()
    forge.faults = Faults(status=429, retry_after="30")
    error = await failure(remote)
    assert isinstance(error, UpstreamUnavailable)
    assert error.retry_after_seconds == 30
    assert len(forge.requests) == 1


# --- not a Git server --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("text/html", "<html>Please sign in</html>"),
        ("text/plain", f"{OID.decode()}\trefs/heads/main\n"),  # a dumb server's info/refs
        ("application/octet-stream", ""),
    ],
)
async def test_another_content_type_is_no_git_server(
    make_remote: MakeRemote, kind: str, text: str
) -> None:
    async with scripted(always(200, text, kind=kind)) as server:
        error = await failure(make_remote(server.repository_url))
    assert isinstance(error, UpstreamRefused)
    assert f"{kind!r} instead of" in str(error)
    assert "not a smart-HTTP Git server" in str(error)


async def test_the_content_type_of_a_post_counts_too(
    forge: HttpBackend, upstream: Upstream, make_remote: MakeRemote
) -> None:
    forge.faults = Faults(content_type="text/html", only=lambda request: request.is_post())
    error = await failure(make_remote(forge.repository_url(upstream.name)))
    assert "'text/html' instead of 'application/x-git-upload-pack-result'" in str(error)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the ref advertisement is empty"),
        (b"what is this", "pkt-line length"),
        (b"00", "ends within a pkt-line"),
        (encode(b"ERR the project was moved\n"), "the upstream reports: the project was moved"),
        (
            encode(b"# service=git-upload-pack\n") + FLUSH_PKT + encode(b"ERR quota exceeded"),
            "the upstream reports: quota exceeded",
        ),
        (encode_lines([b"version 2", b"ls-refs"]) + FLUSH_PKT, "protocol v2 without fetch"),
        (encode_lines([b"version 2", b"fetch"]) + FLUSH_PKT, "protocol v2 without ls-refs"),
        (encode_lines([b"version 2", b"ls-refs"]), "cut off"),
        (v0_listing([b"xyz refs/heads/main"]), "expected an object id"),
        (v0_listing([OID + b" refs/heads/.."]), "not a valid ref name"),
        (v0_listing([OID + b" refs/heads/main"])[:-4], "cut off"),
    ],
)
async def test_an_advertisement_that_makes_no_sense_is_their_fault(
    make_remote: MakeRemote, body: bytes, message: str
) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return advertisement(body)

    async with scripted(answer) as server:
        error = await failure(make_remote(server.repository_url))
    assert isinstance(error, UpstreamUnavailable)
    assert message in str(error)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "cut off"),
        (b"nonsense", "pkt-line length"),
        (v2_listing(MAIN)[:-4], "cut off"),
        (v2_listing(MAIN)[:-6], "ends within a pkt-line"),
        (v2_listing(b"unborn refs/heads/main"), "expected an object id"),
        (v2_listing(OID + b" main"), "not a valid ref name"),
        (v2_listing(OID + b" HEAD symref-target:../x"), "b'../x', which is not a"),
        (v2_listing(MAIN + b" peeled:123"), "expected an object id"),
        (v2_listing(b"ERR access denied"), "the upstream reports: access denied"),
        (b"0001" + v2_listing(MAIN), "expected a line or a flush-pkt"),
    ],
)
async def test_a_listing_that_makes_no_sense_is_their_fault(
    make_remote: MakeRemote, body: bytes, message: str
) -> None:
    async with scripted(a_v2_server(body)) as server:
        error = await failure(make_remote(server.repository_url))
    assert isinstance(error, UpstreamUnavailable)
    assert message in str(error)


async def test_a_message_of_theirs_can_not_flood_ours(make_remote: MakeRemote) -> None:
    async with scripted(a_v2_server(encode(b"ERR " + b"\x1b[31m" * 5000))) as server:
        error = await failure(make_remote(server.repository_url))
    assert len(str(error)) < 2000


async def test_a_listing_over_the_limit_is_refused(
    make_remote: MakeRemote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirror.upstream.remote.ANSWER_BYTES_MAX", 10_000)
    lines = [b"%040x refs/heads/b%d" % (number, number) for number in range(1000)]
    async with scripted(a_v2_server(v2_listing(*lines))) as server:
        error = await failure(make_remote(server.repository_url))
    assert "over 10000 bytes" in str(error)


@pytest.mark.parametrize("is_v0", [False, True])
async def test_a_sha256_repository_is_refused_in_one_clear_sentence(
    forge: HttpBackend, upstream_root: Path, make_remote: MakeRemote, is_v0: bool
) -> None:
    forge.faults = Faults(force_protocol_v0=is_v0)
    Upstream(upstream_root, "acme/sha256", object_format="sha256").commit()
    error = await failure(make_remote(forge.repository_url("acme/sha256")))
    assert isinstance(error, OtherObjectFormat)
    assert str(error) == (
        "the upstream's object format is sha256, and only sha1 repositories can be mirrored: take"
        " it out of the configuration and let its readers fetch from"
        f" {forge.repository_url('acme/sha256')} itself"
    )


async def test_a_shallow_upstream_is_refused_by_v0_already_when_it_lists(
    forge: HttpBackend, upstream: Upstream, make_remote: MakeRemote
) -> None:
    (upstream.path / "shallow").write_text(f"{upstream.history(3)[1]}\n", encoding="ascii")
    forge.faults = Faults(force_protocol_v0=True)
    error = await failure(make_remote(forge.repository_url(upstream.name)))
    assert isinstance(error, UpstreamRefused)
    assert "shallow repository; unshallow it" in str(error)
