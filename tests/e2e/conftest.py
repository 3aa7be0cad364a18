"""The real git client in front of the service, the service in front of git's own http-backend.

What a client gets through the mirror is compared with what the same client gets from the upstream.
Tests that change nothing share one upstream and one service per engine and worker (`estate`); the
others have their own (`mirror`). With the one engine there is a fast lane, with the other there is
none: what clients get must depend on neither.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from mirror.demo.forge import HttpBackend
from tests.git_client import GitClient, Upstream
from tests.mirror_service import NAME, MirrorService, mirroring

ENGINES = ["git", "dulwich"]
FAST_LANE = {"git": True, "dulwich": False}
VERSIONS = [0, 1, 2]


@pytest.fixture(params=VERSIONS, ids=lambda version: f"v{version}")
def version(request: pytest.FixtureRequest) -> int:
    """The protocol that the client asks for."""
    return int(request.param)


@pytest.fixture
def client(tmp_path: Path, version: int) -> GitClient:
    """A git client that asks for `version`."""
    return GitClient(tmp_path / "client", version)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Who makes the packs."""
    return str(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave v1 to one engine: to the engine it is v0, to the protocol a line more."""
    items[:] = [one for one in items if not _is_repetition(one)]


def _is_repetition(item: pytest.Item) -> bool:
    params = (
        item.callspec.params
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else {}
    )
    return params.get("version") == 1 and params.get("engine") == "dulwich"


@pytest.fixture(scope="module")
def workers() -> int:
    """How many processes serve."""
    return 1


@dataclass(frozen=True)
class Estate:
    """An upstream with a bit of everything, and the service in front of it. Not to be changed."""

    upstream: Upstream
    mirror: MirrorService

    @property
    def direct(self) -> str:
        """The upstream's own URL."""
        return self.mirror.forge.repository_url(self.upstream.name)

    @property
    def through(self) -> str:
        """The mirror's URL."""
        return self.mirror.url(self.upstream.name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def estate(
    tmp_path_factory: pytest.TempPathFactory, engine: str, workers: int
) -> AsyncIterator[Estate]:
    directory = tmp_path_factory.mktemp("estate")
    root = directory / "forge"
    root.mkdir()
    upstream = build_upstream(root)
    place, names = directory / "mirror", [upstream.name]
    async with (
        HttpBackend(root) as forge,
        mirroring(
            forge,
            place,
            names=names,
            engine=engine,
            workers=workers,
            fast_lane=FAST_LANE[engine],
        ) as mirror,
    ):
        yield Estate(upstream, mirror)
        await GitClient(directory).fsck(mirror.mirror(upstream.name).path)


@pytest.fixture
async def mirror(
    forge: HttpBackend, upstream: Upstream, tmp_path: Path, engine: str, workers: int
) -> AsyncIterator[MirrorService]:
    """A service of the test's own in front of `upstream`; at the end its mirror must be sound."""
    place, names = tmp_path / "mirror", [upstream.name]
    async with mirroring(
        forge,
        place,
        names=names,
        engine=engine,
        workers=workers,
        fast_lane=FAST_LANE[engine],
    ) as own:
        yield own
        await GitClient(tmp_path).fsck(own.mirror(upstream.name).path)


@pytest.fixture
def direct(forge: HttpBackend, upstream: Upstream) -> str:
    """The upstream's own URL."""
    return forge.repository_url(upstream.name)


@pytest.fixture
def through(mirror: MirrorService, upstream: Upstream) -> str:
    """The mirror's URL of `upstream`."""
    return mirror.url(upstream.name)


def build_upstream(root: Path) -> Upstream:
    """Make a repository with merges, directories, files of all sizes and every kind of tag."""
    upstream = Upstream(root, NAME)
    noise = bytes((number * number + number // 7) % 251 for number in range(200_000))
    upstream.commit(
        files={
            "README.md": "# GitOps\n",
            "base/deployment.yaml": "image: web:1.0.0\n" * 40,
            "base/assets/picture.bin": noise,
            "overlays/dev/kustomization.yaml": "resources: [../../base]\n",
            "overlays/prod-oslo/kustomization.yaml": "resources: [../../base]\n",
            "clusters/oslo-01/apps/very/deep/down/app.yaml": "app: web\n",
            "empty": "",
            "exactly-1k": "k" * 1024,
            "nearly-1k": "n" * 1023,
        },
        message="Begin",
    )
    upstream.tag("v1.0.0")
    upstream.history(12)
    upstream.branches({"release/1.0": upstream.oid()})
    for number in range(6):
        files = {"base/deployment.yaml": f"image: web:1.0.{number}\n" * 40}
        upstream.commit("release/1.0", files, message=f"Bump to 1.0.{number}")
        upstream.commit(files={f"overlays/dev/patch-{number}.yaml": f"replicas: {number}\n"})
    upstream.tag("v1.0.5", "release/1.0")
    upstream.commit(parents=["main", "release/1.0"], message="Merge release/1.0")
    upstream.tag("v1.1.0")
    upstream.tag("signed-off", "v1.1.0", message="A tag of a tag")
    upstream.tag("light", "main~3", annotated=False)
    upstream.tag("the-tree", "main^{tree}", annotated=False)
    upstream.tag("the-key", "main:README.md")  # as git.git keeps its maintainer's key
    upstream.commit(files={"base/deployment.yaml": None, "base/app.yaml": "image: web:2\n"})
    upstream.commit("gh-pages", {"index.html": "<h1>Docs</h1>\n"}, parents=[], message="A new root")
    upstream.commit("feature/x/y", {"x": "y\n"}, parents=["main~2"])
    upstream.history(5)
    return upstream
