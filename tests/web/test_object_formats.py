"""Repositories and clients whose object ids are SHA-256: refused with a sentence on either side."""

from pathlib import Path

import pytest

from mirror.demo.forge import Faults, HttpBackend
from tests.git_client import GitClient, Upstream
from tests.mirror_service import MirrorService, configuration, serving
from tests.web.asking import command

NAME = "acme/modern"
SENTENCE = "object format is sha256, and only sha1 repositories can be mirrored: take it out"


@pytest.fixture
def modern(upstream_root: Path) -> Upstream:
    """A SHA-256 repository on the forge."""
    repository = Upstream(upstream_root, NAME, object_format="sha256")
    repository.commit()
    return repository


@pytest.mark.parametrize(("is_v0", "workers"), [(False, 1), (True, 1), (False, 2)])
async def test_readers_of_a_sha256_upstream_are_told_why_it_is_not_here(
    forge: HttpBackend,
    upstream: Upstream,
    modern: Upstream,
    git_client: GitClient,
    tmp_path: Path,
    is_v0: bool,
    workers: int,
) -> None:
    forge.faults = Faults(force_protocol_v0=is_v0)
    names = [modern.name, upstream.name]
    file = configuration(forge, tmp_path / "mirror", names=names, workers=workers)
    async with serving(file, forge) as mirror:
        await mirror.mirrored(upstream.name)
        await mirror.until(lambda one: one.last.error is not None, NAME)
        bodies = (command("ls-refs"), b"0000")
        posts = [await mirror.upload_pack(body, NAME, version=2) for body in bodies]
        polls = [await mirror.info_refs(NAME, version=version) for version in (0, 1, 2)]
        for answer in (*posts, *polls):
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.text.startswith(f"{NAME} is not mirrored yet: the upstream's {SENTENCE}")
            assert answer.text.count("\n") <= 1
            assert "try again" not in answer.text
        cloned = await git_client.run("clone", mirror.url(NAME), "x", check=False)
        assert cloned.returncode != 0
        assert SENTENCE in cloned.stderr
        await assert_it_is_seen(mirror)
        assert not list((tmp_path / "mirror").glob("data/repositories/acme/modern.git/HEAD"))
        assert (await mirror.info_refs(upstream.name)).status == 200


async def assert_it_is_seen(mirror: MirrorService) -> None:
    """Check that the status and the metrics say why, and that the service counts as ready."""
    status = (await mirror.get("/status.json")).json["repositories"][NAME]
    assert status["state"] == "failing"
    assert SENTENCE in status["last_error"]
    refreshes = "git_mirror_refresh_seconds_count"
    outcome = {"trigger": "start", "outcome": "other_object_format"}
    assert await mirror.metric(refreshes, **outcome) == 1
    assert (await mirror.get("/readyz")).status == 200


@pytest.mark.parametrize("is_v0", [False, True])
async def test_what_there_was_stays_when_the_upstream_becomes_a_sha256_repository(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, is_v0: bool
) -> None:
    forge.faults = Faults(force_protocol_v0=is_v0)
    tip = upstream.oid()
    file = configuration(forge, tmp_path / "mirror", names=[upstream.name])
    async with serving(file, forge) as mirror:
        await mirror.mirrored()
        upstream.path.rename(upstream.path.with_name("old.git"))
        Upstream(upstream.path.parents[1], upstream.name, object_format="sha256").commit()
        await mirror.hosted().gate.look_again(0)
        await mirror.until(lambda one: SENTENCE in (one.last.error or ""))
        answer = await mirror.info_refs()
        assert answer.status == 200
        assert tip in answer.text


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (0, "Server does not support this repository's object format"),
        (2, "mismatched algorithms: client sha256; server sha1"),
    ],
)
async def test_a_sha256_client_is_told_of_the_mismatch_by_git_itself(
    mirror: MirrorService, git_client: GitClient, version: int, told: str
) -> None:
    clone = git_client.workdir / "modern"
    await git_client.run("init", "--quiet", "--object-format=sha256", str(clone))
    options = ("-c", f"protocol.version={version}")
    done = await git_client.run(*options, "fetch", mirror.url(), "main", cwd=clone, check=False)
    assert done.returncode != 0
    assert told in done.stderr
