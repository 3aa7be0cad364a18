"""One repository behind git's server and behind ours, made once per worker."""

from collections.abc import Iterator

import pytest

from tests.git_client import Upstream
from tests.wire.git_server import Both, mirror_of, populate


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """A repository with branches, merges, two roots and tags of every kind."""
    root = tmp_path_factory.mktemp("compared")
    upstream = Upstream(root)
    populate(upstream)
    compared = mirror_of(upstream, root / "mirror.git")
    yield compared
    compared.close()
