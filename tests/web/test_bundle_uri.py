"""How readers learn of bundles: the capability, the command, the list; and operators too."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from mirror.wire.bundles import encode_bundle_list
from tests.git_client import Upstream
from tests.mirror_service import NAME, MirrorService, mirroring
from tests.web.asking import command, read_lines

LIST = f"/{NAME}/bundles/list"


@pytest.fixture
async def mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, fast_lane: bool
) -> AsyncIterator[MirrorService]:
    """The service, with a bundle."""
    upstream.history(3)
    defaults = "bundle_interval: 300d\nbundle_bytes_min: 0"
    async with mirroring(forge, tmp_path, defaults=defaults, fast_lane=fast_lane) as running:
        await running.until(lambda one: one.bundles is not None)
        yield running


@pytest.mark.parametrize("fast_lane", [True], ids=["fast-lane"])
async def test_bundles_are_told_of_in_v2(mirror: MirrorService) -> None:
    listed = mirror.mirror().bundles
    assert listed is not None
    (bundle,) = listed.bundles
    assert "bundle-uri" in read_lines((await mirror.info_refs(version=2)).body)
    answer = await mirror.upload_pack(command("bundle-uri"), version=2)
    assert answer.headers["Content-Type"] == "application/x-git-upload-pack-result"
    assert f"bundle.{bundle.token}.uri=bundles/{bundle.name}" in read_lines(answer.body)
    refused = await mirror.upload_pack(command("bundle-uri", "x"), version=2)
    assert read_lines(refused.body) == ["ERR bundle-uri: unexpected argument: 'x'"]


async def test_what_is_announced_changes_with_what_is_offered(
    mirror: MirrorService, upstream: Upstream
) -> None:
    for _ in range(3):
        assert "bundle-uri" in read_lines((await mirror.info_refs(version=2)).body)
    upstream.delete_ref("main")
    await mirror.announce(upstream)
    await mirror.caught_up(upstream)
    assert mirror.service.bundler is not None
    assert await mirror.service.bundler.bundle(NAME)
    for _ in range(3):
        assert "bundle-uri" not in read_lines((await mirror.info_refs(version=2)).body)
    assert (await mirror.upload_pack(command("bundle-uri"), version=2)).body == b"0000"
    assert (await mirror.get(LIST)).status == 404
    upstream.commit()
    await mirror.announce(upstream)
    await mirror.caught_up(upstream)
    assert await mirror.service.bundler.bundle(NAME)
    assert "bundle-uri" in read_lines((await mirror.info_refs(version=2)).body)


@pytest.mark.parametrize("fast_lane", [True], ids=["fast-lane"])
async def test_the_status_and_the_metrics_know_of_them(mirror: MirrorService) -> None:
    listed = mirror.mirror().bundles
    assert listed is not None
    status = (await mirror.get("/status.json")).json["repositories"][NAME]["bundles"]
    assert (status["count"], status["bytes"]) == (1, listed.size)
    assert status["built_at"]
    name = "git_mirror_repository_bundle_bytes"
    assert await mirror.metric(name, repository=NAME) == listed.size
    age = await mirror.metric("git_mirror_repository_bundle_age_seconds", repository=NAME)
    assert age is not None
    assert await mirror.metric("git_mirror_bundle_build_seconds_count", outcome="ok") == 1
    assert await mirror.metric("git_mirror_bundle_bytes_total") == listed.size


@pytest.mark.parametrize("fast_lane", [True], ids=["fast-lane"])
async def test_the_list_is_asked_for_again_each_time_and_sent_when_it_changed(
    mirror: MirrorService, upstream: Upstream
) -> None:
    first = await mirror.get(LIST)
    listed = mirror.mirror().bundles
    assert listed is not None
    assert (first.status, first.body) == (200, encode_bundle_list(listed))
    assert first.headers["Cache-Control"] == "no-cache"
    headers = {"If-None-Match": first.headers["ETag"]}
    assert (await mirror.get(LIST, headers=headers)).status == 304
    upstream.commit()
    await mirror.announce(upstream)
    await mirror.caught_up(upstream)
    assert mirror.service.bundler is not None
    assert await mirror.service.bundler.bundle(NAME)
    again = await mirror.get(LIST, headers=headers)
    assert again.status == 200
    assert again.body != first.body
