"""Partial clones that come back for thousands of objects: git asks for what a filter left out."""

from pathlib import Path

import pytest

from mirror.demo.forge import HttpBackend
from tests.e2e.conftest import FAST_LANE
from tests.git_client import GitClient, Upstream
from tests.mirror_service import mirroring

DIRECTORIES = 24
FILES_EACH = 125


@pytest.fixture
def many(upstream_root: Path) -> Upstream:
    """A repository with 3,000 files, and a few commits that change some of them."""
    upstream = Upstream(upstream_root, "acme/many")
    names = [f"apps/{number:02}/values" for number in range(DIRECTORIES)]
    files = {
        f"{name}/{number}.yaml": f"image: {name}:{number}\n"
        for name in names
        for number in range(FILES_EACH)
    }
    upstream.commit(files=files)
    for number in range(6):
        changed = {f"{name}/{number}.yaml": f"image: {name}:new\n" for name in names}
        upstream.commit(files=changed)
    return upstream


@pytest.mark.parametrize("version", [0, 2])
async def test_thousands_of_blobs_are_fetched_at_once_for_a_checkout(
    forge: HttpBackend, many: Upstream, tmp_path: Path, engine: str, version: int
) -> None:
    # A small buffer, so that 3,000 wants are sent in chunks, after a probe, as 20,000 would be.
    client = GitClient(tmp_path / "client", version, config={"http.postBuffer": "65536"})
    place, names = tmp_path / "mirror", [many.name]
    async with mirroring(
        forge, place, names=names, engine=engine, fast_lane=FAST_LANE[engine]
    ) as mirror:
        clone = await client.clone(mirror.url(many.name), "--filter=blob:none", "--no-checkout")
        lacking = await client.output(
            "rev-list", "--objects", "--missing=print", "--all", cwd=clone
        )
        assert lacking.count("?") >= DIRECTORIES * FILES_EACH
        await client.run("checkout", "--quiet", "main", cwd=clone)
        assert await client.output("status", "--porcelain", cwd=clone) == ""
        history = ("log", "--patch", "--full-index", "main")
        shown = await client.output(*history, cwd=clone)
        assert shown == await client.output(*history, cwd=many.path)
        await client.fsck(clone)


async def test_trees_and_blobs_are_fetched_as_they_are_needed(
    forge: HttpBackend, many: Upstream, tmp_path: Path, engine: str
) -> None:
    client = GitClient(tmp_path / "client", 2)
    place, names = tmp_path / "mirror", [many.name]
    async with mirroring(
        forge, place, names=names, engine=engine, fast_lane=FAST_LANE[engine]
    ) as mirror:
        clone = await client.clone(mirror.url(many.name), "--filter=tree:0")
        assert await client.output("status", "--porcelain", cwd=clone) == ""
        history = ("log", "--patch", "--full-index", "-2", "main")
        shown = await client.output(*history, cwd=clone)
        assert shown == await client.output(*history, cwd=many.path)
        await client.fsck(clone)
