"""Between repositories, and between now and then: nothing leaks across, nothing is undone."""

from pathlib import Path

from mirror.demo.forge import HttpBackend
from tests.git_client import GitClient, Upstream
from tests.mirror_service import github_headers, github_push, mirroring, refs_of
from tests.web.asking import command, fetch_v2, read_lines


async def test_a_commit_of_one_repository_is_not_to_be_had_by_way_of_another(
    forge: HttpBackend, upstream: Upstream, upstream_root: Path, tmp_path: Path
) -> None:
    hidden = Upstream(upstream_root, "acme/hidden")
    secret = hidden.commit(files={"secret.yaml": "password: x\n"})
    blob = hidden.oid("main:secret.yaml")
    async with mirroring(forge, tmp_path / "mirror", names=[upstream.name, hidden.name]) as mirror:
        own = await mirror.upload_pack(fetch_v2(secret), hidden.name, version=2)
        assert b"PACK" in own.body, "and now it is in the cache"
        for oid in (secret, blob):
            other = await mirror.upload_pack(fetch_v2(oid), upstream.name, version=2)
            assert b"PACK" not in other.body
            assert b"not our ref" in other.body
        size = command("object-info", "size", f"oid {blob}")
        told = await mirror.upload_pack(size, upstream.name, version=2)
        assert read_lines(told.body) == ["size", f"{blob} "], "no size: as if it were nowhere"


async def test_a_webhook_that_is_played_again_later_is_a_refresh_and_takes_nothing_back(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path
) -> None:
    first = upstream.oid()
    async with mirroring(forge, tmp_path / "mirror", names=[upstream.name]) as mirror:
        second = upstream.commit()
        url = forge.repository_url(upstream.name)
        body = github_push(url, "refs/heads/main", first, second)
        headers = github_headers(body)
        assert (await mirror.deliver(body, headers)).json["outcome"] == "accepted"
        await mirror.caught_up(upstream)
        third = upstream.commit()
        await mirror.announce(upstream, before=second)
        await mirror.caught_up(upstream)
        # The same bytes, and the same bytes under another id, which no signature covers.
        assert (await mirror.deliver(body, headers)).json["outcome"] == "repeated"
        again = {**headers, "X-GitHub-Delivery": "another-id"}
        assert (await mirror.deliver(body, again)).json["outcome"] == "accepted"
        await mirror.settled()
        assert refs_of(mirror.mirror()) == {"refs/heads/main": third}
        clone = await GitClient(tmp_path / "client").clone(mirror.url())
        assert (clone / ".git").exists()
        stripped = {key: value for key, value in headers.items() if "Signature" not in key}
        assert (await mirror.deliver(body, stripped)).status == 401
        moved = {**stripped, "X-Hub-Signature": headers["X-Hub-Signature-256"]}
        assert (await mirror.deliver(body, moved)).status == 401
