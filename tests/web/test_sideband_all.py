"""Fetches that want all of the answer in side-bands (gitprotocol-v2(5), ``sideband-all``)."""

import pytest

from mirror.web import fetch as fetch_module
from mirror.wire.pktline import Special, decode_all
from tests.git_client import Upstream
from tests.mirror_service import MirrorService
from tests.web.asking import connected, fetch_v2, raw_request, read_answer
from tests.web.conftest import SteppedEngine

UNKNOWN = "1234567890" * 4
PACKS = "git_mirror_packs_total"


async def test_each_line_is_on_a_band_and_the_pack_is_the_cached_one(
    mirror: MirrorService, upstream: Upstream
) -> None:
    upstream.history(3)
    await mirror.announce(upstream)
    more = ["deepen 2"]
    plain = await mirror.upload_pack(fetch_v2(upstream.oid(), more=more), version=2)
    body = fetch_v2(upstream.oid(), more=["sideband-all", *more])
    answers = [await mirror.upload_pack(body, version=2) for _ in range(3)]
    expected = read_answer(plain.body)
    for answer in answers:
        packets = [one for one in decode_all(answer.body) if not isinstance(one, Special)]
        assert {packet[0] for packet in packets} == {1}
        lines = "".join(f"{line}\n" for line in expected.lines).replace(
            f"{expected.lines[1]}\n", expected.lines[1]
        )
        assert read_answer(answer.body).pack == lines.encode() + expected.pack
    assert await mirror.metric(PACKS, result="miss") == 1
    assert await mirror.metric(PACKS, result="hit") == 3


async def test_an_error_in_place_of_an_answer_is_on_side_band_3(mirror: MirrorService) -> None:
    for more in (["sideband-all"], []):
        body = fetch_v2(UNKNOWN, more=more)
        answer = await mirror.upload_pack(body, version=2)
        start = b"\3" if more else b"ERR "
        (packet,) = decode_all(answer.body)
        assert packet == start + f"upload-pack: not our ref {UNKNOWN}\n".encode()


async def test_a_ref_that_is_not_there_is_told_in_git_s_words(
    mirror: MirrorService, upstream: Upstream
) -> None:
    body = fetch_v2(upstream.oid(), more=["sideband-all", "want-ref refs/heads/gone"])
    answer = await mirror.upload_pack(body, version=2)
    assert decode_all(answer.body) == [b"\3unknown ref refs/heads/gone\n"]
    body = fetch_v2(upstream.oid(), more=["deepen-not gone"])
    answer = await mirror.upload_pack(body, version=2)
    told = b"ERR git upload-pack: deepen-not is not a ref: deepen-not gone\n"
    assert decode_all(answer.body) == [told]


async def test_a_ref_to_deepen_from_must_be_the_only_one_of_its_name(
    mirror: MirrorService, upstream: Upstream
) -> None:
    upstream.history(2)
    upstream.branches({"v1": "main~1"})
    upstream.git("update-ref", "refs/tags/v1", "main~2")
    await mirror.announce(upstream)
    await mirror.announce(upstream, "refs/tags/v1")
    answer = await mirror.upload_pack(fetch_v2(upstream.oid(), more=["deepen-not v1"]), version=2)
    told = b"ERR git upload-pack: ambiguous deepen-not: deepen-not v1\n"
    assert decode_all(answer.body) == [told]
    named = fetch_v2(upstream.oid(), more=["deepen-not tags/v1"])
    answer = await mirror.upload_pack(named, version=2)
    assert read_answer(answer.body).lines == [
        "shallow-info",
        f"shallow {upstream.oid('main~1')}",
        "packfile",
    ]


async def test_a_slow_pack_is_kept_alive_after_its_framed_sections(
    stepped: SteppedEngine,
    mirror: MirrorService,
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetch_module, "KEEPALIVE_SECONDS", 0.01)
    request = raw_request(fetch_v2(upstream.oid(), more=["sideband-all"]), version=2)
    async with connected(mirror, request) as (reader, _):
        received = await reader.readuntil(b"0005\1\r\n5\r\n0005\1")
        assert b"000e\1packfile\n" in received
        stepped.begin.set()
        stepped.finish.set()
        received += await reader.readuntil(b"\r\n0\r\n\r\n")
        assert b"PACK" in received
