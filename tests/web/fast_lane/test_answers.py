"""A repeated poll gets the same words, never old ones, and shows in the metrics and logs."""

import re
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from structlog.contextvars import get_contextvars
from structlog.testing import capture_logs

from mirror.demo.forge import Faults, HttpBackend
from mirror.metrics import Metrics
from mirror.web import fast_lane, lane_runner
from mirror.web.connections import Crowd
from mirror.web.fast_lane import FastLane
from mirror.web.forwarded import NO_PROXIES
from mirror.web.lane_runner import CrowdRunner, open_fast_lane
from mirror.web.protocol import OK, OPERATION, OUTCOME, Operation
from mirror.web.repeating import REPEATABLE, Prepared, Repeatable
from tests.git_client import Upstream
from tests.mirror_service import MirrorService, mirroring
from tests.web.asking import command, connected, raw_request
from tests.web.fast_lane.polls import (
    INFO_REFS,
    LAST,
    POLLS,
    alike,
    ask_twice,
    exchange,
    get,
    read_answer,
)

STALE = b"Git-Mirror-Stale"


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
    await ask_twice(mirror, get(INFO_REFS, "Authorization: Basic b25lOm9uZQ=="))
    assert len(repeated) == 1
    async with connected(mirror, get(INFO_REFS, "Authorization: Basic dHdvOnR3bw==")) as (
        reader,
        _,
    ):
        await read_answer(reader)
    assert len(repeated) == 1


async def test_what_tells_readers_apart_beside_their_bytes_tells_answers_apart(
    mirror: MirrorService, repeated: list[Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask_twice(mirror, POLLS["v0"])
    assert len(repeated) == 1
    monkeypatch.setattr(fast_lane, "identity_of", lambda *_: "somebody else")
    await ask_twice(mirror, POLLS["v0"])
    assert len(repeated) == 2, "the first of the two was not known for that reader"


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

    metrics = Metrics("1")
    crowd = Crowd(metrics, places=9)
    lane = FastLane(metrics, crowd, keepalive_seconds=60.0)
    app = web.Application()
    app.router.add_get("/{repository}/pack", answer)
    app.on_response_prepare.append(tell)
    runner = CrowdRunner(app, crowd, lane)
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
    metrics = Metrics("1")
    crowd = Crowd(metrics, places=9)
    assert open_fast_lane(metrics, crowd, keepalive_seconds=1.0, proxies=NO_PROXIES) is not None
    monkeypatch.setattr(lane_runner, "INTERNALS", (*lane_runner.INTERNALS, "_gone"))
    with capture_logs() as logs:
        assert open_fast_lane(metrics, crowd, keepalive_seconds=1.0, proxies=NO_PROXIES) is None
    assert [(entry["event"], entry["missing"]) for entry in logs] == [("no_fast_lane", ["_gone"])]
