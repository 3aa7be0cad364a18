"""`kustomize build` takes remote bases from the mirror."""

from pathlib import Path

import pytest

from tests.clients.builds import program
from tests.clients.conftest import Estate, Through
from tests.clients.operations import Unavailable
from tests.clients.programs import Program

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]


@pytest.fixture
def kustomize(tmp_path: Path) -> Program:
    try:
        return Program(program("kustomize"), tmp_path / "home")
    except Unavailable as error:
        pytest.skip(str(error))


async def test_a_remote_base_is_built_as_it_is_right_after_each_push(
    estate: Estate, kustomize: Program
) -> None:
    through, upstream = Through(estate), estate.upstream
    first = upstream.oid()
    for tag in ("web-1", "web-2"):
        before = upstream.oid()
        upstream.commit(files={"base/app.yaml": config_map(tag)})
        upstream.tag(tag)
        await through.announce("refs/heads/main", before)
        await through.announce(f"refs/tags/{tag}", "0" * 40)
        for ref in ("main", tag, upstream.oid()):
            built = await kustomize.run("build", f"{through.url}//overlays/dev?ref={ref}")
            assert "name: dev-web" in built
            assert f"image: {tag}" in built
    older = await kustomize.run("build", f"{through.url}//overlays/dev?ref={first}")
    assert "image: web-2" not in older


def config_map(image: str) -> str:
    return f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: web}}\ndata: {{image: {image}}}\n"
