"""The fast lane answers what was asked before, and shows by nothing but its speed."""

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.contextvars import get_contextvars
from structlog.testing import capture_logs

from mirror.demo.forge import Faults, HttpBackend
from mirror.metrics import Metrics
from mirror.web import fast_lane
from mirror.web.fast_lane import Connection, FastLane, FastLaneRunner, open_fast_lane
from mirror.web.protocol import OK, OPERATION, OUTCOME, Operation
from mirror.web.repeating import REPEATABLE, Prepared, Repeatable
from tests.git_client import Upstream
from tests.mirror_service import WAIT_SECONDS_MAX, MirrorService, mirroring
from tests.web.asking import command, connected, raw_request

INFO_REFS = "/acme/gitops-repo/info/refs?service=git-upload-pack"
STALE = b"Git-Mirror-Stale"

pytestmark = pytest.mark.skipif(
    "config.getoption('--no-fast-lane')", reason="is about the fast lane"
)


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: x", *headers, "", ""]
    return "\r\n".join(lines).encode()


POLLS = {
    "capabilities": get(INFO_REFS, "Git-Protocol: version=2"),
    "v0": get(INFO_REFS),
    "v1": get(INFO_REFS, "Git-Protocol: version=1"),
    "v0 as gzip": get(INFO_REFS, "Accept-Encoding: gzip"),
    "ls-refs": raw_request(command("ls-refs", "peel", "symrefs"), version=2),
    "ls-refs of one": raw_request(command("ls-refs", "ref-prefix refs/heads/main"), version=2),
    "HTTP/1.0": get(INFO_REFS, version="1.0"),
    "HTTP/1.0, kept alive": get(INFO_REFS, "Connection: keep-alive", version="1.0"),
    "to be closed": get(INFO_REFS, "Connection: close"),
}
LAST = get("/healthz", "Connection: close")
"""Ends a connection, so that all answers can be read to the end."""


@pytest.fixture
async def mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> AsyncIterator[MirrorService]:
    """A service with a fast lane and some branches, so that its advertisement is compressed."""
    upstream.branches({f"team-{number}/change": upstream.oid() for number in range(40)})
    async with mirroring(forge, tmp_path / "mirror", names=[upstream.name]) as running:
        yield running


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> list[Prepared]:
    """The answers that the lane has given."""
    given: list[Prepared] = []
    repeat = Connection._repeat

    def note(self: Connection, prepared: Prepared, began_at: float) -> None:
        given.append(prepared)
        repeat(self, prepared, began_at)

    monkeypatch.setattr(Connection, "_repeat", note)
    return given


class Received:
    """Counts what a server has read, so that a client can send one piece per read."""

    def __init__(self) -> None:
        self.count = 0
        self._more = asyncio.Event()

    def add(self, count: int) -> None:
        self.count += count
        self._more.set()

    async def until(self, count: int) -> None:
        while self.count < count:
            self._more.clear()
            await self._more.wait()


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> dict[type, Received]:
    """What was read by connections with a lane, and by aiohttp's own."""
    counts: dict[type, Received] = {}
    for kind in (Connection, web.RequestHandler):
        counts[kind] = Received()
        monkeypatch.setattr(kind, "data_received", counting(kind, counts[kind]))
    return counts


def counting(kind: type, received: Received) -> object:
    original = kind.data_received  # type: ignore[attr-defined]

    def data_received(self: asyncio.Protocol, data: bytes) -> None:
        original(self, data)
        received.add(len(data))

    return data_received


def alike(answers: bytes) -> bytes:
    """Return answers without what differs each time."""
    answers = re.sub(rb"\r\nDate: [^\r]{29}\r\n", b"\r\nDate: -\r\n", answers)
    return re.sub(rb"\r\nX-Request-Id: [0-9a-f]{16}\r\n", b"\r\nX-Request-Id: -\r\n", answers)


