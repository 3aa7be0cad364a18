"""A repository with a bit of everything, made once; nobody may change it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.repository.bare import BareRepository
from mirror.wire.names import ObjectId
from tests.repository.histories import Atlas, Scratch, make_atlas
from tests.repository.judge import Judge
from tests.repository.packing.building import pack_of


@pytest.fixture(scope="session")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return make_atlas(tmp_path_factory.mktemp("atlas") / "atlas.git")


@pytest.fixture(scope="session")
def repository(atlas: Atlas) -> Iterator[BareRepository]:
    """The atlas as the mirror reads it."""
    opened = atlas.scratch.open()
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def judge(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge(atlas.scratch, tmp_path_factory.mktemp("judge"))


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    """An empty mirror, to be filled by the test."""
    return Scratch(tmp_path / "mirror.git")


@pytest.fixture
def judge_of_scratch(scratch: Scratch, tmp_path: Path) -> Judge:
    return Judge(scratch, tmp_path / "judge")


@pytest.fixture
def filled(scratch: Scratch, atlas: Atlas) -> BareRepository:
    """A mirror with the atlas's objects and no refs."""
    listed = atlas.scratch.git("rev-list", "--all", "--objects", "--no-object-names")
    oids = map(ObjectId, listed.split())
    scratch.git("index-pack", "--stdin", stdin=pack_of(atlas.scratch, oids))
    return scratch.open()
