"""A client that is not git: dulwich, which speaks both protocols in its own way."""

import asyncio
import io
from pathlib import Path

import pytest
from dulwich import porcelain

from tests.e2e.conftest import Estate
from tests.git_client import GitClient

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("depth", [None, 1])
async def test_dulwich_clones_what_git_clones(
    estate: Estate, git_client: GitClient, tmp_path: Path, protocol: int, depth: int | None
) -> None:
    def clone() -> None:
        porcelain.clone(
            estate.through,
            tmp_path / "dulwich",
            checkout=False,
            errstream=io.BytesIO(),
            protocol_version=protocol,
            depth=depth,
        ).close()

    await asyncio.to_thread(clone)
    tips = await git_client.output(
        "rev-parse", "HEAD", "refs/tags/v1.1.0", cwd=tmp_path / "dulwich"
    )
    assert tips.split() == [estate.upstream.oid("HEAD"), estate.upstream.oid("refs/tags/v1.1.0")]
    await git_client.fsck(tmp_path / "dulwich")