async def exchange(mirror: MirrorService, *requests: bytes) -> bytes:
    """Send requests over one connection, all at once, and read it to its end."""
    async with connected(mirror, b"".join(requests)) as (reader, _):
        return await asyncio.wait_for(reader.read(), WAIT_SECONDS_MAX)


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """Read one answer that has a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"\r\nContent-Length: ([0-9]+)\r\n", head)
    assert found, head
    return head + await reader.readexactly(int(found[1]))


async def ask_twice(mirror: MirrorService, request: bytes) -> tuple[bytes, bytes]:
    """Send a request over two connections, one after the other."""
    answers = []
    for _ in range(2):
        async with connected(mirror, request) as (reader, _):
            answers.append(await read_answer(reader))
    return answers[0], answers[1]


# --- the same answers --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POLLS)
async def test_a_poll_that_was_answered_before_is_answered_in_the_same_words(
    mirror: MirrorService, repeated: list[Prepared], kind: str
) -> None:
    first, second = await ask_twice(mirror, POLLS[kind])
    assert len(repeated) == 1
    assert first.partition(b"\r\n")[0].endswith(b" 200 OK")
    assert alike(second) == alike(first)
    ids = [re.findall(rb"X-Request-Id: ([0-9a-f]{16})\r", answer) for answer in (first, second)]
    assert ids[0] != ids[1]
    assert re.search(rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r", second)


@pytest.mark.parametrize(
    "request_bytes",
    [
        get("/healthz"),
        get("/metrics"),
        get("/acme/nothing/info/refs?service=git-upload-pack"),
        get(INFO_REFS, method="HEAD"),
        get(INFO_REFS, "Content-Length: 3") + b"abc",
        raw_request(b"nonsense"),
        raw_request(b"0000", version=2),
        raw_request(command("ls-refs"), version=2).replace(b"POST", b"PUT"),
        get(INFO_REFS, "Expect: 100-continue"),
        get(INFO_REFS, "Connection: upgrade", "Upgrade: h2c"),
        b"\r\n" + POLLS["v0"],
        get(INFO_REFS, "X: " + "x" * 17_000),
    ],
    ids=lambda one: one[:60].decode(),
)
async def test_what_is_no_plain_poll_is_never_repeated(
    mirror: MirrorService, repeated: list[Prepared], request_bytes: bytes
) -> None:
    for _ in range(3):
        async with connected(mirror, request_bytes) as (reader, _):
            assert await reader.readuntil(b"\r\n\r\n")
    assert repeated == []


async def test_one_readers_answer_is_not_anothers(
    mirror: MirrorService, repeated: list[Prepared]
) -> None:
    for password in ("b25lOm9uZQ==", "dHdvOnR3bw=="):
        await exchange(mirror, get(INFO_REFS, f"Authorization: Basic {password}"), LAST)
    assert repeated == []


STREAMS = st.lists(
    st.sampled_from(
        [
            *POLLS.values(),
            get("/healthz"),
            get("/acme/nothing/info/refs?service=git-upload-pack"),
            get(INFO_REFS, method="HEAD"),
            get(INFO_REFS, "Content-Length: 3") + b"abc",
            raw_request(b"nonsense"),
            POLLS["ls-refs"].replace(b"Content-Length", b"content-length"),
            POLLS["ls-refs"].replace(b"\r\nContent-Length: ", b"\r\nContent-Length:\t"),
            b"\r\n" + POLLS["v0"],
            b"\r\n\r\n" + POLLS["v0"],
            POLLS["v0"].replace(b"\r\n", b"\n"),
            POLLS["v0"][:-2] + b"Folded: a\r\n b\r\n\r\n",
            b"nonsense\r\n\r\n",
            POLLS["v0"][:-40],
            get(INFO_REFS, "X: " + "x" * 40_000),
            get(INFO_REFS, "Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n",
            get(INFO_REFS, "Content-Length: 0", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        ]
    ),
    min_size=1,
    max_size=5,
)


@st.composite
def sliced_streams(draw: st.DrawFn) -> list[bytes]:
    """Requests in pieces: each of its own, several together, or cut anywhere."""
    requests = [*draw(STREAMS), LAST]
    if draw(st.booleans()):
        return requests
    stream = b"".join(requests)
    cuts = sorted(draw(st.sets(st.integers(1, len(stream) - 1), max_size=6)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


async def send_sliced(mirror: MirrorService, received: Received, pieces: list[bytes]) -> bytes:
    """Send pieces so that the server reads each by itself; returns all it answers."""
    expected = received.count
    async with connected(mirror, b"") as (reader, writer):
        answers = asyncio.create_task(reader.read())
        for piece in pieces:
            writer.write(piece)
            expected += len(piece)
            arrived = asyncio.create_task(received.until(expected))
            await asyncio.wait(
                (arrived, answers), return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_SECONDS_MAX
            )
            arrived.cancel()
            if answers.done():
                break
        with contextlib.suppress(ConnectionResetError):  # closed with unread bytes
            return await asyncio.wait_for(answers, WAIT_SECONDS_MAX)
        return b"reset"


async def test_in_whatever_pieces_requests_come_the_answers_are_those_without_a_lane(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    repeated: list[Prepared],
    received: dict[type, Received],
) -> None:
    upstream.branches({f"team-{number}/change": upstream.oid() for number in range(40)})
    names = [upstream.name]
    async with (
        mirroring(forge, tmp_path / "with", names=names) as fast,
        mirroring(forge, tmp_path / "without", names=names, fast_lane=False) as plain,
    ):
        examples: list[list[bytes]] = []

        @settings(suppress_health_check=list(HealthCheck))
        @given(sliced_streams())
        def draw(pieces: list[bytes]) -> None:
            examples.append(pieces)

        draw()
        for pieces in examples:
            without = await send_sliced(plain, received[web.RequestHandler], pieces)
            for _ in range(2):  # the first time much is not known yet
                given_by_lane = await send_sliced(fast, received[Connection], pieces)
                if b"reset" not in (without, given_by_lane):
                    assert alike(given_by_lane) == alike(without), pieces
        assert len(repeated) > len(examples) // 4


async def test_a_poll_behind_other_requests_on_one_connection_is_repeated(
    mirror: MirrorService, repeated: list[Prepared]
) -> None:
    await exchange(mirror, POLLS["v0"], LAST)
    async with connected(mirror, b"") as (reader, writer):
        for request in (raw_request(b"nonsense"), get("/healthz"), POLLS["ls-refs"]):
            writer.write(request)
            await read_answer(reader)
            known = len(repeated)
            writer.write(POLLS["v0"])
            await read_answer(reader)
            assert len(repeated) == known + 1


async def test_requests_that_came_together_are_answered_in_order_and_then_the_lane_is_open(
    mirror: MirrorService, repeated: list[Prepared]
) -> None:
    polls = [POLLS[kind] for kind in ("v0", "ls-refs", "capabilities")]
    alone = [alike((await ask_twice(mirror, poll))[1]) for poll in polls]
    repeated.clear()
    async with connected(mirror, b"".join(polls)) as (reader, writer):
        assert [alike(await read_answer(reader)) for _ in polls] == alone
        assert repeated == []
        writer.write(polls[1])
        assert alike(await read_answer(reader)) == alone[1]
        assert len(repeated) == 1


async def test_behind_bytes_that_aiohttp_may_read_in_another_way_the_lane_stays_closed(
    mirror: MirrorService, repeated: list[Prepared]
) -> None:
    await exchange(mirror, POLLS["v0"], LAST)
    async with connected(mirror, b"\r\n" + POLLS["v0"]) as (reader, writer):
        await read_answer(reader)
        writer.write(POLLS["v0"])
        await read_answer(reader)
    assert repeated == []


# --- never an old answer -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["v0", "v1", "v0 as gzip", "ls-refs"])
async def test_after_an_announcement_the_next_answer_has_the_new_commit(
    mirror: MirrorService, upstream: Upstream, repeated: list[Prepared], kind: str
) -> None:
    async with connected(mirror, POLLS[kind]) as (reader, writer):
        old = await read_answer(reader)
        for _ in range(3):
            before = upstream.oid()
            after = upstream.commit()
            known = len(repeated)
            await mirror.announce(upstream, before=before)
            writer.write(POLLS[kind])
            new = await read_answer(reader)
            assert len(repeated) == known
            assert new.partition(b"\r\n\r\n")[2] != old.partition(b"\r\n\r\n")[2]
            assert "gzip" in kind or after.encode() in new
            writer.write(POLLS[kind])
            assert alike(await read_answer(reader)) == alike(new)
            assert len(repeated) == known + 1
            old = new


async def test_while_refs_are_stale_nothing_is_repeated(
    mirror: MirrorService, upstream: Upstream, repeated: list[Prepared]
) -> None:
    for kind in ("v0", "ls-refs"):
        await exchange(mirror, POLLS[kind], LAST)
    mirror.forge.faults = Faults(status=500)
    before = upstream.oid()
    upstream.commit()
    await mirror.announce(upstream, before=before)
    for kind in ("v0", "ls-refs"):
        for answer in await ask_twice(mirror, POLLS[kind]):
            assert STALE in answer
    assert repeated == []


async def test_where_no_age_is_allowed_every_poll_asks_the_upstream(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, repeated: list[Prepared]
) -> None:
    names = [upstream.name]
    async with mirroring(forge, tmp_path, names=names, defaults="max_age: 0s") as mirror:
        asked = len(forge.requests)
        await ask_twice(mirror, POLLS["v0"])
        assert forge.operations[asked:] == ["ls-refs", "ls-refs"]
    assert repeated == []


# --- metrics and logs --------------------------------------------------------------------------


async def test_repeated_answers_are_counted_like_others(
    mirror: MirrorService, repeated: list[Prepared]
) -> None:
    for operation, kind in (("advertise", "v0"), ("capabilities", "capabilities")):
        for _ in range(5):
            await exchange(mirror, POLLS[kind], LAST)
            await ask_twice(mirror, POLLS[kind])
        counted = await mirror.metric(
            "git_mirror_request_seconds_count", operation=operation, outcome="ok"
        )
        assert counted == 15
    assert len(repeated) == 20  # what came together with LAST was aiohttp's


async def test_a_handler_hears_of_each_repeat_with_the_requests_log_context() -> None:
    heard: list[dict[str, object]] = []

    async def answer(request: web.Request) -> web.Response:
        request[OPERATION], request[OUTCOME] = Operation.FETCH, OK
        request[REPEATABLE] = Repeatable(b"pack", lambda: True, hear)
        return web.Response(body=b"pack", headers={"X-Request-Id": "0"})

    def hear() -> None:
        heard.append(get_contextvars())

    async def tell(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["X-Request-Id"] = response.headers.popone("X-Request-Id")
        lane.answers_with(request, response)

    lane = FastLane(Metrics("1"), keepalive_seconds=60.0)
    app = web.Application()
    app.router.add_get("/{repository}/pack", answer)
    app.on_response_prepare.append(tell)
    runner = FastLaneRunner(app, lane)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/acme/pack"
        async with aiohttp.ClientSession() as session:
            async with session.get(url):
                assert heard == []
            async with session.get(url) as response:
                request_id = response.headers["X-Request-Id"]
        assert heard == [{"request_id": request_id, "repository": "acme", "remote": "127.0.0.1"}]
    finally:
        await runner.cleanup()


# --- connections -------------------------------------------------------------------------------


def make_long(upstream: Upstream) -> None:
    """Give an upstream so many refs that a few advertisements fill what a connection buffers."""
    filling = "x" * 200
    upstream.branches({f"{number:03d}/{filling}": upstream.oid() for number in range(400)})


@asynccontextmanager
async def slow_client(mirror: MirrorService) -> AsyncIterator[socket.socket]:
    """Connect a client that reads nothing by itself, and has little room."""
    host, port = mirror.service.url.removeprefix("http://").split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
        yield client


async def read_to_end(client: socket.socket) -> bytes:
    answers = bytearray()
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while piece := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
            answers += piece
    return bytes(answers)


@pytest.fixture
def paused(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once a connection holds more than its client takes."""
    event = asyncio.Event()
    pause_writing = Connection.pause_writing

    def note(self: Connection) -> None:
        pause_writing(self)
        event.set()

    monkeypatch.setattr(Connection, "pause_writing", note)
    return event


