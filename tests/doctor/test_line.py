import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mirror.doctor.finding import Verdict
from mirror.doctor.line import Place, examine_line, judge_clock
from tests.certificates import Authority


@asynccontextmanager
async def listening(context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that says nothing; its port."""

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(keep, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path)


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.file))


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://github.com/a/b.git", Place("github.com", 443, is_tls=True)),
        ("http://127.0.0.1:8123/a", Place("127.0.0.1", 8123, is_tls=False)),
        ("https://[::1]:8443/a", Place("::1", 8443, is_tls=True)),
    ],
)
def test_a_url_leads_to_a_host_and_a_port(url: str, place: Place) -> None:
    assert Place.of(url) == place


async def test_name_port_and_certificate_are_looked_at_with_their_times(
    authority: Authority, tmp_path: Path
) -> None:
    async with listening(authority.server_context(tmp_path)) as port:
        place = Place("localhost", port, is_tls=True)
        found = await examine_line(place, tls=trusting(authority))
    assert [(one.check, one.verdict) for one in found] == [
        ("DNS", Verdict.OK),
        ("TCP", Verdict.OK),
        ("TLS", Verdict.OK),
    ]
    assert "TLSv1.3, certificate valid for 30 days" in found[2].figure


@pytest.mark.parametrize(("days", "verdict"), [(10, Verdict.WARNING), (2, Verdict.PROBLEM)])
async def test_a_certificate_that_ends_soon_is_told(
    authority: Authority, tmp_path: Path, days: float, verdict: Verdict
) -> None:
    async with listening(authority.server_context(tmp_path, days=days)) as port:
        place = Place("localhost", port, is_tls=True)
        found = await examine_line(place, tls=trusting(authority))
    assert found[-1].verdict is verdict
    assert "ends soon" in found[-1].advice


@pytest.mark.parametrize("days", [-1, 30], ids=["expired", "unknown-authority"])
async def test_a_certificate_that_is_not_accepted_is_a_problem(
    authority: Authority, tmp_path: Path, days: float
) -> None:
    tls = trusting(authority) if days < 0 else ssl.create_default_context()
    async with listening(authority.server_context(tmp_path, days=days)) as port:
        found = await examine_line(Place("localhost", port, is_tls=True), tls=tls)
    assert (found[-1].check, found[-1].verdict) == ("TLS", Verdict.PROBLEM)
    assert "expired" in found[-1].figure or "unable to get" in found[-1].figure


async def test_what_fails_ends_the_way() -> None:
    async with listening() as port:
        pass  # nobody listens there any more
    tls = ssl.create_default_context()
    closed = await examine_line(Place("127.0.0.1", port, is_tls=True), tls=tls)
    assert [(one.check, one.verdict) for one in closed] == [
        ("DNS", Verdict.OK),
        ("TCP", Verdict.PROBLEM),
    ]
    nowhere = await examine_line(Place("no-such-host.invalid", 443, is_tls=True), tls=tls)
    assert [(one.check, one.verdict) for one in nowhere] == [("DNS", Verdict.PROBLEM)]


async def test_a_port_without_tls_is_told(authority: Authority) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        place = Place("127.0.0.1", server.sockets[0].getsockname()[1], is_tls=True)
        found = await examine_line(place, tls=trusting(authority))
    assert (found[-1].check, found[-1].verdict) == ("TLS", Verdict.PROBLEM)


@pytest.mark.parametrize(
    ("date", "verdict", "words"),
    [
        ("Sun, 09 Sep 2001 01:46:40 GMT", Verdict.OK, "agrees"),
        ("Sun, 09 Sep 2001 01:46:39 GMT", Verdict.OK, "agrees"),
        ("Sun, 09 Sep 2001 01:46:20 GMT", Verdict.WARNING, "differs by 19 s"),
        ("Sun, 09 Sep 2001 01:48:20 GMT", Verdict.PROBLEM, "differs by 100 s"),
        ("yesterday", Verdict.NOTE, "no Date"),
        (None, Verdict.NOTE, "no Date"),
    ],
)
def test_a_clock_is_judged_by_what_is_certain(
    date: str | None, verdict: Verdict, words: str
) -> None:
    found = judge_clock("forge", date, asked_at=1_000_000_000.0, answered_at=1_000_000_000.3)
    assert found.verdict is verdict
    assert words in found.figure
