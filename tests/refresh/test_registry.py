"""Which repository a path or a webhook's URL means."""

from pathlib import Path
from typing import Any, cast

import pytest

from mirror.config import RepositorySettings
from mirror.errors import UnknownRepository
from mirror.refresh.mirror import Mirror
from mirror.refresh.registry import Hosted, Registry

UPSTREAMS = {
    "acme/app": "https://github.com/acme/app.git",
    "copy/of-app": "https://github.com/acme/app",
    "group/sub/project": "https://gitlab.example/group/sub/project.git",
}


@pytest.fixture
def registry() -> Registry:
    absent = cast("Any", None)  # nobody is asked anything here
    return Registry(
        Hosted.of(
            Mirror(RepositorySettings(name=name, upstream=upstream), Path("/nowhere")), absent
        )
        for name, upstream in UPSTREAMS.items()
    )


@pytest.mark.parametrize("form", ["{}", "/{}", "{}/", "{}.git", "/{}.git/"])
@pytest.mark.parametrize("name", UPSTREAMS)
def test_a_repository_is_found_with_and_without_its_suffix(
    registry: Registry, name: str, form: str
) -> None:
    assert registry.resolve(form.format(name)).name == name


@pytest.mark.parametrize("path", ["", "/", "acme", "acme/ap", "acme/app/x", "ACME/app", "x" * 9999])
def test_anything_else_is_unknown(registry: Registry, path: str) -> None:
    with pytest.raises(UnknownRepository) as caught:
        registry.resolve(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("urls", "names"),
    [
        (["https://github.com/acme/app"], {"acme/app", "copy/of-app"}),
        (
            ["git@github.com:acme/app.git", "https://github.com/acme/app"],
            {"acme/app", "copy/of-app"},
        ),
        (["https://gitlab.example/group/sub/project"], {"group/sub/project"}),
        (["https://github.com/acme/other", "no url"], set()),
        ([], set()),
    ],
)
def test_a_webhook_finds_every_mirror_of_what_it_names(
    registry: Registry, urls: list[str], names: set[str]
) -> None:
    found = [hosted.mirror.name for hosted in registry.find_by_urls(urls)]
    assert set(found) == names
    assert len(found) == len(names), "each once"


def test_all_can_be_listed(registry: Registry) -> None:
    assert [hosted.mirror.name for hosted in registry] == list(UPSTREAMS)
    assert len(registry) == 3