async def poll_until_paused(
    client: socket.socket, received: Received, paused: asyncio.Event
) -> int:
    """Poll without reading until the server is stuck; returns the number of polls."""
    polls = 0
    while not paused.is_set():
        expected = received.count + len(POLLS["v0"])
        await asyncio.get_running_loop().sock_sendall(client, POLLS["v0"])
        await received.until(expected)
        polls += 1
    return polls


async def test_a_client_that_does_not_read_gets_all_answers_once_it_does(
    mirror: MirrorService,
    upstream: Upstream,
    received: dict[type, Received],
    paused: asyncio.Event,
    repeated: list[Prepared],
) -> None:
    make_long(upstream)
    await mirror.announce(upstream)
    expected = alike((await ask_twice(mirror, POLLS["v0"]))[1])
    repeated.clear()
    async with slow_client(mirror) as client:
        polls = await poll_until_paused(client, received[Connection], paused)
        assert len(repeated) == polls
        more = POLLS["v0"] * 3 + LAST
        await asyncio.get_running_loop().sock_sendall(client, more)
        answers = alike(await read_to_end(client))
    assert answers.startswith(expected * (polls + 3) + b"HTTP/1.1 200 OK")
    assert len(repeated) == polls, "the others had to wait, which is aiohttp's part"


