"""Fetching packs: from git's own server by each protocol, and from servers that misbehave."""

import asyncio
import subprocess
from contextlib import aclosing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from aiohttp import web

from mirror.demo.forge import Faults, HttpBackend
from mirror.errors import Trouble, UpstreamError, UpstreamRefused, UpstreamUnavailable
from mirror.upstream.remote import SAID_BYTES_MAX, Remote
from mirror.wire.names import ObjectId, object_id
from mirror.wire.pktline import FLUSH_PKT, encode, encode_lines
from tests.git_client import Upstream
from tests.upstream.conftest import ALL, MakeRemote
from tests.upstream.scripted import (
    MAIN,
    OID,
    Answer,
    a_v2_server,
    advertisement,
    in_bands,
    result,
    scripted,
    v0_listing,
    v2_pack,
)

PACK = b"PACK" + bytes(range(256)) * 600
WANT = object_id(OID)
NAK = encode(b"NAK\n")


def ids(*oids: str) -> list[ObjectId]:
    return [object_id(oid.encode()) for oid in oids]


def object_count(pack: bytes) -> int:
    assert pack[:8] == b"PACK\0\0\0\2"
    return int.from_bytes(pack[8:12], "big")


async def fetch(
    remote: Remote, wants: list[ObjectId], haves: list[ObjectId] | None = None
) -> bytes:
    chunks = remote.fetch_pack(wants, haves or [])
    async with aclosing(chunks):
        return b"".join([chunk async for chunk in chunks])


async def listed(remote: Remote) -> Remote:
    await remote.list_refs(ALL)
    return remote


@pytest.fixture(params=["v2", "v0"])
def url(request: pytest.FixtureRequest, forge: HttpBackend, upstream: Upstream) -> str:
    forge.faults = Faults(force_protocol_v0=request.param == "v0")
    return forge.repository_url(upstream.name)


@pytest.fixture
def receiver(tmp_path: Path) -> Upstream:
    """A repository that packs are received into."""
    return Upstream(tmp_path / "receiver")


async def test_a_first_fetch_brings_everything(
    url: str, upstream: Upstream, receiver: Upstream, make_remote: MakeRemote
) -> None:
    upstream.history(20)
    upstream.tag("v1")
    remote = await listed(make_remote(url))
    pack = await fetch(remote, ids(upstream.oid(), upstream.oid("v1")))
    receiver.git("index-pack", "--stdin", "--strict", stdin=pack)
    for name, oid in upstream.refs().items():
        receiver.git("update-ref", name, oid)
    receiver.git("fsck", "--strict", "--full")
    assert receiver.refs() == upstream.refs()


async def test_a_fetch_with_haves_brings_a_thin_pack_of_what_is_new(
    url: str, upstream: Upstream, receiver: Upstream, make_remote: MakeRemote, forge: HttpBackend
) -> None:
    upstream.commit(files={"large.txt": "".join(f"line {n}\n" for n in range(5000))})
    old = upstream.oid()
    remote = await listed(make_remote(url))
    receiver.git("index-pack", "--stdin", stdin=await fetch(remote, ids(old)))
    receiver.git("update-ref", "refs/heads/main", old)
    changed = "".join(f"line {n}\n" for n in range(5000) if n != 2500)
    new = upstream.commit(files={"large.txt": changed})
    pack = await fetch(remote, ids(new), ids("f" * 40, old))
    assert object_count(pack) == 3, "a commit, a tree, a blob"
    assert len(pack) < 1000, "the blob as a delta against one that only we have"
    receiver.git("index-pack", "--stdin", "--fix-thin", stdin=pack)
    receiver.git("update-ref", "refs/heads/main", new)
    receiver.git("fsck", "--strict", "--full")
    assert forge.requests[-1].operation == "fetch"


async def test_a_fetch_is_one_round_trip(
    url: str, upstream: Upstream, make_remote: MakeRemote, forge: HttpBackend
) -> None:
    remote = await listed(make_remote(url))
    before = len(forge.requests)
    await fetch(remote, ids(upstream.oid()))
    assert forge.operations[before:] == ["fetch"]


