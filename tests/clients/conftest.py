"""The service that the clients read from: one for every engine, in front of one upstream.

The cells share it as readers share a mirror: each finds what those before it left, and compares
with what the upstream has at that moment. With `git` two processes serve, and with `dulwich` there
is no fast lane: what clients get must depend on neither.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from mirror.demo.forge import HttpBackend
from tests.engines import PARAMS
from tests.git_client import GitClient, Upstream
from tests.mirror_service import MirrorService, mirroring


@dataclass(frozen=True)
class Estate:
    """An upstream and the service in front of it."""

    engine: str
    upstream: Upstream
    mirror: MirrorService


@dataclass(frozen=True)
class Through:
    """Reading through the mirror, which hears of every push by a signed webhook."""

    estate: Estate

    @property
    def url(self) -> str:
        return self.estate.mirror.url(self.estate.upstream.name)

    async def announce(self, ref: str, before: str) -> None:
        await self.estate.mirror.announce(self.estate.upstream, ref, before=before)


@dataclass(frozen=True)
class Direct:
    """Reading from the upstream itself, git's own server."""

    estate: Estate

    @property
    def url(self) -> str:
        return self.estate.mirror.forge.repository_url(self.estate.upstream.name)

    async def announce(self, ref: str, before: str) -> None:
        """Nobody has to be told."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=PARAMS)
async def estate(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Estate]:
    """The service of an engine; at the end its mirror must be sound."""
    engine = str(request.param)
    directory = tmp_path_factory.mktemp("clients")
    root = directory / "forge"
    root.mkdir()
    upstream = build_upstream(root)
    async with (
        HttpBackend(root) as forge,
        mirroring(
            forge,
            directory / "mirror",
            names=[upstream.name],
            engine=engine,
            workers=2 if engine == "git" else 1,
            fast_lane=engine != "dulwich",
        ) as mirror,
    ):
        yield Estate(engine, upstream, mirror)
        await GitClient(directory).fsck(mirror.mirror(upstream.name).path)


def build_upstream(root: Path) -> Upstream:
    """Make a small GitOps repository with branches, and tags that a client may stumble on."""
    upstream = Upstream(root)
    noise = bytes((number * number + number // 7) % 251 for number in range(60_000))
    upstream.commit(
        files={
            "base/kustomization.yaml": "resources: [app.yaml]\n",
            "base/app.yaml": CONFIG_MAP,
            "base/picture.bin": noise,
            "overlays/dev/kustomization.yaml": "namePrefix: dev-\nresources: [../../base]\n",
        },
        message="Begin",
    )
    upstream.tag("v1.0.0")
    upstream.history(20)
    upstream.commit("release/1.0", {"base/app.yaml": CONFIG_MAP + "# 1.0\n"}, parents=["main"])
    upstream.tag("v1.0.1", "release/1.0")
    upstream.commit(parents=["main", "release/1.0"], message="Merge release/1.0")
    upstream.tag("v1.1.0")
    upstream.tag("signed-off", "v1.1.0", message="A tag of a tag")
    upstream.tag("light", "main~3", annotated=False)
    upstream.tag("the-tree", "main^{tree}", annotated=False)
    upstream.tag("the-key", "main:base/app.yaml")  # as git.git keeps its maintainer's key
    upstream.commit("gh-pages", {"index.html": "<h1>Docs</h1>\n"}, parents=[], message="A new root")
    upstream.history(5)
    return upstream


CONFIG_MAP = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: web
data:
  image: web:1.0.0
"""