async def test_a_client_that_takes_nothing_for_too_long_is_cut_off(
    mirror: MirrorService,
    upstream: Upstream,
    received: dict[type, Received],
    paused: asyncio.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fast_lane, "CLIENT_SILENCE_SECONDS_MAX", 0.01)
    make_long(upstream)
    await mirror.announce(upstream)
    expected = (await ask_twice(mirror, POLLS["v0"]))[1]
    lost = asyncio.Event()
    connection_lost = Connection.connection_lost

    def note(self: Connection, exc: BaseException | None) -> None:
        connection_lost(self, exc)
        lost.set()

    monkeypatch.setattr(Connection, "connection_lost", note)
    async with slow_client(mirror) as client:
        polls = await poll_until_paused(client, received[Connection], paused)
        await asyncio.wait_for(lost.wait(), WAIT_SECONDS_MAX)
        taken = b""
        with contextlib.suppress(ConnectionResetError):
            taken = await read_to_end(client)
        assert len(taken) < polls * len(expected)


async def test_what_was_answered_goes_out_before_the_service_ends(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    received: dict[type, Received],
    paused: asyncio.Event,
) -> None:
    make_long(upstream)
    async with contextlib.AsyncExitStack() as stack:
        async with mirroring(forge, tmp_path, names=[upstream.name]) as mirror:
            expected = (await ask_twice(mirror, POLLS["v0"]))[1]
            client = await stack.enter_async_context(slow_client(mirror))
            polls = await poll_until_paused(client, received[Connection], paused)
            reading = asyncio.create_task(read_to_end(client))
        assert alike(await reading) == alike(expected) * polls