async def test_a_fetch_without_a_look_before_asks_for_the_features_itself(
    url: str, upstream: Upstream, make_remote: MakeRemote, forge: HttpBackend
) -> None:
    pack = await fetch(make_remote(url), ids(upstream.oid()))
    assert object_count(pack) > 0
    assert forge.operations == ["info/refs", "fetch"]


async def test_a_large_request_goes_out_compressed(
    url: str, upstream: Upstream, make_remote: MakeRemote, forge: HttpBackend
) -> None:
    tips = upstream.history(300)
    upstream.branches({f"b{number}": tip for number, tip in enumerate(tips)})
    pack = await fetch(await listed(make_remote(url)), ids(*tips), ids(*tips[:10]))
    assert object_count(pack) == 290 * 3
    request = forge.requests[-1]
    assert request.content_encoding == "gzip"
    assert 0 < request.body_bytes < len(request.body)
    assert request.content_length == request.body_bytes, "not chunked: some servers can't"
    assert all(f"want {tip}".encode() in request.body for tip in tips)


async def test_a_request_of_very_many_wants_is_no_trouble(make_remote: MakeRemote) -> None:
    wants = [object_id(sha256(b"%d" % n).hexdigest()[:40].encode()) for n in range(60_000)]
    async with scripted(a_v2_server(fetched=v2_pack(PACK))) as server:
        assert await fetch(await listed(make_remote(server.repository_url)), wants) == PACK
    request = server.requests[-1]
    assert request.body.count(b"want ") == len(wants)
    assert int(request.headers["Content-Length"]) > 1 << 20, "of which aiohttp has its own opinion"


async def test_progress_is_told_while_the_pack_comes_in(make_remote: MakeRemote) -> None:
    told: list[tuple[int, bytes]] = []
    fetched = (
        encode_lines([b"packfile"])
        + encode(b"\2Counting objects:  50%\rCounting objects: 100%\n")
        + in_bands(PACK)
        + FLUSH_PKT
    )
    async with scripted(a_v2_server(fetched=fetched)) as server:
        remote = await listed(make_remote(server.repository_url))
        chunks = remote.fetch_pack([WANT], [], progress=lambda *report: told.append(report))
        async with aclosing(chunks):
            assert b"".join([chunk async for chunk in chunks]) == PACK
    assert told[-1] == (len(PACK), b"Counting objects: 100%")
    assert [size for size, _ in told] == sorted(size for size, _ in told)


# --- v0 servers of all ages --------------------------------------------------------------------


def a_v0_server(capabilities: bytes, fetched: bytes) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return advertisement(v0_listing([OID + b" HEAD", MAIN], capabilities))
        return result(fetched)

    return answer


@pytest.mark.parametrize(
    ("capabilities", "fetched"),
    [
        (b"", NAK + PACK),
        (b"thin-pack ofs-delta", encode(b"ACK " + OID + b"\n") + PACK),
        (b"side-band", NAK + in_bands(PACK) + FLUSH_PKT),
        (b"side-band side-band-64k", NAK + in_bands(PACK) + FLUSH_PKT),
        (
            b"multi_ack_detailed side-band-64k",
            encode_lines([b"ACK " + OID + word for word in (b" common", b" ready", b"")])
            + in_bands(PACK)
            + FLUSH_PKT,
        ),
    ],
    ids=["no capability", "single ack", "side-band", "side-band-64k", "multi_ack_detailed"],
)
async def test_servers_of_all_ages_are_understood(
    make_remote: MakeRemote, capabilities: bytes, fetched: bytes
) -> None:
    async with scripted(a_v0_server(capabilities, fetched)) as server:
        remote = await listed(make_remote(server.repository_url))
        assert await fetch(remote, [WANT], [WANT]) == PACK
    body = server.requests[-1].body
    asked = body.split(b"\n")[0].split()[2:]
    assert set(asked) <= set(capabilities.split()), "nothing is asked for that was not offered"
    assert sum(word.startswith(b"side-band") for word in asked) == (b"side-band" in capabilities)