async def test_at_the_end_a_client_that_takes_nothing_is_not_waited_for(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    received: dict[type, Received],
    paused: asyncio.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fast_lane, "CLOSE_SECONDS_MAX", 0.01)
    make_long(upstream)
    async with contextlib.AsyncExitStack() as stack:
        async with mirroring(forge, tmp_path, names=[upstream.name]) as mirror:
            expected = (await ask_twice(mirror, POLLS["v0"]))[1]
            client = await stack.enter_async_context(slow_client(mirror))
            polls = await poll_until_paused(client, received[Connection], paused)
        taken = b""
        with contextlib.suppress(ConnectionResetError):
            taken = await read_to_end(client)
        assert len(taken) < polls * len(expected)


@pytest.mark.parametrize(
    "requests", [[], ["v0"], ["v0", "v0"], ["v0", "other"], ["v0", "other", "v0"]]
)
async def test_a_connection_that_is_idle_for_too_long_is_closed(
    forge: HttpBackend,
    upstream: Upstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    requests: list[str],
) -> None:
    monkeypatch.setattr("mirror.service.KEEPALIVE_SECONDS", 0.2)
    async with mirroring(forge, tmp_path, names=[upstream.name]) as mirror:
        await ask_twice(mirror, POLLS["v0"])
        async with connected(mirror, b"") as (reader, writer):
            for kind in requests:
                writer.write(POLLS["v0"] if kind == "v0" else get("/healthz"))
                await read_answer(reader)
            assert await asyncio.wait_for(reader.read(), WAIT_SECONDS_MAX) == b""


@pytest.mark.parametrize(
    "requests", [[], ["v0"], ["v0", "v0"], ["v0", "other"], ["v0", "other", "v0"]]
)
async def test_a_service_ends_with_connections_open(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, requests: list[str]
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with mirroring(forge, tmp_path, names=[upstream.name]) as mirror:
            await ask_twice(mirror, POLLS["v0"])
            reader, writer = await stack.enter_async_context(connected(mirror, b""))
            for kind in requests:
                writer.write(POLLS["v0"] if kind == "v0" else get("/healthz"))
                await read_answer(reader)
        assert await reader.read() == b""


# --- the switch --------------------------------------------------------------------------------


async def test_the_lane_can_be_turned_off(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, repeated: list[Prepared]
) -> None:
    async with mirroring(forge, tmp_path, names=[upstream.name], fast_lane=False) as mirror:
        first, second = await ask_twice(mirror, POLLS["v0"])
    assert alike(first) == alike(second)
    assert repeated == []


async def test_with_another_aiohttp_there_is_a_warning_and_no_lane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert open_fast_lane(Metrics("1"), keepalive_seconds=1.0) is not None
    monkeypatch.setattr(fast_lane, "_INTERNALS", (*fast_lane._INTERNALS, "_gone"))
    with capture_logs() as logs:
        assert open_fast_lane(Metrics("1"), keepalive_seconds=1.0) is None
    assert [(entry["event"], entry["missing"]) for entry in logs] == [("no_fast_lane", ["_gone"])]