async def test_git_without_side_band_sends_the_bare_pack(
    upstream: Upstream, make_remote: MakeRemote
) -> None:
    """Its side-bands are taken out of the advertisement."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            tip = upstream.oid().encode()
            return advertisement(v0_listing([tip + b" refs/heads/main"], b"ofs-delta"))
        said = await asyncio.to_thread(
            subprocess.run,
            ["git", "upload-pack", "--stateless-rpc", str(upstream.path)],
            input=await request.read(),
            capture_output=True,
            check=True,
        )
        return result(said.stdout)

    async with scripted(answer) as server:
        remote = await listed(make_remote(server.repository_url))
        pack = await fetch(remote, ids(upstream.oid()))
    assert object_count(pack) == 5
    upstream.git("index-pack", "--stdin", stdin=pack)


# --- trouble -----------------------------------------------------------------------------------


async def test_a_pack_cut_off_is_passing_trouble(
    url: str, upstream: Upstream, make_remote: MakeRemote, forge: HttpBackend
) -> None:
    upstream.history(200)
    remote = await listed(make_remote(url))
    forge.faults.cut_after_bytes = 10_000
    with pytest.raises(UpstreamUnavailable, match=r"127\.0\.0\.1 broke off"):
        await fetch(remote, ids(upstream.oid()))


@pytest.mark.parametrize(
    ("fetched", "message"),
    [
        (b"", "cut off before the end of the pack"),
        (encode_lines([b"packfile"]), "cut off before the end of the pack"),
        (v2_pack(PACK)[:-4], "cut off before the end of the pack"),
        (v2_pack(PACK)[:-40], "cut off before the end of the pack"),
        (encode(b"ERR upload-pack: not our ref " + OID), "reports: upload-pack: not our ref 111"),
        (
            encode_lines([b"packfile"]) + encode(b"\1PACK") + encode(b"\3out of memory\n"),
            "the upstream reports: out of memory",
        ),
        (encode_lines([b"packfile"]) + encode(b"\4?"), "side-band 4, which does not exist"),
        (encode_lines([b"packfile"]) + encode(b""), "expected a side-band packet"),
        (b"<html>", "pkt-line length"),
    ],
)
async def test_a_pack_that_makes_no_sense_is_their_fault(
    make_remote: MakeRemote, fetched: bytes, message: str
) -> None:
    async with scripted(a_v2_server(fetched=fetched)) as server:
        remote = await listed(make_remote(server.repository_url))
        with pytest.raises(UpstreamUnavailable) as caught:
            await fetch(remote, [WANT])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("fetched", "message"),
    [
        (encode(b"ERR upload-pack: not our ref " + OID), "reports: upload-pack: not our ref 111"),
        (encode(b"what?\n") + PACK, "expected ACK or NAK"),
        (NAK + encode(b"\3no\n"), "the upstream reports: no"),
        (NAK + in_bands(PACK), "cut off before the end of the pack"),
    ],
)
async def test_a_v0_pack_that_makes_no_sense_is_their_fault(
    make_remote: MakeRemote, fetched: bytes, message: str
) -> None:
    async with scripted(a_v0_server(b"side-band-64k", fetched)) as server:
        remote = await listed(make_remote(server.repository_url))
        with pytest.raises(UpstreamUnavailable) as caught:
            await fetch(remote, [WANT])
    assert message in str(caught.value)


async def test_a_pack_over_the_limit_is_refused_before_it_is_all_here(
    url: str, upstream: Upstream, make_remote: MakeRemote
) -> None:
    upstream.commit(files={"noise.bin": bytes(range(256)) * 2000 + PACK})
    remote = await listed(make_remote(url, pack_bytes_max=1000))
    received = 0
    with pytest.raises(UpstreamRefused, match=r"limits\.pack_bytes_max \(1000 bytes\)"):
        async for chunk in remote.fetch_pack(ids(upstream.oid()), []):
            received += len(chunk)
    assert received <= 1000


async def test_a_silent_upstream_is_given_up_in_the_middle_of_a_pack(
    make_remote: MakeRemote,
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if b"command=fetch" not in await request.read():
            return await a_v2_server()(request)
        response = web.StreamResponse(
            headers={"Content-Type": "application/x-git-upload-pack-result"}
        )
        await response.prepare(request)
        await response.write(v2_pack(PACK)[:5000])
        await server.released.wait()
        return response

    async with scripted(answer) as server:
        remote = await listed(make_remote(server.repository_url))
        remote._limits = replace(remote._limits, silence_seconds_max=0.05)
        with pytest.raises(UpstreamUnavailable, match=r"silent for 0\.05 seconds"):
            await fetch(remote, [WANT])


@pytest.mark.parametrize("is_v0", [False, True])
async def test_a_shallow_upstream_is_not_mirrored(
    forge: HttpBackend, upstream: Upstream, make_remote: MakeRemote, is_v0: bool
) -> None:
    tips = upstream.history(3)
    remote = make_remote(forge.repository_url(upstream.name))
    forge.faults = Faults(force_protocol_v0=is_v0)
    await remote.list_refs(ALL)
    (upstream.path / "shallow").write_text(f"{tips[1]}\n", encoding="ascii")
    with pytest.raises(UpstreamError, match="is a shallow repository; unshallow it to mirror it"):
        if is_v0:
            await remote.list_refs(ALL)
        await fetch(remote, ids(tips[2]))


async def test_a_tip_that_went_away_meanwhile_is_told(
    url: str, upstream: Upstream, make_remote: MakeRemote
) -> None:
    for key in ("allowAnySHA1InWant", "allowReachableSHA1InWant", "allowTipSHA1InWant"):
        upstream.config(f"uploadpack.{key}", "false")
    remote = await listed(make_remote(url))
    with pytest.raises(UpstreamUnavailable, match="not our ref"):
        await fetch(remote, ids("e" * 40))


async def test_a_reader_that_stops_half_way_frees_the_connection(
    url: str, upstream: Upstream, make_remote: MakeRemote
) -> None:
    upstream.history(200)
    remote = await listed(make_remote(url))
    chunks = remote.fetch_pack(ids(upstream.oid()), [])
    async with aclosing(chunks):
        assert await anext(chunks)
    listing = await remote.list_refs(ALL)
    assert listing.head == upstream.oid().encode()


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (encode(b"packfile\n"), encode(b"\2Counting objects: 1\r") * 500),
        (encode(b"packfile\n") + encode(b"\1PACK"), encode(b"\2Writing objects: 1\r") * 500),
        (encode(b"packfile\n"), encode(b"\1") * 2000),
        (b"", encode(b"acknowledgments\n") * 500),
    ],
    ids=["progress", "progress after the pack began", "keep-alives", "no section of a pack"],
)
async def test_an_upstream_that_does_not_come_to_the_point_is_given_up(
    make_remote: MakeRemote, begin: bytes, piece: bytes
) -> None:
    """Endless answers of this kind are among the faults; here as much as is too much."""
    said = begin + piece * (2 * SAID_BYTES_MAX // len(piece))
    async with scripted(a_v2_server(fetched=said)) as server:
        remote = await listed(make_remote(server.repository_url))
        with pytest.raises(UpstreamUnavailable, match="does not come to the point") as caught:
            await fetch(remote, [WANT])
    assert caught.value.trouble is Trouble.NO_PACK


async def test_progress_may_go_on_for_hours(make_remote: MakeRemote) -> None:
    """As that of a repository with a hundred million objects, which comes in small packets."""
    lines = b"".join(encode(b"\2Enumerating objects: %d\r" % n) for n in range(10_000))
    said = lines + b"".join(encode(b"\1" + PACK[at : at + 5]) for at in range(0, len(PACK), 5))
    said = encode(b"packfile\n") + said + FLUSH_PKT
    async with scripted(a_v2_server(fetched=said)) as server:
        assert await fetch(await listed(make_remote(server.repository_url)), [WANT]) == PACK
